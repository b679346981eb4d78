"""One value on NATS that is replaced by compare-and-set: what a lease is written in.

Invariant: of several who replace the same revision one succeeds, on a server alone and on a cluster; every write is
guarded with its own exact subject, which is what makes guards safe on replicated streams (ADR 0001).
"""

from base64 import b64decode
from typing import Final, Protocol

import msgspec
import nats.errors
from nats.aio.client import Client

from modelyard_events.subjects import LEASES_STREAM
from modelyard_services.effects.heed import heed
from modelyard_services.effects.log.endpoint import leave_if_dead
from modelyard_services.errors import UnavailableError

_GUARD: Final = "Nats-Expected-Last-Subject-Sequence"
_MOVED: Final = frozenset({10071, 10164})
"""Another revision stands there, or another write to it is in flight."""

_NO_MESSAGE: Final = 10037


class Kept(msgspec.Struct, frozen=True):
    """What a cell holds. `revision` grows with every replacement, and no two values ever share one."""

    revision: int
    body: bytes


class Cell(Protocol):
    """One value. Both methods raise UnavailableError when nobody answers within `timeout_seconds`."""

    async def read(self, *, timeout_seconds: float) -> Kept | None:
        """The newest value; None where none was ever written."""

    async def replace(self, body: bytes, *, revision: int, timeout_seconds: float) -> int | None:
        """The new revision; None, and nothing changed, where the cell isn't at `revision` (0: never written) any more.

        Without an answer it may have been replaced, or may be yet: only a later `read` tells.
        """


class _Error(msgspec.Struct, frozen=True):
    err_code: int = 0
    description: str = ""


class _Message(msgspec.Struct, frozen=True):
    seq: int
    data: str = ""


class _Found(msgspec.Struct, frozen=True):
    message: _Message | None = None
    error: _Error | None = None


class _Ack(msgspec.Struct, frozen=True):
    seq: int = 0
    error: _Error | None = None


_FOUND: Final = msgspec.json.Decoder(_Found)
_ACK: Final = msgspec.json.Decoder(_Ack)


class JetStreamCell:
    """The last message on `subject` of the stream of leases."""

    def __init__(self, client: Client, subject: str) -> None:
        self._client = client
        self._subject = subject

    async def read(self, *, timeout_seconds: float) -> Kept | None:
        # From the leader: a direct get may be answered by a replica that lags.
        asked = msgspec.json.encode({"last_by_subj": self._subject})
        reply = await self._ask(f"$JS.API.STREAM.MSG.GET.{LEASES_STREAM}", asked, timeout_seconds)
        found = _FOUND.decode(reply)
        if found.message is not None:
            return Kept(found.message.seq, b64decode(found.message.data))
        if found.error is not None and found.error.err_code == _NO_MESSAGE:
            return None
        raise _unavailable(found.error)

    async def replace(self, body: bytes, *, revision: int, timeout_seconds: float) -> int | None:
        headers = {_GUARD: str(revision)}
        ack = _ACK.decode(await self._ask(self._subject, body, timeout_seconds, headers=headers))
        if ack.error is None:
            return ack.seq
        if ack.error.err_code in _MOVED:
            return None
        raise _unavailable(ack.error)

    async def _ask(
        self, subject: str, body: bytes, timeout_seconds: float, *, headers: dict[str, str] | None = None
    ) -> bytes:
        # Disconnected, nats-py would keep the message and send it when nobody waits for it any more.
        if not self._client.is_connected:
            raise UnavailableError("NATS is away: disconnected")
        try:
            reply = await heed(self._client.request(subject, body, timeout=timeout_seconds, headers=headers))
        except nats.errors.TimeoutError as late:
            await leave_if_dead(self._client)
            raise UnavailableError(f"{subject}: no answer within {timeout_seconds:g} s") from late
        except nats.errors.Error as error:
            raise UnavailableError(f"{subject}: {error or type(error).__name__}") from error
        return reply.data


class MemoryCell:
    """A cell within one process, for tests of what stands on it."""

    def __init__(self) -> None:
        self._kept: Kept | None = None

    async def read(self, *, timeout_seconds: float) -> Kept | None:
        del timeout_seconds  # nobody is slow here
        return self._kept

    async def replace(self, body: bytes, *, revision: int, timeout_seconds: float) -> int | None:
        del timeout_seconds
        last = 0 if self._kept is None else self._kept.revision
        if revision != last:
            return None
        self._kept = Kept(last + 1, body)
        return last + 1


def _unavailable(error: _Error | None) -> UnavailableError:
    told = "an answer that can't be read" if error is None else f"{error.description} ({error.err_code})"
    return UnavailableError(f"stream {LEASES_STREAM}: {told}")
