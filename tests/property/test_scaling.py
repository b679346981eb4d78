"""Whatever load comes: how many replicas of a model there are (C4).

Held against a second, plainer account that is kept here from what the test itself did and from the events.
"""

from collections.abc import Iterable

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from modelyard_events.envelope import AnyEvent
from modelyard_events.ids import ModelName, ReplicaId
from modelyard_events.model import ModelDeclaredSatisfiable, ModelDeclaredUnsatisfiable
from modelyard_events.replica import EndReason, ReplicaDrainStarted, ReplicaPlaced, ReplicaUnloaded
from modelyard_events.spec import Autoscale, Schedule
from modelyard_events.telemetry import RouterReport
from modelyard_projections.fleet import Draining, Loading, Placed, Ready, ReplicaState
from modelyard_services.policy.ending import end
from modelyard_services.policy.schedules import set_schedule
from tests.support.given import GIB, SECOND_NS, a_model, an_approved_node
from tests.support.world import World

M = ModelName("m")
IDLE_SECONDS = 300
COOL_DOWN_SECONDS = 300
ROUTERS_SECONDS = 5
LOAD_SECONDS = 100
NODES = ("n0", "n1", "n2")


class Due(msgspec.Struct, frozen=True):
    """What a pass is to do: replicas that it places, at least and at most, or one of those that may go, and why."""

    least: int = 0
    most: int = 0
    goes: frozenset[ReplicaId] = frozenset()
    reason: EndReason = "scaled_down"


