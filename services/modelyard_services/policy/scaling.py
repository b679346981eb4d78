"""How many replicas a model has next: up to its floor, one more under load, fewer when idle (rules C2-C4).

Invariant: a pass takes one direction for a model and never both; what is decided from counts and readings is dropped
when the model's count changed meanwhile.
"""

from collections.abc import Sequence
from functools import partial
from typing import Final

import msgspec

from modelyard_events.envelope import AnyEvent
from modelyard_events.ids import CommandId, ModelName, NodeName, ReplicaId
from modelyard_events.model import ModelScaled
from modelyard_events.replica import EndReason
from modelyard_events.spec import Autoscale, SpreadAll
from modelyard_projections.fleet import Fleet, ModelState, ReplicaState
from modelyard_services.policy.actions import NANOSECONDS, Action, View, about_model, is_held, why
from modelyard_services.policy.desired import (
    ceiling,
    counted,
    floor,
    is_ready,
    is_starting,
    misplaced,
    nodes_without,
    shortage,
)
from modelyard_services.policy.ending import begin_drain
from modelyard_services.policy.limits import idle_timeout
from modelyard_services.policy.placement import Request, place
from modelyard_services.policy.victims import is_pinned

PLACEMENTS_MAX: Final = 64
"""Placements of one model in one pass: a fleet's cold start shares the pass among its models, and the events of
this pass start the next one."""


def scale(view: View, model: ModelState) -> list[Action]:
    """The model's next steps towards what its schedule and its load ask for."""
    if model.schedule is None:
        return _idle_for_long(view, model, sorted(counted(view.fleet, model), key=partial(_first_to_go, view)))
    # An open breaker holds back what would be placed, and nothing of what would end (C5).
    held = is_held(model, view.moment.log_ns)
    if isinstance(model.options.mode, SpreadAll):
        return ([] if held else _spread(view, model)) or _unspread(view, model)
    return ([] if held else _raise_to_floor(view, model) or _grow(view, model)) or _lower(view, model)


def lacks(fleet: Fleet, model: ModelState) -> str | None:
    """What the model's schedule wants and hasn't got; load that asks for more is no want of the schedule's."""
    if model.schedule is None or model.spec is None:
        return None
    missing_on = len(nodes_without(fleet, model))
    if missing_on:
        return f"{missing_on} of the nodes that match are without one"
    short = shortage(fleet, model)
    return f"{short} below its floor of {floor(model)}" if short else None


def asking(fleet: Fleet, model: ModelState, command: CommandId, now_ns: int) -> Request:
    """The request for one more: for load alone nobody else is ended, for a floor or a spread others make room."""
    return Request(model=model.name, command=command, now_ns=now_ns, may_evict=lacks(fleet, model) is not None)


def pressure(view: View, model: ModelState) -> str | None:
    """Why the load asks for one more replica; None while it doesn't, or while one is on its way (rule C4)."""
    staying = counted(view.fleet, model)
    limit = ceiling(model)
    if not _is_scaled(model) or (limit is not None and len(staying) >= limit):
        return None
    if not staying or any(is_starting(state) for state in staying):
        return None
    leases = [view.in_flight(state.id) for state in staying]
    target = model.options.target_in_flight
    if target is None:
        return "every ready replica is busy" if all(leases) else None
    mean = sum(leases) / len(leases)
    return f"{mean:.1f} requests in flight per replica, above {target:g}" if mean > target else None


def _raise_to_floor(view: View, model: ModelState) -> list[Action]:
    short = shortage(view.fleet, model)
    sequence = view.fleet.model_sequence(model.name)
    return [
        Action(
            key=f"floor/{model.name}/{sequence}/{number}",
            about=about_model(model.name),
            reason=f"{short} below its floor of {floor(model)}",
            decide=partial(_raised, view=view, model=model.name),
            places=model.name,
        )
        for number in range(min(short, PLACEMENTS_MAX))
    ]


