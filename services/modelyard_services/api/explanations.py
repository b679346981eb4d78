"""Why: what led to an event, what was decided about a model, and how each node was judged for it (rules H2, H3).

Invariant: nothing here decides; what was decided is read, and what isn't kept whole is recomputed by the policy itself.
"""

from datetime import datetime
from typing import Annotated, Any, Final

import msgspec
from litestar import Controller, get
from litestar.params import FromPath, QueryParameter
from sqlalchemy.ext.asyncio import AsyncConnection

from modelyard_events.decision import Decision
from modelyard_events.ids import CommandId, ModelName, NodeName
from modelyard_projections import queries
from modelyard_projections.fleet import ModelState
from modelyard_services.api import views
from modelyard_services.api.access import requires
from modelyard_services.api.history import (
    DecisionView,
    EventView,
    database_of,
    recorded_decision,
    view_of_decision,
    view_of_record,
)
from modelyard_services.api.moments import At, Moment, moment, open_log, sequence_of, time_of
from modelyard_services.api.queries import Cursor, Limit
from modelyard_services.api.service import PAGE_MAX, ApiRequest, Service, model_in, node_in, page, service_of
from modelyard_services.errors import NotFoundError
from modelyard_services.policy.explain import NodeAccount, explain
from modelyard_services.policy.fitting import one_more
from modelyard_services.policy.placement import Request, wish_of
from modelyard_services.policy.recount import recount

CAUSES_MAX: Final = 100
"""Links of one chain: a story longer than that is told by its correlation, in `/events`."""

EFFECTS_MAX: Final = 100

DECISIONS_MAX: Final = 20
"""The newest decisions that an answer about a model holds."""


class CausesView(msgspec.Struct, frozen=True):
    """An event, what led to it (`causes`, the first one first), and what it led to itself (`effects`).

    `complete` is false where the chain has more than 100 links: its beginning is missing then.
    """

    event: EventView
    causes: list[EventView]
    complete: bool
    effects: list[EventView]


class NodeAccountView(msgspec.Struct, frozen=True):
    """How one node was judged: the first filter that rejected it, by how much, or its scores."""

    node: str
    filter: str | None = None
    figure: int | float | str | None = None
    unit: str | None = None
    detail: str | None = None
    scores: dict[str, Any] | None = None


class AccountView(msgspec.Struct, frozen=True):
    """A decision's full account, recomputed at its `basis` by its `policy`.

    `measured`: the measurements it used are known. `agrees`: the account comes to the decision's own counts.
    """

    id: str
    sequence: int
    basis: int
    policy: str
    measured: bool
    agrees: bool
    items: list[NodeAccountView]
    next: str | None


class WhyView(msgspec.Struct, frozen=True):
    """Where a model stands and why: its newest decisions, what one more would come to, and how each node is judged.

    Where the model isn't defined `one_more` is null and `nodes` empty: nothing can be judged then. `next` is the cursor
    of further nodes.
    """

    model: str
    sequence: int
    time: datetime | None
    schedule: views.ScheduleView | None
    replicas: int
    ready: int
    last_failure: str | None
    one_more: str | None
    waits_for: list[str]
    unblock: str | None
    decisions: list[DecisionView]
    nodes: list[NodeAccountView]
    next: str | None


