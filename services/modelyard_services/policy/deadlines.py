"""Every transitional state ends: accepted, loaded, drained or given back in time (rules R1, R8, C7, C6, R3).

Invariant: a deadline is the log's time, and a load that shows progress is never killed by a fixed one (X25).
A node that isn't alive is left to its grace.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Final, assert_never

from modelyard_events.envelope import AnyEvent
from modelyard_events.ids import CommandId, ReplicaId, ReservationId
from modelyard_events.replica import ReplicaLoadFailed
from modelyard_events.reservation import ReservationReleased
from modelyard_projections.demand import Demand, HeardNode
from modelyard_projections.fleet import Alive, Draining, Fleet, Loading, NodeState, Placed, Ready, ReplicaState
from modelyard_services.policy.actions import NANOSECONDS, Action, Miss, Progress, View, Watch
from modelyard_services.policy.ending import begin_drain, end, request_stop

STOP_SECONDS: Final = 10.0
"""Beyond a process's own stop grace, before its stop is asked for again, by force."""


def overdue(view: View) -> list[Action]:
    """What has run out of time, and what has drained."""
    actions = [action for state in _on_living_nodes(view.fleet) for action in _phase_actions(view, state)]
    return actions + _reservations_over(view)


def missing(view: View) -> list[Action]:
    """Replicas that a living worker doesn't report any more (X26): one report may have crossed what made them (C6)."""
    misses_max = view.fleet.settings.missed_heartbeats_max
    return [
        Action(
            key=f"missing/{state.id}/{state.sequence}",
            about=("replica", state.id),
            reason=_not_reported(misses_max),
            decide=partial(_gone, replica=state.id, sequence=state.sequence),
            essential=True,
        )
        for state in _on_living_nodes(view.fleet)
        if view.watch.misses.get(state.id, Miss(0, 0)).count >= misses_max
    ]


def observe(watch: Watch, *, fleet: Fleet, demand: Demand, now_ns: int) -> Watch:
    """`watch` after another look at the heartbeats; `now_ns` on the log's clock."""
    progress: dict[ReplicaId, Progress] = {}
    misses: dict[ReplicaId, Miss] = {}
    for name, heard in demand.nodes.items():
        node = fleet.nodes.get(name)
        if node is not None and node.incarnation == heard.heartbeat.incarnation:
            misses |= _misses(watch, fleet, node, heard)
            for reading in heard.heartbeat.replicas:
                if reading.progress is not None and reading.replica in fleet.replicas:
                    before = watch.progress.get(reading.replica)
                    moved = before is None or reading.progress > before.share
                    progress[reading.replica] = Progress(reading.progress, now_ns) if moved or not before else before
    return Watch(progress, misses)


def _misses(watch: Watch, fleet: Fleet, node: NodeState, heard: HeardNode) -> dict[ReplicaId, Miss]:
    reported = {reading.replica for reading in heard.heartbeat.replicas}
    found = {}
    for replica in node.replicas:
        state = fleet.replicas[replica]
        # A worker that hasn't folded the replica's last event speaks of the time before it.
        knows = heard.heartbeat.folded_sequence >= state.sequence
        if replica not in reported and knows and isinstance(state.phase, Ready | Draining):
            before = watch.misses.get(replica, Miss(0, -1))
            news = heard.heard_ns > before.heard_ns
            found[replica] = Miss(before.count + 1, heard.heard_ns) if news else before
    return found


def _on_living_nodes(fleet: Fleet) -> Iterator[ReplicaState]:
    for state in fleet.replicas.values():
        if isinstance(fleet.nodes[state.node].liveness, Alive):
            yield state


def _phase_actions(view: View, state: ReplicaState) -> list[Action]:
    now_ns = view.moment.log_ns
    match state.phase:
        case Placed(deadline_ns=deadline_ns):
            over = deadline_ns is not None and now_ns >= max(deadline_ns, told_by_ns(view.fleet, state))
            return (
                [_expiry(state, f"not accepted within {state.accept_seconds:.0f} s")] if over else _held_up(view, state)
            )
        case Loading(deadline_ns=deadline_ns):
            over = now_ns >= max(deadline_ns, _progress_until_ns(view, state.id), told_by_ns(view.fleet, state))
            return [_expiry(state, f"not ready within {state.load_seconds:.0f} s, and no progress")] if over else []
        case Draining() as phase:
            return _drained(view, state, phase)
        case Ready():
            return []
        case _:
            assert_never(state.phase)


def told_by_ns(fleet: Fleet, state: ReplicaState) -> int:
    """Until when a worker may tell what became of it: one that was lost meanwhile has its time anew (rules C7, N9)."""
    liveness = fleet.nodes[state.node].liveness
    if not isinstance(liveness, Alive) or liveness.since_ns <= state.since_ns:
        return 0
    return liveness.since_ns + round(state.accept_seconds * NANOSECONDS)


