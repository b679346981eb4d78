"""How replica events change slots and phases.

Invariant: a slot is taken by `placed` and freed by `unloaded` and by nothing else (I2), whatever the worker or
the network does between.
"""

from typing import assert_never

import msgspec

from modelyard_events.envelope import Recorded
from modelyard_events.ids import ModelName, NodeName, ReplicaId
from modelyard_events.replica import (
    ReplicaAdopted,
    ReplicaCrashed,
    ReplicaDrainStarted,
    ReplicaEvent,
    ReplicaLoaded,
    ReplicaLoadFailed,
    ReplicaLoadStarted,
    ReplicaPlaced,
    ReplicaStopRequested,
    ReplicaUnloaded,
)
from modelyard_projections.fleet.evolve_node import NANOSECONDS
from modelyard_projections.fleet.picture import FleetState
from modelyard_projections.fleet.state import (
    Draining,
    LoadFailures,
    Loading,
    NodeState,
    Placed,
    Ready,
    ReplicaState,
)


def evolve_replica(  # noqa: C901 - one arm per event; splitting would hide which are handled
    fleet: FleetState, event: ReplicaEvent, recorded: Recorded
) -> None:
    """Apply one replica event."""
    match event:
        case ReplicaPlaced():
            _place(fleet, event, recorded)
        case ReplicaLoadStarted() | ReplicaLoaded() | ReplicaAdopted():
            _advance(_touched(fleet, event.replica, recorded), event, recorded)
            if isinstance(event, ReplicaLoaded):
                _note_success(fleet, event.replica)
        case ReplicaLoadFailed() | ReplicaCrashed():
            _note_failure(fleet, event, recorded)
        case ReplicaDrainStarted():
            for replica in event.replicas:
                _drain(_touched(fleet, replica, recorded), event, recorded)
        case ReplicaStopRequested():
            for replica in event.replicas:
                _stop(_touched(fleet, replica, recorded), event)
        case ReplicaUnloaded():
            for replica in event.replicas:
                _end(fleet, replica, recorded)
        case _:
            assert_never(event)


def _touched(fleet: FleetState, replica: ReplicaId, recorded: Recorded) -> ReplicaState:
    state = fleet.replicas[replica]
    state.sequence = recorded.sequence
    state.cause, state.correlation = recorded.event_id, recorded.envelope.correlation
    state.trace = recorded.envelope.trace
    fleet.touch("replica", replica)
    return state


def _place(fleet: FleetState, event: ReplicaPlaced, recorded: Recorded) -> None:
    node, model = fleet.nodes[NodeName(event.node)], ModelName(event.model)
    deadline = None if event.waits_for else recorded.time_ns + round(event.accept_seconds * NANOSECONDS)
    fleet.replicas[event.replica] = ReplicaState(
        id=event.replica,
        node=node.name,
        model=model,
        replica_index=event.replica_index,
        revision=event.revision,
        launch=event.launch,
        phase=Placed(deadline),
        reservation=event.reservation,
        footprint_rule=event.footprint_rule,
        since_ns=recorded.time_ns,
        sequence=recorded.sequence,
        cause=recorded.event_id,
        correlation=recorded.envelope.correlation,
        trace=recorded.envelope.trace,
        gpus=event.gpus,
        groups=event.groups,
        pinned=event.pinned,
        max_concurrency=event.max_concurrency,
        exclusive=event.exclusive,
        waits_for=event.waits_for,
        replaces=event.replaces,
        accept_seconds=event.accept_seconds,
        load_seconds=event.load_seconds,
    )
    node.replicas[event.replica] = None
    node.slots.setdefault(model, {})[event.replica_index] = event.replica
    fleet.touch("replica", event.replica)
    fleet.touch("node", node.name)


def _advance(
    state: ReplicaState, event: ReplicaLoadStarted | ReplicaLoaded | ReplicaAdopted, recorded: Recorded
) -> None:
    now_ns = recorded.time_ns
    state.since_ns = now_ns
    match event:
        case ReplicaLoadStarted():
            state.phase = Loading(event.process, now_ns + round(state.load_seconds * NANOSECONDS))
        case ReplicaLoaded():
            process = state.process
            if process is None:
                raise KeyError(f"process of {state.id}")
            state.phase, state.loaded_ns = Ready(process, event.address), now_ns
        case ReplicaAdopted():
            _adopt(state, event)
        case _:
            assert_never(event)


