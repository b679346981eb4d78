"""Whose story an event belongs to: that of the replica it is about (rule H1). Pure.

Invariant: the command, and so the event's id, stays what it was; only correlation, causation and trace are told apart.
"""

from typing import Any

import msgspec

from modelyard_events.envelope import AnyEvent, Envelope, instant
from modelyard_events.ids import ReplicaId, ReservationId
from modelyard_events.reservation import ReplicaHolder
from modelyard_projections.fleet import Fleet, Ready, ReplicaState


def of_its_replica(fleet: Fleet, event: AnyEvent, envelope: Envelope) -> Envelope:
    """`envelope` with the correlation and the last event of the replica that `event` is about, as `fleet` has them.

    The trace goes on until the replica is loaded or gone: what befalls a ready one, hours later perhaps, is no part of
    the request that once loaded it. An event about none, or about several at once, stays the command's own. Facts
    decided together share what led to the first of them.
    """
    state = _replica_of(fleet, event)
    if state is None:
        return envelope
    trace = None if isinstance(state.phase, Ready) else state.trace
    return msgspec.structs.replace(
        envelope, correlation=state.correlation, causation=state.cause, trace=trace or envelope.trace
    )


def as_it_occurred(occurred_ns: int | None, envelope: Envelope) -> Envelope:
    """`envelope` with the worker's time of what the event tells; the log's own time stays the only one that counts."""
    if occurred_ns is None:
        return envelope
    return msgspec.structs.replace(envelope, occurred_at=instant(occurred_ns))


def _replica_of(fleet: Fleet, event: AnyEvent) -> ReplicaState | None:
    named: list[ReplicaId] = _named(event, "replica") or _holders(fleet, _named(event, "reservation"))
    return fleet.replicas.get(named[0]) if len(named) == 1 else None


def _holders(fleet: Fleet, reservations: list[ReservationId]) -> list[ReplicaId]:
    states = [fleet.reservations[each] for each in reservations if each in fleet.reservations]
    return [state.holder.replica for state in states if isinstance(state.holder, ReplicaHolder)]


def _named(event: AnyEvent, thing: str) -> list[Any]:
    """The ids that an event holds, in `replica` or `replicas`, `reservation` or `reservations`."""
    one = getattr(event, thing, None)
    return [one] if one is not None else [*getattr(event, f"{thing}s", ())]
