"""Whatever happens to a fleet, what is placed fits, matches and is accounted for (I1-I4, I7, I12, rules R2-R5, P5)."""

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from modelyard_events.codec import encode, subject_of
from modelyard_events.decision import DECISION_BYTES_MAX, Decision
from modelyard_events.envelope import Actor, AnyEvent, Envelope
from modelyard_events.fleet import FleetSettingsChanged, Settings
from modelyard_events.ids import CommandId, ModelName, NodeName, ReplicaId, ReservationId
from modelyard_events.model import ModelScheduleSet
from modelyard_events.node import (
    Gpu,
    NodeCapacityChanged,
    NodeCordoned,
    NodeDrainStarted,
    NodeLabelsChanged,
    NodeLost,
    NodeMaxReplicasOverridden,
    NodeRecovered,
    NodeResumed,
    NodeVramBudgetOverridden,
    NodeWatchdogOverridden,
    WatchdogOverrides,
)
from modelyard_events.replica import ReplicaDrainStarted, ReplicaPlaced
from modelyard_events.reservation import OperatorHolder, ReplicaHolder, ReservationGranted
from modelyard_events.selectors import matches, parse_selector
from modelyard_events.sizes import Bytes
from modelyard_events.spec import Autoscale, ModelSpec, Schedule, SpreadAll
from modelyard_projections.fleet import Alive, Fleet, Lost, NodeDraining, Ready
from modelyard_services.effects.log.contract import Message, SequenceMoved
from modelyard_services.effects.log.memory import MemoryLog
from modelyard_services.policy.ending import begin_drain, end
from modelyard_services.policy.fitting import fit
from modelyard_services.policy.liveness import judge
from modelyard_services.policy.models import define, remove
from modelyard_services.policy.placement import Request, load_on_demand, place
from modelyard_services.policy.readings import Readings
from modelyard_services.policy.reconcile import reconcile
from tests.support.given import GIB, a_model, an_approved_node, incarnation_of
from tests.support.world import World

NODES = ("n0", "n1", "n2", "n3")
MODELS = ("a", "b", "c")

some_node = st.sampled_from(NODES)
some_model = st.sampled_from(MODELS)
some_gib = st.integers(0, 40).map(lambda gib: gib * GIB)
specs = st.builds(
    ModelSpec,
    command=st.sampled_from([("serve",), ("serve", "--other")]),
    vram=st.sampled_from([None, 0, GIB, 4 * GIB, 12 * GIB, 30 * GIB]),
    file_size=st.sampled_from([None, GIB]),
    concurrency_groups=st.sampled_from([(), ("g",), ("g", "h")]),
    pinned=st.sampled_from([False, False, True]),
)
schedules = st.builds(
    Schedule,
    mode=st.sampled_from([Autoscale(), Autoscale(1), Autoscale(2, 3), SpreadAll()]),
    node_selector=st.sampled_from([(), parse_selector("zone=x"), parse_selector("zone!=x")]),
    placement=st.sampled_from(["spread", "binpack"]),
    max_per_node=st.sampled_from([None, 1, 2]),
    gpus=st.sampled_from([1, 1, 2, 3]),
    rollout=st.sampled_from(["surge", "replace"]),
)


CHOSEN = st.builds(
    Settings,
    min_residency_seconds=st.sampled_from([0.0, 60.0]),
    eviction_order=st.sampled_from(["lru", "size"]),
    max_loaded_models=st.sampled_from([0, 0, 1, 2]),
    evictions_frozen=st.sampled_from([False, False, True]),
    disk_headroom_share=st.sampled_from([0.05, 1.0]),
    disk_headroom_bytes=st.sampled_from([0, GIB, 8 * GIB]),
    load_backoff_seconds=st.sampled_from([0.0, 10.0, 200.0]),
    accept_deadline_seconds=st.sampled_from([10.0, 120.0]),
    missed_heartbeats_max=st.sampled_from([1, 2, 3]),
)
"""What operators may have chosen instead of the rules' figures."""