def _raised(fleet: Fleet, command: CommandId, *, view: View, model: ModelName) -> Sequence[AnyEvent]:
    state = fleet.models.get(model)
    if state is None or state.spec is None or not shortage(fleet, state):
        return []
    request = Request(model=model, command=command, now_ns=view.moment.log_ns)
    return place(fleet, view.readings, request, search=view.search).events


def _grow(view: View, model: ModelState) -> list[Action]:
    """One more under load."""
    reason = pressure(view, model)
    if reason is None:
        return []
    basis = view.fleet.model_sequence(model.name)
    return [
        Action(
            key=f"grow/{model.name}/{basis}",
            about=about_model(model.name),
            reason=reason,
            decide=partial(_grown, view=view, model=model.name, reason=reason, basis=basis),
            places=model.name,
        )
    ]


def _grown(
    fleet: Fleet, command: CommandId, *, view: View, model: ModelName, reason: str, basis: int
) -> Sequence[AnyEvent]:
    state = fleet.models.get(model)
    # Another change of this model's count may have met the load; the next pass knows.
    if state is None or state.spec is None or fleet.model_sequence(model) != basis:
        return []
    request = asking(fleet, state, command, view.moment.log_ns)
    outcome = place(fleet, view.readings, request, search=view.search)
    if outcome.replica is None:
        return outcome.events
    leases = sum(view.in_flight(each.id) for each in counted(fleet, state))
    return [_scaled(fleet, state, +1, reason, in_flight=leases), *outcome.events]


def _spread(view: View, model: ModelState) -> list[Action]:
    sequence = view.fleet.model_sequence(model.name)
    return [
        Action(
            key=f"spread/{model.name}/{node}/{sequence}",
            about=("node", node),
            reason="every node that matches has one",
            decide=partial(_spread_to, view=view, model=model.name, node=node),
            places=model.name,
        )
        for node in nodes_without(view.fleet, model)[:PLACEMENTS_MAX]
    ]


def _unspread(view: View, model: ModelState) -> list[Action]:
    return [_end(view, state, "not where spread_all wants it") for state in misplaced(view.fleet, model)]


def _spread_to(fleet: Fleet, command: CommandId, *, view: View, model: ModelName, node: NodeName) -> Sequence[AnyEvent]:
    state = fleet.models.get(model)
    if state is None or state.spec is None or node not in nodes_without(fleet, state):
        return []
    request = Request(model=model, command=command, now_ns=view.moment.log_ns, node=node)
    outcome = place(fleet, view.readings, request, search=view.search)
    if outcome.refused is None:
        return outcome.events
    # Told of all nodes at once: node by node, refusals that differ would be news to each other for ever (P5).
    return place(fleet, view.readings, msgspec.structs.replace(request, node=None), search=view.search).events


def _lower(view: View, model: ModelState) -> list[Action]:
    """What is misplaced, above the ceiling, or idle above the floor; one reason a pass, so that none adds up."""
    if sum(is_ready(state) for state in counted(view.fleet, model)) >= floor(model):
        elsewhere = misplaced(view.fleet, model)
        if elsewhere:
            return [_end(view, state, "its node doesn't match the selector any more") for state in elsewhere]
    surplus = sorted(counted(view.fleet, model), key=partial(_first_to_go, view))
    limit = ceiling(model)
    if limit is not None and len(surplus) > limit:
        over = surplus[: len(surplus) - limit]
        return [_end(view, state, f"above its ceiling of {limit}", by=-1) for state in over]
    return _idle_above_floor(view, model, surplus) or _idle_for_long(view, model, surplus)


def _idle_above_floor(view: View, model: ModelState, surplus: Sequence[ReplicaState]) -> list[Action]:
    """All but one go soon; whether the last one goes is the idle timeout's to say."""
    seconds = view.fleet.settings.idle_scale_down_seconds
    spare = len(surplus) - max(floor(model), 1) if _is_scaled(model) else 0
    idle = [state for state in surplus if _idle_seconds(view, state) >= seconds]
    return [_end(view, state, f"idle for {seconds:g} s above its floor", by=-1) for state in idle[: max(0, spare)]]


