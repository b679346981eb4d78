"""What a worker says happened to its processes, decided against what the fleet knows (rules W1, R3, R6, R8).

Invariant: a fact of a life or a replica that is over changes nothing and is told why; a fact told twice changes
nothing the second time; a process that ended frees slot and memory in the same append (I7).
"""

from collections.abc import Mapping, Sequence
from typing import Final, assert_never

import msgspec

from modelyard_events.decision import Decision
from modelyard_events.envelope import AnyEvent
from modelyard_events.ids import IncarnationId, NodeName, ReplicaId
from modelyard_events.model import ModelReplicaReady
from modelyard_events.node import NodeCapacityChanged, NodeDeparted
from modelyard_events.replica import (
    ProcessExit,
    ReplicaCrashed,
    ReplicaLoaded,
    ReplicaLoadFailed,
    ReplicaLoadStarted,
)
from modelyard_events.requests import (
    CapacityChanged,
    Crashed,
    Departing,
    Fact,
    Loaded,
    LoadFailed,
    LoadStarted,
    Measured,
    ProbeFailed,
    Report,
    Stopped,
)
from modelyard_events.reservation import ReservationResized
from modelyard_projections.fleet import (
    Departed,
    Draining,
    Fleet,
    Loading,
    NodeState,
    Placed,
    Ready,
    ReplicaState,
)
from modelyard_services.errors import NodeGoneError, StaleFactError
from modelyard_services.policy.draft import Draft
from modelyard_services.policy.ending import begin_drain, end, request_stop
from modelyard_services.policy.registration import check_address, check_capacity
from modelyard_services.settings import STDERR_LINES_MOST

FACTS_PER_APPEND: Final = 200
"""Facts decided together: each gives at most 4 events, an append holds 1,000."""

DETAIL_LENGTH_MAX: Final = 2_000
"""Characters of a worker's explanation: it stands in three events."""

STDERR_LINE_LENGTH_MAX: Final = 500
STDERR_LENGTH_MAX: Final = 10_000
"""Of a process that failed (rule W5), the last lines: enough for a traceback's end, and an event holds 64 KiB."""

MEASURED_SLACK_BYTES: Final = 64 * 2**20
MEASURED_SLACK_SHARE: Final = 0.05
"""A footprint measured anew matters from 5 % and 64 MiB on: below that allocators breathe, and the log would too."""

POLICY: Final = "facts/1"

ReplicaFact = LoadStarted | Loaded | LoadFailed | Crashed | Stopped | ProbeFailed | Measured


class Outcome(msgspec.Struct, frozen=True):
    """What a report came to: events, and the replicas whose facts came too late, with why.

    `occurred_ns` is when each event's fact happened by the worker's clock; None where it wasn't told.
    """

    events: tuple[AnyEvent, ...]
    stale: dict[ReplicaId, str]
    occurred_ns: tuple[int | None, ...] = ()


def slices(report: Report) -> list[Report]:
    """The report in parts that each fit one append, the same ones every time it is told.

    A departure says all that the stops before it say, and stands alone: it ends whatever the node has.
    """
    timed = report.timed()
    departing = [told for told in timed if isinstance(told[0], Departing)][:1]
    others = [told for told in timed if not isinstance(told[0], (Departing, Stopped) if departing else ())]
    parts = [others[start : start + FACTS_PER_APPEND] for start in range(0, len(others), FACTS_PER_APPEND)]
    if departing:
        parts.append(departing)
    return [_part(report, part) for part in parts]


def _part(report: Report, part: Sequence[tuple[Fact, int | None]]) -> Report:
    facts = tuple(fact for fact, _ in part)
    # Told of the first ones, or of none: a worker tells all of them.
    times = tuple(occurred_ns for _, occurred_ns in part if occurred_ns is not None)
    return msgspec.structs.replace(report, facts=facts, occurred_ns=times if len(times) == len(facts) else ())


def report(fleet: Fleet, told: Report) -> Outcome:
    """Decide one part of a report, fact by fact in its order.

    Raises:
        NodeGoneError: the node was removed; its worker stops everything and registers afresh (N13).
        StaleFactError: another incarnation has the name.
        InvalidValueError: a fact says what can't be.
    """
    name = speaker(fleet, told.node, told.incarnation).name
    draft, stale = Draft(fleet, name), dict[ReplicaId, str]()
    occurred_ns: list[int | None] = []
    for fact, fact_ns in told.timed():
        node = draft.fleet.nodes[name]
        match fact:
            case CapacityChanged():
                draft.add(_capacity_changed(node, fact))
            case Departing():
                draft.add(_departing(draft.fleet, node))
            case _:
                try:
                    _decide(draft, _replica(draft.fleet, node, fact.replica), fact)
                except StaleFactError as late:
                    stale[fact.replica] = late.detail
        occurred_ns += [fact_ns] * (len(draft.events) - len(occurred_ns))
    return Outcome(tuple(draft.events), stale, tuple(occurred_ns))


