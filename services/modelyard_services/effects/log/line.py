"""One connection of a follower: in, verified, subscribed to a flow-controlled push consumer of its own.

Invariant: what it buffers is bounded. While the fold is busy it leaves the server's flow-control requests
unanswered, so the server stops after its window (32 MiB at most) yet keeps sending heartbeats; nothing is dropped.
"""

import asyncio
from collections import deque
from secrets import token_hex
from types import TracebackType
from typing import Final, Self, cast

import msgspec
from msgspec import Struct

from modelyard_services.effects.log.api import StreamInfo
from modelyard_services.effects.log.contract import Stored
from modelyard_services.effects.log.endpoint import NatsEndpoint
from modelyard_services.effects.log.parser import (
    EVENT_SUBSCRIPTION,
    REPLY_SUBSCRIPTION,
    Ended,
    FlowControl,
    Greeting,
    HoleSeen,
    Parser,
    Ping,
    Pong,
    ProtocolBroken,
    Reply,
    ServerError,
)

BUFFER_BYTES_MAX: Final = 8 * 1024 * 1024
"""Received and not yet taken, before flow control goes unanswered: about 20,000 events, a tenth of a second."""

BUFFER_BYTES_HARD: Final = 64 * 1024 * 1024
"""Where the socket itself is left unread: above `BUFFER_BYTES_MAX` and the server's window, so never in normal work."""

REPLY_SECONDS: Final = 5.0
"""Handshake, or one request however often it was sent; then another server is tried."""

ASK_SECONDS: Final = 1.0
"""Until a request is sent again: one that met an election is lost, not late. All of ours may be repeated."""

HEARTBEAT_SECONDS: Final = 1.0
"""How often an idle consumer says that it lives."""

SILENCE_SECONDS: Final = 3 * HEARTBEAT_SECONDS
"""After this the consumer counts as lost: its server died or was cut off."""

INACTIVE_SECONDS: Final = 10
"""When the server forgets a consumer that nobody listens to: resuming makes a new one anyway."""


class LineLost(Exception):  # noqa: N818  an observation
    """The connection or its consumer is gone, or can't be had; a new one may do."""


class _Created(Struct, frozen=True):
    error: dict[str, object] | None = None


