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
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Final, Self

import msgspec
import structlog

from modelyard_events.envelope import Actor, Recorded
from modelyard_events.ids import LeaseId, ModelName, ReplicaId
from modelyard_events.telemetry import RouterReport
from modelyard_projections.fleet import Fleet, Touched
from modelyard_projections.homes import Homes
from modelyard_services.effects.runtime import Runtime
from modelyard_services.effects.tracing import span
from modelyard_services.errors import ModelyardError, OverloadedError, ReplicaFailedError, UnavailableError
from modelyard_services.policy.affinity import Affinity, Hint, Pick
from modelyard_services.policy.readings import Readings
from modelyard_services.policy.routing import Candidate
from modelyard_services.router import metrics
from modelyard_services.router.board import Board
from modelyard_services.router.checks import Checks
from modelyard_services.router.estimates import LoadTimes
from modelyard_services.router.leases import Lease, LeaseBook
from modelyard_services.router.loading import Caller, HeldUpError, Loader, pending, require_known, still_loading
from modelyard_services.router.probes import Prober, asker
from modelyard_services.router.reports import Reporter, readings_with, tokens_used, use_told_ns
from modelyard_services.router.waiting import RETRY_SECONDS, Place, Queues
from modelyard_services.settings import RouterSettings

LOADS_TRIED_MAX: Final = 3
"""Failed loads that one request waits through: other nodes get a try, a broken model doesn't get the fleet (T6)."""

_TICK_SECONDS: Final = 0.25

_REPROBE_TICKS: Final = 8
"""A shut replica is asked again every two seconds: as long as one question may take."""

_SECOND_TICKS: Final = 4
"""Once a second: last use to the workers, and a look at everyone who waits, should a wake-up have been missed."""

_log = structlog.get_logger(__name__)
_NOTHING: Final[AbstractSet[ReplicaId]] = frozenset()


class Ask(msgspec.Struct, frozen=True):
    """One request's demands: how long it waits, how its lease is held, what it has tried in vain, and where it belongs.

    `wait_seconds` None: as long as the router's settings say. `lease_seconds` None: the lease lives as long as the
    connection that holds it, and must be released.
    """

    wait_seconds: float | None = None
    lease_seconds: float | None = None
    avoid: AbstractSet[ReplicaId] = _NOTHING
    caller: Caller | None = None
    hint: Hint | None = None


_PLAIN: Final = Ask()


class _Wait(msgspec.Struct):
    """One request that waits: since when, at which place, and what it has waited for so far."""

    model: ModelName
    ask: Ask
    place: Place
    since_ns: int
    loads: set[ReplicaId] = msgspec.field(default_factory=set)
    held_up: HeldUpError | None = None
    held_up_after: float = 0.0


