"""What a configuration would lead to: placements, endings, and what can't be met (rule S3).

Invariant: what can't be placed is told with its reason and where its entry stands, at plan and apply rather than at
night.
"""

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from modelyard_events.envelope import AnyEvent
from modelyard_events.ids import CommandId, ModelName
from modelyard_projections.fleet import Fleet
from modelyard_services.policy.configuration import Configuration, Written
from modelyard_services.policy.desired import nodes_without, shortage, wanted_models
from modelyard_services.policy.placement import Request, place, wish_of
from modelyard_services.policy.rehearsal import Ending, Placement, Rehearsal
from modelyard_services.policy.survey import Survey

FIELDS: Final = {
    "selector": "node_selector",
    "max_per_node": "max_per_node",
    "concurrency_group": "concurrency_groups",
    "vram": "vram",
    "exclusive": "vram",
    "disk": "disk",
}
"""The field of an entry that a filter is about; the other filters are about the nodes alone."""

OF_MODEL: Final = frozenset({"concurrency_groups", "vram", "disk"})
"""Fields of the model's own entry rather than of its schedule."""


class Unplaced(msgspec.Struct, frozen=True):
    """A model that would stay below what its schedule wants, why, where that is written, and what would help."""

    model: ModelName
    missing: int
    kind: str
    reason: str
    unblock: str | None = None
    field: str | None = None
    document: str | None = None
    line: int | None = None


class Consequences(msgspec.Struct, frozen=True):
    """What the reconciler would do next; `complete` unless the look ahead was broken off before all had settled."""

    placements: tuple[Placement, ...] = ()
    endings: tuple[Ending, ...] = ()
    unplaced: tuple[Unplaced, ...] = ()
    complete: bool = True


def consequences(rehearsal: Rehearsal, events: Sequence[AnyEvent], configuration: Configuration) -> Consequences:
    """What `events` would come to; told of the models that `configuration` lists, and of those that it brings low."""
    short_before = frozenset(_short(rehearsal.fleet))
    complete = rehearsal.play(events)
    concerned = [
        name for name in _short(rehearsal.fleet) if name in configuration.schedules or name not in short_before
    ]
    unplaced = (_unplaced(rehearsal, name, configuration) for name in concerned)
    return Consequences(
        rehearsal.placements, rehearsal.endings, tuple(each for each in unplaced if each is not None), complete
    )


def _short(fleet: Fleet) -> Iterable[ModelName]:
    """Models with fewer replicas than their schedules want."""
    for name in wanted_models(fleet):
        model = fleet.models[name]
        if model.schedule is not None and (shortage(fleet, model) or nodes_without(fleet, model)):
            yield name


def _unplaced(rehearsal: Rehearsal, name: ModelName, configuration: Configuration) -> Unplaced | None:
    fleet, view = rehearsal.fleet, rehearsal.view
    model = fleet.models[name]
    bare = nodes_without(fleet, model)
    request = Request(model=name, command=CommandId("plan"), now_ns=view.moment.log_ns, node=bare[0] if bare else None)
    wish = wish_of(fleet, request)
    # The refusal that the reconciler would tell, with whoever is in the way.
    refused = place(fleet, view.readings, request, search=view.search).refused
    if refused is None:
        return None
    field = _field(view.search.survey(fleet, view.readings, wish))
    where = _written(configuration, name, field)
    return Unplaced(
        name,
        shortage(fleet, model) or len(bare),
        refused.kind,
        refused.message,
        refused.unblock,
        field,
        where.document,
        where.line,
    )


def _field(found: Survey) -> str | None:
    """The field that most nodes were rejected by."""
    counts = sorted(found.filters, key=lambda count: -count.nodes)
    return next((FIELDS[count.filter] for count in counts if count.filter in FIELDS), None)


def _written(configuration: Configuration, model: ModelName, field: str | None) -> Written:
    """Where the entry with `field` stands; nowhere for what isn't listed."""
    scheduled = configuration.schedules.get(model)
    written = Written() if scheduled is None else scheduled.written
    return configuration.places.get(model, written) if field in OF_MODEL else written