class Line(asyncio.Protocol):
    """A connection to one server. Use as an async context manager, then `info`, `deliver`, and `take` for ever."""

    def __init__(self, endpoint: NatsEndpoint, address: tuple[str, int], parser: Parser) -> None:
        self._endpoint = endpoint
        self._host, self._port = address
        self._parser = parser
        self._inbox = f"{endpoint.inbox_prefix}.{token_hex(11)}"
        self._transport: asyncio.Transport | None = None
        self._greeted = asyncio.Event()
        self._ponged = asyncio.Event()
        self._arrived = asyncio.Event()
        self._replies: dict[bytes, asyncio.Future[bytes]] = {}
        self._chunks: deque[tuple[int, list[Stored]]] = deque()
        self._buffered = 0
        self._unanswered: bytes | None = None
        self._problem: str | None = None
        self._heard_at = 0.0
        self._reading = True

    async def __aenter__(self) -> Self:
        try:
            async with asyncio.timeout(REPLY_SECONDS):
                await self._open()
        except (OSError, TimeoutError) as error:
            self.close()
            raise LineLost(f"{self._host}:{self._port}: {error or 'no answer'}") from error
        except BaseException:
            self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Drop the connection; the server forgets the consumer."""
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    async def info(self, stream: str) -> StreamInfo:
        """The stream's configuration and state, from its leader."""
        return msgspec.json.decode(await self._ask(f"$JS.API.STREAM.INFO.{stream}", b""), type=StreamInfo)

    async def deliver(self, stream: str, *, start: int, subject: str | None) -> None:
        """Have the events from `start` on sent to us."""
        name = f"follow-{token_hex(8)}"
        address = f"$JS.API.CONSUMER.CREATE.{stream}.{name}"
        config = _consumer(name, f"{self._inbox}.e", start)
        if subject is not None:
            # In the address too, so that permissions can say who may follow what.
            config["filter_subject"] = subject
            address = f"{address}.{subject}"
        self._write(b"SUB %b %b\r\n" % (f"{self._inbox}.e".encode(), EVENT_SUBSCRIPTION))
        reply = await self._ask(address, msgspec.json.encode({"stream_name": stream, "config": config}))
        if (problem := msgspec.json.decode(reply, type=_Created).error) is not None:
            raise LineLost(f"no consumer: {problem}")

    async def take(self) -> list[Stored]:
        """The next events, at least one.

        Raises:
            LineLost: nothing more will come; everything that came has been taken.
        """
        while not self._chunks:
            if self._problem is not None:
                raise LineLost(self._problem)
            await self._wait()
        size, events = self._chunks.popleft()
        self._buffered -= size
        self._relieve()
        return events

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # What create_connection makes; a check by type would refuse uvloop's, which has the methods and not the base.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"connection lost: {exc or 'closed by the server'}")

    def data_received(self, data: bytes) -> None:
        if self._problem is not None:
            return
        self._heard_at = asyncio.get_running_loop().time()
        try:
            self._parser.feed(data)
        except (HoleSeen, ProtocolBroken) as error:
            self._fail(f"{type(error).__name__}: {error}")
        self._keep(len(data))
        self._obey()

    def _keep(self, size: int) -> None:
        if self._parser.events:
            self._chunks.append((size, self._parser.events))
            self._parser.events = []
            self._buffered += size
            self._arrived.set()
            if self._buffered > BUFFER_BYTES_HARD and self._reading and self._transport is not None:
                self._transport.pause_reading()
                self._reading = False

    def _obey(self) -> None:
        for signal in self._parser.signals:
            match signal:
                case Ping():
                    self._write(b"PONG\r\n")
                case FlowControl():
                    self._unanswered = signal.subject
                    self._relieve()
                case Reply():
                    if (waiting := self._replies.pop(signal.subject, None)) is not None and not waiting.done():
                        waiting.set_result(signal.body)
                case Pong():
                    self._ponged.set()
                case Greeting():
                    self._greeted.set()
                case ServerError():
                    self._fail(f"server: {signal.text}")
                case Ended():
                    self._fail(f"consumer: {signal.text}")
        self._parser.signals.clear()

    def _relieve(self) -> None:
        """Let the server go on once there is room."""
        if self._buffered > BUFFER_BYTES_MAX:
            return
        if self._unanswered is not None:
            self._write(b"PUB %b 0\r\n\r\n" % self._unanswered)
            self._unanswered = None
        if not self._reading and self._transport is not None:
            self._transport.resume_reading()
            self._reading = True

    def _fail(self, problem: str) -> None:
        self._problem = self._problem or problem
        for event in (self._greeted, self._ponged, self._arrived):
            event.set()
        for waiting in self._replies.values():
            if not waiting.done():
                waiting.set_exception(LineLost(self._problem))
        self._replies.clear()

    async def _wait(self) -> None:
        self._arrived.clear()
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(max(self._heard_at + SILENCE_SECONDS, loop.time() + HEARTBEAT_SECONDS)):
                await self._arrived.wait()
        except TimeoutError:
            # A loop that was held up may notice the time before it reads what came in that time: let it read first.
            await asyncio.sleep(0.01)
            if loop.time() - self._heard_at >= SILENCE_SECONDS:
                self._fail("no heartbeat")

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: self, self._host, self._port)
        await self._greeted.wait()
        if self._endpoint.tls is not None and self._transport is not None:
            secured = await loop.start_tls(self._transport, self, self._endpoint.tls, server_hostname=self._host)
            assert secured is not None  # noqa: S101  only if the transport was closed meanwhile
            self._transport = secured
        self._write(b"CONNECT %b\r\nPING\r\n" % msgspec.json.encode(self._introduction()))
        await self._ponged.wait()
        if self._problem is not None:
            raise LineLost(self._problem)
        self._write(b"SUB %b %b\r\n" % (f"{self._inbox}.r.*".encode(), REPLY_SUBSCRIPTION))

    def _introduction(self) -> dict[str, object]:
        own = self._endpoint.credentials()
        given = {"user": own.user, "pass": own.password, "auth_token": own.token}
        return {key: value for key, value in given.items() if value is not None} | {
            "verbose": False,
            "pedantic": False,
            "lang": "python",
            "version": "modelyard",
            "protocol": 1,
            "headers": True,
            "no_responders": True,
            "echo": False,
            "name": f"{self._endpoint.name} follower",
            "tls_required": self._endpoint.tls is not None,
        }

    async def _ask(self, address: str, body: bytes) -> bytes:
        inbox = f"{self._inbox}.r.{token_hex(4)}".encode()
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._replies[inbox] = future
        request = b"PUB %b %b %d\r\n%b\r\n" % (address.encode(), inbox, len(body), body)
        try:
            async with asyncio.timeout(REPLY_SECONDS):
                while not future.done():
                    self._write(request)
                    await asyncio.wait([future], timeout=ASK_SECONDS)
                reply = future.result()
        except TimeoutError:
            raise LineLost(f"no answer to {address}") from None
        finally:
            self._replies.pop(inbox, None)
        if reply.startswith(b"NATS/1.0"):
            raise LineLost(f"nobody answers {address}")
        return reply

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)


def _consumer(name: str, deliver: str, start: int) -> dict[str, object]:
    return {
        "name": name,
        "deliver_subject": deliver,
        "deliver_policy": "by_start_sequence",
        "opt_start_seq": start,
        "ack_policy": "none",
        "max_deliver": 1,
        "replay_policy": "instant",
        "flow_control": True,
        "idle_heartbeat": round(HEARTBEAT_SECONDS * 1e9),
        "inactive_threshold": INACTIVE_SECONDS * 1_000_000_000,
        # In memory and on one server: it is as short-lived as our connection.
        "mem_storage": True,
        "num_replicas": 1,
    }
