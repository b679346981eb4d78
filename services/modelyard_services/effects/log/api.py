"""Requests to JetStream's own API, asked again while a leader is being elected.

Invariant: an answer is the server's, decoded; no answer within the deadline is `LogUnavailable`. Everything asked
here is harmless to repeat.
"""

import asyncio
from base64 import b64decode
from datetime import UTC, datetime
from typing import Final

import msgspec
import nats.errors
import structlog
from msgspec import Struct, field
from nats.aio.client import Client

from modelyard_services.effects.clock import backoff_seconds
from modelyard_services.effects.heed import heed
from modelyard_services.effects.log.contract import LogMisconfigured, LogUnavailable, Stored
from modelyard_services.effects.log.endpoint import leave_if_dead
from modelyard_services.effects.log.headers import stored_event

ATTEMPT_SECONDS: Final = 2.0
"""One request. An answer takes about a millisecond; a lost one is asked again."""

READ_SECONDS_MAX: Final = 15.0
"""All attempts: longer than the election after a killed leader, which servers wait 4 to 9 s to begin."""

RETRY_BASE_SECONDS: Final = 0.02
RETRY_CAP_SECONDS: Final = 0.5
"""Between attempts: often enough to notice the new leader at once."""

PEER_SILENT_NS: Final = 5_000_000_000
"""Peers are heard each second."""

NOT_FOUND: Final = 404
UNAVAILABLE: Final = 503
STREAM_NOT_FOUND: Final = 10059
"""Codes of JetStream's errors, as its documentation lists them."""

NO_PEERS: Final = 10005
NOT_YET: Final = frozenset({NO_PEERS, 10007, 10009, 10049, 10118})
"""What servers answer beside 503 while a cluster is coming up or a peer restarts: no suitable peers (it has a leader,
but not enough servers yet), not assigned, not the leader, a store that can't be made just now, a stream that is
offline. Measured on three servers started one after the other; none of them says that what we ask for is wrong."""

LOG_ID_KEY: Final = "modelyard.log_id"
"""Where a stream's metadata names the log it holds."""

_API: Final = "$JS.API."
_log = structlog.get_logger(__name__)


class ApiError(Struct, frozen=True):
    code: int
    err_code: int = 0
    description: str = ""


class State(Struct, frozen=True):
    messages: int = 0
    bytes: int = 0
    first_seq: int = 0
    last_seq: int = 0


class Peer(Struct, frozen=True):
    """A server that follows the leader of a stream, which last heard of it `active` nanoseconds ago."""

    name: str
    current: bool = False
    active: int = 0

    @property
    def away(self) -> bool:
        """Whether it is silent. The server's own `offline` stays false for a peer that was killed (2.15)."""
        return self.active > PEER_SILENT_NS


class Cluster(Struct, frozen=True):
    """Who keeps a stream; `replicas` are the peers beside the leader."""

    leader: str = ""
    replicas: tuple[Peer, ...] = ()


class StreamInfo(Struct, frozen=True):
    """What JetStream says about a stream; `ts` is the server's time as it answered, RFC 3339."""

    config: dict[str, object] = field(default_factory=dict)
    state: State = State()
    cluster: Cluster = Cluster()
    ts: str = ""
    error: ApiError | None = None

    @property
    def log_id(self) -> str | None:
        """Which log it holds; None if it is no log of ours."""
        metadata = self.config.get("metadata")
        found = metadata.get(LOG_ID_KEY) if isinstance(metadata, dict) else None
        return found if isinstance(found, str) else None

    @property
    def replicas(self) -> int:
        found = self.config.get("num_replicas")
        return found if isinstance(found, int) else 1

    @property
    def ceiling(self) -> int:
        """Bytes it may grow to; 0 without a limit."""
        found = self.config.get("max_bytes")
        return max(found, 0) if isinstance(found, int) else 0

    @property
    def told_ns(self) -> int | None:
        """The server's time as it answered, in Unix nanoseconds; None from a server that doesn't say."""
        return _nanoseconds(self.ts) if self.ts.endswith("Z") else None


class _RawMessage(Struct, frozen=True):
    subject: str
    seq: int
    time: str
    hdrs: str = ""
    data: str = ""


class _MessageReply(Struct, frozen=True):
    message: _RawMessage | None = None
    error: ApiError | None = None


