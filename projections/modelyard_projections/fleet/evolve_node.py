"""How a node's own events change it: four facets, none derived from another (rule N1).

Invariant: nothing but an operator's event changes admission, operator labels, intent or overrides (I6, I8).
"""

from typing import assert_never

import msgspec

from modelyard_events.envelope import Recorded
from modelyard_events.ids import IncarnationId, NodeName
from modelyard_events.node import (
    NodeApproved,
    NodeCapacityChanged,
    NodeCordoned,
    NodeDeparted,
    NodeDrainFinished,
    NodeDrainStarted,
    NodeFacts,
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
    Overridable,
)
from modelyard_projections.fleet.picture import FleetState
from modelyard_projections.fleet.state import (
    Alive,
    Cordoned,
    Departed,
    Lost,
    NodeDraining,
    NodeState,
    Schedulable,
)

NANOSECONDS = 1_000_000_000


def evolve_node(fleet: FleetState, event: NodeOwnEvent, recorded: Recorded) -> None:
    """Apply one of the node's own events."""
    name = NodeName(event.node)
    fleet.touch("node", name)
    match event:
        case NodeRegistered():
            fleet.nodes[name] = _new_node(event, recorded)
        case NodeRemoved():
            del fleet.nodes[name]
            return
        case _:
            _change(fleet.nodes[name], event, recorded)
    fleet.nodes[name].sequence = recorded.sequence


def _new_node(event: NodeRegistered, recorded: Recorded) -> NodeState:
    # Unheard until its first incarnation starts, in the same append.
    return NodeState(
        name=NodeName(event.node),
        node_type=event.node_type,
        admission="pending",
        intent=Schedulable(),
        incarnation=IncarnationId(""),
        liveness=Departed(recorded.time_ns),
        facts=NodeFacts(address=""),
        secret_digest="",
        since_ns=recorded.time_ns,
        sequence=recorded.sequence,
    )


def _change(  # noqa: C901, PLR0912 - one arm per event; splitting would hide which are handled
    node: NodeState, event: NodeOwnEvent, recorded: Recorded
) -> None:
    now_ns = recorded.time_ns
    match event:
        case NodeIncarnationStarted():
            node.incarnation, node.secret_digest = event.incarnation, event.secret_digest
            node.facts, node.liveness = event.facts, Alive(now_ns)
            node.derive()
        case NodeApproved():
            node.admission = "approved"
        case NodeRejected():
            node.admission = "rejected"
        case NodeCordoned():
            node.intent = Cordoned()
        case NodeDrainStarted():
            node.intent = NodeDraining(now_ns + round(event.deadline_seconds * NANOSECONDS))
        case NodeDrainFinished():
            if isinstance(node.intent, NodeDraining):
                node.intent = msgspec.structs.replace(node.intent, finished=True)
        case NodeResumed():
            node.intent = Schedulable()
        case NodeLost():
            node.liveness = Lost(now_ns, now_ns + round(event.grace_seconds * NANOSECONDS))
        case NodeRecovered():
            node.liveness = Alive(now_ns)
        case NodeDeparted():
            node.liveness = Departed(now_ns)
        case (
            NodeLabelsChanged()
            | NodeCapacityChanged()
            | NodeMaxReplicasOverridden()
            | NodeVramBudgetOverridden()
            | NodeOverrideCleared()
        ):
            _change_capacity(node, event)
            node.derive()
        case NodeWatchdogOverridden():
            node.watchdog = event.overrides
        case NodeRegistered() | NodeRemoved():
            raise AssertionError("applied to the fleet, not to a node")
        case _:
            assert_never(event)


def _change_capacity(
    node: NodeState,
    event: NodeLabelsChanged
    | NodeCapacityChanged
    | NodeMaxReplicasOverridden
    | NodeVramBudgetOverridden
    | NodeOverrideCleared,
) -> None:
    match event:
        case NodeLabelsChanged():
            kept = {key: value for key, value in node.operator_labels.items() if key not in event.removed}
            node.operator_labels = {**kept, **event.changed}
        case NodeCapacityChanged():
            node.facts = msgspec.structs.replace(
                node.facts,
                gpus=event.gpus,
                vram_total=event.vram_total,
                ram_total=event.ram_total,
                disk_total=event.disk_total,
            )
        case NodeMaxReplicasOverridden():
            node.max_replicas_override = event.max_replicas_per_model
        case NodeVramBudgetOverridden():
            node.budget_overridden, node.budget_override = True, event.vram_budget
        case NodeOverrideCleared():
            _clear_override(node, event.override)
        case _:
            assert_never(event)


def _clear_override(node: NodeState, override: Overridable) -> None:
    match override:
        case "max_replicas_per_model":
            node.max_replicas_override = None
        case "vram_budget":
            node.budget_overridden, node.budget_override = False, None
        case _:
            assert_never(override)
