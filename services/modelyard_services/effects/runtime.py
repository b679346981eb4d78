"""What every process of the control plane stands on: NATS, the log followed into the fleet, telemetry, the journal.

Invariant: NATS may be away at the start or at any time later: the runtime retries with back-off, says so in
`problems`, and what was folded stays readable.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from fnmatch import fnmatchcase
from typing import Any, Final, Self

import msgspec
import nats.errors
import structlog

from modelyard_events.envelope import Actor, Envelope
from modelyard_events.ids import CommandId
from modelyard_events.subjects import NODE_TELEMETRY, ROUTER_TELEMETRY
from modelyard_events.telemetry import Heartbeat, RouterReport
from modelyard_projections.demand import Demand
from modelyard_projections.fleet import Fleet
from modelyard_services.effects.bus import Bus, NatsBus
from modelyard_services.effects.clock import Clock, Ids, backoff_seconds
from modelyard_services.effects.feed import Feed, OnBatch
from modelyard_services.effects.journal import Journal
from modelyard_services.effects.log.contract import Log, LogFailure, LogUnavailable
from modelyard_services.errors import UnavailableError

RETRY_BASE_SECONDS: Final = 0.1
RETRY_CAP_SECONDS: Final = 5.0
"""Between tries to reach a server that is away: soon after a restart, gentle in an outage."""

HELD_NS: Final = 5_000_000_000
"""A connection that lasted this long was a good one: the next try comes soon again."""

LINK_LOOK_SECONDS: Final = 0.25
"""How often the connection is looked at: silence counts against workers only while we could hear them (N9)."""

STILL_READS: Final = "this process has just started and still reads the log"
LAG_READY_MAX: Final = 1_000
"""Sequences behind which a process that once was complete doesn't call itself ready: about 10 ms of folding."""

_log = structlog.get_logger(__name__)
_HEARTBEAT: Final = msgspec.json.Decoder(Heartbeat)
_REPORT: Final = msgspec.json.Decoder(RouterReport)

Connected = tuple[Log, Bus]
Connect = Callable[[], contextlib.AbstractAsyncContextManager[Connected]]


