"""What operators want of a model: set or clear its schedule (rules S2, S3).

Invariant: a schedule always knows its source; an unchanged one appends nothing.
"""

from modelyard_events.envelope import AnyEvent
from modelyard_events.ids import ModelName
from modelyard_events.model import ModelDeclaredSatisfiable, ModelScheduleCleared, ModelScheduleSet
from modelyard_events.names import model_name
from modelyard_events.selectors import format_selector, matches
from modelyard_events.spec import Autoscale, Schedule, ScheduleSource
from modelyard_projections.fleet import Fleet, NodeState
from modelyard_services.errors import InvalidRequestError, NotFoundError
from modelyard_services.policy.explain import NO_NODE

OWNED_BY_CONFIGURATION: frozenset[ScheduleSource] = frozenset({"file", "env", "flag"})
"""Sources that are applied again at every start, over what the API set between (S3)."""


def set_schedule(fleet: Fleet, *, model: ModelName, schedule: Schedule, source: ScheduleSource) -> list[AnyEvent]:
    """Replace the model's schedule wholly; it may come before the model's definition (S1).

    Raises:
        InvalidRequestError: the ceiling is below the floor.
        InvalidValueError: the name can't be a model's.
    """
    name = model_name(model)
    _check(schedule)
    state = fleet.models.get(name)
    before = state.schedule if state is not None else None
    # Over the API, saying again what a file says is no claim to own it.
    if before is not None and before.schedule == schedule and source in {before.source, "api"}:
        return []
    events: list[AnyEvent] = [ModelScheduleSet(model=name, schedule=schedule, source=source)]
    if state is not None and state.breaker is not None:
        events.append(ModelDeclaredSatisfiable(model=name, cause="schedule set"))
    return events


def clear_schedule(fleet: Fleet, *, model: ModelName, source: ScheduleSource) -> list[AnyEvent]:
    """Want nothing of the model any more; what runs goes on.

    Raises:
        NotFoundError: it has no schedule, so nothing was cleared (X28).
    """
    state = fleet.models.get(model)
    if state is None or state.schedule is None:
        raise NotFoundError(f"model {model!r} has no schedule; nothing was cleared", field="model", value=model)
    events: list[AnyEvent] = []
    if state.breaker is not None:
        events.append(ModelDeclaredSatisfiable(model=model, cause="schedule cleared"))
    return [*events, ModelScheduleCleared(model=model, source=source)]


def schedule_warnings(
    fleet: Fleet, *, model: ModelName, schedule: Schedule | None, source: ScheduleSource
) -> list[str]:
    """What to tell whoever sets `schedule` (None: clears it): accepted all the same (N7, S1, S3)."""
    state = fleet.models.get(model)
    found = []
    owner = state.schedule.source if state is not None and state.schedule is not None else None
    if source == "api" and owner in OWNED_BY_CONFIGURATION:
        found.append(f"the schedule of {model} comes from {owner}, which is applied again at the next start")
    if owner == "api" and source in OWNED_BY_CONFIGURATION:
        found.append(f"the schedule of {model} that was set over the API gives way to the one from {source}")
    if schedule is not None and (state is None or state.spec is None):
        meant = fleet.model_named(model)
        found.append(
            f"model {model} is not defined yet; its schedule is kept until it is"
            if meant == model
            else f"{model} is an alias of model {meant}; schedule that one, this does nothing for it"
        )
    if schedule is not None and not any(matches(schedule.node_selector, node.labels) for node in _backends(fleet)):
        matched = format_selector(schedule.node_selector) or "the empty selector"
        found.append(f"no node matches {matched} now" if fleet.nodes else NO_NODE)
    return found


def _backends(fleet: Fleet) -> list[NodeState]:
    return [node for node in fleet.nodes.values() if node.node_type == "backend"]


def _check(schedule: Schedule) -> None:
    mode = schedule.mode
    if isinstance(mode, Autoscale) and 0 < mode.max_replicas < mode.min_replicas:
        raise InvalidRequestError(
            f"max_replicas {mode.max_replicas} is below min_replicas {mode.min_replicas}; 0 means no limit",
            field="max_replicas",
            value=mode.max_replicas,
        )
