"""What a node's own events come to in the judge's books, and who may append them (I6, I8, N1-N5, N13).

Invariant: an event that contradicts those before it is an error of whoever decided it, and is named.
"""

from collections.abc import Sequence
from typing import assert_never

from modelyard_events.envelope import Recorded
from modelyard_events.node import (
    NodeApproved,
    NodeCapacityChanged,
    NodeCordoned,
    NodeDeparted,
    NodeDrainFinished,
    NodeDrainStarted,
    NodeIncarnationStarted,
    NodeLabelsChanged,
    NodeLost,
    NodeMaxReplicasOverridden,
    NodeOverrideCleared,
    NodeOwnEvent,
    NodeRecovered,
    NodeRegistered,
    NodeRejected,
    NodeRemoved,
    NodeResumed,
    NodeVramBudgetOverridden,
    NodeWatchdogOverridden,
)
from tests.ordeal.ledger import Ledger, Place, require

OPERATORS_ONLY = (
    NodeRejected,
    NodeLabelsChanged,
    NodeCordoned,
    NodeDrainStarted,
    NodeResumed,
    NodeMaxReplicasOverridden,
    NodeVramBudgetOverridden,
    NodeWatchdogOverridden,
    NodeOverrideCleared,
    NodeRemoved,
)
"""Events that change what operators set (I8)."""


def hear_node(  # noqa: C901, PLR0912, PLR0915 - one arm per event; splitting would hide which are judged
    ledger: Ledger, event: NodeOwnEvent, recorded: Recorded, batch: Sequence[Recorded]
) -> None:
    """Keep the books of one event."""
    name, actor = event.node, recorded.envelope.actor
    if isinstance(event, NodeRegistered):
        require("N3", name not in ledger.places, f"{name} registers twice")
        ledger.places[name] = Place(name, event.node_type, liveness="departed")
        return
    require("N13", name in ledger.places, f"{event} of a node that isn't there")
    place = ledger.places[name]
    match event:
        case NodeIncarnationStarted():
            require("N2", event.incarnation != place.incarnation, f"{event.incarnation} starts twice")
            place.incarnation, place.facts, place.liveness = event.incarnation, event.facts, "alive"
            place.gpus, place.ram = event.facts.gpus, event.facts.vram_total
        case NodeApproved():
            first = any(isinstance(one.event, NodeRegistered) and one.event.node == name for one in batch)
            automatic = event.automatic and first and actor.kind == "worker"
            require("I6", automatic or actor.kind == "operator", f"{actor} approves {name}: {event}")
            place.admission = "approved"
        case NodeRejected():
            place.admission = "rejected"
        case NodeLabelsChanged():
            for key in event.removed:
                place.operator_labels.pop(str(key), None)
            place.operator_labels.update({str(key): value for key, value in event.changed.items()})
        case NodeCordoned():
            place.intent = "cordoned"
        case NodeDrainStarted():
            place.intent = "draining"
        case NodeDrainFinished():
            require("N10", place.intent == "draining", f"{name} is empty, and was {place.intent}")
            place.intent = "drained"
        case NodeResumed():
            place.intent = "schedulable"
        case NodeLost():
            _of_this_life(place, event.incarnation, "alive")
            place.liveness = "lost"
            place.grace_until_ns = recorded.time_ns + round(event.grace_seconds * 1_000_000_000)
        case NodeRecovered():
            _of_this_life(place, event.incarnation, "lost")
            place.liveness = "alive"
        case NodeDeparted():
            _of_this_life(place, event.incarnation, "alive", "lost")
            place.liveness = "departed"
        case NodeCapacityChanged():
            place.gpus, place.ram = event.gpus, event.vram_total
        case NodeMaxReplicasOverridden():
            place.cap_override = event.max_replicas_per_model
        case NodeVramBudgetOverridden():
            place.budget_override = (event.vram_budget,)
        case NodeWatchdogOverridden():
            place.watchdog = event.overrides
        case NodeOverrideCleared():
            if event.override == "vram_budget":
                place.budget_override = None
            else:
                place.cap_override = None
        case NodeRemoved():
            left = [claim.id for claim in ledger.held(name)] + [life.id for life in ledger.on(name)]
            require("N13", not left, f"{name} is removed, and {left} stay")
            del ledger.places[name]
        case _:
            assert_never(event)


def _of_this_life(place: Place, incarnation: str, *liveness: str) -> None:
    require("N8", place.incarnation == incarnation, f"{incarnation} of {place.name}, which is {place.incarnation}")
    require("N9", place.liveness in liveness, f"{place.name} was {place.liveness}, not {liveness}")
