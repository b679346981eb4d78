"""The router: which replica serves a request, as a lease (rules T1, T2, T4, T5, T7, T9).

```
route ─▶ best on the board ─▶ granted ─▶ probed lately? ─▶ lease
   │            └ none ─▶ full: queue · cold: one load for all ─▶ woken by the fold ─▶ again
   └ not heard by the others: refused
```

Invariant: every lease ends once: released, expired, or with this incarnation. Nothing is granted on a replica
that the fold says is draining, nor while nobody would see the lease.
"""

import asyncio
import contextlib
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from typing import Final, Self

import msgspec
import structlog

from modelyard_events.envelope import Actor, Recorded
from modelyard_events.ids import LeaseId, ModelName, ReplicaId
from modelyard_events.telemetry import ROUTER_REPORT_SECONDS, RouterReport
from modelyard_projections.fleet import Touched
from modelyard_projections.homes import Homes
from modelyard_services.effects.health import Outcome, describe
from modelyard_services.effects.runtime import Runtime
from modelyard_services.effects.tracing import span
from modelyard_services.errors import ModelyardError, OverloadedError, ReplicaFailedError, UnavailableError
from modelyard_services.policy.probing import FRESH_SECONDS
from modelyard_services.policy.routing import Candidate
from modelyard_services.router.board import Board
from modelyard_services.router.leases import LEASE_SECONDS, Lease, LeaseBook
from modelyard_services.router.loading import Caller, Loader, pending, require_known, still_loading
from modelyard_services.router.probes import Prober
from modelyard_services.router.reports import USE_TOLD_NS, Reporter
from modelyard_services.router.waiting import QUEUE_MAX, RETRY_SECONDS, Queues

WAIT_SECONDS: Final = 60.0
"""How long a caller waits for a model that loads (rule T5)."""

_REPROBE_TICKS: Final = 8
"""A shut replica is asked again every two seconds: as long as one question may take."""

_SECOND_TICKS: Final = 4
"""Once a second: last use to the workers, and a look at everyone who waits, should a wake-up have been missed."""

_log = structlog.get_logger(__name__)
_NOTHING: Final[AbstractSet[ReplicaId]] = frozenset()


class RouterSettings(msgspec.Struct, frozen=True):
    """`probe_fresh_seconds` 0 asks a replica's process before every use (rule T4)."""

    probe_fresh_seconds: float = FRESH_SECONDS
    queue_max: int = QUEUE_MAX


class Ask(msgspec.Struct, frozen=True):
    """One request's demands: how long it waits, how its lease is held, and what it has tried in vain.

    `lease_seconds` None: the lease lives as long as the connection that holds it, and must be released.
    """

    wait_seconds: float = WAIT_SECONDS
    lease_seconds: float | None = None
    avoid: AbstractSet[ReplicaId] = _NOTHING
    caller: Caller | None = None


_PLAIN: Final = Ask()


