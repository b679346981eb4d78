"""The judge's book of leases: who holds what, and which routers live (I13, R8).

Invariant: a lease is granted once, by one router, on a replica that it knew as ready, and ends once, by that router.
"""

from typing import Final

from tests.ordeal.ledger import Ledger, require

GONE_NS: Final = 5_000_000_000
"""A router silent for so long is gone, and its leases with it (T2)."""


class Leases:
    """Told by the machine, beside the log."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._said: dict[str, int] = {}
        self._held: dict[str, tuple[str, str]] = {}
        self._spent: set[str] = set()
        self._forfeited: set[str] = set()

    def reported(self, router: str, *, now_ns: int) -> None:
        before = self._said.get(router)
        if before is not None and now_ns - before >= GONE_NS:
            # It was gone, and its leases with it: that it is back saves nobody whom it served.
            self._forfeited.update(lease for lease, held in self._held.items() if held[0] == router)
        self._said[router] = now_ns

    def died(self, router: str) -> None:
        """A router is gone, and nothing that it held is heard of again."""
        self._said.pop(router, None)
        for lease in [lease for lease, held in self._held.items() if held[0] == router]:
            del self._held[lease]
            self._spent.add(lease)

    def granted(self, router: str, lease: str, replica: str, *, folded: int) -> None:
        """A router that has folded so far sends a request to `replica`."""
        require("I13", lease not in self._held and lease not in self._spent, f"lease {lease} twice")
        life = self._ledger.lives.get(replica) or self._ledger.ended_lives.get(replica)
        require("I13", life is not None, f"lease {lease} on {replica}, which never was")
        if life is not None:
            ready = life.ready_at is not None and life.ready_at <= folded
            left = life.leaving_at is not None and life.leaving_at <= folded
            require("I13", ready and not left, f"lease {lease}, folded to {folded}, on {life}")
            place = self._ledger.places.get(life.node)
            knows = folded >= self._ledger.subjects.get(("node", life.node), 0)
            serves = place is not None and place.admission == "approved" and place.liveness == "alive"
            require("N1", serves or not knows, f"lease {lease} on {place}")
        self._held[lease] = (router, replica)

    def ended(self, router: str, lease: str) -> None:
        """Its request is over."""
        held = self._held.pop(lease, None)
        require("I13", held is not None and held[0] == router, f"lease {lease} of {held} is ended by {router}")
        self._spent.add(lease)

    def on(self, replica: str, *, now_ns: int) -> list[str]:
        """The leases that living routers hold on `replica`."""
        living = {router for router, said_ns in self._said.items() if now_ns - said_ns < GONE_NS}
        return [
            lease
            for lease, held in self._held.items()
            if held[1] == replica and held[0] in living and lease not in self._forfeited
        ]
