"""What the processes say: lines from the workers, as they come or the last ones (rule W7).

Invariant: lines of several replicas come in time order; a worker that is away is told as such, not passed over.
"""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from datetime import datetime
from typing import Annotated, Final

import msgspec
import structlog
from litestar import Controller, get
from litestar.params import FromPath, FromQuery, QueryParameter
from litestar.response import Stream

from modelyard_events.envelope import instant
from modelyard_events.ids import NodeName, ReplicaId
from modelyard_events.requests import LOGS, LOGS_RENEW_SECONDS, RENEW, LogLine, LogsReply, LogsRequest
from modelyard_events.subjects import worker_subject
from modelyard_services.api.access import requires
from modelyard_services.api.service import ApiRequest, Service, service_of
from modelyard_services.effects.bus import Bus
from modelyard_services.errors import NotFoundError, UnavailableError
from modelyard_services.settings import LOG_LINES_MOST

QUEUE_LINES_MAX: Final = 1_000
"""Lines that wait for a slow reader: then the worker waits."""

ANSWER_SECONDS: Final = 5.0
"""A worker that has said nothing for so long is away."""

LEASE_BYTES: Final = 16
"""Of a name that no other follower can guess or meet by chance."""

_log = structlog.get_logger(__name__)

NDJSON: Final = "application/x-ndjson"


class LineView(msgspec.Struct, frozen=True):
    """One line of a process, with the worker's own time."""

    time: datetime
    node: str
    replica: str
    key: str
    stream: str
    text: str


Lines = Annotated[
    int, QueryParameter(ge=1, le=LOG_LINES_MOST, description="Of each replica's last lines, as its worker keeps them.")
]


class Logs(Controller):
    """What the processes say."""

    guards = [requires("viewer")]  # noqa: RUF012 - the framework reads it as a class attribute
    tags = ["logs"]  # noqa: RUF012 - as above

    @get("/replicas/{replica:str}/logs", summary="A replica's log", media_type=NDJSON)
    async def replica_logs(
        self, request: ApiRequest, replica: FromPath[str], *, lines: Lines = 100, follow: FromQuery[bool] = False
    ) -> Stream:
        """The last lines of one replica; with `follow` what comes after them too. One JSON object a line."""
        service = service_of(request)
        state = service.fleet.replicas.get(ReplicaId(replica))
        if state is None:
            raise NotFoundError(f"there is no living replica {replica!r}", field="replica", value=replica)
        wanted = LogsRequest(key=replica, lines=lines, follow=follow)
        return await _answer(service, [state.node], wanted)

    @get("/models/{model:str}/logs", summary="A model's log", media_type=NDJSON)
    async def model_logs(
        self, request: ApiRequest, model: FromPath[str], *, lines: Lines = 100, follow: FromQuery[bool] = False
    ) -> Stream:
        """The lines of all replicas of a model, or of one (`model#0`), in time order. One JSON object a line."""
        service = service_of(request)
        name = model.partition("#")[0]
        nodes = sorted({replica.node for replica in service.fleet.replicas_of(service.model(name).name)})
        return await _answer(service, nodes, LogsRequest(key=model, lines=lines, follow=follow))


async def _answer(service: Service, nodes: Sequence[NodeName], wanted: LogsRequest) -> Stream:
    bus = service.runtime.bus
    if wanted.follow:
        return Stream(followed(bus, nodes, wanted), media_type=NDJSON)
    slices = await asyncio.gather(*[_collected(bus, node, wanted) for node in nodes])
    found = sorted((line for lines in slices for line in lines), key=lambda line: line.time)
    return Stream(_encoded(found), media_type=NDJSON)


async def _encoded(lines: Sequence[LineView]) -> AsyncGenerator[bytes, None]:
    for line in lines:
        yield msgspec.json.encode(line) + b"\n"


async def _collected(bus: Bus, node: NodeName, wanted: LogsRequest) -> list[LineView]:
    lines: list[LineView] = []
    async with contextlib.aclosing(_asked(bus, node, wanted)) as replies:
        async for reply in replies:
            lines.extend(_view(node, line) for line in reply.lines)
    return lines


async def followed(
    bus: Bus, nodes: Sequence[NodeName], wanted: LogsRequest, *, renew_seconds: float = LOGS_RENEW_SECONDS
) -> AsyncGenerator[bytes, None]:
    """Lines as they come, one JSON object a line. Workers are told so for as long as somebody reads them."""
    queue: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=QUEUE_LINES_MAX)

    async def feed(node: NodeName) -> None:
        lease = secrets.token_hex(LEASE_BYTES)
        leased = msgspec.structs.replace(wanted, lease=lease)
        renewed = _renewed(bus, node, lease, seconds=renew_seconds)
        async with renewed, contextlib.aclosing(_asked(bus, node, leased)) as replies:
            async for reply in replies:
                for line in reply.lines:
                    await queue.put(msgspec.json.encode(_view(node, line)) + b"\n")
        await queue.put(None)

    async with asyncio.TaskGroup() as tasks:
        feeds = [tasks.create_task(feed(node)) for node in nodes]
        open_feeds = len(feeds)
        try:
            while open_feeds:
                line = await queue.get()
                if line is None:
                    open_feeds -= 1
                else:
                    yield line
        finally:
            for task in feeds:
                task.cancel()


@contextlib.asynccontextmanager
async def _renewed(bus: Bus, node: NodeName, lease: str, *, seconds: float) -> AsyncIterator[None]:
    """Tell the worker that somebody listens, for as long as somebody does."""
    task = asyncio.create_task(_renew(bus, node, lease, seconds=seconds))
    try:
        yield
    finally:
        task.cancel()


async def _renew(bus: Bus, node: NodeName, lease: str, *, seconds: float) -> None:
    while True:
        await asyncio.sleep(seconds)
        try:
            await bus.publish(worker_subject(node, RENEW), lease.encode())
        except UnavailableError as away:
            _log.info("a log lease has to wait", node=node, problem=away.detail)


async def _asked(bus: Bus, node: NodeName, wanted: LogsRequest) -> AsyncGenerator[LogsReply, None]:
    replies = bus.ask_many(
        worker_subject(node, LOGS),
        msgspec.json.encode(wanted),
        silence_seconds=None if wanted.follow else ANSWER_SECONDS,
        first_seconds=ANSWER_SECONDS,
    )
    async with contextlib.aclosing(replies) as bodies:
        async for body in bodies:
            reply = msgspec.json.decode(body, type=LogsReply)
            yield reply
            if reply.end:
                return
    raise UnavailableError(f"the worker of node {node!r} doesn't answer", retry_after_seconds=5)


def _view(node: NodeName, line: LogLine) -> LineView:
    return LineView(instant(line.time_ns), node, line.replica, line.key, line.stream, line.text)