def _idle_for_long(view: View, model: ModelState, surplus: Sequence[ReplicaState]) -> list[Action]:
    """Down to the floor, and to nothing where that is zero, each by the timeout in force where it runs (C8)."""
    idle = [state for state in surplus if _outlived_its_timeout(view, state)]
    gone = idle[: max(0, len(surplus) - floor(model))]
    return [_end(view, state, _timeout_told(view.fleet, state), by=-1, code="idle") for state in gone]


def _outlived_its_timeout(view: View, state: ReplicaState) -> bool:
    limit = idle_timeout(view.fleet, state).seconds
    return bool(limit) and _idle_seconds(view, state) >= limit


def _timeout_told(fleet: Fleet, state: ReplicaState) -> str:
    limit = idle_timeout(fleet, state)
    return f"idle for the {limit.setter}'s timeout of {limit.seconds:g} s"


def _is_scaled(model: ModelState) -> bool:
    mode = model.options.mode
    return isinstance(mode, Autoscale) and bool(mode.min_replicas or mode.max_replicas)


def _first_to_go(view: View, state: ReplicaState) -> tuple[int, int, int, str]:
    """Without requests first, then the highest index, then the least recently used (rule C4)."""
    return (view.in_flight(state.id), -state.replica_index, view.demand.last_used_ns.get(state.id, 0), state.id)


def _idle_seconds(view: View, state: ReplicaState) -> float:
    """How long a replica has had nothing to do; 0 where that isn't known, or where it is pinned."""
    # Before every living router was heard and understood, a replica without leases isn't known to be idle.
    if is_pinned(view.fleet, state) or not is_ready(state) or view.in_flight(state.id):
        return 0.0
    if not view.readings.knows_routers:
        return 0.0
    used_ns = max(view.demand.last_used_ns.get(state.id, 0), state.loaded_ns or state.since_ns)
    return (view.moment.log_ns - used_ns) / NANOSECONDS


class Cut(msgspec.Struct, frozen=True):
    """One replica fewer, and why; `by` is what the model's wanted count changes by."""

    replica: ReplicaId
    basis: int
    reason: str
    by: int
    code: EndReason


def _end(view: View, state: ReplicaState, reason: str, *, by: int = 0, code: EndReason = "scaled_down") -> Action:
    cut = Cut(state.id, view.fleet.model_sequence(state.model), reason, by, code)
    return Action(
        key=f"scale-down/{state.id}/{state.sequence}",
        about=about_model(state.model),
        reason=reason,
        decide=partial(_ended, cut=cut),
    )


def _ended(fleet: Fleet, _command: CommandId, *, cut: Cut) -> Sequence[AnyEvent]:
    state = fleet.replicas.get(cut.replica)
    # Another change of this model's count may have made the surplus good; the next pass knows.
    if state is None or fleet.model_sequence(state.model) != cut.basis:
        return []
    # Node or fleet may have been set otherwise, which no model's sequence tells.
    if cut.code == "idle" and cut.reason != _timeout_told(fleet, state):
        return []
    model = fleet.models[state.model]
    decision = why(fleet, cut.reason, "scaling", counted=len(counted(fleet, model)), floor=floor(model))
    deadline = fleet.settings.drain_deadline_seconds
    drained = begin_drain(fleet, [cut.replica], reason=cut.code, deadline_seconds=deadline, decision=decision)
    return [*([_scaled(fleet, model, cut.by, cut.reason)] if cut.by else []), *drained]


def _scaled(fleet: Fleet, model: ModelState, by: int, reason: str, **figures: int) -> ModelScaled:
    count = len(counted(fleet, model))
    figures |= {"floor": floor(model), "ceiling": ceiling(model) or 0}
    decision = why(fleet, f"from {count} to {count + by}: {reason}", "scaling", **figures)
    return ModelScaled(model=model.name, previous=count, wanted=count + by, reason=reason, decision=decision)
