"""The reconciler's loop: look, decide, append, and look again when something happened or is due (rule C1).

Invariant: one action's failure stops no other; nothing is decided on a fold that lags, nor without the lease; and all
of it may run twice at once, for every append is guarded and every command id is the same in both. What only repeated
looks show (failed passes, misses, progress) is of one term of the lease and begins anew with the next.
"""

import asyncio
from collections.abc import Sequence
from typing import Final

import structlog

from modelyard_events.codec import EventTooLargeError
from modelyard_events.envelope import AnyEvent, Recorded
from modelyard_projections.fleet import Fleet, Touched
from modelyard_services.effects.lease.lease import Lease
from modelyard_services.effects.refusals import count_outcome
from modelyard_services.effects.runtime import Runtime
from modelyard_services.effects.tracing import Span, span
from modelyard_services.errors import ModelyardError, UnavailableError
from modelyard_services.policy.actions import Action, Moment, View, Watch
from modelyard_services.policy.due import is_draining, next_due_ns
from modelyard_services.policy.index import PlacementIndex
from modelyard_services.policy.liveness import judge
from modelyard_services.policy.look import look
from modelyard_services.policy.reconcile import reconcile
from modelyard_services.reconciler.causes import Cause, Causes

DRAIN_SECONDS: Final = 0.25
"""While a replica drains: routers report their leases this often, and no event says that the last one ended."""

DEBOUNCE_SECONDS: Final = 0.02
"""After an event: a batch's neighbours arrive within milliseconds and are worth one pass together."""

AWAY_SECONDS: Final = 1.0
"""Between looks while the log is away or the fold lags behind it."""

CONCURRENT_MAX: Final = 8
"""Actions appended at once: independent ones share a group append; more would meet on the same nodes."""

TRACE_JOINED_SECONDS: Final = 600.0
"""An action this soon after the event that led to it is part of that event's trace: a load or a drain takes minutes.
Later, in a trace of its own that links to it: a request's trace must not grow for weeks."""

_log = structlog.get_logger(__name__)


