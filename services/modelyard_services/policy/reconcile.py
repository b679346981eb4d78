"""One pass from what operators want to what must be done next (rules C1-C3, C6, C7, N9, N10, R6).

Invariant: level-triggered: a pass looks at the fleet as it is and never at how it came to be, so a missed event
costs time only; and a model is never scaled up and down in one pass.
"""

from collections.abc import Sequence
from functools import partial
from typing import Final

import msgspec

from modelyard_events.envelope import AnyEvent
from modelyard_events.ids import CommandId, ModelName, NodeName, ReplicaId
from modelyard_events.spec import Autoscale, SpreadAll
from modelyard_projections.fleet import Fleet, ModelState, ReplicaState
from modelyard_services.policy.actions import NANOSECONDS, Action, View, about_model, why
from modelyard_services.policy.deadlines import missing, overdue
from modelyard_services.policy.desired import (
    ceiling,
    counted,
    floor,
    is_ready,
    misplaced,
    nodes_without,
    shortage,
    wanted_models,
)
from modelyard_services.policy.draining import empty_nodes
from modelyard_services.policy.ending import begin_drain
from modelyard_services.policy.placement import Request, place
from modelyard_services.policy.rollout import roll

PLACEMENTS_MAX: Final = 64
"""Placements of one model in one pass: a fleet's cold start shares the pass among its models, and the events of
this pass start the next one."""


def reconcile(view: View) -> list[Action]:
    """All that is due now, in the order in which it is best done: ends first, for they make room."""
    due = [*overdue(view), *missing(view)]
    if view.fleet.settings.reconciler_frozen:
        return due
    due += empty_nodes(view)
    for name in wanted_models(view.fleet):
        model = view.fleet.models[name]
        due += [*_scale(view, model), *roll(view, model)]
    return due


def _scale(view: View, model: ModelState) -> list[Action]:
    if model.schedule is None:
        return []
    if isinstance(model.options.mode, SpreadAll):
        return _spread(view, model)
    return _raise_to_floor(view, model) or _lower(view, model)


def _raise_to_floor(view: View, model: ModelState) -> list[Action]:
    short = shortage(view.fleet, model)
    sequence = view.fleet.model_sequence(model.name)
    return [
        Action(
            key=f"floor/{model.name}/{sequence}/{number}",
            about=about_model(model.name),
            reason=f"{short} below its floor of {floor(model)}",
            decide=partial(_raised, view=view, model=model.name),
        )
        for number in range(min(short, PLACEMENTS_MAX))
    ]


def _raised(fleet: Fleet, command: CommandId, *, view: View, model: ModelName) -> Sequence[AnyEvent]:
    state = fleet.models.get(model)
    if state is None or state.spec is None or not shortage(fleet, state):
        return []
    request = Request(model=model, command=command, now_ns=view.moment.log_ns)
    return place(fleet, view.readings, request, search=view.search).events


def _spread(view: View, model: ModelState) -> list[Action]:
    sequence = view.fleet.model_sequence(model.name)
    missing_on = [
        Action(
            key=f"spread/{model.name}/{node}/{sequence}",
            about=("node", node),
            reason="every node that matches has one",
            decide=partial(_spread_to, view=view, model=model.name, node=node),
        )
        for node in nodes_without(view.fleet, model)[:PLACEMENTS_MAX]
    ]
    return missing_on or [_end(view, state, "not where spread_all wants it") for state in misplaced(view.fleet, model)]


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
        return [_end(view, state, f"above its ceiling of {limit}") for state in surplus[: len(surplus) - limit]]
    idle = [state for state in surplus if _is_idle(view, state)]
    spare = len(surplus) - max(floor(model), 1) if _is_scaled(model) else 0
    return [_end(view, state, "idle above its floor") for state in idle[: max(0, spare)]]


def _is_scaled(model: ModelState) -> bool:
    mode = model.options.mode
    return isinstance(mode, Autoscale) and bool(mode.min_replicas or mode.max_replicas)


def _first_to_go(view: View, state: ReplicaState) -> tuple[int, int, int, str]:
    """Without requests first, then the highest index, then the least recently used (rule C4)."""
    return (view.in_flight(state.id), -state.replica_index, view.demand.last_used_ns.get(state.id, 0), state.id)


def _is_idle(view: View, state: ReplicaState) -> bool:
    if state.pinned or not is_ready(state) or view.in_flight(state.id):
        return False
    used_ns = max(view.demand.last_used_ns.get(state.id, 0), state.loaded_ns or state.since_ns)
    return view.moment.log_ns - used_ns >= view.fleet.settings.idle_scale_down_seconds * NANOSECONDS


def _end(view: View, state: ReplicaState, reason: str) -> Action:
    return Action(
        key=f"scale-down/{state.id}/{state.sequence}",
        about=about_model(state.model),
        reason=reason,
        decide=partial(_ended, replica=state.id, reason=reason, basis=view.fleet.model_sequence(state.model)),
    )


def _ended(fleet: Fleet, _command: CommandId, *, replica: ReplicaId, reason: str, basis: int) -> Sequence[AnyEvent]:
    state = fleet.replicas.get(replica)
    # Another change of this model's count may have made the surplus good; the next pass knows.
    if state is None or fleet.model_sequence(state.model) != basis:
        return []
    model = fleet.models[state.model]
    figures = {"counted": len(counted(fleet, model)), "floor": floor(model), "ceiling": ceiling(model)}
    decision = why(fleet, reason, "scaling", **figures)
    deadline = fleet.settings.drain_deadline_seconds
    return begin_drain(fleet, [replica], reason="scaled_down", deadline_seconds=deadline, decision=decision)
