"""The public lifecycle stream as a place to write to: message n of it tells of event n of the log.

Invariant: a message is published only onto the one before it (`Nats-Expected-Last-Sequence`), several of them as one
atomic batch; so whoever publishes, and however often, each stands there once, at its own sequence.
"""

from collections.abc import Sequence
from secrets import token_hex
from typing import Final

import msgspec
import nats.errors
from nats.aio.client import Client

from modelyard_events.subjects import EVENTS_STREAM
from modelyard_projections.cloudevents import CloudEvent
from modelyard_services.effects.heed import heed
from modelyard_services.effects.log.api import Api, ApiError
from modelyard_services.effects.log.contract import LogUnavailable
from modelyard_services.effects.log.headers import batch_headers
from modelyard_services.projector.errors import PublicStreamError

ANSWER_SECONDS_MAX: Final = 5.0
"""For one batch; sending it again is harmless."""

_MOVED: Final = frozenset({10071, 10164, 10201})
"""Somebody published there already, is just publishing, or the very same events stand there."""

_PERMANENT: Final = frozenset({10054, 10060, 10097, 10174, 10199})
"""Too large, another stream, too large, batches not allowed, too many: as wrong the next time."""


class _Ack(msgspec.Struct, frozen=True):
    stream: str = ""
    seq: int = 0
    duplicate: bool = False
    error: ApiError | None = None


_ACK: Final = msgspec.json.Decoder(_Ack)


class Last(msgspec.Struct, frozen=True):
    """The newest message: its sequence (0 in an empty stream) and, while it is kept, the id of its event."""

    sequence: int
    event_id: str | None


class PublicStream:
    """The stream behind `client`."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._api = Api(client, EVENTS_STREAM)

    async def last(self) -> Last:
        """Where the stream stands, from its leader.

        Raises:
            PublicStreamError: there is no such stream.
            LogUnavailable: JetStream doesn't answer.
        """
        info = await self._api.info()
        if info.error is not None:
            raise PublicStreamError(
                f"stream {EVENTS_STREAM}: {info.error.description}; start the api or `modelyard up`"
            )
        if not info.state.messages:
            return Last(info.state.last_seq, None)
        newest = await self._api.get(info.state.last_seq)
        return Last(info.state.last_seq, None if newest is None else newest.event_id)

    async def publish(self, events: Sequence[CloudEvent], *, after: int) -> bool:
        """Put `events` after message `after`, all or none; False when the stream doesn't end there (any more).

        Raises:
            PublicStreamError: it will never be taken.
            LogUnavailable: no answer; they may be there.
        """
        try:
            ack = await self._send(events, after)
        except nats.errors.Error as error:
            problem = str(error) or type(error).__name__
            raise LogUnavailable(f"the public stream doesn't answer: {problem}", nothing_written=False) from error
        if ack.error is None:
            return self._landed(ack, after + len(events))
        if ack.error.err_code in _MOVED:
            return False
        problem = f"stream {EVENTS_STREAM} refuses events: {ack.error.description} ({ack.error.err_code})"
        if ack.error.err_code in _PERMANENT:
            raise PublicStreamError(problem)
        raise LogUnavailable(problem, nothing_written=True)

    async def _send(self, events: Sequence[CloudEvent], after: int) -> _Ack:
        if not self._client.is_connected:
            raise nats.errors.ConnectionClosedError
        batch, many = token_hex(12), len(events) > 1
        reply = None
        for position, event in enumerate(events, start=1):
            last = position == len(events)
            headers = {"Nats-Msg-Id": event.headers["ce-id"], **event.headers}
            if position == 1:
                headers["Nats-Expected-Last-Sequence"] = str(after)
            if many:
                headers |= batch_headers(batch, position, last=last)
            if last:
                request = self._client.request(event.subject, event.data, timeout=ANSWER_SECONDS_MAX, headers=headers)
                reply = await heed(request)
            else:
                await self._client.publish(event.subject, event.data, headers=headers)
        if reply is None:
            raise ValueError("nothing to publish")
        return _ACK.decode(reply.data)

    def _landed(self, ack: _Ack, expected: int) -> bool:
        if ack.duplicate:
            return False
        if ack.stream != EVENTS_STREAM or ack.seq != expected:
            raise PublicStreamError(
                f"event {expected} of the log became message {ack.seq} of stream {ack.stream}: something else than a "
                f"relay writes to {EVENTS_STREAM}; stop it, delete that stream, and start this process again"
            )
        return True
