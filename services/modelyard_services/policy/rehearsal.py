"""What would come of a change: the reconciler's own passes on a copy of the fleet, and workers that do as told.

Invariant: the fleet it looks at stays as it is, and it is the reconciler's own code that decides; what workers do
there is what they do when all goes well: each drain ends, each load succeeds.
"""

from collections.abc import Iterable
from typing import Final, assert_never

import msgspec

from modelyard_events.envelope import AnyEvent
from modelyard_events.ids import ModelName, NodeName, ReplicaId
from modelyard_events.replica import Process, ReplicaDrainStarted, ReplicaPlaced, ReplicaUnloaded
from modelyard_events.requests import Loaded, LoadStarted, Report, Stopped
from modelyard_projections.fleet import Alive, Draining, Fleet, Loading, Placed, Ready, ReplicaState
from modelyard_services.policy.actions import View
from modelyard_services.policy.draft import Draft
from modelyard_services.policy.facts import report
from modelyard_services.policy.index import PlacementIndex
from modelyard_services.policy.readings import NodeReading
from modelyard_services.policy.reconcile import reconcile

PASSES_MAX: Final = 64
"""Passes on the copy: a rollout takes three a replica, and two models that evict each other would go on for ever."""

EVENTS_MAX: Final = 20_000
"""Events on the copy: a cold start of some five thousand replicas, which takes seconds."""

_PROCESS: Final = Process(pid=1, started_at=0.0, port=1)
_ADDRESS: Final = "127.0.0.1:1"
"""Stand-ins: nothing is started."""


class Placement(msgspec.Struct, frozen=True):
    """A replica that would be placed."""

    model: ModelName
    node: NodeName
    replica_index: int


class Ending(msgspec.Struct, frozen=True):
    """A replica that would end: to make room, to be replaced, or because nobody wants it any more."""

    model: ModelName
    node: NodeName
    replica: ReplicaId
    reason: str


class Rehearsal:
    """A copy of a view, to be played on. Making it is quick; `play` may take seconds and can run anywhere."""

    def __init__(self, view: View) -> None:
        # At this moment: what is loaded in the rehearsal has not been idle since the last event.
        self._draft = Draft.of_all(view.fleet, time_ns=max(view.fleet.time_ns, view.moment.log_ns))
        self._index = PlacementIndex()
        self._before = {state.id: (state.model, state.node) for state in view.fleet.replicas.values() if _stays(state)}
        self.view = msgspec.structs.replace(
            view,
            fleet=self._draft.fleet,
            demand=view.demand.copy(),
            readings=msgspec.structs.replace(
                view.readings,
                nodes=dict(view.readings.nodes),
                in_flight=dict(view.readings.in_flight),
                unserved=set(),
            ),
            search=self._index,
        )

    @property
    def fleet(self) -> Fleet:
        return self._draft.fleet

    @property
    def placements(self) -> tuple[Placement, ...]:
        placed = (event for event in self._draft.events if isinstance(event, ReplicaPlaced))
        return tuple(Placement(ModelName(each.model), NodeName(each.node), each.replica_index) for each in placed)

    @property
    def endings(self) -> tuple[Ending, ...]:
        """Of what was there before; each once, with the reason it began to end for."""
        found: dict[ReplicaId, Ending] = {}
        for event in self._draft.events:
            if isinstance(event, ReplicaDrainStarted | ReplicaUnloaded):
                for replica in event.replicas:
                    if replica in self._before and replica not in found:
                        found[replica] = Ending(*self._before[replica], replica, _reason(event))
        return tuple(found.values())

    def play(self, events: Iterable[AnyEvent]) -> bool:
        """`events`, and all that follows from them; False where it was broken off before it settled."""
        self._add(events)
        for _ in range(PASSES_MAX):
            before = len(self._draft.events)
            for action in reconcile(self.view):
                self._add(action.decide(self.fleet, action.command))
            self._work()
            if len(self._draft.events) == before:
                return True
            if len(self._draft.events) > EVENTS_MAX:
                return False
        return False

    def _add(self, events: Iterable[AnyEvent]) -> None:
        self._draft.add(events)
        self._index.note(self.fleet, self.fleet.take_touched())

    def _work(self) -> None:
        """What living workers do when all goes well."""
        for state in list(self.fleet.replicas.values()):
            if not isinstance(self.fleet.nodes[state.node].liveness, Alive):
                continue
            match state.phase:
                case Draining():
                    self._free(state)
                    self._tell(state, Stopped(state.id))
                case Placed() if not state.waits_for:
                    if state.id not in self._before:
                        self.view.readings.unserved.add(state.id)
                    self._tell(state, LoadStarted(state.id, _PROCESS), Loaded(state.id, _ADDRESS))
                case Loading():
                    self._tell(state, Loaded(state.id, _ADDRESS))
                case Placed() | Ready():
                    pass
                case _:
                    assert_never(state.phase)

    def _tell(self, state: ReplicaState, *facts: LoadStarted | Loaded | Stopped) -> None:
        incarnation = self.fleet.nodes[state.node].incarnation
        self._add(report(self.fleet, Report(state.node, incarnation, 0, facts)).events)

    def _free(self, state: ReplicaState) -> None:
        """The measurement with the memory back that it shows as this replica's."""
        reading = self.view.readings.nodes.get(state.node)
        shown = {} if reading is None else reading.visible.get(state.id, {})
        held = self.fleet.reservations[state.reservation].vram if shown is None else shown
        if reading is not None and held:
            free = {device: size + held.get(device, 0) for device, size in reading.vram_free.items()}
            visible = {replica: memory for replica, memory in reading.visible.items() if replica != state.id}
            self.view.readings.nodes[state.node] = NodeReading(free, visible, reading.disk_free)


def _stays(state: ReplicaState) -> bool:
    return not isinstance(state.phase, Draining)


def _reason(event: ReplicaDrainStarted | ReplicaUnloaded) -> str:
    decision = event.decision if isinstance(event, ReplicaDrainStarted) else None
    if decision is None:
        return event.reason
    return decision.outcome if decision.outcome.startswith(event.reason) else f"{event.reason}: {decision.outcome}"