class AnyFleet(RuleBasedStateMachine):
    """A small fleet to which anything may happen, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.commands = 0
        self.readings = Readings(knows_routers=True)

    def _append(self, events: Iterable[AnyEvent]) -> None:
        """Fold a decision; judge its evictions on the fleet before, its placements on the fleet as it left it."""
        decided = list(events)
        for event in decided:
            if isinstance(event, ReplicaDrainStarted) and event.reason.startswith("evicted"):
                judge_eviction(self.world.fleet, self.readings, event)
        self.world.append(*decided)
        for event in decided:
            if isinstance(event, ReplicaPlaced):
                judge_placement(self.world.fleet, event)
            for decision in (getattr(event, "decision", None),):
                if isinstance(decision, Decision):
                    judge_decision(decision)

    def _request(self, model: str) -> Request:
        self.commands += 1
        command = CommandId(f"c-{self.commands}")
        return Request(model=ModelName(model), command=command, now_ns=self.world.now_ns)

    def _known(self, node: str) -> bool:
        return NodeName(node) in self.world.fleet.nodes

    @initialize(definitions=st.tuples(specs, specs, specs), gpus=st.integers(0, 3), slots=st.integers(1, 2))
    def begin(self, definitions: tuple[ModelSpec, ...], gpus: int, slots: int) -> None:
        """A story that starts from nothing spends its steps on being refused."""
        for node in NODES[:2]:
            self._append(an_approved_node(node, gpus=gpus, vram=40 * GIB, slots=slots))
        for model, spec in zip(MODELS, definitions, strict=True):
            self._append(define(self.world.fleet, model=ModelName(model), spec=spec))

    @rule(node=some_node, gpus=st.integers(0, 4), vram=some_gib, slots=st.integers(1, 3))
    def join(self, node: str, gpus: int, vram: int, slots: int) -> None:
        if not self._known(node):
            self._append(an_approved_node(node, gpus=gpus, vram=vram, slots=slots))

    @rule(model=some_model, spec=specs)
    def define(self, model: str, spec: ModelSpec) -> None:
        self._append(define(self.world.fleet, model=ModelName(model), spec=spec))

    @rule(model=some_model)
    def remove(self, model: str) -> None:
        state = self.world.fleet.models.get(ModelName(model))
        if state is not None and state.spec is not None:
            self._append(remove(self.world.fleet, model=ModelName(model)))

    @rule(model=some_model, schedule=schedules)
    def schedule(self, model: str, schedule: Schedule) -> None:
        self._append([ModelScheduleSet(model=model, schedule=schedule, source="api")])

    @rule(models=st.lists(some_model, min_size=1, max_size=6), on_demand=st.booleans())
    def place(self, models: list[str], on_demand: bool) -> None:  # noqa: FBT001 - drawn by name
        decide = load_on_demand if on_demand else place
        for model in models:
            state = self.world.fleet.models.get(ModelName(model))
            if state is not None and state.spec is not None:
                self._append(decide(self.world.fleet, self.readings, self._request(model)).events)

    @rule(node=some_node, size=some_gib)
    def cap(self, node: str, size: int) -> None:
        if self._known(node):
            self._append([NodeVramBudgetOverridden(node=node, vram_budget=Bytes(size) if size else None)])

    @rule(node=some_node, gpus=st.sets(st.integers(0, 3)), vram=some_gib)
    def lose_or_find_gpus(self, node: str, gpus: set[int], vram: int) -> None:
        """What is on a GPU that is lost ends by and by; until then its memory is nobody's."""
        if self._known(node):
            cards = tuple(Gpu(index, "nvidia", "Test GPU", vram) for index in sorted(gpus))
            self._append([NodeCapacityChanged(node=node, incarnation=incarnation_of(node), gpus=cards)])

    @rule(node=some_node, slots=st.integers(1, 3))
    def limit(self, node: str, slots: int) -> None:
        if self._known(node):
            self._append([NodeMaxReplicasOverridden(node=node, max_replicas_per_model=slots)])

    @rule(node=some_node, models=st.sampled_from([None, None, 0, 1, 2]))
    def hold(self, node: str, models: int | None) -> None:
        """As many models as that at once on this node, or as many as the fleet's settings say."""
        if self._known(node):
            overrides = WatchdogOverrides(max_loaded_models=models)
            self._append([NodeWatchdogOverridden(node=node, overrides=overrides, changed=("max_loaded_models",))])

    @rule(node=some_node, zone=st.sampled_from(["x", "y"]))
    def label(self, node: str, zone: str) -> None:
        if self._known(node):
            self._append([NodeLabelsChanged(node=node, changed={"zone": zone})])  # type: ignore[dict-item]

    @rule(node=some_node, size=some_gib)
    def reserve(self, node: str, size: int) -> None:
        if self._known(node):
            self.commands += 1
            identity = ReservationId(f"v-op-{self.commands}")
            self._append(
                [ReservationGranted(node=node, reservation=identity, holder=OperatorHolder("job"), vram={0: size})]
            )

    @rule(node=some_node, intent=st.sampled_from(["cordon", "drain", "resume"]))
    def intend(self, node: str, intent: str) -> None:
        if self._known(node):
            events: dict[str, AnyEvent] = {
                "cordon": NodeCordoned(node=node),
                "drain": NodeDrainStarted(node=node, deadline_seconds=30),
                "resume": NodeResumed(node=node),
            }
            self._append([events[intent]])

    @rule(node=some_node)
    def lose_or_find(self, node: str) -> None:
        state = self.world.fleet.nodes.get(NodeName(node))
        if state is not None and isinstance(state.liveness, Alive):
            life = incarnation_of(node)
            self._append([NodeLost(node=node, incarnation=life, silent_seconds=60, grace_seconds=20)])
        elif state is not None and isinstance(state.liveness, Lost):
            self._append([NodeRecovered(node=node, incarnation=incarnation_of(node))])

    @precondition(lambda self: bool(self.world.fleet.replicas))
    @rule(data=st.data(), how=st.sampled_from(["drain", "end"]))
    def finish(self, data: st.DataObject, how: str) -> None:
        replica = ReplicaId(data.draw(st.sampled_from(sorted(self.world.fleet.replicas))))
        if how == "drain":
            self._append(begin_drain(self.world.fleet, [replica], reason="requested", deadline_seconds=30))
        else:
            self._append(end(self.world.fleet, [replica], reason="crashed"))

    @precondition(lambda self: bool(self.world.fleet.replicas))
    @rule(data=st.data(), leases=st.integers(0, 2))
    def use(self, data: st.DataObject, leases: int) -> None:
        """A replica is used now, and by that many requests still."""
        replica = ReplicaId(data.draw(st.sampled_from(sorted(self.world.fleet.replicas))))
        self.readings = msgspec.structs.replace(
            self.readings,
            in_flight=self.readings.in_flight | {replica: leases},
            last_used_ns=self.readings.last_used_ns | {replica: self.world.now_ns},
            cached_column=None,
        )

    @rule(wanted=CHOSEN)
    def set(self, wanted: Settings) -> None:
        self._append([FleetSettingsChanged(settings=wanted, changed=("min_residency_seconds",))])

    @rule()
    def work(self) -> None:
        self.world.work()

    @rule(seconds=st.sampled_from([1, 15, 130, 400]))
    def reconcile(self, seconds: int) -> None:
        self.world.later(seconds)
        view = msgspec.structs.replace(self.world.view(), readings=self.readings)
        for action in (*judge(view), *reconcile(view)):
            if self.world.fleet.recorded_command(action.command) is None:
                self._append(action.decide(self.world.fleet, action.command))

    @rule(model=some_model)
    def fill(self, model: str) -> None:
        """As many fit as can be placed one after another, on the nodes that were named."""
        state = self.world.fleet.models.get(ModelName(model))
        if state is None or state.spec is None:
            return
        found = fit(self.world.fleet, Readings(), self._request(model))
        placed: Counter[str] = Counter()
        while (outcome := place(self.world.fleet, Readings(), self._request(model))).refused is None:
            newcomers = [event for event in outcome.events if isinstance(event, ReplicaPlaced)]
            if any(event.waits_for for event in newcomers):
                break  # room that others have to leave first isn't there now
            self._append(outcome.events)
            placed.update(event.node for event in newcomers)
        assert {each.node: each.replicas for each in found.nodes if each.replicas} == placed
        assert found.replicas == placed.total()

    @invariant()
    def every_reservation_of_a_replica_ends_with_it(self) -> None:
        """I7: the fold fails on a second release; this finds a missing one."""
        fleet = self.world.fleet
        held = {each.holder.replica for each in fleet.reservations.values() if isinstance(each.holder, ReplicaHolder)}
        assert held == set(fleet.replicas)

    @invariant()
    def models_and_nodes_count_the_same_replicas(self) -> None:
        fleet = self.world.fleet
        by_model = {replica for model in fleet.models.values() for replica in model.replicas}
        by_node = {replica for node in fleet.nodes.values() for replica in node.replicas}
        assert by_model == by_node == set(fleet.replicas)


