"""Models and schedules as documents: what they would change, and changing it (rules S1-S3).

Invariant: every fault of every document is told together and nothing of them applied; a plan appends nothing.
"""

import asyncio
from functools import partial
from typing import Final

import msgspec
from litestar import Controller, post
from litestar.params import JSONBody

from modelyard_events.envelope import AnyEvent
from modelyard_projections.fleet import Fleet
from modelyard_services.api.access import requires
from modelyard_services.api.service import ApiRequest, Service, service_of
from modelyard_services.effects.documents import parse_text
from modelyard_services.effects.looks import looked
from modelyard_services.errors import InvalidRequestError
from modelyard_services.policy import apply as policy
from modelyard_services.policy.actions import Moment, View
from modelyard_services.policy.configuration import Configuration, read_parsed
from modelyard_services.policy.estimate import estimated
from modelyard_services.policy.plan import Consequences, consequences
from modelyard_services.policy.rehearsal import Rehearsal

DOCUMENTS_MAX: Final = 100
"""Documents in one request; the body's limit of 1 MiB holds for all of them together."""


class Text(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One document as it is written, YAML or JSON; `name` is what faults are told by."""

    name: str
    text: str


class ConfigurationBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The later document wins; `prune` ends what no document lists, by section."""

    documents: list[Text]
    prune: bool = False


class PlanView(msgspec.Struct, frozen=True):
    """What applying would change as of `sequence`, and what the reconciler would do next."""

    sequence: int
    changes: tuple[policy.Change, ...]
    consequences: Consequences
    warnings: tuple[str, ...]


class ApplyView(msgspec.Struct, frozen=True):
    """What was changed, and what the reconciler does next; `unplaced` there tells what can't be met."""

    sequence: int
    changed: bool
    changes: tuple[policy.Change, ...]
    consequences: Consequences
    warnings: tuple[str, ...]


class ConfigurationCommands(Controller):
    """Documents of models and schedules."""

    guards = [requires("operator")]  # noqa: RUF012 - the framework reads it as a class attribute
    tags = ["configuration"]  # noqa: RUF012 - as above

    @post("/plan", status_code=200, summary="Plan a configuration")
    async def plan(self, request: ApiRequest, data: JSONBody[ConfigurationBody]) -> PlanView:
        """What `apply` would change, place and end; changes nothing (S3)."""
        service, configuration = service_of(request), await _configuration(data)
        return await _planned(service, configuration, prune=data.prune)

    @post("/apply", status_code=200, summary="Apply a configuration")
    async def apply(self, request: ApiRequest, data: JSONBody[ConfigurationBody]) -> ApplyView:
        """Make models and schedules as the documents say, in one append; what stands already appends nothing (S3)."""
        service, configuration = service_of(request), await _configuration(data)
        planned = await _planned(service, configuration, prune=data.prune)
        changes = planned.changes

        def decide(fleet: Fleet) -> list[AnyEvent]:
            nonlocal changes
            events = policy.apply(fleet, configuration, prune=data.prune)
            changes = tuple(policy.changes(fleet, events))
            return events

        done = await service.commit(request, decide)
        changed = bool(done.events) or done.repeated
        return ApplyView(done.sequence, changed, changes, planned.consequences, planned.warnings)


async def _configuration(body: ConfigurationBody) -> Configuration:
    """The documents, read whole, with estimates of the models whose files are here.

    Raises:
        InvalidEntriesError: with every fault of every document.
    """
    if not 1 <= len(body.documents) <= DOCUMENTS_MAX:
        problem = f"1 to {DOCUMENTS_MAX} documents are taken at once"
        raise InvalidRequestError(problem, field="documents", value=len(body.documents))
    read = read_parsed(partial(parse_text, each.text, name=each.name, source=policy.API) for each in body.documents)
    return await looked(partial(estimated, read))


async def _planned(service: Service, configuration: Configuration, *, prune: bool) -> PlanView:
    fleet = service.fleet
    events = policy.apply(fleet, configuration, prune=prune)
    sequence, changes = fleet.sequence, tuple(policy.changes(fleet, events))
    warnings = policy.warnings(fleet, configuration, events)
    if fleet.settings.reconciler_frozen:
        warnings = (*warnings, "the reconciler is frozen; it places and ends nothing until it is thawed")
    # Copied here, played beside the loop: that goes on folding into the fleet itself.
    rehearsal = Rehearsal(_view_of(service))
    planned = await asyncio.to_thread(consequences, rehearsal, events, configuration)
    return PlanView(sequence, changes, planned, warnings)


def _view_of(service: Service) -> View:
    runtime = service.runtime
    moment = Moment(runtime.clock.now_ns(), runtime.clock.monotonic_ns(), runtime.connected_since_ns)
    return View(runtime.fleet, runtime.demand, service.readings(runtime.fleet), moment)
