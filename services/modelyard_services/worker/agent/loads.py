"""How long each model took to load, as spans: from the start of its process to the fact that says how it went.

Invariant: one open span per replica at most, ended by the first fact that ends the load.
"""

import msgspec

from modelyard_events.ids import ReplicaId
from modelyard_events.requests import Crashed, Loaded, LoadFailed, Stopped
from modelyard_projections.fleet import ReplicaState
from modelyard_services.effects.tracing import Span, span
from modelyard_services.worker.processes.kept import ProcessFact


class Loads:
    """The loads of one life of a worker."""

    def __init__(self) -> None:
        self._open: dict[ReplicaId, Span] = {}

    def begin(self, state: ReplicaState) -> None:
        """The process of `state` is being started."""
        self._end(state.id)
        work = span("load", parent=state.trace)
        work.note(replica=state.id, model=state.model, revision=state.revision)
        self._open[state.id] = work

    def hear(self, fact: ProcessFact) -> None:
        """End the load that `fact` ends."""
        if not isinstance(fact, Loaded | LoadFailed | Crashed | Stopped):
            return
        if (work := self._open.get(fact.replica)) is not None and not isinstance(fact, Loaded):
            detail = fact.detail if isinstance(fact, LoadFailed) else msgspec.json.encode(fact.exit).decode()
            work.fail(detail, code=type(fact).__name__)
        self._end(fact.replica)

    def _end(self, replica: ReplicaId) -> None:
        if (work := self._open.pop(replica, None)) is not None:
            work.end()