def _progress_until_ns(view: View, replica: ReplicaId) -> int:
    """Hashing 70 GB shows no progress for minutes."""
    progress = view.watch.progress.get(replica)
    stall_ns = round(view.fleet.settings.load_stall_seconds * NANOSECONDS)
    return 0 if progress is None else progress.moved_ns + stall_ns


def overstayed_ns(fleet: Fleet, newcomer: ReplicaState) -> int | None:
    """When the first of those a newcomer waits for has had its time, by force too; None while none is draining."""
    return min((due_ns for due_ns, _ in _forced_out(fleet, newcomer)), default=None)


def _held_up(view: View, newcomer: ReplicaState) -> list[Action]:
    """A victim that won't end fails the placement with that reason (rule P3)."""
    due_ns = overstayed_ns(view.fleet, newcomer)
    over = due_ns is not None and view.moment.log_ns >= due_ns
    return [_expiry(newcomer, _overstayed(view.fleet, newcomer))] if over else []


def _overstayed(fleet: Fleet, newcomer: ReplicaState) -> str:
    _, late = min(_forced_out(fleet, newcomer), key=lambda each: each[0])
    return f"{late.model}#{late.replica_index} ({late.id}), whose place it was to take, would not end"


def _forced_out(fleet: Fleet, newcomer: ReplicaState) -> Iterator[tuple[int, ReplicaState]]:
    """Those it waits for, with the drain's deadline and what a forced stop takes after it."""
    for victim in newcomer.waits_for:
        state = fleet.replicas.get(victim)
        if state is not None and isinstance(state.phase, Draining):
            patience_ns = round((state.launch.stop_grace_seconds + STOP_SECONDS) * NANOSECONDS)
            yield state.phase.deadline_ns + patience_ns, state


def _expiry(state: ReplicaState, detail: str) -> Action:
    return Action(
        key=f"expire/{state.id}/{state.sequence}",
        about=("replica", state.id),
        reason=detail,
        decide=partial(_expired, replica=state.id, sequence=state.sequence, detail=detail),
        essential=True,
    )


def _expired(
    fleet: Fleet, _command: CommandId, *, replica: ReplicaId, sequence: int, detail: str
) -> Sequence[AnyEvent]:
    state = fleet.replicas.get(replica)
    if state is None or state.sequence != sequence:
        return []
    failed = ReplicaLoadFailed(node=state.node, replica=replica, detail=detail)
    if isinstance(state.phase, Placed):
        return [failed, *end(fleet, [replica], reason="load_expired", detail=detail)]
    # A process is there and holds its memory until the worker has stopped it.
    patience = state.launch.stop_grace_seconds + STOP_SECONDS
    return [failed, *begin_drain(fleet, [replica], reason="load_expired", deadline_seconds=patience)]


def _drained(view: View, state: ReplicaState, phase: Draining) -> list[Action]:
    late = view.moment.log_ns >= phase.deadline_ns
    served = phase.address is None or (
        view.readings.knows_routers
        and view.demand.is_empty(view.fleet.settings, state.id, drained_at=state.sequence, now_ns=view.moment.heard_ns)
    )
    if phase.forced or (phase.stopping and not late) or not (late or served):
        return []
    reason = "no lease is left on it" if served else "its drain deadline passed"
    return [
        Action(
            key=f"stop/{state.id}/{state.sequence}",
            about=("replica", state.id),
            reason=reason,
            decide=partial(_stopped, replica=state.id, forced=not served or phase.stopping),
            essential=True,
        )
    ]


def _stopped(fleet: Fleet, _command: CommandId, *, replica: ReplicaId, forced: bool) -> Sequence[AnyEvent]:
    return request_stop(fleet, [replica], forced=forced)


def _gone(fleet: Fleet, _command: CommandId, *, replica: ReplicaId, sequence: int) -> Sequence[AnyEvent]:
    state = fleet.replicas.get(replica)
    if state is None or state.sequence != sequence:
        return []
    detail = _not_reported(fleet.settings.missed_heartbeats_max)
    return end(fleet, [replica], reason="reported_missing", detail=detail)


def _not_reported(heartbeats: int) -> str:
    return "not in the last heartbeat" if heartbeats == 1 else f"not in {heartbeats} heartbeats in a row"


def _reservations_over(view: View) -> list[Action]:
    return [
        Action(
            key=f"reservation/{state.id}",
            about=("reservation", state.id),
            reason="an operator's reservation reached its end",
            decide=partial(_released, reservation=state.id),
            essential=True,
        )
        for state in view.fleet.reservations.values()
        if state.until_ns is not None and view.moment.log_ns >= state.until_ns
    ]


def _released(fleet: Fleet, _command: CommandId, *, reservation: ReservationId) -> Sequence[AnyEvent]:
    state = fleet.reservations.get(reservation)
    return [] if state is None else [ReservationReleased(node=state.node, reservations=(reservation,))]