def speaker(fleet: Fleet, node: NodeName, incarnation: IncarnationId) -> NodeState:
    """The node in whose name a worker speaks.

    Raises:
        NodeGoneError: it was removed; its worker stops everything and registers afresh (N13).
        StaleFactError: another incarnation has the name.
    """
    state = fleet.nodes.get(node)
    if state is None:
        raise NodeGoneError(f"node {node!r} was removed; stop everything and register afresh")
    if state.incarnation != incarnation:
        raise StaleFactError(f"node {node!r} is held by incarnation {state.incarnation} now")
    return state


def _decide(draft: Draft, state: ReplicaState, fact: ReplicaFact) -> None:
    incarnation = draft.fleet.nodes[state.node].incarnation
    match fact:
        case LoadStarted():
            draft.add(_load_started(state, fact, incarnation))
        case Loaded():
            _loaded(draft, state, fact, incarnation)
        case LoadFailed(detail=detail, exit=exit_):
            draft.add(_exited(draft.fleet, state, exit_, detail=detail))
        case Crashed(exit=exit_) | Stopped(exit=exit_):
            draft.add(_exited(draft.fleet, state, exit_))
        case ProbeFailed():
            draft.add(_probe_failed(draft.fleet, state, fact))
        case Measured():
            draft.add(_measured(draft.fleet, state, fact))
        case _:
            assert_never(fact)


def _replica(fleet: Fleet, node: NodeState, replica: ReplicaId) -> ReplicaState:
    if replica not in node.replicas:
        raise StaleFactError(f"replica {replica} has ended, or never was on node {node.name!r}")
    return fleet.replicas[replica]


def _load_started(state: ReplicaState, fact: LoadStarted, incarnation: IncarnationId) -> list[AnyEvent]:
    if not isinstance(state.phase, Placed):
        if state.process == fact.process:
            return []
        raise StaleFactError(f"replica {state.id} runs as another process already")
    if state.waits_for:
        raise StaleFactError(f"replica {state.id} may not load before {', '.join(state.waits_for)} have ended")
    return [ReplicaLoadStarted(node=state.node, replica=state.id, incarnation=incarnation, process=fact.process)]


def _loaded(draft: Draft, state: ReplicaState, fact: Loaded, incarnation: IncarnationId) -> None:
    check_address(fact.address)
    match state.phase:
        case Loading():
            if draft.fleet.models[state.model].revision != state.revision:
                _stop_superseded(draft, state)
            else:
                draft.add(_publish(draft.fleet, state, fact, incarnation))
        case Ready(address=address):
            if address != fact.address:
                raise StaleFactError(f"replica {state.id} is ready at {address} already")
        case Placed():
            raise StaleFactError(f"replica {state.id} can't be loaded: no process was told of")
        case Draining(reason=reason):
            raise StaleFactError(f"replica {state.id} is draining ({reason}); it won't be published")
        case _:
            assert_never(state.phase)


def _stop_superseded(draft: Draft, state: ReplicaState) -> None:
    """Never published, so no lease can be on it: nothing to wait for (R6)."""
    draft.add(begin_drain(draft.fleet, [state.id], reason="superseded", deadline_seconds=0))
    draft.add(request_stop(draft.fleet, [state.id]))


def _publish(fleet: Fleet, state: ReplicaState, fact: Loaded, incarnation: IncarnationId) -> list[AnyEvent]:
    footprint = _footprint(fleet, state, fact.memory or {})
    loaded = ReplicaLoaded(node=state.node, replica=state.id, incarnation=incarnation, address=fact.address)
    resized: list[AnyEvent] = []
    if footprint is not None:
        resized.append(ReservationResized(node=state.node, reservation=state.reservation, vram=footprint))
    return [loaded, *resized, ModelReplicaReady(model=state.model, replica=state.id)]


def _footprint(fleet: Fleet, state: ReplicaState, memory: Mapping[int, int]) -> dict[int, int] | None:
    """The reservation with what was measured in it, None when nothing was: unknown isn't zero (N9)."""
    devices = fleet.nodes[state.node].devices
    measured = {device: size for device, size in memory.items() if size > 0 and device in devices}
    reserved = fleet.reservations[state.reservation].vram
    footprint = {**reserved, **measured}
    if not measured or (footprint == reserved and state.footprint_rule == "measured"):
        return None
    return footprint


