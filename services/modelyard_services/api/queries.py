"""What is: nodes, models, replicas, reservations, schedules, settings, from the fleet in memory.

Invariant: a list is answered from one state of the fleet, named by its `sequence`.
"""

from typing import Annotated, Literal

import msgspec
from litestar import Controller, get
from litestar.params import FromPath, FromQuery, QueryParameter

from modelyard_events.ids import CommandId, ReplicaId
from modelyard_events.selectors import matches, parse_selector
from modelyard_projections.fleet import IntentName, LivenessName
from modelyard_projections.hashing import StateHash
from modelyard_services.api import views
from modelyard_services.api.access import requires
from modelyard_services.api.moments import At, Moment, moment
from modelyard_services.api.service import PAGE_MAX, ApiRequest, model_in, node_in, page, service_of
from modelyard_services.errors import NotFoundError
from modelyard_services.policy.fitting import NodeFit, fit, one_more
from modelyard_services.policy.placement import Request

Limit = Annotated[int, QueryParameter(ge=1, le=PAGE_MAX, description="Items in one answer.")]
Cursor = Annotated[str | None, QueryParameter(name="after", description="The `next` of the page before.")]


class NodeList(msgspec.Struct, frozen=True):
    items: list[views.NodeView]
    next: str | None
    sequence: int


class ModelList(msgspec.Struct, frozen=True):
    items: list[views.ModelView]
    next: str | None
    sequence: int


class ReplicaList(msgspec.Struct, frozen=True):
    items: list[views.ReplicaView]
    next: str | None
    sequence: int


class ReservationList(msgspec.Struct, frozen=True):
    items: list[views.ReservationView]
    next: str | None
    sequence: int


class ScheduleList(msgspec.Struct, frozen=True):
    items: list[views.ScheduleView]
    next: str | None
    sequence: int


class NodeFitView(msgspec.Struct, frozen=True):
    """How many more replicas fit on `node`; `filter` is what rejects one more, and by how much, where none fits."""

    node: str
    replicas: int
    filter: str | None = None
    figure: int | float | str | bool | None = None
    unit: str | None = None
    detail: str | None = None


class CapacityView(msgspec.Struct, frozen=True):
    """How many more replicas of a model fit now without ending any, beside those that live and are wanted.

    `min_replicas` and `max_replicas` are its schedule's; null is no limit. `one_more` is what asking for another one
    would come to: where it goes and in place of whom (`waits_for`), or why it is refused and what would `unblock` it.
    """

    model: str
    fits: int
    replicas: int
    min_replicas: int
    max_replicas: int | None
    one_more: str
    waits_for: list[str]
    unblock: str | None
    items: list[NodeFitView]
    next: str | None
    sequence: int


class HashView(msgspec.Struct, frozen=True):
    """The state at `sequence` as 32 hex digits."""

    sequence: int
    hash: str