class Runtime:
    """One process's view of the fleet, and its way to change it. Use as an async context manager."""

    def __init__(self, process: str, connect: Connect) -> None:
        self.process = process
        self.clock = Clock()
        self.ids = Ids()
        self.demand = Demand()
        self.fleet = Fleet()
        self.feed = Feed(self.fleet)
        self.journal = Journal(self.feed)
        self.log: Log | None = None
        self.connected_since_ns: int | None = None
        self._bus: Bus | None = None
        self._connect = connect
        self._away: str | None = "connecting"
        self._on_connect: list[Callable[[Bus], Awaitable[None]]] = []
        self._on_report: list[Callable[[RouterReport], None]] = []
        self._problem_sources: list[Callable[[], list[str]]] = []
        self._note_sources: dict[str, Callable[[], object]] = {}
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name=f"{self.process}-runtime")
        return self

    async def __aexit__(self, *_exception: object) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    @property
    def bus(self) -> Bus:
        """The bus.

        Raises:
            UnavailableError: NATS is away.
        """
        if self._bus is None:
            raise UnavailableError(f"NATS is away: {self._away}", retry_after_seconds=2)
        return self._bus

    @property
    def problems(self) -> list[str]:
        """Why the process isn't ready; empty when it is."""
        found = []
        if self.feed.failure is not None:
            found.append(f"feed: {self.feed.failure}")
        if self._away is not None:
            found.append(f"nats: {self._away}")
        elif self.connected_since_ns is None:
            found.append("nats: reconnecting")
        elif not self.feed.caught_up:
            # However little is missing: a fleet without its last token or node is no fleet to decide on (X20).
            found.append(f"feed: {STILL_READS}")
        elif self.feed.lag > LAG_READY_MAX:
            found.append(f"feed: {self.feed.lag} sequences behind the log")
        return [*found, *(problem for source in self._problem_sources for problem in source())]

    def require_caught_up(self) -> None:
        """Refuse to speak of a fleet that has never been complete: it would deny nodes, models and tokens.

        Raises:
            UnavailableError: the process has just started and still reads the log, or can't read it to its end.
        """
        if not self.feed.caught_up:
            raise UnavailableError(self.feed.failure or STILL_READS, retry_after_seconds=1)

    def note_token_use(self, name: str) -> None:
        """Somebody was let in by the token `name` just now; routers tell one another."""
        self.demand.use_token(name, self.clock.now_ns())

    @property
    def ready(self) -> bool:
        return not self.problems

    def on_problems(self, source: Callable[[], list[str]]) -> None:
        """Count what `source()` names among the reasons why the process isn't ready."""
        self._problem_sources.append(source)

    @property
    def notes(self) -> dict[str, Any]:
        """What the process says of itself beyond its problems, by name."""
        return {name: source() for name, source in self._note_sources.items()}

    def on_notes(self, name: str, source: Callable[[], object]) -> None:
        """Say what `source()` gives under `name`."""
        self._note_sources[name] = source

    def on_batch(self, callback: OnBatch) -> None:
        """Call `callback(events, touched)` after each folded slice of whole batches."""
        self.feed.on_batch(callback)

    def on_report(self, callback: Callable[[RouterReport], None]) -> None:
        """Call `callback(report)` after each router's report is taken note of."""
        self._on_report.append(callback)

    async def on_connect(self, callback: Callable[[Bus], Awaitable[None]]) -> None:
        """Call `callback(bus)` now if connected, and after each new connection."""
        self._on_connect.append(callback)
        if self._bus is not None:
            await callback(self._bus)

    async def wait_ready(self, *, timeout_seconds: float) -> None:
        """Wait until the process is ready.

        Raises:
            UnavailableError: it isn't within `timeout_seconds`; says why.
        """
        deadline = self.clock.monotonic_ns() + round(timeout_seconds * 1e9)
        while not self.ready:
            if self.clock.monotonic_ns() > deadline:
                raise UnavailableError("; ".join(self.problems))
            await self.clock.sleep(0.01)

    def envelope(
        self,
        actor: Actor | None = None,
        *,
        command: str | None = None,
        correlation: str | None = None,
        causation: str | None = None,
        trace: str | None = None,
        request_digest: str | None = None,
    ) -> Envelope:
        """An envelope for a command; by default of this process itself, with a random command id."""
        identity = CommandId(command or self.ids.new("c"))
        return Envelope(
            actor=actor or Actor("system", self.process),
            command=identity,
            correlation=correlation or identity,
            causation=causation,  # type: ignore[arg-type]
            trace=trace,
            request_digest=request_digest,
        )

    async def _run(self) -> None:
        attempt = 0
        while self.feed.failure is None:
            began_ns = self.clock.monotonic_ns()
            try:
                async with self._connect() as (log, bus):
                    await self._serve(log, bus)
            except (nats.errors.Error, LogUnavailable, UnavailableError, OSError, TimeoutError) as error:
                self._away = str(error) or type(error).__name__
                _log.warning("nats is away", problem=self._away, attempt=attempt)
            except LogFailure as failure:
                # Misconfigured, replaced or with a gap: trying again can't mend it, going on would be wrong.
                self.feed.failure = failure.detail
                _log.error("the log can't be used", code=failure.code, problem=failure.detail)
            finally:
                self._detach()
            # A connection that held was no failed try; one that broke at once was.
            attempt = 0 if self.clock.monotonic_ns() - began_ns > HELD_NS else attempt + 1
            await self.clock.sleep(backoff_seconds(attempt, base=RETRY_BASE_SECONDS, cap=RETRY_CAP_SECONDS))

    async def _serve(self, log: Log, bus: Bus) -> None:
        await bus.listen(NODE_TELEMETRY, self._hear_node)
        await bus.listen(ROUTER_TELEMETRY, self._hear_router)
        if isinstance(bus, NatsBus):
            await bus.last_readings(self._hear_any)
        # Known before anybody may ask whether we lag: an unknown end would make any fold look current.
        self.feed.target = max(self.feed.target, await log.last_sequence())
        self.log, self._bus, self._away = log, bus, None
        self.journal.attach(log)
        watch = asyncio.create_task(self._watch_link(bus))
        try:
            for callback in self._on_connect:
                await callback(bus)
            await self.feed.run(log)
        finally:
            watch.cancel()

    async def _watch_link(self, bus: Bus) -> None:
        while True:
            if not bus.connected:
                self.connected_since_ns = None
            elif self.connected_since_ns is None:
                self.connected_since_ns = self.clock.monotonic_ns()
            await self.clock.sleep(LINK_LOOK_SECONDS)

    def _detach(self) -> None:
        self.log, self._bus, self.connected_since_ns = None, None, None
        self.journal.attach(None)
        self._away = self._away or "disconnected"

    def _hear_any(self, subject: str, body: bytes) -> None:
        hear = self._hear_router if fnmatchcase(subject, ROUTER_TELEMETRY) else self._hear_node
        hear(subject, body)

    def _hear_node(self, _subject: str, body: bytes) -> None:
        try:
            heartbeat = _HEARTBEAT.decode(body)
        except msgspec.MsgspecError as error:
            _log.warning("heartbeat can't be read", problem=str(error))
            return
        self.demand.hear_node(heartbeat, now_ns=self.clock.monotonic_ns())

    def _hear_router(self, _subject: str, body: bytes) -> None:
        try:
            report = _REPORT.decode(body)
        except msgspec.MsgspecError as error:
            _log.warning("router report can't be read", problem=str(error))
            self.demand.hear_garbled_router(now_ns=self.clock.monotonic_ns())
            return
        self.demand.hear_router(report, now_ns=self.clock.monotonic_ns())
        for callback in self._on_report:
            callback(report)


def in_memory(process: str, log: Log, bus: Bus) -> Runtime:
    """A runtime over a given log and bus, for tests of what stands on it."""

    @contextlib.asynccontextmanager
    async def connect() -> AsyncIterator[Connected]:
        yield log, bus

    return Runtime(process, connect)
