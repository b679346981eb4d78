"""A model without a usable replica: start one load for all who wait, and say how far it is (rule T5).

Invariant: however many requests and routers find the model cold at once, one load begins: within a router they
share one decision, and between routers the append's guard on the model lets one win; the others join its load.
"""

import asyncio
from collections.abc import Callable
from typing import Final

import msgspec

from modelyard_events.envelope import Actor, AnyEvent, instant
from modelyard_events.ids import ModelName, ReplicaId
from modelyard_projections.fleet import Fleet, Loading, Placed, ReplicaState
from modelyard_services.effects.refusals import count_refusal
from modelyard_services.effects.runtime import Runtime
from modelyard_services.errors import (
    ModelLoadingError,
    ModelUnknownError,
    ModelyardError,
    NoCapacityError,
    ReplicaFailedError,
    UnsatisfiableError,
)
from modelyard_services.policy.index import PlacementIndex
from modelyard_services.policy.placement import Outcome, Request, load_on_demand, place, told
from modelyard_services.policy.readings import Readings
from modelyard_services.policy.routing import expected
from modelyard_services.router.estimates import LoadTimes

RETRY_UNKNOWN_SECONDS: Final = 15.0
"""Without any progress told: most small models are there by then, and a large one costs four questions a minute."""


class Caller(msgspec.Struct, frozen=True):
    """In whose name a load begins, and in which trace."""

    actor: Actor
    trace: str | None = None


class HeldUpError(NoCapacityError):
    """Other replicas are in the way and may go any moment: a load that can wait asks again soon (rule P4)."""


class Loader:
    """One load decision per model at a time."""

    def __init__(self, runtime: Runtime, readings: Callable[[Fleet], Readings]) -> None:
        self._runtime = runtime
        self._readings = readings
        self._deciding: dict[ModelName, asyncio.Task[Outcome]] = {}
        self._index = PlacementIndex()
        runtime.on_batch(lambda _events, touched: self._index.note(runtime.fleet, touched))

    async def begin(self, model: ModelName, *, shut: frozenset[ReplicaId], caller: Caller) -> ReplicaId | None:
        """The replica of `model` that is on its way from now on; `shut` ones don't count.

        Raises:
            HeldUpError: there can't be one while others are in the way.
            ModelyardError: there can't be one now; says why.
        """
        task = self._deciding.get(model)
        if task is None:
            task = asyncio.ensure_future(self._decide(model, shut, caller))
            self._deciding[model] = task
            task.add_done_callback(lambda _task: self._deciding.pop(model, None))
        # Shielded: the load belongs to all who wait for it, whoever asked first.
        outcome = await asyncio.shield(task)
        if outcome.refused is not None:
            raise self._refusal(model, outcome)
        return outcome.replica

    async def _decide(self, model: ModelName, shut: frozenset[ReplicaId], caller: Caller) -> Outcome:
        runtime = self._runtime
        envelope = runtime.envelope(caller.actor, trace=caller.trace)
        request = Request(model=model, command=envelope.command, now_ns=runtime.clock.now_ns())
        outcome = Outcome()

        def decide(fleet: Fleet) -> tuple[AnyEvent, ...]:
            nonlocal outcome
            readings = self._readings(fleet)
            if expected(fleet, model, shut=shut):
                outcome = load_on_demand(fleet, readings, request, search=self._index)
            else:
                # What the model counts as serving can't be used: lost nodes, or processes that answer no probe.
                outcome = place(fleet, readings, request, search=self._index)
            return outcome.events

        await runtime.journal.commit(envelope, decide)
        if outcome.refused is not None:
            count_refusal(outcome.refused.kind)
        return outcome

    def _refusal(self, model: ModelName, outcome: Outcome) -> ModelyardError:
        refused = outcome.refused
        if refused is None:
            raise AssertionError("asked of refusals only")
        extra = told(refused)
        known = self._runtime.fleet.models.get(model)
        if known is not None and known.last_failure and known.refusal and "backoff" in known.refusal.filters:
            return ReplicaFailedError(
                f"{model!r} failed to load: {known.last_failure}; {refused.message}",
                retry_after_seconds=RETRY_UNKNOWN_SECONDS,
                extra=extra,
            )
        if refused.kind == "unsatisfiable":
            return UnsatisfiableError(f"no node can take {model!r}: {refused.message}", extra=extra)
        kind = HeldUpError if refused.held_up else NoCapacityError
        return kind(
            f"no room for {model!r} now: {refused.message}", retry_after_seconds=RETRY_UNKNOWN_SECONDS, extra=extra
        )


def require_known(fleet: Fleet, model: ModelName) -> None:
    """Refuse what nobody defined and nothing runs.

    Raises:
        ModelUnknownError: there is no such model.
    """
    known = fleet.models.get(model)
    if known is None or (known.spec is None and not known.replicas):
        raise ModelUnknownError(f"there is no model {model!r}", field="model", value=model)


def pending(fleet: Fleet, model: ModelName) -> list[ReplicaState]:
    """The replicas on their way, the furthest first."""
    coming = [state for state in expected(fleet, model) if isinstance(state.phase, Placed | Loading)]
    return sorted(coming, key=lambda state: (isinstance(state.phase, Placed), state.since_ns))


def still_loading(runtime: Runtime, model: ModelName, times: LoadTimes, *, position: int) -> ModelLoadingError:
    """What a caller is told whose patience ends before the load does."""
    settings, coming = runtime.fleet.settings, pending(runtime.fleet, model)
    if not coming:
        return ModelLoadingError(
            f"{model!r} has no replica yet; ask again",
            retry_after_seconds=settings.retry_after_min_seconds,
            extra={"state": "waiting", "queue_position": position},
        )
    state = coming[0]
    progress = _progress(runtime, state)
    eta = times.left_seconds(state, progress=progress, now_ns=runtime.clock.now_ns())
    phase = _phase(state)
    least, most = settings.retry_after_min_seconds, settings.retry_after_max_seconds
    return ModelLoadingError(
        f"{model!r} is {phase} on {state.node}; ask again",
        retry_after_seconds=min(most, max(least, RETRY_UNKNOWN_SECONDS if eta is None else eta)),
        extra={
            "state": phase,
            "node": state.node,
            "replica": state.id,
            "progress": progress,
            "queue_position": position,
            "eta_seconds": None if eta is None else round(eta, 1),
            "since": instant(state.since_ns),
        },
    )


def _phase(state: ReplicaState) -> str:
    if not isinstance(state.phase, Placed):
        return "loading"
    return "waiting for room" if state.waits_for else "placed"


def _progress(runtime: Runtime, state: ReplicaState) -> float | None:
    heartbeat = runtime.demand.heartbeat(state.node)
    readings = heartbeat.replicas if heartbeat is not None else ()
    return next((reading.progress for reading in readings if reading.replica == state.id), None)
