"""A simulated router: the product's own board and lease book; its probes ask the story instead of a process.

Invariant: a lease is granted by the ranking that the product uses, and none on a replica whose process, asked, is
not there (rules T1, T2, T4).
"""

from collections.abc import Callable
from typing import Final

import msgspec

from modelyard_events.ids import LeaseId, ModelName, ReplicaId
from modelyard_events.telemetry import RouterReport
from modelyard_projections.demand import Demand
from modelyard_projections.fleet import Fleet, Touched
from modelyard_services.policy.affinity import Pick
from modelyard_services.policy.probing import Answer, usable_seconds
from modelyard_services.policy.routing import Candidate
from modelyard_services.router.board import Board
from modelyard_services.router.leases import Lease, LeaseBook

NANOSECONDS: Final = 1_000_000_000

Ask = Callable[[ReplicaId], Answer]


class Shut(msgspec.Struct, frozen=True):
    """A replica that this router takes out: its process didn't answer."""

    replica: ReplicaId
    answer: Answer


class SimulatedRouter:
    """One router incarnation, its leases, and how far it has folded.

    A `slow` one folds only when it is told to catch up; what a `cut_off` one says reaches nobody.
    """

    def __init__(self, name: str, fleet: Fleet, demand: Demand) -> None:
        self.name = name
        self.leases: dict[LeaseId, Lease] = {}
        self.folded = fleet.sequence
        self.slow = False
        self.cut_off = False
        self._fleet = fleet
        self._book = LeaseBook(name)
        self._board = Board(fleet, demand, self._book)
        self._demand = demand
        self._behind: list[Touched] = []
        self._good_until_ns: dict[ReplicaId, int] = {}

    def hear_log(self, touched: list[Touched]) -> None:
        """The log went on."""
        self._behind += touched
        if not self.slow:
            self.catch_up()

    def catch_up(self) -> None:
        """Fold to the log's end."""
        self._board.fold(self._behind)
        self._behind = []
        self.folded = self._fleet.sequence

    def route(self, model: ModelName, ask: Ask, *, now_ns: int) -> tuple[Lease | None, list[Shut]]:
        """A lease on the best replica whose process is there, and those found gone on the way."""
        shut: list[Shut] = []
        while (candidate := self._board.best(model)) is not None:
            if self._good_until_ns.get(candidate.replica, 0) > now_ns:
                return self.grant(candidate, now_ns=now_ns), shut
            answer = ask(candidate.replica)
            seconds = usable_seconds(answer, serving=candidate.in_flight > 0)
            if seconds is not None:
                self._good_until_ns[candidate.replica] = now_ns + round(seconds * NANOSECONDS)
                return self.grant(candidate, now_ns=now_ns), shut
            self._board.shut(candidate)
            shut.append(Shut(candidate.replica, answer))
        return None, shut

    def serve(self, replica: ReplicaId, *, count: int, now_ns: int) -> bool:
        """Hold `count` leases on `replica`, whatever the ranking says; False where nothing may be routed to it."""
        for lease in [each for each in self.leases.values() if each.replica == replica]:
            self.release(lease.lease, now_ns=now_ns)
        candidate = self._board.get(replica)
        for _ in range(count if candidate is not None else 0):
            self.grant(candidate, now_ns=now_ns)  # type: ignore[arg-type]  # the range is empty then
        return candidate is not None or not count

    def grant(self, candidate: Candidate, *, now_ns: int) -> Lease:
        lease = self._board.grant(Pick(candidate), now_ns=now_ns, seconds=None)
        self.leases[lease.lease] = lease
        return lease

    def release(self, lease: LeaseId, *, now_ns: int) -> Lease | None:
        """The request is over."""
        self.leases.pop(lease, None)
        return self._board.end(lease, now_ns=now_ns)

    def drop_broken(self, *, now_ns: int) -> list[Lease]:
        """Leases on replicas that ended broke with their connections."""
        broken = [lease for lease in self.leases.values() if lease.replica not in self._fleet.replicas]
        for lease in broken:
            self.release(lease.lease, now_ns=now_ns)
        return broken

    def report(self) -> RouterReport:
        """What the others are told."""
        in_flight: dict[ReplicaId, int] = {}
        for lease in self.leases.values():
            in_flight[lease.replica] = in_flight.get(lease.replica, 0) + 1
        return RouterReport(self.name, self.folded, in_flight, dict(self._board.used()))

    def hear_others(self, *, now_ns: int) -> None:
        """What the other living routers hold."""
        others = self._demand.live_routers(self._fleet.settings, now_ns=now_ns, without=self.name)
        self._board.hear(others, live={each.router for each in others}, used=tuple(self._demand.last_used_ns))

    def try_again(self, ask: Ask) -> list[ReplicaId]:
        """Ask the replicas that are shut; those that answer are back."""
        back = []
        for candidate in self._board.shut_ones():
            if usable_seconds(ask(candidate.replica), serving=candidate.in_flight > 0) is not None:
                self._board.reopen(candidate)
                back.append(candidate.replica)
        return back