def _adopt(state: ReplicaState, event: ReplicaAdopted) -> None:
    match state.phase:
        case Draining(address=address):
            # A worker that forgot the address says nothing of the requests on it: they still end, or their deadline.
            state.phase = msgspec.structs.replace(state.phase, process=event.process, address=event.address or address)
        case Ready(address=address):
            state.phase = Ready(event.process, event.address or address)
        case Loading(deadline_ns=deadline_ns):
            state.phase = Loading(event.process, deadline_ns)
        case Placed():
            raise KeyError(f"process of {state.id}")
        case _:
            assert_never(state.phase)


def _drain(state: ReplicaState, event: ReplicaDrainStarted, recorded: Recorded) -> None:
    phase = state.phase
    state.phase = Draining(
        reason=event.reason,
        deadline_ns=recorded.time_ns + round(event.deadline_seconds * NANOSECONDS),
        process=state.process,
        address=phase.address if isinstance(phase, Ready | Draining) else None,
    )
    state.since_ns = recorded.time_ns


def _stop(state: ReplicaState, event: ReplicaStopRequested) -> None:
    if not isinstance(state.phase, Draining):
        raise KeyError(f"drain of {state.id}")
    state.phase = msgspec.structs.replace(state.phase, stopping=True, forced=event.forced)


def _end(fleet: FleetState, replica: ReplicaId, recorded: Recorded) -> None:
    state = fleet.replicas.pop(replica)
    node = fleet.nodes[state.node]
    del node.replicas[replica]
    _free_slot(fleet, node, state)
    fleet.touch("replica", replica)
    fleet.touch("node", node.name)
    _free_newcomers(fleet, state, recorded)


def _free_slot(fleet: FleetState, node: NodeState, ended: ReplicaState) -> None:
    """A slot goes back to the victim that a newcomer waited for, when the newcomer ends first."""
    slots = node.slots[ended.model]
    if slots.get(ended.replica_index) != ended.id:
        return
    victims = [fleet.replicas[victim] for victim in ended.waits_for if victim in fleet.replicas]
    heirs = [each.id for each in victims if (each.model, each.replica_index) == (ended.model, ended.replica_index)]
    if heirs:
        slots[ended.replica_index] = heirs[0]
    else:
        del slots[ended.replica_index]
    if not slots:
        del node.slots[ended.model]


def _free_newcomers(fleet: FleetState, ended: ReplicaState, recorded: Recorded) -> None:
    """A newcomer's deadline starts when the last victim it waits for has ended (P3)."""
    for replica in fleet.nodes[ended.node].replicas:
        newcomer = fleet.replicas[replica]
        if ended.id not in newcomer.waits_for:
            continue
        newcomer.waits_for = tuple(victim for victim in newcomer.waits_for if victim != ended.id)
        if not newcomer.waits_for and isinstance(newcomer.phase, Placed):
            newcomer.phase = Placed(recorded.time_ns + round(newcomer.accept_seconds * NANOSECONDS))
            fleet.nodes[ended.node].slots.setdefault(newcomer.model, {})[newcomer.replica_index] = newcomer.id
            # It may load because this ended; why it is there at all stays its own story.
            newcomer.cause = recorded.event_id
        fleet.touch("replica", newcomer.id)


def _note_success(fleet: FleetState, replica: ReplicaId) -> None:
    state = fleet.replicas[replica]
    node = fleet.nodes[state.node]
    if node.load_failures.pop(state.model, None):
        fleet.touch("node", node.name)


def _note_failure(fleet: FleetState, event: ReplicaLoadFailed | ReplicaCrashed, recorded: Recorded) -> None:
    state = _touched(fleet, event.replica, recorded)
    node = fleet.nodes[state.node]
    before = node.load_failures.get(state.model)
    node.load_failures[state.model] = LoadFailures(1 + (before.count if before else 0), recorded.time_ns)
    fleet.touch("node", node.name)
