"""How long loads take, learned from the log: what a caller of a cold model is told to expect (rule T5).

Invariant: an estimate is this load's own progress, the model's last load, or nothing; it never delays a load and
never ends one.
"""

from collections.abc import Iterable
from typing import Final

from modelyard_events.envelope import Recorded
from modelyard_events.ids import ModelName, ReplicaId
from modelyard_events.replica import ReplicaLoaded, ReplicaLoadStarted
from modelyard_projections.fleet import Fleet, Loading, ReplicaState

MODELS_MAX: Final = 4_096
"""Models whose last load is remembered: as many as a large fleet defines."""

PROGRESS_MIN: Final = 0.1
"""Progress is told in whole percents: below that, rounding and what any process takes at its start are most of it."""


class LoadTimes:
    """The last load of each model, in nanoseconds."""

    def __init__(self) -> None:
        self._last_ns: dict[ModelName, int] = {}
        self._began_ns: dict[ReplicaId, int] = {}

    def note(self, fleet: Fleet, events: Iterable[Recorded]) -> None:
        """`fleet` has folded `events`."""
        for recorded in events:
            event = recorded.event
            if isinstance(event, ReplicaLoadStarted):
                self._began_ns[event.replica] = recorded.time_ns
            elif isinstance(event, ReplicaLoaded):
                began_ns, state = self._began_ns.pop(event.replica, None), fleet.replicas.get(event.replica)
                if began_ns is not None and state is not None:
                    self._remember(state.model, recorded.time_ns - began_ns)

    def forget(self, replica: ReplicaId) -> None:
        """`replica` ended, loaded or not."""
        self._began_ns.pop(replica, None)

    def left_seconds(self, state: ReplicaState, *, progress: float | None, now_ns: int) -> float | None:
        """What is left of the load of `state`, by its own progress, else by the model's last load."""
        elapsed_ns = max(0, now_ns - state.since_ns) if isinstance(state.phase, Loading) else 0
        if progress is not None and PROGRESS_MIN <= progress < 1:
            return elapsed_ns / 1e9 * (1 - progress) / progress
        last_ns = self._last_ns.get(state.model)
        # One that takes longer than the last may end any moment: zero, not a negative wait.
        return None if last_ns is None else max(0, last_ns - elapsed_ns) / 1e9

    def _remember(self, model: ModelName, took_ns: int) -> None:
        self._last_ns.pop(model, None)
        self._last_ns[model] = took_ns
        if len(self._last_ns) > MODELS_MAX:
            del self._last_ns[next(iter(self._last_ns))]
