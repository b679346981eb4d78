"""Whatever load comes: how many replicas of a model there are (C4).

Held against a second, plainer account that is kept here from what the test itself did.
"""

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from modelyard_events.envelope import AnyEvent
from modelyard_events.ids import ModelName, ReplicaId
from modelyard_events.model import (
    ModelScheduleSet,
)
from modelyard_events.replica import ReplicaDrainStarted, ReplicaPlaced, ReplicaUnloaded
from modelyard_events.spec import Autoscale, Schedule
from modelyard_events.telemetry import RouterReport
from modelyard_projections.fleet import Draining, Loading, Placed, Ready, ReplicaState
from tests.support.given import GIB, SECOND_NS, a_model, an_approved_node
from tests.support.world import World

M = ModelName("m")
IDLE_SECONDS = 300
COOL_DOWN_SECONDS = 300
PASSES_APART_SECONDS = 5
NODES = ("n0", "n1", "n2")


class Before(msgspec.Struct, frozen=True):
    """The model before a pass: its replicas that stay, how many its floor lacks, whether load asks for one more.

    `idle` are the indexes of those that nobody has used for five minutes.
    """

    count: int
    short: int
    wanted: bool
    held: bool
    idle: dict[ReplicaId, int]


class AnyLoad(RuleBasedStateMachine):
    """A model between its floor and its ceiling, under any load."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: dict[ReplicaId, int] = {}
        self.used_ns: dict[ReplicaId, int] = {}
        self.scheduled = Autoscale(1, 0)
        self.target: float | None = None

    @initialize(
        nodes=st.integers(1, 3),
        slots=st.integers(1, 3),
        vram=st.sampled_from([2, 24]),
        aim=st.sampled_from([None, 0.5]),
        ready=st.integers(1, 4),
    )
    def begin(self, nodes: int, slots: int, vram: int, aim: float | None, ready: int) -> None:
        """So many replicas are ready, where they fit: from there on things happen sooner."""
        self.world = World(
            *(event for name in NODES[:nodes] for event in an_approved_node(name, vram=vram * GIB, slots=slots)),
            *a_model(),
        )
        self.schedule(ready, 4, None)
        self.world.live()
        self.schedule(1, 4, aim)

    @rule(least=st.integers(0, 3), most=st.integers(0, 4), aim=st.sampled_from([None, 0.5, 2.0]))
    def schedule(self, least: int, most: int, aim: float | None) -> None:
        self.scheduled = Autoscale(least, max(least, most) if most else 0)
        self.target = aim
        wanted = Schedule(mode=self.scheduled, target_in_flight=aim)
        self.world.append(ModelScheduleSet(model=M, schedule=wanted, source="api"))

    @rule(data=st.data(), seconds=st.sampled_from([0, 1, 301]), is_alike=st.booleans())
    def serve(self, data: st.DataObject, seconds: int, is_alike: bool) -> None:  # noqa: FBT001 - drawn by name
        """So many requests on each ready replica from now on, and a pass that sees them."""
        every = data.draw(st.integers(0, 3))
        for state in self._of(Ready):
            self._use(state, every if is_alike else data.draw(st.integers(0, 3)))
        self.reconcile(seconds)

    @rule()
    def work(self) -> None:
        self._tell()
        self.world.work()

    @rule(seconds=st.sampled_from([0, 1, 20, 299, 301]))
    def reconcile(self, seconds: int) -> None:
        while seconds > 100 and (self._of(Placed) or self._of(Loading)):
            self.work()  # a load that takes for ever is another story (C7)
        self.world.later(seconds)
        self._tell()
        before = self._before()
        self._judge(before, self.world.one_pass())

    def _before(self) -> Before:
        fleet = self.world.fleet
        ready = self._of(Ready)
        staying = [state for state in fleet.replicas.values() if not isinstance(state.phase, Draining)]
        held = fleet.models[M].breaker is not None
        return Before(
            count=len(staying),
            short=max(0, self.scheduled.min_replicas - len(staying)),
            wanted=self._asks(ready, staying) and not held,
            held=held,
            idle=self._idle(ready),
        )

    def _judge(self, before: Before, events: list[AnyEvent]) -> None:
        placed = sum(isinstance(event, ReplicaPlaced) for event in events)
        ends = [event for event in events if isinstance(event, ReplicaDrainStarted | ReplicaUnloaded)]
        gone = [replica for event in ends if event.reason == "scaled_down" for replica in event.replicas]
        assert not (placed and gone), "one direction in a pass"
        self._judge_more(before, placed)
        self._judge_fewer(before, gone)

    def _judge_more(self, before: Before, placed: int) -> None:
        most = self.scheduled.max_replicas
        assert not (placed and before.held), "the breaker holds it back"
        assert not (placed and most) or before.count + placed <= most
        assert placed <= (before.short or int(before.wanted)), "what the floor lacks, else one more if the load asks"

    def _judge_fewer(self, before: Before, gone: list[ReplicaId]) -> None:
        if not gone:
            return
        assert not before.wanted, "one direction in a pass, whether it leads anywhere or not"
        assert before.count - len(gone) >= self.scheduled.min_replicas
        if self._over(before):
            assert before.count - len(gone) >= self.scheduled.max_replicas
            return
        assert set(gone) <= before.idle.keys(), "only what nobody has used for so long"
        stay = before.idle.keys() - set(gone)
        assert not stay or min(before.idle[each] for each in gone) >= max(before.idle[each] for each in stay)

    def _over(self, before: Before) -> bool:
        return 0 < self.scheduled.max_replicas < before.count

    def _asks(self, ready: list[ReplicaState], staying: list[ReplicaState]) -> bool:
        """C4, in the rule's own words."""
        least, most = self.scheduled.min_replicas, self.scheduled.max_replicas
        if not (least or most) or (most and len(staying) >= most) or not ready or len(ready) < len(staying):
            return False
        loads = [self.loads.get(state.id, 0) for state in ready]
        return all(loads) if self.target is None else sum(loads) / len(loads) > self.target

    def _idle(self, ready: list[ReplicaState]) -> dict[ReplicaId, int]:
        """The indexes of those that nobody has used for five minutes."""
        now_ns = self.world.now_ns
        return {
            state.id: state.replica_index
            for state in ready
            if not self.loads.get(state.id)
            and now_ns - max(self.used_ns.get(state.id, 0), state.since_ns) >= IDLE_SECONDS * SECOND_NS
        }

    def _use(self, state: ReplicaState, load: int) -> None:
        """Requests begin or end; while one runs, nobody tells of a new use."""
        self.loads[state.id] = load
        self.used_ns[state.id] = self.world.now_ns

    def _of(self, phase: type) -> list[ReplicaState]:
        return [state for state in self.world.fleet.replicas.values() if isinstance(state.phase, phase)]

    def _tell(self) -> None:
        """The one router's report: what it holds, and what it has used when."""
        self.loads = {replica: load for replica, load in self.loads.items() if replica in self.world.fleet.replicas}
        report = RouterReport("router", self.world.fleet.sequence, dict(self.loads), last_used_ns=dict(self.used_ns))
        self.world.demand.hear_router(report, now_ns=self.world.now_ns)


TestAnyLoad = AnyLoad.TestCase
TestAnyLoad.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