class Reconciler:
    """One process's loop over its runtime. Without `lease` it folds along, so that its turn begins at once."""

    def __init__(self, runtime: Runtime, lease: Lease) -> None:
        self._runtime = runtime
        self._lease = lease
        self._term: int | None = None
        self._causes = Causes()
        self._index = PlacementIndex()
        self._watch = Watch()
        self._woken = asyncio.Event()
        self._judged_ns: int | None = None
        runtime.on_batch(self._note)
        lease.on_taken(self._woken.set)

    async def run(self) -> None:
        """Reconcile until cancelled."""
        while True:
            pause = AWAY_SECONDS
            if self._may_decide:
                await self.step()
                pause = self._pause()
            await self._wait(pause)

    async def step(self) -> int:
        """One pass; the number of actions it came to; no pass while another process may act."""
        term = self._lease.term
        if term is None:
            return 0
        if term != self._term:
            self._begin(term)
        view = self._view()
        actions = [*(judge(view) if self._liveness_is_due(view.moment) else ()), *reconcile(view)]
        if actions:
            # Most passes find nothing to do: they are no span.
            with span("reconcile", began_ns=view.moment.log_ns) as work:
                work.note(actions=len(actions), sequence=view.fleet.sequence)
                await self._carry_out(actions, work.traceparent)
        return len(actions)

    @property
    def _may_decide(self) -> bool:
        return self._lease.term is not None and self._runtime.ready and self._runtime.feed.lag == 0

    def _begin(self, term: int) -> None:
        """Begin a term: what an earlier one saw may be long past, and what happened since then nobody here watched."""
        self._term, self._watch, self._judged_ns = term, Watch(), None

    def _note(self, events: Sequence[Recorded], touched: list[Touched]) -> None:
        self._causes.note(events)
        self._index.note(self._runtime.fleet, touched)
        if touched:
            self._woken.set()

    def _view(self) -> View:
        runtime = self._runtime
        moment = Moment(runtime.clock.now_ns(), runtime.clock.monotonic_ns(), runtime.connected_since_ns)
        view = look(self._watch, runtime.fleet, runtime.demand, moment, search=self._index)
        self._watch = view.watch
        return view

    def _liveness_is_due(self, moment: Moment) -> bool:
        apart_ns = self._runtime.fleet.settings.liveness_pass_seconds * 1e9
        due = self._judged_ns is None or moment.heard_ns - self._judged_ns >= apart_ns
        if due:
            self._judged_ns = moment.heard_ns
        return due

    async def _carry_out(self, actions: Sequence[Action], pass_trace: str | None) -> None:
        """Actions about one thing in their order, different things at once."""
        groups: dict[Touched, list[Action]] = {}
        for action in actions:
            groups.setdefault(action.about, []).append(action)
        limit = asyncio.Semaphore(CONCURRENT_MAX)

        async def in_order(group: Sequence[Action]) -> None:
            async with limit:
                for action in group:
                    await self._do(action, pass_trace)

        try:
            async with asyncio.TaskGroup() as tasks:
                for group in groups.values():
                    tasks.create_task(in_order(group))
        except* UnavailableError as away:
            _log.warning("pass broken off", problem=str(away.exceptions[0]))

    async def _do(self, action: Action, pass_trace: str | None) -> None:
        """Append one action, in the trace of what led to it; only the log's absence breaks the pass off."""
        cause = self._causes.of(action.about)
        led = cause.trace if cause and self._is_recent(cause) else None
        with span("act", parent=led) as work:
            work.note(key=action.key, reason=action.reason)
            work.link((pass_trace, cause.trace if cause else None))
            await self._append(action, cause, work)

    def _is_recent(self, cause: Cause) -> bool:
        return self._runtime.clock.now_ns() - cause.time_ns <= TRACE_JOINED_SECONDS * 1e9

    async def _append(self, action: Action, cause: Cause | None, work: Span) -> None:
        envelope = self._runtime.envelope(
            command=action.command,
            correlation=cause.correlation if cause else None,
            causation=cause.event_id if cause else None,
            trace=work.traceparent,
        )
        try:
            committed = await self._runtime.journal.commit(
                envelope, lambda fleet: self._decided(action, fleet), essential=action.essential
            )
        except UnavailableError:
            raise
        except (ModelyardError, EventTooLargeError) as error:
            work.fail(str(error), code=getattr(error, "code", type(error).__name__))
            _log.warning("action failed", key=action.key, reason=action.reason, problem=str(error))
            return
        if action.places is not None:
            count_outcome(self._runtime.fleet, action.places, committed.events)
        if committed.events:
            _log.info("acted", key=action.key, reason=action.reason, sequence=committed.sequence)

    def _decided(self, action: Action, fleet: Fleet) -> Sequence[AnyEvent]:
        """What `action` comes to, as long as the term goes on in which it was thought of.

        Raises:
            UnavailableError: it doesn't, which breaks the pass off.
        """
        if self._lease.term != self._term:
            raise UnavailableError("the lease was lost during this pass; another reconciler acts, or is about to")
        return action.decide(fleet, action.command)

    def _pause(self) -> float:
        fleet, now_ns = self._runtime.fleet, self._runtime.clock.now_ns()
        if is_draining(fleet):
            return DRAIN_SECONDS
        due_ns = next_due_ns(fleet, now_ns=now_ns)
        longest = min(fleet.settings.reconciler_pass_seconds, fleet.settings.liveness_pass_seconds)
        return longest if due_ns is None else min(longest, max(DEBOUNCE_SECONDS, (due_ns - now_ns) / 1e9))

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        except TimeoutError:
            return
        await self._runtime.clock.sleep(DEBOUNCE_SECONDS)
        self._woken.clear()