class Router:
    """Leases over one runtime. Use as an async context manager, inside the runtime's own."""

    def __init__(
        self, runtime: Runtime, *, settings: RouterSettings | None = None, prober: Prober | None = None
    ) -> None:
        settings = settings or RouterSettings()
        self.runtime = runtime
        self.incarnation = runtime.ids.new("router")
        self._book = LeaseBook(self.incarnation)
        self._board = Board(runtime.fleet, runtime.demand, self._book)
        self._prober = prober or Prober(fresh_seconds=settings.probe_fresh_seconds)
        self._queues = Queues(queue_max=settings.queue_max)
        self._loader = Loader(runtime)
        self._reporter = Reporter(runtime, self.incarnation)
        self._checking: dict[ReplicaId, int] = {}
        self._task: asyncio.Task[None] | None = None
        self._reopening: set[asyncio.Task[None]] = set()
        self.homes = Homes()
        """Where replicas belong, for those who are told of changes."""
        runtime.on_batch(self._fold)
        runtime.on_report(self._hear)
        runtime.on_problems(self._unheard)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="router")
        return self

    async def __aexit__(self, *_exception: object) -> None:
        tasks = [task for task in (self._task, *self._reopening) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._task = None
        with contextlib.suppress(UnavailableError):  # the silence tells the others as well, five seconds later
            await self._reporter.publish(self._report(leaving=True))

    @property
    def problems(self) -> list[str]:
        """Why no request is taken; empty when they are."""
        return self.runtime.problems

    async def wait_ready(self, *, timeout_seconds: float) -> None:
        """Wait until requests are taken.

        Raises:
            UnavailableError: they aren't within `timeout_seconds`; says why.
        """
        try:
            async with asyncio.timeout(timeout_seconds):
                while self.problems:
                    await self.runtime.clock.sleep(0.01)
        except TimeoutError:
            raise UnavailableError("; ".join(self.problems)) from None

    async def route(self, model: str, ask: Ask = _PLAIN) -> Lease:
        """A lease on the best replica of `model` (rule T1), waiting while it loads.

        Raises:
            ModelUnknownError: there is no such model.
            ModelLoadingError: it isn't ready yet after `wait_seconds`.
            NoCapacityError, UnsatisfiableError: no node takes it, now or ever.
            ReplicaFailedError: its load failed, or every replica failed this request.
            OverloadedError: too many requests run or wait already.
            UnavailableError: nobody hears this router.
        """
        with span("route") as work:
            work.note(model=model)
            lease = await self._route(model, ask)
            work.note(node=lease.node, replica=lease.replica, lease=lease.lease)
            return lease

    async def _route(self, model: str, ask: Ask) -> Lease:
        self.runtime.require_caught_up()
        if not self._reporter.is_heard():
            raise UnavailableError("this router's reports don't reach the others; ask again", retry_after_seconds=1)
        name = ModelName(model)
        if name not in self._queues:
            candidate = self._board.best(name, ask.avoid)
            if candidate is not None:
                lease = await self._granted(candidate, ask)
                if lease is not None:
                    return lease
        with span("wait for a replica"):
            return await self._wait_for(name, ask)

    def release(self, lease: str) -> bool:
        """The request is over. False if the lease isn't held any more: it expired, or was released before."""
        ended = self._board.end(LeaseId(lease), now_ns=self.runtime.clock.now_ns())
        if ended is None:
            return False
        self._queues.wake_one(ended.model)
        return True

    def renew(self, lease: str) -> Lease | None:
        """The lease with a new end, None if it isn't held any more."""
        return self._book.renew(LeaseId(lease), now_ns=self.runtime.clock.now_ns(), seconds=LEASE_SECONDS)

    def failed(self, lease: Lease, detail: str) -> None:
        """The lease's replica couldn't be reached: it alone is out, until it answers a probe (rules T4, T9)."""
        candidate = self._board.get(lease.replica)
        if candidate is not None and candidate.address == lease.address:
            self._shut(candidate, detail)
            self._try_later(candidate)

    def _unheard(self) -> list[str]:
        open_and_unheard = self._task is not None and not self._reporter.is_heard()
        return ["router: its reports don't reach the others"] if open_and_unheard else []

    # One request.

    async def _granted(self, candidate: Candidate, ask: Ask) -> Lease | None:
        """A lease on `candidate` if its process is there; else the replica is shut, or gone."""
        now_ns = self.runtime.clock.now_ns()
        lease = self._board.grant(candidate, now_ns=now_ns, seconds=ask.lease_seconds)
        if self._prober.is_good(candidate, now_ns=now_ns):
            return lease
        try:
            usable = await self._probe(candidate)
        except BaseException:
            self.release(lease.lease)
            raise
        if usable:
            return lease
        self.release(lease.lease)
        return None

    async def _probe(self, candidate: Candidate) -> bool:
        replica = candidate.replica
        state = self.runtime.fleet.replicas.get(replica)
        if state is None:
            return False
        self._checking[replica] = self._checking.get(replica, 0) + 1
        try:
            outcome = await self._prober.outcome(candidate, state.launch.health)
            return self._judge(candidate, outcome)
        finally:
            left = self._checking.pop(replica) - 1
            if left:
                self._checking[replica] = left

    def _judge(self, asked: Candidate, outcome: Outcome) -> bool:
        candidate = self._board.get(asked.replica)
        if candidate is None or candidate.process != asked.process:
            return False  # it drained, ended or was restarted meanwhile
        serving = candidate.in_flight > self._checking.get(candidate.replica, 0)
        if self._prober.note(candidate, outcome, serving=serving, now_ns=self.runtime.clock.now_ns()):
            return True
        self._shut(candidate, describe(outcome))
        return False

    def _shut(self, candidate: Candidate, detail: str) -> None:
        if not candidate.shut:
            _log.warning("replica is out", replica=candidate.replica, node=candidate.node, problem=detail)
        self._prober.forget(candidate.replica)
        self._board.shut(candidate)

    async def _wait_for(self, model: ModelName, ask: Ask) -> Lease:
        clock = self.runtime.clock
        deadline_ns = clock.monotonic_ns() + round(ask.wait_seconds * 1e9)
        ticket = self._queues.ticket(model)
        coming: set[ReplicaId] = set()
        while True:
            candidate = self._board.best(model, ask.avoid)
            if candidate is not None:
                lease = await self._granted(candidate, ask)
                if lease is not None:
                    return lease
                continue
            full = self._require_hope(model, ask, coming)
            if not full and not (on_way := pending(self.runtime.fleet, model)):
                await self._load(model, ask)
                on_way = pending(self.runtime.fleet, model)
            if not full:
                coming.update(state.id for state in on_way)
            if self._board.best(model, ask.avoid) is None:
                await self._wait(model, ticket, deadline_ns=deadline_ns, full=full)

    def _require_hope(self, model: ModelName, ask: Ask, coming: set[ReplicaId]) -> bool:
        """Refuse at once what waiting can't mend; True if replicas are there and merely full."""
        fleet = self.runtime.fleet
        require_known(fleet, model)
        if not self._reporter.is_heard():
            raise UnavailableError("this router's reports don't reach the others; ask again", retry_after_seconds=1)
        there = [candidate for candidate in self._board.candidates(model) if not candidate.shut]
        if there and all(candidate.replica in ask.avoid for candidate in there):
            raise ReplicaFailedError(f"every replica of {model!r} failed this request")
        failure = fleet.models[model].last_failure
        if coming and failure and not there and not pending(fleet, model):
            raise ReplicaFailedError(f"{model!r} failed to load: {failure}", retry_after_seconds=RETRY_SECONDS)
        return bool(there)

    async def _load(self, model: ModelName, ask: Ask) -> None:
        shut = frozenset(candidate.replica for candidate in self._board.shut_ones() if candidate.model == model)
        caller = ask.caller or Caller(Actor("system", self.runtime.process))
        try:
            await self._loader.begin(model, shut=shut, caller=caller)
        except ModelyardError as refused:
            if shut and not isinstance(refused, UnavailableError):
                names = ", ".join(sorted(shut))
                raise ReplicaFailedError(
                    f"no replica of {model!r} can be reached ({names}), and there is no other: {refused.detail}",
                    retry_after_seconds=RETRY_SECONDS,
                ) from refused
            raise

    async def _wait(self, model: ModelName, ticket: int, *, deadline_ns: int, full: bool) -> None:
        left = (deadline_ns - self.runtime.clock.monotonic_ns()) / 1e9
        try:
            await self._queues.wait(model, ticket, seconds=max(left, 0))
        except TimeoutError:
            if full:
                raise OverloadedError(
                    f"every replica of {model!r} is at its limit of requests", retry_after_seconds=RETRY_SECONDS
                ) from None
            position = self._queues.position(model, ticket)
            raise still_loading(self.runtime, model, position=position) from None

    # What others say.

    def _fold(self, events: Sequence[Recorded], touched: list[Touched]) -> None:
        for recorded in events:
            self.homes.apply(recorded)
        self._queues.wake(self._board.fold(touched))
        for kind, key in touched:
            if kind == "replica" and key not in self.runtime.fleet.replicas:
                self._prober.forget(ReplicaId(key))
                self.runtime.demand.forget(ReplicaId(key))

    def _hear(self, report: RouterReport) -> None:
        if report.router != self.incarnation:
            self._hear_others(used=report.last_used_ns)

    def _hear_others(self, *, used: Iterable[ReplicaId]) -> None:
        others: dict[ReplicaId, int] = {}
        for report in self.runtime.demand.live_routers(now_ns=self.runtime.clock.monotonic_ns()):
            if report.router != self.incarnation:
                for replica, leases in report.in_flight.items():
                    others[replica] = others.get(replica, 0) + leases
        self._board.hear(others, used=used)

    # What is due by time alone.

    async def _run(self) -> None:
        tick = 0
        while True:
            try:
                await self._tick(tick)
            except UnavailableError as away:
                _log.debug("report not published", problem=away.detail)
            await self.runtime.clock.sleep(ROUTER_REPORT_SECONDS)
            tick += 1

    async def _tick(self, tick: int) -> None:
        for lease in self._book.expired(now_ns=self.runtime.clock.now_ns()):
            self.release(lease)
        if tick % _SECOND_TICKS == 0:
            # Forgets routers that fell silent, and learns what heartbeats tell after a restart.
            self._hear_others(used=self.runtime.demand.last_used_ns)
            self._queues.wake_all()
        if tick % _REPROBE_TICKS == 0:
            self._reprobe()
        await self._reporter.publish(self._report(leaving=False))
        if tick % _SECOND_TICKS == 0:
            await self._reporter.tell_workers(self._board.used())

    def _reprobe(self) -> None:
        for candidate in self._board.shut_ones():
            self._try_later(candidate)

    def _try_later(self, candidate: Candidate) -> None:
        task = asyncio.create_task(self._try_again(candidate))
        self._reopening.add(task)
        task.add_done_callback(self._reopening.discard)

    async def _try_again(self, asked: Candidate) -> None:
        state = self.runtime.fleet.replicas.get(asked.replica)
        if state is None:
            return
        outcome = await self._prober.outcome(asked, state.launch.health)
        candidate = self._board.get(asked.replica)
        if candidate is None or candidate.process != asked.process:
            return
        if self._prober.note(candidate, outcome, serving=candidate.in_flight > 0, now_ns=self.runtime.clock.now_ns()):
            _log.info("replica is back", replica=candidate.replica, node=candidate.node)
            self._board.reopen(candidate)
            self._queues.wake([candidate.model])

    def _report(self, *, leaving: bool) -> RouterReport:
        """What this router holds; a lease that still waits for its probe isn't in anybody's hands yet."""
        since_ns = self.runtime.clock.now_ns() - USE_TOLD_NS
        in_flight, oldest_ns = {}, {}
        for replica, leases, began_ns in self._book.held():
            handed_out = leases - self._checking.get(replica, 0)
            if handed_out > 0:
                in_flight[replica], oldest_ns[replica] = handed_out, began_ns
        return RouterReport(
            router=self.incarnation,
            folded_sequence=self.runtime.fleet.sequence,
            in_flight={} if leaving else in_flight,
            last_used_ns={replica: at_ns for replica, at_ns in self._board.used().items() if at_ns > since_ns},
            oldest_ns={} if leaving else oldest_ns,
            queued=dict(self._queues.lengths()),
            leaving=leaving,
        )
