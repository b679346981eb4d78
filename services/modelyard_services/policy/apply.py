"""A configuration against the fleet: what applying it would change, as events and as a list for people (rule S3).

Invariant: the list is read off the events, so a plan can't promise other than what `apply` appends; an entry that
stands as written appends nothing.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, Literal, assert_never

import msgspec

from modelyard_events.envelope import AnyEvent
from modelyard_events.ids import ModelName
from modelyard_events.model import (
    ModelDeclaredSatisfiable,
    ModelDefined,
    ModelRedefined,
    ModelRemoved,
    ModelScheduleCleared,
    ModelScheduleSet,
)
from modelyard_events.selectors import format_selector
from modelyard_events.spec import Autoscale, ModelSpec, Schedule, ScheduleSource, SpreadAll
from modelyard_projections.fleet import Fleet
from modelyard_services.errors import InvalidRequestError
from modelyard_services.policy.configuration import Configuration
from modelyard_services.policy.models import define, group_conflicts, remove
from modelyard_services.policy.schedules import clear_schedule, schedule_warnings, set_schedule

EVENTS_MAX: Final = 1_000
"""One atomic batch of the log: an apply is done wholly or not at all."""

EVENTS_PER_ENTRY: Final = 4
"""Of a model and its schedule in one append of a start, at most, beside one for each alias."""

API: Final[ScheduleSource] = "api"
"""Whoever applies over the API owns no file that is read again at the next start."""

EntryKind = Literal["model", "schedule"]
ChangeKind = Literal["added", "changed", "removed"]


class FieldChange(msgspec.Struct, frozen=True):
    """One field before and after; None where it isn't there."""

    field: str
    before: Any
    after: Any


class Change(msgspec.Struct, frozen=True):
    """One entry that differs from what is."""

    kind: EntryKind
    model: ModelName
    change: ChangeKind
    fields: tuple[FieldChange, ...] = ()


def apply(
    fleet: Fleet,
    configuration: Configuration,
    *,
    prune: bool = False,
    source: ScheduleSource | None = API,
    whole: Configuration | None = None,
) -> list[AnyEvent]:
    """All that makes the fleet as `configuration` says; `prune` ends what its sections don't list.

    The schedules become `source`'s; without one each belongs to the document it stands in, as at a start. `whole` is
    what `configuration` is a part of.

    Raises:
        InvalidRequestError: it takes more than one atomic append, or an entry can't be.
    """
    events: list[AnyEvent] = []
    pruned = _unlisted_models(fleet, configuration) if prune else []
    among = {**(whole or configuration).models, **dict.fromkeys(pruned)}
    for model, spec in configuration.models.items():
        events += define(fleet, model=model, spec=spec, among=among)
    for model, entry in configuration.schedules.items():
        events += set_schedule(fleet, model=model, schedule=entry.schedule, source=source or entry.source)
    if prune:
        events += _pruned(fleet, configuration, models=pruned)
    events = list(_breakers_closed_once(events))
    if len(events) > EVENTS_MAX:
        problem = f"this takes {len(events)} events and one append {EVENTS_MAX}; nothing was applied, divide it"
        raise InvalidRequestError(problem, field="documents")
    return events


def parts(configuration: Configuration) -> Iterator[Configuration]:
    """`configuration` in parts that each fit one append: a start takes what it is given, however much that is."""
    entries = [*configuration.models, *(name for name in configuration.schedules if name not in configuration.models)]
    names: list[ModelName] = []
    takes = 0
    for name in entries:
        aliases = configuration.models[name].aliases if name in configuration.models else ()
        takes += EVENTS_PER_ENTRY + len(aliases)
        if takes > EVENTS_MAX:
            yield _part(configuration, names)
            names, takes = [], EVENTS_PER_ENTRY + len(aliases)
        names.append(name)
    if names:
        yield _part(configuration, names)


def _part(configuration: Configuration, names: Sequence[ModelName]) -> Configuration:
    return Configuration(
        {name: configuration.models[name] for name in names if name in configuration.models},
        {name: configuration.schedules[name] for name in names if name in configuration.schedules},
    )


