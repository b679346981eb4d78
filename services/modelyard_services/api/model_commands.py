"""Commands on models: define, schedule, load, unload, restart."""

from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
from litestar import Controller, Response, delete, post, put
from litestar.params import FromPath, FromQuery, JSONBody

from modelyard_events.envelope import AnyEvent
from modelyard_events.ids import CommandId, ModelName, NodeName, ReplicaId, Revision
from modelyard_events.names import model_name
from modelyard_events.selectors import parse_selector
from modelyard_projections.fleet import Draining, Fleet
from modelyard_services.api.access import requires
from modelyard_services.api.service import ApiRequest, CommandView, SequenceOf, answer, service_of
from modelyard_services.effects.looks import looked
from modelyard_services.effects.refusals import count_refusal
from modelyard_services.errors import (
    InvalidRequestError,
    ModelUnknownError,
    NoCapacityError,
    NotFoundError,
    UnsatisfiableError,
)
from modelyard_services.policy import breaker, models, placement, schedules
from modelyard_services.policy.configuration import read_model, read_schedule
from modelyard_services.policy.desired import is_ready
from modelyard_services.policy.ending import begin_drain
from modelyard_services.policy.estimate import with_estimate
from modelyard_services.policy.identity import replica_id
from modelyard_services.policy.restart import restart

REPLICAS_MAX = 100
"""Replicas of one load: each is its own decision."""

Name = FromPath[str]
Chosen = Callable[[Fleet], list[ReplicaId]]


class LoadBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where to place `replicas` more; None leaves it to the schedule. `revision`: only if it is the one in force."""

    node: str | None = None
    selector: str | dict[str, str] | None = None
    replicas: int = 1
    revision: str | None = None


class LoadAnswer(msgspec.Struct, frozen=True):
    """The replicas placed; `refused` says why there are fewer than asked for."""

    sequence: int
    replicas: list[str]
    refused: str | None = None


class UnloadAnswer(msgspec.Struct, frozen=True):
    """The replicas that are ending."""

    sequence: int
    replicas: list[str]


class RestartAnswer(msgspec.Struct, frozen=True):
    """The replicas that are to be replaced by fresh ones."""

    sequence: int
    replicas: list[str]
    warnings: list[str] = []


class ModelCommands(Controller):
    """What operators do to models."""

    guards = [requires("operator")]  # noqa: RUF012 - the framework reads it as a class attribute
    tags = ["models"]  # noqa: RUF012 - as above
    path = "/models/{model:str}"

    @put("/", status_code=200, summary="Define a model")
    async def define(self, request: ApiRequest, model: Name, data: JSONBody[dict[str, Any]]) -> CommandView:
        """Define how the model is run, or redefine it: replicas of older revisions are replaced (R6)."""
        service, name = service_of(request), model_name(model)
        written = read_model({key: value for key, value in data.items() if key != "name"}, name=f"model {model}")
        spec = await looked(partial(with_estimate, written))
        warnings = [str(conflict) for conflict in models.group_conflicts(service.fleet, model=name, spec=spec)]
        done = await service.commit(
            request, lambda fleet: models.define(fleet, model=name, spec=spec), matches=_at(name)
        )
        return answer(done, *warnings)

    @delete("/", status_code=200, summary="Remove a model")
    async def remove(self, request: ApiRequest, model: Name) -> CommandView:
        """End the definition; what runs drains."""
        name = ModelName(model)
        return answer(
            await service_of(request).commit(request, lambda fleet: models.remove(fleet, model=name), matches=_at(name))
        )

    @put("/schedule", status_code=200, summary="Schedule a model")
    async def set_schedule(self, request: ApiRequest, model: Name, data: JSONBody[dict[str, Any]]) -> CommandView:
        """Say how many replicas are wanted, and where (S1, S2)."""
        service, name = service_of(request), model_name(model)
        schedule = read_schedule(
            {key: value for key, value in data.items() if key != "model_name"}, name=f"schedule {model}"
        )
        warnings = schedules.schedule_warnings(service.fleet, model=name, schedule=schedule, source="api")
        done = await service.commit(
            request,
            lambda fleet: schedules.set_schedule(fleet, model=name, schedule=schedule, source="api"),
            matches=_at(name),
        )
        return answer(done, *warnings)

    @delete("/schedule", status_code=200, summary="Clear a schedule")
    async def clear_schedule(self, request: ApiRequest, model: Name) -> CommandView:
        """Want nothing of the model any more; what runs goes on."""
        service, name = service_of(request), ModelName(model)
        warnings = schedules.schedule_warnings(service.fleet, model=name, schedule=None, source="api")
        done = await service.commit(
            request, lambda fleet: schedules.clear_schedule(fleet, model=name, source="api"), matches=_at(name)
        )
        return answer(done, *warnings)

    @post("/clear-breaker", status_code=200, summary="Clear a model's breaker")
    async def clear_breaker(self, request: ApiRequest, model: Name) -> CommandView:
        """Try again now to place what was found unsatisfiable (C5); changes nothing where no breaker is open."""
        name = ModelName(model)
        done = await service_of(request).commit(
            request, lambda fleet: breaker.clear_breaker(fleet, model=name), matches=_at(name)
        )
        return answer(done)

    @post("/replicas", status_code=202, summary="Load a model")
    async def load(
        self, request: ApiRequest, model: Name, data: JSONBody[LoadBody | None] = None
    ) -> Response[LoadAnswer]:
        """Place more replicas; each is decided by itself and told in its own event."""
        body = data or LoadBody()
        if not 1 <= body.replicas <= REPLICAS_MAX:
            raise InvalidRequestError(f"replicas is 1 to {REPLICAS_MAX}", field="replicas", value=body.replicas)
        loaded = await _load(request, service_of(request).fleet.model_named(model), body)
        first = loaded.replicas[0]
        return Response(loaded, status_code=202, headers={"Location": f"/api/v1/replicas/{first}"})

    @delete("/replicas", status_code=202, summary="Unload a model")
    async def unload(self, request: ApiRequest, model: Name, node: FromQuery[str | None] = None) -> UnloadAnswer:
        """End all replicas of the model, or those on one node: every index of it (X3)."""
        chosen = _of_model(request, model, node)
        return await _unload(request, chosen, f"model {model!r} has no replica there; nothing was unloaded")

    @post("/restart", status_code=202, summary="Restart a model")
    async def restart(self, request: ApiRequest, model: Name, node: FromQuery[str | None] = None) -> RestartAnswer:
        """Replace the ready replicas by fresh ones, one after another, a new one ready first where it fits (R6)."""
        return await _restart(request, _of_model(request, model, node), f"model {model!r} has no ready replica there")


class ReplicaCommands(Controller):
    """What operators do to one replica."""

    guards = [requires("operator")]  # noqa: RUF012 - the framework reads it as a class attribute
    tags = ["replicas"]  # noqa: RUF012 - as above
    path = "/replicas/{replica:str}"

    @delete("/", status_code=202, summary="Unload a replica")
    async def unload(self, request: ApiRequest, replica: Name) -> UnloadAnswer:
        """End one replica and no other (X4)."""
        return await _unload(request, _one(replica), f"there is no living replica {replica!r}; nothing was unloaded")

    @post("/restart", status_code=202, summary="Restart a replica")
    async def restart(self, request: ApiRequest, replica: Name) -> RestartAnswer:
        """Replace it by a fresh one of the same model, ready first where that fits (R6)."""
        return await _restart(request, _one(replica), f"there is no ready replica {replica!r}")


async def _load(request: ApiRequest, model: ModelName, body: LoadBody) -> LoadAnswer:
    service = service_of(request)
    runtime, command = service.runtime, service.command_id(request)
    selector = parse_selector(body.selector, field="selector")
    placed: list[str] = []
    sequence, refused = service.fleet.sequence, None
    for number in range(body.replicas):
        wish = placement.Request(
            model=model,
            command=CommandId(f"{command}.{number}" if number else command),
            now_ns=runtime.clock.now_ns(),
            node=None if body.node is None else NodeName(body.node),
            selector=selector,
            revision=None if body.revision is None else Revision(body.revision),
        )
        outcomes: list[placement.Outcome] = []

        def decide(
            fleet: Fleet, wish: placement.Request = wish, outcomes: list[placement.Outcome] = outcomes
        ) -> tuple[AnyEvent, ...]:
            measured = service.readings(fleet)
            outcomes.append(placement.place(fleet, measured, wish, search=service.search))
            return outcomes[-1].events

        done = await service.commit(request, decide, matches=_at(model), command=wish.command)
        sequence = done.sequence
        refused = outcomes[-1].refused if outcomes else None
        if refused is not None:
            count_refusal(refused.kind)
            break
        placed.append(_placed(wish, outcomes))
    if refused is not None and not placed:
        raise refusal(refused)
    return LoadAnswer(sequence, placed, refused.message if refused else None)


def _placed(wish: placement.Request, outcomes: list[placement.Outcome]) -> str:
    # No outcome means that the log held the command already: its replica's id comes from the command alone.
    replica = outcomes[-1].replica if outcomes else replica_id(wish.command, 0)
    if replica is None:
        raise AssertionError("an outcome without a refusal names its replica")
    return replica


def refusal(refused: placement.Refused) -> NoCapacityError | UnsatisfiableError:
    """The error that tells a refused placement: what would unblock it is in its members."""
    extra = placement.told(refused)
    if refused.kind == "unsatisfiable":
        return UnsatisfiableError(refused.message, extra=extra)
    return NoCapacityError(refused.message, retry_after_seconds=30, extra=extra)


def _of_model(request: ApiRequest, model: str, node: str | None) -> Chosen:
    """The model's replicas, or those on one node."""
    name = service_of(request).fleet.model_named(model)
    if name not in service_of(request).fleet.models:
        raise ModelUnknownError(f"there is no model {model!r}", field="model", value=model)
    if node is not None and NodeName(node) not in service_of(request).fleet.nodes:
        raise NotFoundError(f"there is no node {node!r}", field="node", value=node)
    return lambda fleet: [state.id for state in fleet.replicas_of(name) if node is None or state.node == node]


