"""Facts on their way to the registrar: in order, numbered, kept until they were decided (rules W1, W8).

Invariant: a fact leaves the buffer only once the registrar has decided it or called it stale; reports of one
incarnation are numbered, so a resend is harmless.
"""

import asyncio
from collections import deque
from typing import Final

import msgspec
import structlog

from modelyard_events.ids import IncarnationId, NodeName
from modelyard_events.requests import FACTS_MAX, REPORT, Fact, Refused, Report, Reported, ReportReply
from modelyard_events.subjects import node_command_subject
from modelyard_services.effects.bus import Bus
from modelyard_services.effects.clock import backoff_seconds
from modelyard_services.errors import NodeGoneError, UnavailableError

BUFFER_MAX: Final = 100_000
"""Facts kept while the log is away: a thousand replicas crashing a hundred times. The oldest go first."""

ANSWER_SECONDS: Final = 10.0
RETRY_BASE_SECONDS: Final = 0.2
RETRY_CAP_SECONDS: Final = 10.0

_REPLY: Final = msgspec.json.Decoder(ReportReply)
_log = structlog.get_logger(__name__)


class Reporter:
    """Sends the facts of one incarnation."""

    def __init__(self, node: NodeName, incarnation: IncarnationId) -> None:
        self._node = node
        self._incarnation = incarnation
        self._facts: deque[Fact] = deque(maxlen=BUFFER_MAX)
        self._waiting = asyncio.Event()
        self._number = 0

    def tell(self, fact: Fact) -> None:
        """Take a fact on; never blocks."""
        self._facts.append(fact)
        self._waiting.set()

    @property
    def pending(self) -> int:
        """Facts not decided yet."""
        return len(self._facts)

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
        while self._facts:
            facts = tuple(self._facts)[:FACTS_MAX]
            if await self._send(bus, facts):
                attempt = 0
                self._number += 1
                for _ in facts:
                    self._facts.popleft()
                continue
            await asyncio.sleep(backoff_seconds(attempt, base=RETRY_BASE_SECONDS, cap=RETRY_CAP_SECONDS))
            attempt += 1
        self._waiting.clear()

    async def _send(self, bus: Bus, facts: tuple[Fact, ...]) -> bool:
        """Whether the registrar is done with `facts`."""
        report = Report(self._node, self._incarnation, self._number, facts)
        try:
            body = await bus.ask(
                node_command_subject(self._node, REPORT), msgspec.json.encode(report), timeout_seconds=ANSWER_SECONDS
            )
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
            case Refused(code=code, detail=detail):
                _log.error("facts were refused", code=code, reason=detail)
                return True
