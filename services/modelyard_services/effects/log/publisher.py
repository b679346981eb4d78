"""One atomic write, sent until the server has said definitely what became of it.

Invariant: every send of a write carries the same ids, guards and bodies, so however many of them arrive, at most
one is stored. A batch that is sent again gets a new batch id: half of an old one must never complete a new one.
"""

import asyncio
import re
from collections.abc import Sequence
from secrets import token_hex
from typing import Final

import msgspec
import nats.errors
from msgspec import Struct
from nats.aio.client import Client

from modelyard_services.effects.clock import backoff_seconds
from modelyard_services.effects.heed import heed
from modelyard_services.effects.log.api import ApiError
from modelyard_services.effects.log.contract import DecisionTooLarge, LogMisconfigured, LogUnavailable, Message
from modelyard_services.effects.log.endpoint import leave_if_dead
from modelyard_services.effects.log.headers import batch_headers, event_headers

ATTEMPT_SECONDS: Final = 2.0
"""One send. An answer takes milliseconds; sending again is harmless."""

RETRY_BASE_SECONDS: Final = 0.01
RETRY_CAP_SECONDS: Final = 0.5
"""Between sends while nobody leads: often enough to notice the new leader at once."""

CONTENTION_TRIES_MAX: Final = 6
CONTENTION_BASE_SECONDS: Final = 0.001
CONTENTION_CAP_SECONDS: Final = 0.02
"""When somebody else's write to the same subject is in flight: it is decided within a few milliseconds."""

_MOVED: Final = 10071
_CONTENDED: Final = 10164
_DUPLICATE: Final = 10201
_STORE_FAILED: Final = 10077
_FULL: Final = frozenset({10002, 10023, 10047})  # the account's or the server's storage
_TOO_LARGE: Final = frozenset({10054, 10097, 10199})
_AGAIN: Final = frozenset({10158, 10175, 10176, 10210})
"""The same id is in flight; a batch was torn by a change of leader; too many are in flight."""
_UNAVAILABLE: Final = 503

_LAST_SEQUENCE: Final = re.compile(r"wrong last sequence: (\d+)")


class Written(Struct, frozen=True):
    """Stored; `last` is the sequence of its last message."""

    last: int


class Moved(Struct, frozen=True):
    """A guard failed. `sequence`: where its subject is now, if the server said."""

    sequence: int | None


class Duplicate(Struct, frozen=True):
    """An event id of it is stored already, at `sequence` if the server said."""

    sequence: int | None = None


class Full(Struct, frozen=True):
    """No room."""

    text: str


Definite = Written | Moved | Duplicate | Full


class Sent(Struct, eq=False):
    """What is known about the sends of a decision so far.

    Attributes:
        deadline: on the loop's clock; after this it is given up.
        unanswered: whether one of them may have been, or may yet be, stored without our knowing.
        problem: what went wrong last.
    """

    deadline: float
    unanswered: bool = False
    problem: str = ""

    def give_up_in_time(self) -> None:
        """Raise LogUnavailable once the deadline is passed."""
        if asyncio.get_running_loop().time() > self.deadline:
            raise LogUnavailable(f"the log doesn't take appends: {self.problem}", nothing_written=not self.unanswered)


class _Ack(Struct, frozen=True):
    stream: str = ""
    seq: int = 0
    duplicate: bool = False
    error: ApiError | None = None


_ACK: Final = msgspec.json.Decoder(_Ack)


class Publisher:
    """Writes to one stream."""

    def __init__(self, client: Client, stream: str) -> None:
        self._client = client
        self._stream = stream

    async def write(self, decisions: Sequence[Sequence[Message]], sent: Sent) -> Definite:
        """Write all of `decisions`, which share no subject, or nothing.

        Raises:
            LogUnavailable: no definite answer before the deadline.
            LogMisconfigured, DecisionTooLarge: the server will never take it.
        """
        frames = _frames(decisions)
        attempt = contended = 0
        while True:
            outcome = await self._try(frames, sent)
            if _is_contended(outcome) and contended < CONTENTION_TRIES_MAX:
                pause = backoff_seconds(contended, base=CONTENTION_BASE_SECONDS, cap=CONTENTION_CAP_SECONDS)
                contended += 1
            elif outcome is not None:
                return outcome
            else:
                sent.give_up_in_time()
                pause = backoff_seconds(attempt, base=RETRY_BASE_SECONDS, cap=RETRY_CAP_SECONDS)
                attempt += 1
            await asyncio.sleep(pause)

    async def _try(self, frames: list[tuple[Message, dict[str, str]]], sent: Sent) -> Definite | None:
        """One send; None if it must be sent again, `sent` says why."""
        try:
            ack = await self._send(frames)
        except nats.errors.NoRespondersError:
            sent.problem = "nobody leads the log"
        except (nats.errors.OutboundBufferLimitError, nats.errors.ConnectionClosedError) as error:
            sent.problem = str(error)
        except nats.errors.Error as error:
            sent.unanswered = True
            sent.problem = str(error) or "no answer"
            await leave_if_dead(self._client)
        else:
            sent.problem = ack.error.description if ack.error else ""
            return _definite(ack, self._stream)
        return None

    async def _send(self, frames: list[tuple[Message, dict[str, str]]]) -> _Ack:
        if not self._client.is_connected:
            # Nothing is left in nats-py's buffer, from where it would be sent after we had said that it wasn't.
            raise nats.errors.ConnectionClosedError
        batch = token_hex(12)
        for position, (message, headers) in enumerate(frames[:-1], start=1):
            await self._client.publish(
                message.subject, message.body, headers=headers | batch_headers(batch, position, last=False)
            )
        message, headers = frames[-1]
        if len(frames) > 1:
            headers = headers | batch_headers(batch, len(frames), last=True)
        request = self._client.request(message.subject, message.body, timeout=ATTEMPT_SECONDS, headers=headers)
        reply = await heed(request)
        return _ACK.decode(reply.data)


def _frames(decisions: Sequence[Sequence[Message]]) -> list[tuple[Message, dict[str, str]]]:
    guarded: set[str] = set()
    frames = []
    for decision in decisions:
        for message in decision:
            frames.append((message, event_headers(message, guarded=message.subject not in guarded)))
            guarded.add(message.subject)
    return frames


def _is_contended(outcome: Definite | None) -> bool:
    return isinstance(outcome, Moved) and outcome.sequence is None


def _definite(ack: _Ack, stream: str) -> Definite | None:
    """What the answer says; None if it says to try again."""
    if ack.error is None:
        if ack.stream != stream:
            raise LogMisconfigured(f"stream {ack.stream} took what was meant for {stream}")
        return Duplicate(ack.seq or None) if ack.duplicate else Written(ack.seq)
    code, text = ack.error.err_code, ack.error.description
    if code in {_MOVED, _CONTENDED}:
        found = _LAST_SEQUENCE.search(text)
        return Moved(None if found is None else int(found[1]))
    if code == _DUPLICATE:
        return Duplicate()
    if code in _FULL or (code == _STORE_FAILED and "maximum bytes" in text):
        return Full(text)
    if code in _TOO_LARGE:
        raise DecisionTooLarge(text)
    if code in _AGAIN or ack.error.code == _UNAVAILABLE:
        return None
    raise LogMisconfigured(f"the log refuses appends: {text} ({code})")
