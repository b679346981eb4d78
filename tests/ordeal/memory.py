"""The judge of memory: every reservation once, and room for each when it is granted (I1, I7, X5).

Invariant: what may be in use at once is counted in every order in which victims may end.
"""

from collections.abc import Iterable
from itertools import chain, combinations
from typing import Final, assert_never

from modelyard_events.reservation import (
    ReplicaHolder,
    ReservationEvent,
    ReservationGranted,
    ReservationReleased,
    ReservationResized,
)
from tests.ordeal.ledger import Claim, Ledger, require

VICTIMS_TRIED_MAX: Final = 10
"""Of one node: every order in which they may end is tried, and there are two to that power."""


def hear_reservation(ledger: Ledger, event: ReservationEvent) -> None:
    """Keep the books of one event."""
    match event:
        case ReservationGranted():
            identity = event.reservation
            require("I7", identity not in ledger.claims and identity not in ledger.released, f"{identity} twice")
            replica = event.holder.replica if isinstance(event.holder, ReplicaHolder) else None
            ledger.claims[identity] = Claim(identity, event.node, dict(event.vram), replica)
            if replica is not None:
                life = ledger.life(replica, event.node, "placed")
                require("I7", life.reservation == identity, f"{identity} for {life}")
            check_room(ledger, ledger.claims[identity])
        case ReservationResized():
            claim = ledger.claims.get(event.reservation)
            require("I7", claim is not None, f"{event.reservation} is resized, and released")
            if claim is not None:
                holder = ledger.lives.get(claim.replica or "")
                require("X5", holder is None or holder.stage == "ready", f"{holder} is measured in mid-load")
                claim.vram = dict(event.vram)
                if holder is not None:
                    holder.exclusive = False
        case ReservationReleased():
            for identity in event.reservations:
                require("I7", identity in ledger.claims, f"{identity} is released, and not held")
                del ledger.claims[identity]
                ledger.released.add(identity)
        case _:
            assert_never(event)


def check_room(ledger: Ledger, newcomer: Claim) -> None:
    """I1: whatever can be in use beside the newcomer fits with it, in whatever order victims end."""
    node, vram = newcomer.node, newcomer.vram
    place = ledger.places[node]
    totals, budget = place.totals(), place.budget()
    if not any(vram.values()):
        return
    require("I1", set(vram) <= set(totals), f"{vram} of {totals}")
    for running in _possible(ledger, node):
        # Without the newcomer there may be too much: a cap that shrank, a footprint that was measured larger.
        if newcomer in running:
            used: dict[int, int] = {}
            for claim in running:
                for device, size in claim.vram.items():
                    used[device] = used.get(device, 0) + size
            over = [device for device, size in vram.items() if size and used.get(device, 0) > totals[device]]
            require("I1", not over, f"{newcomer} on {node}: {used} of {totals}, budget {budget}")
            require("I1", sum(used.values()) <= budget, f"{newcomer} on {node}: {used}, budget {budget}")


def _possible(ledger: Ledger, node: str) -> Iterable[list[Claim]]:
    """What may hold memory together: each set of victims that ended lets those newcomers in that waited for it."""
    claims = ledger.held(node)
    waits = {life.id: life.waits_for for life in ledger.on(node) if life.waits_for}
    victims = sorted(set(chain.from_iterable(waits.values())))
    require("I1", len(victims) <= VICTIMS_TRIED_MAX, f"{victims} are waited for on {node}")
    for size in range(len(victims) + 1):
        for ended in combinations(victims, size):
            gone = set(ended)
            out = gone | {newcomer for newcomer, waited in waits.items() if not waited <= gone}
            yield [claim for claim in claims if claim.replica not in out]