def judge_placement(fleet: Fleet, event: ReplicaPlaced) -> None:
    """I1-I4, on the fleet that holds it."""
    node = fleet.nodes[NodeName(event.node)]
    others = [state for state in fleet.replicas_on(node.name) if state.id != event.replica]
    victims = {fleet.replicas[victim].reservation for victim in event.waits_for}
    held: dict[int, int] = {}
    for identity in node.reservations:
        if identity not in victims:
            for device, size in fleet.reservations[identity].vram.items():
                held[device] = held.get(device, 0) + size
    assert all(held[device] <= node.devices[device] for device in event.vram), "I1 by device"
    assert not event.vram or sum(held.values()) <= node.budget, "I1 by node"
    beside = [state for state in others if state.model == event.model and state.id not in event.waits_for]
    assert event.replica_index not in {state.replica_index for state in beside}, "I2 unique"
    assert event.replica_index < node.max_replicas_per_model, "I2 within the cap"
    strangers = [state for state in others if state.model != event.model and state.id not in event.waits_for]
    assert not any(set(event.groups).intersection(state.groups) for state in strangers), "I3"
    own = node.watchdog.max_loaded_models
    limit = fleet.settings.max_loaded_models if own is None else own
    models = {state.model for state in others if state.model != event.model and state.id not in event.waits_for}
    assert not limit or event.replaces or len(models) < limit, "C8"
    model = fleet.models[ModelName(event.model)]
    assert matches(model.options.node_selector, node.labels), "I4"
    assert node.takes_replicas
    assert not isinstance(node.intent, NodeDraining)
    alone = set(node.replicas) <= {event.replica, *event.waits_for}
    assert alone or not event.exclusive, "R4"
    if event.vram:
        assert len(event.vram) == model.options.gpus, "P6"
        assert all(event.vram.values()), "P6: none without memory"
        assert event.exclusive or len(set(event.vram.values())) == 1, "P6: each the same part"