class Explanations(Controller):
    """Why it is as it is."""

    guards = [requires("viewer")]  # noqa: RUF012 - the framework reads it as a class attribute
    tags = ["history"]  # noqa: RUF012 - as above

    @get("/events/{sequence:str}/causes", summary="Show what led to an event")
    async def show_causes(self, request: ApiRequest, sequence: FromPath[str]) -> CausesView:
        """The chain of causes back to the first one, and the event's own effects."""
        wanted = sequence_of(sequence, field="sequence")
        return await database_of(service_of(request)).ask(lambda connection: _causes(connection, wanted))

    @get("/decisions/{decision:str}/account", summary="Recompute a decision's full account")
    async def show_account(
        self, request: ApiRequest, decision: FromPath[str], limit: Limit = PAGE_MAX, after: Cursor = None
    ) -> AccountView:
        """Every node with its filter or its scores, on the state that it was decided on (H2)."""
        service = service_of(request)
        record = await recorded_decision(service, decision)
        told = msgspec.json.decode(record.body, type=Decision)
        fleet = await service.past.at_sequence(open_log(service), told.basis)
        found = recount(fleet, told, ModelName(record.model or ""))
        taken, cursor = page(found.nodes, lambda each: each.node, limit=limit, after=after)
        return AccountView(
            record.id,
            record.sequence,
            told.basis,
            told.policy,
            found.measured,
            found.agrees,
            [_node_account(each) for each in taken],
            cursor,
        )

    @get("/models/{model:str}/why", summary="Show why a model stands where it stands")
    async def why_model(
        self, request: ApiRequest, model: FromPath[str], at: At = None, limit: Limit = PAGE_MAX, after: Cursor = None
    ) -> WhyView:
        """Its newest decisions, what one more would come to, and every node's judgement."""
        service = service_of(request)
        seen = await moment(service, at)
        return await _why(service, seen, model_in(seen.fleet, model), limit=limit, after=after)

    @get("/nodes/{node:str}/why", summary="Show why a model is on a node, or isn't")
    async def why_node(
        self,
        request: ApiRequest,
        node: FromPath[str],
        model: Annotated[str, QueryParameter(description="The model it is about.")],
        at: At = None,
    ) -> WhyView:
        """The newest decisions for that model on that node, and how the node is judged for one more."""
        service = service_of(request)
        seen = await moment(service, at)
        name = node_in(seen.fleet, node).name
        return await _why(service, seen, model_in(seen.fleet, model), node=name, limit=1, after=None)


async def _causes(connection: AsyncConnection, sequence: int) -> CausesView:
    event = await queries.event_by_sequence(connection, sequence)
    if event is None:
        raise NotFoundError(f"the history holds no event {sequence} yet", field="sequence", value=sequence)
    chain: list[queries.EventRecord] = []
    cause = event.causation
    while cause is not None and len(chain) < CAUSES_MAX:
        found = await queries.event_by_id(connection, cause)
        if found is None:
            break
        chain.append(found)
        cause = found.causation
    effects = await queries.effects_of(connection, event.event_id, limit=EFFECTS_MAX)
    return CausesView(
        view_of_record(event),
        [view_of_record(one) for one in reversed(chain)],
        cause is None,
        [view_of_record(one) for one in effects],
    )


async def _why(
    service: Service, seen: Moment, model: ModelState, *, node: NodeName | None = None, limit: int, after: str | None
) -> WhyView:
    until = None if seen.demand is not None else seen.fleet.sequence
    decisions = await database_of(service).ask(
        lambda connection: queries.decisions_about(connection, model.name, node=node, until=until, limit=DECISIONS_MAX)
    )
    request = Request(model=model.name, command=CommandId("why"), now_ns=seen.now_ns, node=node)
    judged: list[NodeAccount] = []
    another = None
    if model.spec is not None:
        judged = explain(seen.fleet, seen.readings, wish_of(seen.fleet, request))
        another = one_more(seen.fleet, seen.readings, request, search=seen.search)
    taken, cursor = page(judged, lambda each: each.node, limit=limit, after=after)
    stands = views.model_view(model, seen.fleet)
    return WhyView(
        model=model.name,
        sequence=seen.fleet.sequence,
        time=time_of(seen.fleet),
        schedule=stands.schedule,
        replicas=stands.replicas,
        ready=stands.ready,
        last_failure=model.last_failure,
        one_more=another.outcome if another else None,
        waits_for=list(another.waits_for) if another else [],
        unblock=another.unblock if another else None,
        decisions=[view_of_decision(one) for one in decisions],
        nodes=[_node_account(each) for each in taken],
        next=cursor,
    )


def _node_account(account: NodeAccount) -> NodeAccountView:
    rejected = account.rejection
    if rejected is None:
        return NodeAccountView(account.node, scores=dict(account.scores or {}))
    return NodeAccountView(account.node, rejected.filter, rejected.figure, rejected.unit, rejected.detail or None)
