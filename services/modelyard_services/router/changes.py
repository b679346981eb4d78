"""The log told as changes of models and their replicas, for those who watch over gRPC.

Invariant: changes are told in order, each once, and can be told from any sequence on; the last sequence told is where
to go on from.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import assert_never

from google.protobuf.timestamp_pb2 import Timestamp

from modelyard_events.base import FleetEvent, ModelEvent, NodeEvent
from modelyard_events.codec import tag_of
from modelyard_events.envelope import Recorded
from modelyard_events.ids import ModelName, ReplicaId
from modelyard_events.model import (
    ModelDefined,
    ModelRedefined,
    ModelReplicaAdded,
    ModelReplicaDraining,
    ModelReplicaEnded,
    ModelReplicaReady,
)
from modelyard_events.node import NodeLost, NodeRecovered
from modelyard_events.replica import ReplicaAdopted
from modelyard_projections.homes import Home, Homes
from modelyard_services.router.proto.modelyard.v1.scheduler_pb2 import Change, ModelChange, ReplicaChange


def changes_of(recorded: Recorded, homes: Homes, *, model: ModelName | None = None) -> list[Change]:
    """What one event changes for those who watch `model`, or all; `homes` has folded the event or is about to."""
    event = recorded.event
    match event:
        case ModelEvent() if model in {None, event.model}:
            return _of_model(recorded, event)
        case NodeLost() | NodeRecovered() | ReplicaAdopted():
            return _of_node(recorded, event, homes, model)
        case ModelEvent() | NodeEvent() | FleetEvent():
            return []
        case _:
            assert_never(event)


def _of_model(recorded: Recorded, event: ModelEvent) -> list[Change]:
    replicas = _replicas(event)
    if replicas is None:
        revision = event.revision if isinstance(event, ModelDefined | ModelRedefined) else ""
        return [_change(recorded, event.model, changed=ModelChange(type=tag_of(recorded.event), revision=revision))]
    return [_change(recorded, event.model, replica=replica) for replica in replicas]


def _replicas(event: ModelEvent) -> list[ReplicaChange] | None:
    match event:
        case ModelReplicaAdded(replica=replica, node=node, replica_index=index, revision=revision):
            placed = ReplicaChange.STATE_PLACED
            return [ReplicaChange(replica=replica, state=placed, node=node, replica_index=index, revision=revision)]
        case ModelReplicaReady(replica=replica):
            return [ReplicaChange(replica=replica, state=ReplicaChange.STATE_READY)]
        case ModelReplicaDraining(replicas=replicas, reason=reason):
            return _each(replicas, ReplicaChange.STATE_DRAINING, reason)
        case ModelReplicaEnded(replicas=replicas, reason=reason, detail=detail):
            return _each(replicas, ReplicaChange.STATE_UNLOADED, reason, detail)
        case _:
            return None  # a change of the model itself, told by its tag


def _of_node(
    recorded: Recorded, event: NodeLost | NodeRecovered | ReplicaAdopted, homes: Homes, model: ModelName | None
) -> list[Change]:
    """Replicas that can't be reached any more, or can again: in the state they had."""
    if isinstance(event, ReplicaAdopted):
        # One of hundreds in a worker's restart: looked up, not searched for.
        home = homes.replicas.get(event.replica)
        found = [(event.replica, home)] if home is not None and home.lives_before(recorded.sequence) else []
    else:
        found = homes.on_node(event.node, before=recorded.sequence)
    lost = isinstance(event, NodeLost)
    return [
        _change(
            recorded,
            home.model,
            replica=ReplicaChange(
                replica=replica,
                state=ReplicaChange.STATE_UNREACHABLE if lost else _state(home, recorded.sequence),
                node=home.node,
                reason=tag_of(recorded.event),
            ),
        )
        for replica, home in found
        if model in {None, home.model}
    ]


def _state(home: Home, sequence: int) -> ReplicaChange.State:
    """The state of a living replica before that sequence."""
    if home.draining is not None and home.draining < sequence:
        return ReplicaChange.STATE_DRAINING
    if home.ready is not None and home.ready < sequence:
        return ReplicaChange.STATE_READY
    return ReplicaChange.STATE_PLACED


def _each(
    replicas: Iterable[ReplicaId], state: ReplicaChange.State, reason: str, detail: str = ""
) -> list[ReplicaChange]:
    return [ReplicaChange(replica=replica, state=state, reason=reason, detail=detail) for replica in replicas]


def timestamp(time: datetime) -> Timestamp:
    """`time` as protobuf has it."""
    stamp = Timestamp()
    stamp.FromDatetime(time)
    return stamp


def _change(
    recorded: Recorded, model: str, *, replica: ReplicaChange | None = None, changed: ModelChange | None = None
) -> Change:
    time = timestamp(recorded.time)
    return Change(sequence=recorded.sequence, time=time, model=model, replica=replica, changed=changed)
