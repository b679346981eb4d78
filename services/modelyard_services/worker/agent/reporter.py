"""Facts on their way to the registrar: in order, numbered, kept until they were decided (rules W1, W8).

Invariant: a fact leaves the buffer only once the registrar has decided it or called it stale; reports of one
incarnation are numbered and sent again as they were, so a resend is harmless.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec
import structlog

from modelyard_events.ids import IncarnationId, NodeName
from modelyard_events.requests import FACTS_MAX, REPORT, Fact, Refused, Report, Reported, ReportReply
from modelyard_events.subjects import node_command_subject
from modelyard_services.effects.bus import Bus
from modelyard_services.effects.clock import backoff_seconds
from modelyard_services.effects.tracing import Kind, span
from modelyard_services.errors import NodeGoneError, StaleFactError, UnavailableError

BUFFER_MAX: Final = 100_000
"""Facts kept while the log is away: a thousand replicas crashing a hundred times. The oldest go first."""

REPORT_BYTES_MAX: Final = 512 * 1024
"""Of one report, unless a single fact is longer: half of what NATS and the registrar take. A crash's last words can
be 80 KiB, so a node's worth of crashes goes in several."""

ANSWER_SECONDS: Final = 10.0
RETRY_BASE_SECONDS: Final = 0.2
RETRY_CAP_SECONDS: Final = 10.0

Told = tuple[Fact, int]
"""A fact, and when it happened: nanoseconds since 1970 by this machine's clock."""

_REPLY: Final = msgspec.json.Decoder(ReportReply)
_log = structlog.get_logger(__name__)


class Reporter:
    """Sends the facts of one incarnation."""

    def __init__(self, node: NodeName, incarnation: IncarnationId, *, on_stale: Callable[[], None]) -> None:
        self._node = node
        self._incarnation = incarnation
        self._on_stale = on_stale
        self._facts: deque[Told] = deque(maxlen=BUFFER_MAX)
        self._sending: tuple[Told, ...] = ()
        self._waiting = asyncio.Event()
        self._number = 0

    def tell(self, fact: Fact, occurred_ns: int) -> None:
        """Take on a fact, and when it happened by this machine's clock; never blocks."""
        if len(self._facts) == BUFFER_MAX:
            _log.error("a fact is lost: too many wait", limit=BUFFER_MAX, lost=type(self._facts[0][0]).__name__)
        self._facts.append((fact, occurred_ns))
        self._waiting.set()

    @property
    def pending(self) -> int:
        """Facts not decided yet."""
        return len(self._sending) + len(self._facts)

    async def run(self, bus: Bus) -> None:
        """Send facts over `bus` until it is cancelled.

        Raises:
            NodeGoneError: the node was removed.
        """
        while True:
            await self._waiting.wait()
            await self.flush(bus)

    async def flush(self, bus: Bus) -> None:
        """Send what is there, as often as it takes.

        Raises:
            NodeGoneError: the node was removed.
        """
        attempt = 0
        while self.pending:
            # Out of the buffer, so that what comes meanwhile can't push them out unseen.
            self._sending = self._sending or self._next()
            if await self._send(bus, self._sending):
                attempt, self._sending = 0, ()
                self._number += 1
                continue
            await asyncio.sleep(backoff_seconds(attempt, base=RETRY_BASE_SECONDS, cap=RETRY_CAP_SECONDS))
            attempt += 1
        self._waiting.clear()

    def _next(self) -> tuple[Told, ...]:
        """As many facts as fit in one report, oldest first, one at least."""
        facts = [self._facts.popleft()]
        room = REPORT_BYTES_MAX - len(msgspec.json.encode(facts[0]))
        while self._facts and len(facts) < FACTS_MAX:
            room -= len(msgspec.json.encode(self._facts[0]))
            if room < 0:
                break
            facts.append(self._facts.popleft())
        return tuple(facts)

    async def _send(self, bus: Bus, told: tuple[Told, ...]) -> bool:
        """Whether the registrar is done with what is `told`."""
        facts = tuple(fact for fact, _ in told)
        times = tuple(occurred_ns for _, occurred_ns in told)
        report = Report(self._node, self._incarnation, self._number, facts, times)
        subject = node_command_subject(self._node, REPORT)
        try:
            with span("report", kind=Kind.CLIENT) as work:
                work.note(facts=len(facts), first=type(facts[0]).__name__)
                body = await bus.ask(subject, msgspec.json.encode(report), timeout_seconds=ANSWER_SECONDS)
        except UnavailableError:
            return False
        if body is None:
            return False
        return self._answered(_REPLY.decode(body))

    def _answered(self, reply: ReportReply) -> bool:
        match reply:
            case Reported(stale=stale):
                if stale:
                    _log.warning("facts came too late", stale=stale)
                return True
            case Refused(code="gone", detail=detail):
                raise NodeGoneError(detail)
            case Refused(code="unavailable" | "contended" | "not_yet", detail=detail):
                _log.warning("facts have to wait", reason=detail)
                return False
            case Refused(code=StaleFactError.code, detail=detail):
                _log.warning("facts of a life that is over", reason=detail)
                self._on_stale()
                return True
            case Refused(code=code, detail=detail):
                _log.error("facts were refused", code=code, reason=detail)
                return True