def judge_eviction(fleet: Fleet, readings: Readings, event: ReplicaDrainStarted) -> None:
    """I5, on the fleet and the readings it was decided on."""
    assert not fleet.settings.evictions_frozen
    for replica in event.replicas:
        state = fleet.replicas[replica]
        model = fleet.models[state.model]
        assert isinstance(state.phase, Ready)
        assert not readings.in_flight.get(replica), "I5 busy"
        assert not (state.pinned if model.spec is None else model.spec.pinned), "I5 pinned"
        left = [
            other
            for other in fleet.replicas_of(model.name)
            if isinstance(other.phase, Ready) and other.id not in event.replicas
        ]
        mode = model.options.mode
        assert model.spec is None or not isinstance(mode, SpreadAll), "I5 spread"
        assert model.spec is None or isinstance(mode, SpreadAll) or len(left) >= mode.min_replicas, "I5 floor"


def judge_decision(decision: Decision) -> None:
    """I12, H2."""
    assert decision.outcome
    assert decision.policy
    assert len(msgspec.json.encode(decision)) <= DECISION_BYTES_MAX


AnyFleet.TestCase.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
TestAnyFleet = AnyFleet.TestCase


async def test_of_two_deciders_for_one_slot_the_second_loses() -> None:
    """X21: both saw the slot free; the append of one moves what the other relied on, and nothing of it lands."""
    log, world = MemoryLog(), World()
    for event in [*an_approved_node(slots=1), *a_model()]:
        await log.append(messages(world.fleet, [event], command=f"given-{world.fleet.sequence}"))
        world.append(event)
    one, two = (
        place(world.fleet, Readings(), Request(model=ModelName("m"), command=CommandId(command), now_ns=world.now_ns))
        for command in ("one", "two")
    )
    assert one.replica != two.replica
    await log.append(messages(world.fleet, one.events, command="one"))
    before = await log.last_sequence()
    with pytest.raises(SequenceMoved):
        await log.append(messages(world.fleet, two.events, command="two"))
    assert await log.last_sequence() == before


def messages(fleet: Fleet, events: Sequence[AnyEvent], *, command: str) -> list[Message]:
    """`events` as their decider appends them: guarded with what `fleet` had folded."""
    envelope = Envelope(Actor("system", "test"), CommandId(command), command)
    return [
        Message(subject_of(event), envelope.event_id(number), encode(event, envelope), fleet.guard_of(event))
        for number, event in enumerate(events)
    ]
