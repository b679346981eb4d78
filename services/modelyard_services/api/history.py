"""What happened: pages of the history from PostgreSQL, and the log as it grows.

Invariant: every event is shown with its actor and its cause; a page and a stream show the same events alike.
"""

import asyncio
from collections.abc import AsyncGenerator
from datetime import datetime
from typing import Annotated, Any, Final

import msgspec
from litestar import Controller, get
from litestar.params import FromPath, FromQuery, QueryParameter
from litestar.response import ServerSentEvent, ServerSentEventMessage

from modelyard_events.codec import tag_of
from modelyard_events.envelope import Recorded
from modelyard_projections import queries
from modelyard_projections.history import mentions_from
from modelyard_projections.homes import Homes
from modelyard_services.api.access import requires
from modelyard_services.api.parameters import known_type
from modelyard_services.api.service import PAGE_MAX, ApiRequest, Service, service_of
from modelyard_services.effects.database import Database
from modelyard_services.effects.feed import recorded_after
from modelyard_services.effects.log.contract import Log
from modelyard_services.errors import (
    InvalidQueryError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    UnavailableError,
)

STREAMS_MAX: Final = 64
"""Event streams at a time: each is its own reader of the log."""

FOLD_SECONDS_MAX: Final = 30.0
"""How far our own fold may be behind a stream's reader of the same log."""


AFTER: Final = "Only what has a greater sequence."
EventType = Annotated[
    str | None,
    QueryParameter(
        name="type", description="A type of event, of `GET /schemas`, with or without its version; or a kind."
    ),
]


class EventView(msgspec.Struct, frozen=True):
    """An event with its envelope, as the log holds it.

    `time` is the log's own; `occurred_at` a worker's, of what happened there before it was told.
    """

    sequence: int
    time: datetime
    id: str
    type: str
    event: Any
    actor: Any
    command: str
    correlation: str
    causation: str | None = None
    trace: str | None = None
    occurred_at: datetime | None = None


class EventList(msgspec.Struct, frozen=True):
    items: list[EventView]
    next: int | None
    sequence: int


class DecisionView(msgspec.Struct, frozen=True):
    """A decision, and the event that holds it."""

    id: str
    sequence: int
    kind: str
    outcome: str
    policy: str
    basis: int
    node: str | None
    model: str | None
    decision: Any


class History(Controller):
    """What happened, and why."""

    guards = [requires("viewer")]  # noqa: RUF012 - the framework reads it as a class attribute
    tags = ["history"]  # noqa: RUF012 - as above

    @get("/events", summary="Page through the events")
    async def list_events(  # noqa: PLR0913 - one parameter per filter of the contract
        self,
        request: ApiRequest,
        *,
        after: Annotated[int, QueryParameter(ge=0, description=AFTER)] = 0,
        from_time: Annotated[datetime | None, QueryParameter(name="from")] = None,
        to_time: Annotated[datetime | None, QueryParameter(name="to")] = None,
        node: FromQuery[str | None] = None,
        model: FromQuery[str | None] = None,
        event_type: EventType = None,
        actor: FromQuery[str | None] = None,
        correlation: FromQuery[str | None] = None,
        limit: Annotated[int, QueryParameter(ge=1, le=PAGE_MAX)] = 100,
    ) -> EventList:
        """Events after a sequence, in log order; `type` is a tag or the front of one (`replica.placed`)."""
        service = service_of(request)
        from_ns, to_ns = _span(from_time, to_time)
        wanted = queries.EventFilter(
            from_ns=from_ns,
            to_ns=to_ns,
            node=node,
            model=model,
            type=known_type(event_type),
            actor=actor,
            correlation=correlation,
        )
        page = await database_of(service).ask(
            lambda connection: queries.event_page(connection, wanted, after=after, limit=limit)
        )
        return EventList([view_of_record(record) for record in page.items], page.next, service.fleet.sequence)

    @get("/events/stream", summary="Follow the events", media_type="text/event-stream")
    async def stream_events(  # noqa: PLR0913 - one parameter per filter of the contract
        self,
        request: ApiRequest,
        *,
        after: Annotated[int | None, QueryParameter(ge=0, description=AFTER)] = None,
        node: FromQuery[str | None] = None,
        model: FromQuery[str | None] = None,
        event_type: EventType = None,
        actor: FromQuery[str | None] = None,
        correlation: FromQuery[str | None] = None,
    ) -> ServerSentEvent:
        """Events as they happen, from `Last-Event-ID` or `after` on, else from now on."""
        service = service_of(request)
        wanted = _Wanted(node, model, known_type(event_type), actor, correlation)
        start = _start(request, after, service.fleet.sequence)
        return ServerSentEvent(_stream(service, _open(service, start, wanted), start, wanted))

    @get("/decisions/{decision:str}", summary="Show a decision")
    async def show_decision(self, request: ApiRequest, decision: FromPath[str]) -> DecisionView:
        """A decision by the id of the event that holds it (H2)."""
        return view_of_decision(await recorded_decision(service_of(request), decision))


async def recorded_decision(service: Service, decision: str) -> queries.DecisionRecord:
    """The decision of that id.

    Raises:
        NotFoundError: there is none.
        UnavailableError: this process has no database, or it is away.
    """
    record = await database_of(service).ask(lambda connection: queries.decision(connection, decision))
    if record is None:
        raise NotFoundError(f"there is no decision {decision!r}", field="decision", value=decision)
    return record