def changes(fleet: Fleet, events: Iterable[AnyEvent]) -> list[Change]:
    """What `events` change of models and schedules; `fleet` is as it was before them."""
    found = [_change(fleet, event) for event in events]
    return [each for each in found if each is not None]


def warnings(fleet: Fleet, configuration: Configuration, events: Sequence[AnyEvent]) -> tuple[str, ...]:
    """What to tell whoever applies this: all of it is accepted all the same."""
    found = list(configuration.warnings)
    for model, spec in configuration.models.items():
        found += [str(conflict) for conflict in group_conflicts(fleet, model=model, spec=spec)]
    for event in events:
        if isinstance(event, ModelScheduleSet | ModelScheduleCleared):
            schedule = event.schedule if isinstance(event, ModelScheduleSet) else None
            model = ModelName(event.model)
            told = schedule_warnings(fleet, model=model, schedule=schedule, source=event.source)
            found += [text for text in told if model not in configuration.models or "not defined" not in text]
    return tuple(dict.fromkeys(found))


def _unlisted_models(fleet: Fleet, configuration: Configuration) -> list[ModelName]:
    if "models" not in configuration.sections:
        return []
    return [name for name, state in fleet.models.items() if state.spec is not None and name not in configuration.models]


def _pruned(fleet: Fleet, configuration: Configuration, *, models: Sequence[ModelName]) -> list[AnyEvent]:
    """The end of what isn't listed, by section: a file of schedules alone says nothing of models."""
    events: list[AnyEvent] = []
    for name, state in fleet.models.items():
        if "schedules" in configuration.sections and state.schedule is not None and name not in configuration.schedules:
            events += clear_schedule(fleet, model=name, source=API)
    for name in models:
        events += remove(fleet, model=name)
    return events


def _breakers_closed_once(events: Iterable[AnyEvent]) -> Iterable[AnyEvent]:
    """A model that is redefined and scheduled anew is declared satisfiable once."""
    closed: set[str] = set()
    for event in events:
        if isinstance(event, ModelDeclaredSatisfiable):
            if event.model in closed:
                continue
            closed.add(event.model)
        yield event


def _change(fleet: Fleet, event: AnyEvent) -> Change | None:
    if not isinstance(event, ModelDefined | ModelRedefined | ModelRemoved | ModelScheduleSet | ModelScheduleCleared):
        return None
    name = ModelName(event.model)
    state = fleet.models.get(name)
    schedule = state.schedule.schedule if state is not None and state.schedule is not None else None
    match event:
        case ModelDefined():
            return Change("model", name, "added", _differences(None, event.spec))
        case ModelRedefined():
            return Change("model", name, "changed", _differences(state.spec if state else None, event.spec))
        case ModelRemoved():
            return Change("model", name, "removed")
        case ModelScheduleSet():
            kind: ChangeKind = "added" if schedule is None else "changed"
            return Change("schedule", name, kind, _differences(schedule, event.schedule))
        case ModelScheduleCleared():
            return Change("schedule", name, "removed")
        case _:
            assert_never(event)


def _differences(before: ModelSpec | Schedule | None, after: ModelSpec | Schedule) -> tuple[FieldChange, ...]:
    """The fields that differ; of what is new, those that aren't at their default and so are left out of its JSON."""
    old = {} if before is None else _written(before)
    new = _written(after)
    return tuple(
        FieldChange(field, old.get(field), new.get(field))
        for field in dict.fromkeys([*old, *new])
        if old.get(field) != new.get(field)
    )


def _written(entry: ModelSpec | Schedule) -> dict[str, Any]:
    """The fields of `entry` as a file has them, so that what is told of a change can be looked up there."""
    fields: dict[str, Any] = msgspec.to_builtins(entry, enc_hook=str)
    if not isinstance(entry, Schedule):
        return fields
    match entry.mode:
        case SpreadAll():
            mode: dict[str, Any] = {"replicas": "all"}
        case Autoscale(min_replicas=least, max_replicas=most):
            mode = {"min_replicas": least, "max_replicas": most}
        case _:
            assert_never(entry.mode)
    selector = {"node_selector": format_selector(entry.node_selector)} if entry.node_selector else {}
    return mode | selector | {key: value for key, value in fields.items() if key not in {"mode", "node_selector"}}