class AnyLoad(RuleBasedStateMachine):
    """A model between its floor and its ceiling, under any load."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: dict[ReplicaId, int] = {}
        self.used_ns: dict[ReplicaId, int] = {}
        self.ready_ns: dict[ReplicaId, int] = {}
        self.held_until_ns = 0

    @initialize(
        nodes=st.integers(1, 3),
        slots=st.integers(2, 3),
        vram=st.sampled_from([2, 24]),
        aim=st.sampled_from([None, 0.5]),
        ready=st.integers(2, 4),
    )
    def begin(self, nodes: int, slots: int, vram: int, aim: float | None, ready: int) -> None:
        """So many replicas are ready, where they fit: from there on things happen sooner."""
        self.world = World(
            *(event for name in NODES[:nodes] for event in an_approved_node(name, vram=vram * GIB, slots=slots)),
            *a_model(),
        )
        self.schedule(ready, 4, None, None)
        self.world.live()
        self._note_the_ready()
        self.schedule(1, 4, aim, None)

    @rule(
        least=st.integers(0, 3),
        most=st.integers(0, 4),
        aim=st.sampled_from([None, 0.5, 2.0]),
        idle=st.sampled_from([None, None, 60.0, 900.0]),
    )
    def schedule(self, least: int, most: int, aim: float | None, idle: float | None) -> None:
        self.mode = Autoscale(least, max(least, most) if most else 0)
        self.target, self.idle_timeout = aim, idle
        wanted = Schedule(mode=self.mode, target_in_flight=aim, idle_timeout_seconds=idle)
        self._append(*set_schedule(self.world.fleet, model=M, schedule=wanted, source="api"))

    @rule(data=st.data(), seconds=st.sampled_from([0, 1, 301]), is_alike=st.booleans())
    def serve(self, data: st.DataObject, seconds: int, is_alike: bool) -> None:  # noqa: FBT001 - drawn by name
        """So many requests on each ready replica from now on, and a pass that sees them."""
        every = data.draw(st.integers(0, 3))
        for state in self._of(Ready):
            self._use(state, every if is_alike else data.draw(st.integers(0, 3)))
        self.reconcile(seconds)

    @rule()
    def work(self) -> None:
        """Workers load and stop; requests on what drains end."""
        self.loads |= {state.id: 0 for state in self._of(Draining)}
        self._tell()
        self.world.work()
        self._note_the_ready()

    @precondition(lambda self: self._of(Ready))
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        """A replica ends by somebody else's will: memory is free on its node, which ends a breaker's time early."""
        lost = data.draw(st.sampled_from(sorted(state.id for state in self._of(Ready))))
        self._append(*end(self.world.fleet, [lost], reason="requested"))

    @rule()
    def reconnect(self) -> None:
        """The reconciler was away, and doesn't know yet who routes."""
        self.world.connected_seconds = self.world.seconds

    @rule(
        load=st.integers(1, 3),
        most=st.integers(0, 5),
        aim=st.sampled_from([None, 0.5, 2.0]),
        idle=st.integers(0, 1),
        seconds=st.sampled_from([0, 301]),
    )
    def press(self, load: int, most: int, aim: float | None, idle: int, seconds: int) -> None:
        """Every ready replica is busy, or all but one, and stays so while the next one loads."""
        self.schedule(min(1, most), most, aim, None)
        for position, state in enumerate(self._of(Ready)):
            self._use(state, 0 if position < idle else load)
        self.reconcile(seconds)
        self.reconcile(1)

    @rule(least=st.integers(0, 2), idle=st.sampled_from([None, 60.0, 900.0]), seconds=st.sampled_from([299, 301, 901]))
    def rest(self, least: int, idle: float | None, seconds: int) -> None:
        """No request is left, for so long."""
        self.schedule(least, 4, self.target, idle)
        for state in self._of(Ready):
            self._use(state, 0)
        self.reconcile(seconds)
        self.reconcile(1)

    @rule(more=st.integers(1, 2))
    def starve(self, more: int) -> None:
        """The floor is above what fits, for passes enough to open the breaker."""
        self.schedule(len(self._staying()) + self._room() + more, 0, self.target, None)
        for _ in range(4):
            self.reconcile(20)

    @rule(seconds=st.sampled_from([0, 1, 20, 299, 301]))
    def reconcile(self, seconds: int) -> None:
        """A pass, so many seconds later; what loads or drains for ever is another story (C7)."""
        while self._longest_on_its_way_seconds() + seconds > LOAD_SECONDS:
            self._pass(1)
            self.work()
        self._pass(seconds)

    def _pass(self, seconds: int) -> None:
        self.world.later(seconds)
        self._tell()
        due, before = self._due(), len(self.world.told)
        self.world.one_pass()
        told = self.world.told[before:]
        self._note_the_breaker(told)
        self._judge(due, told)

    def _due(self) -> Due:
        """C4, in the rule's own words."""
        staying, least, most = self._staying(), self.mode.min_replicas, self.mode.max_replicas
        short = 0 if self._is_held() else max(0, least - len(staying))
        if short:
            return Due(least=min(short, self._room()), most=short)
        if self._asks(staying) and not self._is_held():
            return Due(least=min(1, self._room()), most=1)
        if 0 < most < len(staying):
            return Due(goes=self._first(staying))
        if len(staying) > max(least, 1) and (least or most) and (idle := self._idle(IDLE_SECONDS)):
            return Due(goes=self._first(idle))
        if len(staying) > least and self.idle_timeout is not None and (idle := self._idle(self.idle_timeout)):
            return Due(goes=self._first(idle), reason="idle")
        return Due()

    def _judge(self, due: Due, events: list[AnyEvent]) -> None:
        placed = sum(isinstance(event, ReplicaPlaced) for event in events)
        ends = [event for event in events if isinstance(event, ReplicaDrainStarted | ReplicaUnloaded)]
        gone = [(each, event.reason) for event in ends for each in event.replicas if event.reason in _SCALING]
        assert not (placed and gone), "one direction in a pass"
        assert placed <= due.most, "what the floor lacks, else one more if the load asks"
        assert len(gone) <= bool(due.goes), "one at a time, and only what is idle or above the ceiling"
        assert all(replica in due.goes and reason == due.reason for replica, reason in gone), "who goes first"
        # Where something else changed the model in the same pass, the next one sees it as it is then.
        if not _changed_by_others(events):
            assert placed >= due.least, f"it lacks one, and there is room: {events}"
            assert len(gone) == bool(due.goes), "one is to go"

    def _asks(self, staying: list[ReplicaState]) -> bool:
        least, most = self.mode.min_replicas, self.mode.max_replicas
        ready = self._of(Ready)
        if not (least or most) or (most and len(staying) >= most) or not ready or len(ready) < len(staying):
            return False
        loads = [self.loads.get(state.id, 0) for state in ready]
        return all(loads) if self.target is None else sum(loads) / len(loads) > self.target

    def _first(self, among: list[ReplicaState]) -> frozenset[ReplicaId]:
        """Those of whom one goes next: without requests, of the highest index, the least recently used."""

        def turn(state: ReplicaState) -> tuple[int, int, int]:
            return (self.loads.get(state.id, 0), -state.replica_index, self.used_ns.get(state.id, 0))

        first = min(turn(state) for state in among)
        return frozenset(state.id for state in among if turn(state) == first)

    def _idle(self, seconds: float) -> list[ReplicaState]:
        """Those that nobody has used for so long; before every router could be heard, nobody knows of any."""
        connected = self.world.connected_seconds
        if connected is None or self.world.seconds - connected < ROUTERS_SECONDS:
            return []
        since_ns = self.world.now_ns - round(seconds * SECOND_NS)
        return [
            state
            for state in self._of(Ready)
            if not self.loads.get(state.id) and max(self.used_ns.get(state.id, 0), self.ready_ns[state.id]) <= since_ns
        ]

    def _staying(self) -> list[ReplicaState]:
        return [state for state in self.world.fleet.replicas.values() if not isinstance(state.phase, Draining)]

    def _room(self) -> int:
        """How many more replicas of a GiB fit, one GPU a node."""
        nodes = self.world.fleet.nodes.values()
        return sum(
            max(0, min(node.max_replicas_per_model, node.devices[0] // GIB) - len(node.replicas)) for node in nodes
        )

    def _is_held(self) -> bool:
        return self.world.now_ns < self.held_until_ns

    def _append(self, *events: AnyEvent) -> None:
        self.world.append(*events)
        self._note_the_breaker(events)

    def _note_the_breaker(self, events: Iterable[AnyEvent]) -> None:
        """It ends by its time, or when an event says so: of whoever changes the model, or of a pass that saw relief."""
        for event in events:
            if isinstance(event, ModelDeclaredUnsatisfiable):
                self.held_until_ns = self.world.now_ns + COOL_DOWN_SECONDS * SECOND_NS
            elif isinstance(event, ModelDeclaredSatisfiable):
                self.held_until_ns = 0

    def _longest_on_its_way_seconds(self) -> float:
        """For how long the first of those that come or go has done so; less than nothing without any."""
        moving = [*self._of(Placed), *self._of(Loading), *self._of(Draining)]
        return max(((self.world.now_ns - state.since_ns) / SECOND_NS for state in moving), default=-9e9)

    def _note_the_ready(self) -> None:
        for state in self._of(Ready):
            self.ready_ns.setdefault(state.id, self.world.now_ns)

    def _use(self, state: ReplicaState, load: int) -> None:
        """Requests begin or end; while one runs, nobody tells of a new use."""
        if load != self.loads.get(state.id, 0):
            self.used_ns[state.id] = self.world.now_ns
        self.loads[state.id] = load

    def _of(self, phase: type) -> list[ReplicaState]:
        return [state for state in self.world.fleet.replicas.values() if isinstance(state.phase, phase)]

    def _tell(self) -> None:
        """The one router's report: what it holds, and what it has used when."""
        self.loads = {replica: load for replica, load in self.loads.items() if replica in self.world.fleet.replicas}
        report = RouterReport("router", self.world.fleet.sequence, dict(self.loads), last_used_ns=dict(self.used_ns))
        self.world.demand.hear_router(report, now_ns=self.world.now_ns)


_SCALING: frozenset[EndReason] = frozenset({"scaled_down", "idle"})


def _changed_by_others(events: list[AnyEvent]) -> bool:
    """Whether the pass began with something about the model that is no scaling of it."""
    return any(isinstance(event, ModelDeclaredSatisfiable | ModelDeclaredUnsatisfiable) for event in events)


TestAnyLoad = AnyLoad.TestCase
TestAnyLoad.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