_INFO: Final = msgspec.json.Decoder(StreamInfo)
_MESSAGE: Final = msgspec.json.Decoder(_MessageReply)


class Api:
    """JetStream's API for one stream."""

    def __init__(self, client: Client, stream: str) -> None:
        self._client = client
        self.stream = stream

    async def info(self) -> StreamInfo:
        """Configuration and state, from the stream's leader; `error` is set if there is no such stream."""
        return _INFO.decode(await self._ask(f"STREAM.INFO.{self.stream}", b""))

    async def glance(self) -> StreamInfo | None:
        """The same, asked once; None if nobody answers now."""
        reply, _problem = await self._ask_once(f"STREAM.INFO.{self.stream}", b"")
        return None if reply is None else _INFO.decode(reply)

    async def create(self, config: dict[str, object]) -> ApiError | None:
        """Create the stream; the same configuration again is no error."""
        return _INFO.decode(await self._ask(f"STREAM.CREATE.{self.stream}", msgspec.json.encode(config))).error

    async def get(self, sequence: int) -> Stored | None:
        """The event at `sequence`."""
        return await self._message({"seq": sequence})

    async def next_on(self, subject: str, sequence: int) -> Stored | None:
        """The first event of `subject` at or after `sequence`."""
        return await self._message({"seq": sequence, "next_by_subj": subject})

    async def last_on(self, subject: str) -> Stored | None:
        """The newest event of `subject`."""
        return await self._message({"last_by_subj": subject})

    async def first_since(self, time_ns: int) -> Stored | None:
        """The first event the log took at or after `time_ns`."""
        seconds, rest = divmod(time_ns, 1_000_000_000)
        moment = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        return await self._message({"start_time": f"{moment}.{rest:09d}Z"})

    async def _message(self, request: dict[str, object]) -> Stored | None:
        # From the leader, not by direct get: any replica answers those, perhaps without what was just written.
        body = await self._ask(f"STREAM.MSG.GET.{self.stream}", msgspec.json.encode(request))
        reply = _MESSAGE.decode(body)
        if reply.error is not None and reply.error.code == NOT_FOUND and reply.error.err_code != STREAM_NOT_FOUND:
            return None
        if reply.message is None:
            raise LogMisconfigured(f"reading stream {self.stream}: {reply.error}")
        raw = reply.message
        return stored_event(raw.seq, _nanoseconds(raw.time), raw.subject, b64decode(raw.hdrs), b64decode(raw.data))

    async def _ask(self, subject: str, body: bytes) -> bytes:
        deadline = asyncio.get_running_loop().time() + READ_SECONDS_MAX
        attempt, told = 0, ""
        while True:
            reply, problem = await self._ask_once(subject, body)
            if reply is not None:
                return reply
            if asyncio.get_running_loop().time() > deadline:
                raise LogUnavailable(f"JetStream can't answer {subject} yet: {problem}", nothing_written=True)
            if problem != told:
                _log.warning("jetstream isn't ready", asked=subject, problem=problem)
                told = problem
            await asyncio.sleep(backoff_seconds(attempt, base=RETRY_BASE_SECONDS, cap=RETRY_CAP_SECONDS))
            attempt += 1

    async def _ask_once(self, subject: str, body: bytes) -> tuple[bytes | None, str]:
        if not self._client.is_connected:
            return None, "disconnected"
        try:
            reply = await heed(self._client.request(_API + subject, body, timeout=ATTEMPT_SECONDS))
        except nats.errors.TimeoutError:
            await leave_if_dead(self._client)
            return None, "no answer"
        except nats.errors.Error as error:
            return None, str(error) or type(error).__name__
        outcome = _MESSAGE.decode(reply.data).error
        if outcome is not None and (outcome.code == UNAVAILABLE or outcome.err_code in NOT_YET):
            return None, outcome.description
        return reply.data, ""


def _nanoseconds(text: str) -> int:
    """Unix nanoseconds of Go's RFC 3339 UTC, which has up to nine digits and drops trailing zeros."""
    whole, _, fraction = text.removesuffix("Z").partition(".")
    seconds = int(datetime.fromisoformat(whole).replace(tzinfo=UTC).timestamp())
    return seconds * 1_000_000_000 + int(fraction.ljust(9, "0") or "0")