def _one(replica: str) -> Chosen:
    wanted = ReplicaId(replica)
    return lambda fleet: [wanted] if wanted in fleet.replicas else []


async def _restart(request: ApiRequest, chosen: Chosen, nothing: str) -> RestartAnswer:
    service = service_of(request)
    ready: list[ReplicaId] = []

    def decide(fleet: Fleet) -> list[AnyEvent]:
        ready[:] = [replica for replica in chosen(fleet) if is_ready(fleet.replicas[replica])]
        if not ready:
            raise NotFoundError(f"{nothing}; nothing restarts")
        return restart(fleet, ready)

    done = await service.commit(request, decide)
    frozen = ["the reconciler is frozen and restarts nothing until `modelyard thaw`"]
    return RestartAnswer(
        done.sequence, [str(replica) for replica in ready], frozen if service.fleet.settings.reconciler_frozen else []
    )


async def _unload(request: ApiRequest, chosen: Chosen, nothing: str) -> UnloadAnswer:
    service = service_of(request)
    ended: list[ReplicaId] = []

    def decide(fleet: Fleet) -> list[AnyEvent]:
        found = chosen(fleet)
        if not found:
            raise NotFoundError(nothing)
        ended[:] = [replica for replica in found if not isinstance(fleet.replicas[replica].phase, Draining)]
        seconds = fleet.settings.drain_deadline_seconds
        return begin_drain(fleet, ended, reason="requested", deadline_seconds=seconds)

    done = await service.commit(request, decide)
    return UnloadAnswer(done.sequence, [str(replica) for replica in ended])


def _at(model: ModelName) -> SequenceOf:
    return lambda fleet: fleet.model_sequence(model)