class _Wanted(msgspec.Struct, frozen=True):
    """The filters of a stream, with the meaning they have for a page."""

    node: str | None
    model: str | None
    type: str | None
    actor: str | None
    correlation: str | None

    def takes(self, recorded: Recorded, homes: Homes) -> bool:
        envelope, tag = recorded.envelope, tag_of(recorded.event)
        return (
            (self.type is None or tag == self.type or tag.startswith(self.type + "."))
            and (self.actor is None or envelope.actor.name == self.actor)
            and (self.correlation is None or envelope.correlation == self.correlation)
            and ((self.node is None and self.model is None) or self._concerns(recorded, homes))
        )

    def _concerns(self, recorded: Recorded, homes: Homes) -> bool:
        mentioned = mentions_from(recorded, homes)
        return all(
            name is None or (kind, name) in mentioned for kind, name in (("node", self.node), ("model", self.model))
        )


_streams = asyncio.BoundedSemaphore(STREAMS_MAX)


async def _stream(
    service: Service, log: Log, start: int, wanted: _Wanted
) -> AsyncGenerator[ServerSentEventMessage, None]:
    async with _streams:
        async for recorded in recorded_after(log, start):
            if recorded.sequence > service.fleet.sequence:
                # Homes are as old as the fold, a moment behind the log.
                await service.runtime.feed.passed(recorded.sequence, timeout_seconds=FOLD_SECONDS_MAX)
            if wanted.takes(recorded, service.homes):
                view = _view(recorded)
                yield ServerSentEventMessage(
                    data=msgspec.json.encode(view).decode(), event=view.type, id=recorded.sequence
                )


def _open(service: Service, start: int, wanted: _Wanted) -> Log:
    """The log to follow.

    Raises:
        OverloadedError: too many follow already.
        UnavailableError: the log is away.
        InvalidQueryError: the stream would begin before what is remembered of ended replicas.
    """
    if _streams.locked():
        raise OverloadedError(f"{STREAMS_MAX} event streams are open already", retry_after_seconds=5)
    if service.runtime.log is None:
        raise UnavailableError("the log is away", retry_after_seconds=2)
    since = service.homes.complete_since
    if wanted.model is not None and start < since:
        raise InvalidQueryError(
            f"after: streams of one model go back to sequence {since}; page through /events up to there",
            field="after",
            value=start,
        )
    return service.runtime.log


def _view(recorded: Recorded) -> EventView:
    envelope = recorded.envelope
    return EventView(
        sequence=recorded.sequence,
        time=recorded.time,
        id=recorded.event_id,
        type=tag_of(recorded.event),
        event=recorded.event,
        actor=envelope.actor,
        command=envelope.command,
        correlation=envelope.correlation,
        causation=envelope.causation,
        trace=envelope.trace,
        occurred_at=envelope.occurred_at,
    )


def view_of_record(record: queries.EventRecord) -> EventView:
    """An event of the history."""
    entry: dict[str, Any] = msgspec.json.decode(record.body)
    envelope = entry["envelope"]
    occurred_at = envelope.get("occurred_at")
    return EventView(
        sequence=record.sequence,
        time=record.time,
        id=record.event_id,
        type=entry["event"]["type"],
        event=entry["event"],
        actor=envelope["actor"],
        command=envelope["command"],
        correlation=envelope["correlation"],
        causation=envelope.get("causation"),
        trace=envelope.get("trace"),
        occurred_at=None if occurred_at is None else datetime.fromisoformat(occurred_at),
    )


def view_of_decision(record: queries.DecisionRecord) -> DecisionView:
    """A decision of the history."""
    return DecisionView(
        record.id,
        record.sequence,
        record.kind,
        record.outcome,
        record.policy,
        record.basis,
        record.node,
        record.model,
        msgspec.json.decode(record.body),
    )


def database_of(service: Service) -> Database:
    """The read model.

    Raises:
        UnavailableError: this process has none.
    """
    if service.database is None:
        raise UnavailableError("this process has no database; ask the one with --database-url")
    return service.database


def _span(from_time: datetime | None, to_time: datetime | None) -> tuple[int | None, int | None]:
    from_ns, to_ns = _ns(from_time, field="from"), _ns(to_time, field="to")
    if from_ns is not None and to_ns is not None and from_ns >= to_ns:
        raise InvalidQueryError(
            f"to: nothing is from {from_time} on and before {to_time}", field="to", value=str(to_time)
        )
    return from_ns, to_ns


def _ns(moment: datetime | None, *, field: str) -> int | None:
    if moment is None:
        return None
    if moment.tzinfo is None:
        problem = f"{field}: a time needs its zone, as in 2026-01-31T12:00:00Z"
        raise InvalidQueryError(problem, field=field, value=str(moment))
    return round(moment.timestamp() * 1e9)


def _start(request: ApiRequest, after: int | None, now: int) -> int:
    last = request.headers.get("last-event-id")
    if last is not None:
        if not last.isdigit():
            raise InvalidRequestError("Last-Event-ID is a sequence", field="Last-Event-ID", value=last)
        return int(last)
    return now if after is None else after