class Router:
    """Leases over one runtime. Use as an async context manager, inside the runtime's own."""

    def __init__(
        self, runtime: Runtime, *, settings: RouterSettings | None = None, prober: Prober | None = None
    ) -> None:
        settings = settings or RouterSettings()
        self.settings = settings
        self.runtime = runtime
        self.incarnation = runtime.ids.new("router")
        self._book = LeaseBook(self.incarnation)
        self._board = Board(runtime.fleet, runtime.demand, self._book)
        prober = prober or Prober(fresh_seconds=settings.probe_fresh_seconds, asked=asker(settings.probe_seconds))
        self._checks = Checks(runtime, self._board, prober, reopened=lambda one: self._queues.wake([one.model]))
        self._queues = Queues(queue_max=settings.queue_max)
        self._loader = Loader(runtime, self.readings)
        self._load_times = LoadTimes()
        self._reporter = Reporter(runtime, self.incarnation)
        self._task: asyncio.Task[None] | None = None
        self.homes = Homes()
        """Where replicas belong, for those who are told of changes."""
        runtime.on_batch(self._fold)
        runtime.on_report(self._hear)
        runtime.on_problems(self._unheard)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="router")
        return self

    async def __aexit__(self, *_exception: object) -> None:
        tasks = self._checks.cancel()
        if self._task is not None:
            self._task.cancel()
            tasks.append(self._task)
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
        name = self.runtime.fleet.model_named(model)
        if name not in self._queues:
            pick = self._board.pick(name, ask.avoid, ask.hint)
            if pick is not None:
                lease = await self._confirmed(pick.candidate, self._grant(pick, ask))
                if lease is not None:
                    return lease
        with span("wait for a replica"), self._queues.place(name) as place:
            return await self._wait_for(_Wait(name, ask, place, self.runtime.clock.monotonic_ns()))

    def release(self, lease: str) -> bool:
        """The request is over. False if the lease isn't held any more: it expired, or was released before."""
        ended = self._board.end(LeaseId(lease), now_ns=self.runtime.clock.now_ns())
        if ended is None:
            return False
        self._queues.wake_one(ended.model)
        return True

    def affinity(self, model: str) -> Affinity:
        """What requests for `model` may say of themselves: sessions, prompts, or nothing (rule T3)."""
        return self._board.affinity(ModelName(model))

    def readings(self, fleet: Fleet) -> Readings:
        """What telemetry says at this moment, with this router's own leases and uses as they are by now."""
        return readings_with(self._report(leaving=False), runtime=self.runtime, fleet=fleet)

    def renew(self, lease: str) -> Lease | None:
        """The lease with a new end, None if it isn't held any more."""
        seconds = self.runtime.fleet.settings.lease_seconds
        return self._book.renew(LeaseId(lease), now_ns=self.runtime.clock.now_ns(), seconds=seconds)

    def failed(self, lease: Lease, detail: str) -> None:
        """The lease's replica couldn't be reached: it alone is out, until it answers a probe (rules T4, T9)."""
        self._checks.failed(lease, detail)

    def _unheard(self) -> list[str]:
        open_and_unheard = self._task is not None and not self._reporter.is_heard()
        return ["router: its reports don't reach the others"] if open_and_unheard else []

    # One request.

    def _grant(self, pick: Pick, ask: Ask) -> Lease:
        if ask.hint is not None:
            metrics.chosen(pick.choice.rule)
        return self._board.grant(pick, now_ns=self.runtime.clock.now_ns(), seconds=ask.lease_seconds)

    async def _confirmed(self, candidate: Candidate, lease: Lease) -> Lease | None:
        """The lease if its replica's process is there; else it is released, and the replica shut or gone."""
        if self._checks.is_good(candidate):
            return lease
        confirmed = False
        try:
            confirmed = await self._checks.confirm(candidate)
        finally:
            if not confirmed:
                self.release(lease.lease)
        return lease if confirmed else None

    async def _wait_for(self, wait: _Wait) -> Lease:
        woken = False
        while True:
            # Who comes doesn't pass those who wait: they were woken for what is free now.
            if woken or not self._queues.ahead(wait.place):
                lease = await self._try(wait)
                if lease is not None:
                    return lease
            full = self._require_hope(wait)
            if not full:
                await self._see_to_a_load(wait)
            if self._board.best(wait.model, wait.ask.avoid) is None or self._queues.ahead(wait.place):
                await self._sleep(wait, full=full)
                woken = True

    async def _try(self, wait: _Wait) -> Lease | None:
        """A lease on whatever is free; None when nothing is."""
        model, avoid, queues = wait.model, wait.ask.avoid, self._queues
        while (pick := self._board.pick(model, avoid, wait.ask.hint)) is not None:
            granted = self._grant(pick, wait.ask)
            queues.step_out(wait.place)
            self._pass_on(model)
            lease = await self._confirmed(pick.candidate, granted)
            if lease is not None:
                return lease
            queues.step_in(wait.place)
        # What this one has tried in vain may be good for the next.
        self._pass_on(model, behind=wait.place.ticket)
        return None

    def _pass_on(self, model: ModelName, *, behind: int = 0) -> None:
        if model in self._queues and self._board.best(model) is not None:
            self._queues.wake_one(model, behind=behind)

    def _require_hope(self, wait: _Wait) -> bool:
        """Refuse at once what waiting can't mend; True if replicas are there and merely full."""
        fleet, model = self.runtime.fleet, wait.model
        require_known(fleet, model)
        if not self._reporter.is_heard():
            raise UnavailableError("this router's reports don't reach the others; ask again", retry_after_seconds=1)
        there = [candidate for candidate in self._board.candidates(model) if not candidate.shut]
        if there and all(candidate.replica in wait.ask.avoid for candidate in there):
            raise ReplicaFailedError(f"every replica of {model!r} failed this request")
        on_way = {state.id for state in pending(fleet, model)}
        wait.loads |= on_way
        failure = fleet.models[model].last_failure
        if failure and not there and not on_way and len(wait.loads) >= LOADS_TRIED_MAX:
            raise ReplicaFailedError(
                f"{model!r} failed to load {len(wait.loads)} times, the last: {failure}",
                retry_after_seconds=RETRY_SECONDS,
            )
        return bool(there)

    async def _see_to_a_load(self, wait: _Wait) -> None:
        settings, waited = self.runtime.fleet.settings, self._waited_seconds(wait)
        rests = wait.held_up is not None and waited - wait.held_up_after < settings.held_up_retry_seconds - 1
        if rests or pending(self.runtime.fleet, wait.model):
            return
        try:
            coming = await self._load(wait.model, wait.ask)
        except HeldUpError as held_up:
            if waited >= settings.held_up_seconds:
                raise
            wait.held_up, wait.held_up_after = held_up, waited
        else:
            wait.held_up = None
            # Asked for by name: it may have failed before we got to look.
            wait.loads |= {coming} if coming is not None else set()

    async def _load(self, model: ModelName, ask: Ask) -> ReplicaId | None:
        shut = frozenset(candidate.replica for candidate in self._board.shut_ones() if candidate.model == model)
        caller = ask.caller or Caller(Actor("system", self.runtime.process))
        try:
            return await self._loader.begin(model, shut=shut, caller=caller)
        except ModelyardError as refused:
            if shut and not isinstance(refused, UnavailableError | HeldUpError):
                names = ", ".join(sorted(shut))
                raise ReplicaFailedError(
                    f"no replica of {model!r} can be reached ({names}), and there is no other: {refused.detail}",
                    retry_after_seconds=RETRY_SECONDS,
                ) from refused
            raise

    async def _sleep(self, wait: _Wait, *, full: bool) -> None:
        patience = self.settings.wait_seconds if wait.ask.wait_seconds is None else wait.ask.wait_seconds
        try:
            await self._queues.sleep(wait.place, seconds=max(patience - self._waited_seconds(wait), 0))
        except TimeoutError:
            raise self._out_of_patience(wait, full=full) from None

    def _out_of_patience(self, wait: _Wait, *, full: bool) -> ModelyardError:
        position = self._queues.ahead(wait.place)
        if full:
            return OverloadedError(
                f"every replica of {wait.model!r} is at its limit of requests",
                retry_after_seconds=RETRY_SECONDS,
                extra={"queue_position": position},
            )
        if wait.held_up is not None:
            return wait.held_up
        return still_loading(self.runtime, wait.model, self._load_times, position=position)

    def _waited_seconds(self, wait: _Wait) -> float:
        return (self.runtime.clock.monotonic_ns() - wait.since_ns) / 1e9

    # What others say.

    def _fold(self, events: Sequence[Recorded], touched: list[Touched]) -> None:
        for recorded in events:
            self.homes.apply(recorded)
        self._load_times.note(self.runtime.fleet, events)
        self._queues.wake(self._board.fold(touched))
        for kind, key in touched:
            if kind == "replica" and key not in self.runtime.fleet.replicas:
                self._checks.forget(ReplicaId(key))
                self._load_times.forget(ReplicaId(key))
                self.runtime.demand.forget(ReplicaId(key))

    def _hear(self, report: RouterReport) -> None:
        if report.router != self.incarnation:
            told = msgspec.structs.replace(report, in_flight={}) if report.leaving else report
            self._queues.wake_first(self._board.hear([told], used=report.last_used_ns))

    def _hear_live(self) -> None:
        """Forget routers that fell silent, and learn what heartbeats tell after a restart."""
        demand, now_ns = self.runtime.demand, self.runtime.clock.monotonic_ns()
        others = demand.live_routers(self.runtime.fleet.settings, now_ns=now_ns, without=self.incarnation)
        live = {report.router for report in others}
        self._queues.wake_first(self._board.hear(others, live=live, used=demand.last_used_ns))

    # What is due by time alone.

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep_house(), name="router-house")
            tell = self._reporter.keep_telling(lambda: self._report(leaving=False), lambda: self._board.changes)
            tasks.create_task(tell, name="router-report")

    async def _keep_house(self) -> None:
        tick = 0
        while True:
            try:
                await self._tick(tick)
            except UnavailableError as away:
                _log.debug("uses not told", problem=away.detail)
            await self.runtime.clock.sleep(_TICK_SECONDS)
            tick += 1

    async def _tick(self, tick: int) -> None:
        for lease in self._book.expired(now_ns=self.runtime.clock.now_ns()):
            self.release(lease)
        metrics.queued(self._queues.lengths())
        if tick % _REPROBE_TICKS == 0:
            self._checks.try_shut_ones()
        if tick % _SECOND_TICKS == 0:
            self._hear_live()
            self._queues.wake_all()
            await self._reporter.tell_workers(self._board.used())

    def _report(self, *, leaving: bool) -> RouterReport:
        """What this router holds; a lease that still waits for its probe isn't in anybody's hands yet."""
        since_ns = self.runtime.clock.now_ns() - use_told_ns(self.runtime.fleet.settings)
        in_flight, oldest_ns = {}, {}
        for replica, leases, began_ns in self._book.held():
            handed_out = leases - self._checks.checking(replica)
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
            tokens_used_ns=tokens_used(self.runtime, since_ns),
        )
