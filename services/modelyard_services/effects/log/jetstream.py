"""The log on JetStream: the real one.

Invariant: the stream was verified when it was opened, and every follower verifies that it still is the same log;
what stands on this never sees NATS, an error of it or a message of it.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager

from nats.aio.client import Client

from modelyard_events.subjects import LOG_STREAM
from modelyard_services.effects.log.api import Api
from modelyard_services.effects.log.appender import Appender
from modelyard_services.effects.log.contract import LogMisconfigured, Message, Stored
from modelyard_services.effects.log.decision import check
from modelyard_services.effects.log.endpoint import NatsEndpoint, close, connect
from modelyard_services.effects.log.headroom import Headroom
from modelyard_services.effects.log.publisher import Publisher
from modelyard_services.effects.log.reader import Reader
from modelyard_services.effects.log.streams import verify_log


class JetStreamLog:
    """A `Log` over `client`, a connection that others may use too; followers open their own by `endpoint`."""

    def __init__(self, client: Client, endpoint: NatsEndpoint, *, log_id: str) -> None:
        self.client = client
        self._endpoint = endpoint
        self._log_id = log_id
        self._api = Api(client, LOG_STREAM)
        self._appender = Appender(Publisher(client, LOG_STREAM), self._api, Headroom(self._api))

    @classmethod
    async def open(cls, client: Client, endpoint: NatsEndpoint) -> "JetStreamLog":
        """The log behind `client`, verified.

        Raises:
            LogMisconfigured: the stream isn't what a log needs.
            LogUnavailable: it isn't declared, or JetStream doesn't answer.
        """
        return cls(client, endpoint, log_id=verify_log(await Api(client, LOG_STREAM).info()))

    async def close(self) -> None:
        """Finish the appends that wait. The client stays open: it belongs to whoever connected it."""
        await self._appender.close()

    @property
    def log_id(self) -> str:
        return self._log_id

    async def append(self, decision: Sequence[Message], *, essential: bool = False) -> tuple[int, ...]:
        check(decision)
        if not decision:
            return ()
        return await self._appender.append(tuple(decision), essential=essential)

    def follow(self, *, after: int, subject: str | None = None) -> AsyncGenerator[list[Stored], None]:
        reader = Reader(self._endpoint, stream=LOG_STREAM, log_id=self._log_id, after=after, subject=subject)
        return reader.chunks()

    async def last_sequence(self) -> int:
        info = await self._api.info()
        if info.error is not None:
            raise LogMisconfigured(f"stream {LOG_STREAM}: {info.error.description}")
        return info.state.last_seq

    async def read(self, sequence: int) -> Stored | None:
        return await self._api.get(sequence) if sequence > 0 else None

    async def sequence_at(self, time_ns: int) -> int:
        following = await self._api.first_since(time_ns + 1)
        sequence = await self.last_sequence() if following is None else following.sequence - 1
        return await self._batch_end_before(sequence)

    async def _batch_end_before(self, sequence: int) -> int:
        """Where the batch begins that `sequence` is inside of, less one; `sequence` itself if it ends one."""
        while sequence and (stored := await self.read(sequence)) is not None and not stored.batch_end:
            sequence -= 1
        return sequence


@asynccontextmanager
async def open_log(endpoint: NatsEndpoint) -> AsyncIterator[JetStreamLog]:
    """The log at `endpoint` over a connection of its own, closed at the end."""
    client = await connect(endpoint)
    try:
        log = await JetStreamLog.open(client, endpoint)
        try:
            yield log
        finally:
            await log.close()
    finally:
        await close(client)
