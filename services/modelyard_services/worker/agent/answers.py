"""What the control plane may ask a worker directly: are you there, and what do your processes say.

Invariant: answers come from what runs here now; nothing asked changes anything; nobody is followed for who stopped
listening.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from typing import Annotated, Final

import msgspec
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg

from modelyard_events.ids import IncarnationId, NodeName, ReplicaId
from modelyard_events.requests import (
    BEAT,
    LOGS,
    LOGS_LEASE_SECONDS,
    PING,
    RENEW,
    USED,
    LogLine,
    LogsReply,
    LogsRequest,
)
from modelyard_events.subjects import worker_subject
from modelyard_services.worker.processes.supervisor import Processes

FOLLOWERS_MAX: Final = 32
"""Log followers at a time on one worker: each polls files."""

SLICE_LINES_MAX: Final = 200
"""Lines in one message: 200 of 4 KiB stay below NATS' payload limit."""

_LOGS: Final = msgspec.json.Decoder(LogsRequest)
_USED: Final = msgspec.json.Decoder(dict[ReplicaId, int])
_BEAT: Final = msgspec.json.Decoder(Annotated[float, msgspec.Meta(gt=0)])
_log = structlog.get_logger(__name__)


class Answers:
    """Answers `ping` and `logs`, and takes note of `used`, `renew` and `beat`."""

    def __init__(
        self,
        node: NodeName,
        incarnation: IncarnationId,
        processes: Processes,
        *,
        on_beat: Callable[[float], None] = lambda _seconds: None,
        lease_seconds: float = LOGS_LEASE_SECONDS,
    ) -> None:
        self._node = node
        self._incarnation = incarnation
        self._processes = processes
        self._on_beat = on_beat
        self._lease_seconds = lease_seconds
        self._followers: set[asyncio.Task[None]] = set()
        self._leases: dict[str, asyncio.Timeout] = {}
        self.last_used_ns: dict[ReplicaId, int] = {}

    async def listen(self, client: Client) -> None:
        """Begin to answer on `client`."""

        async def on_logs(message: Msg) -> None:
            self._follow_in_background(client, message)

        await client.subscribe(worker_subject(self._node, PING), cb=self._on_ping)
        await client.subscribe(worker_subject(self._node, LOGS), cb=on_logs)
        await client.subscribe(worker_subject(self._node, RENEW), cb=self._on_renew)
        await client.subscribe(worker_subject(self._node, USED), cb=self._on_used)
        await client.subscribe(worker_subject(self._node, BEAT), cb=self._on_beat_told)

    async def close(self) -> None:
        """Let all followers go."""
        for follower in list(self._followers):
            follower.cancel()
        await asyncio.gather(*self._followers, return_exceptions=True)

    async def _on_ping(self, message: Msg) -> None:
        # The registrar asks one incarnation whether it lives; a rival that claims the name hears it too (rule N3).
        if message.data == self._incarnation.encode():
            await message.respond(message.data)

    async def _on_used(self, message: Msg) -> None:
        try:
            told = _USED.decode(message.data)
        except msgspec.MsgspecError as error:
            _log.warning("last use can't be read", problem=str(error))
            return
        for replica, used_ns in told.items():
            self.last_used_ns[replica] = max(used_ns, self.last_used_ns.get(replica, 0))
        alive = {running.replica for running in self._processes.running()}
        for replica in self.last_used_ns.keys() - alive:
            del self.last_used_ns[replica]

    async def _on_beat_told(self, message: Msg) -> None:
        try:
            self._on_beat(_BEAT.decode(message.data))
        except msgspec.MsgspecError as error:
            _log.warning("how often to tell can't be read", problem=str(error))

    async def _on_renew(self, message: Msg) -> None:
        lease = self._leases.get(message.data.decode(errors="replace"))
        if lease is not None and not lease.expired():
            lease.reschedule(asyncio.get_running_loop().time() + self._lease_seconds)

    def _follow_in_background(self, client: Client, message: Msg) -> None:
        if len(self._followers) >= FOLLOWERS_MAX:
            _log.warning("too many log followers", limit=FOLLOWERS_MAX)
            return
        task = asyncio.create_task(self._send_logs(client, message))
        self._followers.add(task)
        task.add_done_callback(self._followers.discard)

    async def _send_logs(self, client: Client, message: Msg) -> None:
        try:
            request = _LOGS.decode(message.data)
        except msgspec.MsgspecError as error:
            _log.warning("log request can't be read", problem=str(error))
            return
        lease = asyncio.timeout(self._lease_seconds)
        try:
            async with lease:
                self._leases[request.lease] = lease
                async with contextlib.aclosing(self._slices(request)) as slices:
                    async for lines in slices:
                        await client.publish(message.reply, msgspec.json.encode(LogsReply(lines=lines)))
        except TimeoutError:
            _log.info("nobody listens to these logs any more", key=request.key)
        finally:
            if self._leases.get(request.lease) is lease:
                del self._leases[request.lease]
        await client.publish(message.reply, msgspec.json.encode(LogsReply(end=True)))

    async def _slices(self, request: LogsRequest) -> AsyncGenerator[tuple[LogLine, ...], None]:
        if not request.follow:
            lines = await self._processes.logs(request.key, lines=request.lines)
            for part in _parts(lines):
                yield part
            return
        async with contextlib.aclosing(self._processes.follow(request.key, lines=request.lines)) as slices:
            async for found in slices:
                for part in _parts(found):
                    yield part


def _parts(lines: list[LogLine]) -> list[tuple[LogLine, ...]]:
    return [tuple(lines[start : start + SLICE_LINES_MAX]) for start in range(0, len(lines), SLICE_LINES_MAX)]