def _exited(fleet: Fleet, state: ReplicaState, exit_: ProcessExit, *, detail: str = "") -> list[AnyEvent]:
    """A process is gone: as it was asked to while draining, of itself otherwise."""
    exit_ = _trimmed(exit_)
    told = (detail or _in_words(exit_))[:DETAIL_LENGTH_MAX]
    match state.phase:
        case Placed() | Loading():
            failed = ReplicaLoadFailed(node=state.node, replica=state.id, detail=told, exit=exit_)
            return [failed, *end(fleet, [state.id], reason="load_failed", detail=told)]
        case Ready():
            crashed = ReplicaCrashed(node=state.node, replica=state.id, exit=exit_)
            return [crashed, *end(fleet, [state.id], reason="crashed", detail=told)]
        case Draining(reason=reason):
            return end(fleet, [state.id], reason=reason, detail=detail[:DETAIL_LENGTH_MAX])
        case _:
            assert_never(state.phase)


def _probe_failed(fleet: Fleet, state: ReplicaState, fact: ProbeFailed) -> list[AnyEvent]:
    """That replica alone; its siblings and the model stay as they are (X12)."""
    match state.phase:
        case Ready():
            why = Decision(
                kind="end", outcome=fact.detail[:DETAIL_LENGTH_MAX], policy=POLICY, basis=fleet.sequence, considered=1
            )
            seconds = fleet.settings.drain_deadline_seconds
            return begin_drain(fleet, [state.id], reason="probe_failed", deadline_seconds=seconds, decision=why)
        case Draining():
            return []
        case Placed() | Loading():
            raise StaleFactError(f"replica {state.id} isn't ready, so no probe of it can fail")
        case _:
            assert_never(state.phase)


def _measured(fleet: Fleet, state: ReplicaState, fact: Measured) -> list[AnyEvent]:
    """Only once it is ready: in mid-load a process holds less than it will, and the reservation stays (R3, X5)."""
    if not isinstance(state.phase, Ready):
        return []
    footprint = _footprint(fleet, state, fact.memory)
    reserved = fleet.reservations[state.reservation].vram
    if footprint is None or not is_material(reserved, footprint):
        return []
    return [ReservationResized(node=state.node, reservation=state.reservation, vram=footprint)]


def is_material(reserved: Mapping[int, int], footprint: Mapping[int, int]) -> bool:
    """Whether a footprint measured anew differs from what is reserved by enough to be told."""
    return any(
        abs(size - reserved.get(device, 0))
        >= max(MEASURED_SLACK_BYTES, round(reserved.get(device, 0) * MEASURED_SLACK_SHARE))
        for device, size in footprint.items()
    )


def _capacity_changed(node: NodeState, fact: CapacityChanged) -> list[AnyEvent]:
    check_capacity(fact.gpus, fact.vram_total, fact.ram_total, fact.disk_total)
    facts = node.facts
    before = (facts.gpus, facts.vram_total, facts.ram_total, facts.disk_total)
    if before == (fact.gpus, fact.vram_total, fact.ram_total, fact.disk_total):
        return []
    return [
        NodeCapacityChanged(
            node=node.name,
            incarnation=node.incarnation,
            gpus=fact.gpus,
            vram_total=fact.vram_total,
            ram_total=fact.ram_total,
            disk_total=fact.disk_total,
        )
    ]


def _departing(fleet: Fleet, node: NodeState) -> list[AnyEvent]:
    if isinstance(node.liveness, Departed):
        return []
    departed = NodeDeparted(node=node.name, incarnation=node.incarnation)
    return [departed, *end(fleet, node.replicas, reason="node_departed")]


def _trimmed(exit_: ProcessExit) -> ProcessExit:
    kept: list[str] = []
    left = STDERR_LENGTH_MAX
    for line in reversed(exit_.stderr_tail[-STDERR_LINES_MOST:]):
        left -= min(len(line), STDERR_LINE_LENGTH_MAX)
        if left < 0:
            break
        kept.append(line[:STDERR_LINE_LENGTH_MAX])
    return msgspec.structs.replace(exit_, stderr_tail=tuple(reversed(kept)))


def _in_words(exit_: ProcessExit) -> str:
    how = f"signal {exit_.signal}" if exit_.signal else f"exit code {exit_.exit_code}"
    if exit_.signal is None and exit_.exit_code is None:
        how = "the process ended"
    return f"{how}: {exit_.stderr_tail[-1]}" if exit_.stderr_tail else how