class Queries(Controller):
    """The read side."""

    guards = [requires("viewer")]  # noqa: RUF012 - the framework reads it as a class attribute
    tags = ["queries"]  # noqa: RUF012 - as above

    @get("/nodes", summary="List nodes")
    async def list_nodes(  # noqa: PLR0913 - one parameter per filter of the contract
        self,
        request: ApiRequest,
        *,
        admission: FromQuery[Literal["pending", "approved", "rejected"] | None] = None,
        liveness: FromQuery[LivenessName | None] = None,
        intent: FromQuery[IntentName | None] = None,
        node_type: FromQuery[Literal["backend", "agent"] | None] = None,
        selector: FromQuery[str | None] = None,
        at: At = None,
        limit: Limit = PAGE_MAX,
        after: Cursor = None,
    ) -> NodeList:
        """Nodes in the order of their names."""
        seen = await moment(service_of(request), at)
        terms = parse_selector(selector, field="selector")
        found = [
            node
            for node in seen.fleet.nodes.values()
            if (admission is None or node.admission == admission)
            and (liveness is None or node.liveness_name == liveness)
            and (intent is None or node.intent_name == intent)
            and (node_type is None or node.node_type == node_type)
            and matches(terms, node.labels)
        ]
        taken, cursor = page(found, lambda node: node.name, limit=limit, after=after)
        return NodeList([_node(seen, node.name) for node in taken], cursor, seen.fleet.sequence)

    @get("/nodes/{node:str}", summary="Show a node")
    async def show_node(self, request: ApiRequest, node: FromPath[str], at: At = None) -> views.NodeView:
        """One node with its four facets, labels, devices and budgets."""
        return _node(await moment(service_of(request), at), node)

    @get("/models", summary="List models")
    async def list_models(
        self, request: ApiRequest, at: At = None, limit: Limit = PAGE_MAX, after: Cursor = None
    ) -> ModelList:
        """Models in the order of their names: defined, scheduled, or still running."""
        fleet = (await moment(service_of(request), at)).fleet
        taken, cursor = page(list(fleet.models.values()), lambda model: model.name, limit=limit, after=after)
        return ModelList([views.model_view(model, fleet) for model in taken], cursor, fleet.sequence)

    @get("/models/{model:str}", summary="Show a model")
    async def show_model(self, request: ApiRequest, model: FromPath[str], at: At = None) -> views.ModelView:
        """One model with its spec, its schedule and why it isn't placed, if it isn't."""
        fleet = (await moment(service_of(request), at)).fleet
        return views.model_view(model_in(fleet, model), fleet)

    @get("/models/{model:str}/capacity", summary="How many more fit")
    async def model_capacity(
        self, request: ApiRequest, model: FromPath[str], at: At = None, limit: Limit = PAGE_MAX, after: Cursor = None
    ) -> CapacityView:
        """How many more replicas of the model would fit on each node, and what one more would come to."""
        seen = await moment(service_of(request), at)
        state = model_in(seen.fleet, model)
        another = Request(model=state.name, command=CommandId("capacity"), now_ns=seen.now_ns)
        found = fit(seen.fleet, seen.readings, another)
        told = one_more(seen.fleet, seen.readings, another, search=seen.search)
        taken, cursor = page(list(found.nodes), lambda each: each.node, limit=limit, after=after)
        return CapacityView(
            state.name,
            found.replicas,
            found.living,
            found.floor,
            found.ceiling,
            told.outcome,
            list(told.waits_for),
            told.unblock,
            [_fit_view(each) for each in taken],
            cursor,
            seen.fleet.sequence,
        )

    @get("/replicas", summary="List replicas")
    async def list_replicas(  # noqa: PLR0913 - one parameter per filter of the contract
        self,
        request: ApiRequest,
        *,
        model: FromQuery[str | None] = None,
        node: FromQuery[str | None] = None,
        replica_state: Annotated[views.ReplicaStateName | None, QueryParameter(name="state")] = None,
        at: At = None,
        limit: Limit = PAGE_MAX,
        after: Cursor = None,
    ) -> ReplicaList:
        """Living replicas in the order of their ids."""
        seen = await moment(service_of(request), at)
        found = [
            view
            for view in (_replica(seen, replica) for replica in seen.fleet.replicas)
            if (model is None or view.model == model)
            and (node is None or view.node == node)
            and (replica_state is None or view.state == replica_state)
        ]
        taken, cursor = page(found, lambda view: view.id, limit=limit, after=after)
        return ReplicaList(taken, cursor, seen.fleet.sequence)

    @get("/replicas/{replica:str}", summary="Show a replica")
    async def show_replica(self, request: ApiRequest, replica: FromPath[str], at: At = None) -> views.ReplicaView:
        """One living replica; an ended one is in its events."""
        return _replica(await moment(service_of(request), at), ReplicaId(replica))

    @get("/reservations", summary="List reservations")
    async def list_reservations(
        self,
        request: ApiRequest,
        *,
        node: FromQuery[str | None] = None,
        at: At = None,
        limit: Limit = PAGE_MAX,
        after: Cursor = None,
    ) -> ReservationList:
        """Living reservations, a replica's or an operator's."""
        fleet = (await moment(service_of(request), at)).fleet
        found = [held for held in fleet.reservations.values() if node is None or held.node == node]
        taken, cursor = page(found, lambda held: held.id, limit=limit, after=after)
        return ReservationList([views.reservation_view(held) for held in taken], cursor, fleet.sequence)

    @get("/schedules", summary="List schedules")
    async def list_schedules(
        self, request: ApiRequest, at: At = None, limit: Limit = PAGE_MAX, after: Cursor = None
    ) -> ScheduleList:
        """Schedules in the order of their models' names."""
        fleet = (await moment(service_of(request), at)).fleet
        found = [view for view in map(views.schedule_view, fleet.models.values()) if view is not None]
        taken, cursor = page(found, lambda view: view.model_name, limit=limit, after=after)
        return ScheduleList(taken, cursor, fleet.sequence)

    @get("/models/{model:str}/schedule", summary="Show a model's schedule")
    async def show_schedule(self, request: ApiRequest, model: FromPath[str], at: At = None) -> views.ScheduleView:
        """The schedule with its source and its breaker."""
        view = views.schedule_view(model_in((await moment(service_of(request), at)).fleet, model))
        if view is None:
            raise NotFoundError(f"model {model!r} has no schedule", field="model", value=model)
        return view

    @get("/settings", summary="Show the settings")
    async def show_settings(self, request: ApiRequest, at: At = None) -> views.SettingsView:
        """What operators changed at run time, and the nodes of an open mass loss."""
        return views.settings_view((await moment(service_of(request), at)).fleet)

    @get("/state/hash", summary="The state's hash")
    async def state_hash(self, request: ApiRequest, at: At = None) -> HashView:
        """The canonical hash of all this process knows: equal to a replay's and to the read model's (I9)."""
        fleet = (await moment(service_of(request), at)).fleet
        return HashView(fleet.sequence, StateHash.of(fleet).text)


def _node(seen: Moment, name: str) -> views.NodeView:
    return views.node_view(
        node_in(seen.fleet, name), seen.fleet.settings, seen.demand, now_ns=seen.now_ns, monotonic_ns=seen.monotonic_ns
    )


def _replica(seen: Moment, replica: ReplicaId) -> views.ReplicaView:
    state = seen.fleet.replicas.get(replica)
    if state is None:
        raise NotFoundError(
            f"there is no living replica {replica!r}; `modelyard events` tells of ended ones",
            field="replica",
            value=replica,
        )
    return views.replica_view(state, seen.fleet, seen.demand, monotonic_ns=seen.monotonic_ns)


def _fit_view(found: NodeFit) -> NodeFitView:
    rejected = found.rejected
    if rejected is None:
        return NodeFitView(found.node, found.replicas)
    return NodeFitView(
        found.node, found.replicas, rejected.filter, rejected.figure, rejected.unit, rejected.detail or None
    )
