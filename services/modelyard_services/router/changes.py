"""The log told as changes of models and their replicas, for those who watch over gRPC.

Invariant: every change is in its model's own events, so it can be told from any sequence on without a fold, in
order, each once; the last sequence told is where to go on from.
"""

from collections.abc import AsyncIterator, Iterable
from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from modelyard_events.base import ModelEvent
from modelyard_events.codec import decode, tag_of
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
from modelyard_events.subjects import model_subject
from modelyard_services.effects.log.contract import Log
from modelyard_services.router.proto.modelyard.v1.scheduler_pb2 import Change, ModelChange, ReplicaChange


async def changes(log: Log, *, after: int, model: ModelName | None) -> AsyncIterator[Change]:
    """All changes after that sequence, of one model or of all, and then those to come.

    Raises:
        LogFailure: the log can't be read on.
        UndecodableEventError: an event needs a newer reader.
    """
    subject = None if model is None else model_subject(model)
    async for chunk in log.follow(after=after, subject=subject):
        for stored in chunk:
            recorded = decode(stored.body, sequence=stored.sequence, time_ns=stored.time_ns, event_id=stored.event_id)
            for change in changes_of(recorded):
                yield change


def changes_of(recorded: Recorded) -> list[Change]:
    """What one event changes for those who watch; nothing for events of nodes and of the fleet."""
    event = recorded.event
    if not isinstance(event, ModelEvent):
        return []
    replicas = _replicas(recorded)
    if replicas is None:
        revision = event.revision if isinstance(event, ModelDefined | ModelRedefined) else ""
        changed = ModelChange(type=tag_of(event), revision=revision)
        return [_change(recorded, event.model, changed=changed)]
    return [_change(recorded, event.model, replica=replica) for replica in replicas]


def _replicas(recorded: Recorded) -> list[ReplicaChange] | None:
    match recorded.event:
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
