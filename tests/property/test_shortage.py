"""Whatever nodes do: when a model that fits nowhere is left alone, and when it is tried again (C5).

Held against a second, plainer account that is kept here from what the test itself did.
"""

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from modelyard_events.envelope import AnyEvent
from modelyard_events.ids import ModelName, NodeName, ReservationId
from modelyard_events.model import (
    ModelDeclaredSatisfiable,
    ModelDeclaredUnsatisfiable,
    ModelScheduleSet,
)
from modelyard_events.node import NodeCordoned, NodeLabelsChanged, NodeMaxReplicasOverridden, NodeResumed
from modelyard_events.replica import ReplicaPlaced
from modelyard_events.reservation import OperatorHolder, ReservationGranted, ReservationReleased
from modelyard_events.selectors import parse_selector
from modelyard_events.spec import Autoscale, Schedule
from modelyard_projections.fleet import Draining, NodeState, ReplicaState, Schedulable
from tests.support.given import GIB, a_model, an_approved_node, some_spec
from tests.support.world import World

M = ModelName("m")
IDLE_SECONDS = 300
COOL_DOWN_SECONDS = 300
PASSES_APART_SECONDS = 5
NODES = ("n0", "n1", "n2")


def has_room(node: NodeState, vram: int, *, measured: int | None = None) -> bool:
    """Whether one more replica of `m` fits on the node; the world's nodes have one GPU each."""
    free = node.devices[0] - node.reserved.get(0, 0)
    free = free if measured is None else min(free, measured)
    slots = node.slots.get(M, {})
    return isinstance(node.intent, Schedulable) and len(slots) < node.max_replicas_per_model and free >= vram


class Seen(msgspec.Struct, frozen=True):
    """A node as one look showed it."""

    labels: dict[str, str]
    schedulable: bool
    slots: int
    held: frozenset[ReservationId]

    @property
    def matches(self) -> bool:
        return self.labels.get("tier") == "gpu"

    def eases(self, before: "Seen | None") -> bool:
        """C5: a change that may have made room, on a node that the model selects before or after it."""
        if before is None:
            return self.matches
        changed = (
            self.labels != before.labels
            or (self.schedulable and not before.schedulable)
            or self.slots != before.slots
            or bool(before.held - self.held)
        )
        return changed and (self.matches or before.matches)


class AnyShortage(RuleBasedStateMachine):
    """A model that mostly fits nowhere, and nodes to which anything happens."""

    def __init__(self) -> None:
        super().__init__()
        wanted = Schedule(mode=Autoscale(1), node_selector=parse_selector("tier=gpu"))
        self.world = World(
            *an_approved_node("n0", labels={"tier": "gpu"}),
            *an_approved_node("n1", labels={"tier": "cpu"}),
            *a_model(spec=some_spec(vram=20 * GIB)),
            ModelScheduleSet(model=M, schedule=wanted, source="api"),
        )
        self.granted = 0
        self.failed = 0
        self.counted_seconds: float | None = None
        self.until_seconds: float | None = None
        self.seen: dict[NodeName, Seen] = {}
        self.measured: dict[NodeName, int] = {}
        for node in ("n0", "n1"):
            self.reserve(node)

    @rule(node=st.sampled_from(NODES))
    def join(self, node: str) -> None:
        if node not in self.world.fleet.nodes:
            self.world.append(*an_approved_node(node, labels={"tier": "cpu"}))
            self.reserve(node)

    @rule(node=st.sampled_from(NODES))
    def reserve(self, node: str) -> None:
        if node in self.world.fleet.nodes and not self._held(node):
            self.granted += 1
            identity = ReservationId(f"v-op-{self.granted}")
            held = ReservationGranted(node=node, reservation=identity, holder=OperatorHolder("x"), vram={0: 8 * GIB})
            self.world.append(held)

    @rule(node=st.sampled_from(NODES))
    def release(self, node: str) -> None:
        if self._held(node):
            self.world.append(ReservationReleased(node=node, reservations=tuple(self._held(node))))

    @rule(node=st.sampled_from(NODES), key=st.sampled_from(["tier", "note"]), value=st.sampled_from(["gpu", "cpu"]))
    def label(self, node: str, key: str, value: str) -> None:
        if node in self.world.fleet.nodes:
            self.world.append(NodeLabelsChanged(node=node, changed={key: value}))  # type: ignore[dict-item]

    @rule(node=st.sampled_from(NODES), schedulable=st.booleans())
    def intend(self, node: str, schedulable: bool) -> None:  # noqa: FBT001 - drawn by name
        if node in self.world.fleet.nodes:
            self.world.append(NodeResumed(node=node) if schedulable else NodeCordoned(node=node))

    @rule(node=st.sampled_from(NODES), slots=st.integers(1, 2))
    def limit(self, node: str, slots: int) -> None:
        if node in self.world.fleet.nodes:
            self.world.append(NodeMaxReplicasOverridden(node=node, max_replicas_per_model=slots))

    @rule(node=st.sampled_from(NODES), free=st.sampled_from([0, 24 * GIB]))
    def measure(self, node: str, free: int) -> None:
        """Programs of others take memory and give it back; no event tells of it."""
        self.measured[NodeName(node)] = free

    @rule(seconds=st.sampled_from([0.1, 4.9, 5.1, 16.0, 16.0, 130.0, 301.0]))
    def reconcile(self, seconds: float) -> None:
        self.world.later(seconds)
        self.world.route()
        self._beat()
        now, fleet = self.world.seconds, self.world.fleet
        looked = {name: self._look(node) for name, node in fleet.nodes.items()}
        eased = any(each.eases(self.seen.get(name)) for name, each in looked.items()) if self.seen else False
        self.seen = looked
        lacks = not any(not isinstance(each.phase, Draining) and self._counts(each) for each in fleet.replicas.values())
        fits = any(
            looked[name].matches and has_room(node, 20 * GIB, measured=self.measured.get(name))
            for name, node in fleet.nodes.items()
        )
        if self.until_seconds is not None:
            closes = eased or now >= self.until_seconds
            self._judge(self.world.one_pass(), opens=False, closes=closes)
        else:
            self._count(now, lacks=lacks and not fits, eased=eased)
            self._judge(self.world.one_pass(), opens=self.failed >= 3, closes=False)

    @rule()
    def work(self) -> None:
        self.world.work()

    @rule()
    def insist(self) -> None:
        """Passes enough to open a breaker, if nothing comes between."""
        for _ in range(3):
            self.reconcile(16.0)

    def _count(self, now: float, *, lacks: bool, eased: bool) -> None:
        if not lacks or eased:
            self.failed, self.counted_seconds = 0, None
        if lacks and (self.counted_seconds is None or now - self.counted_seconds >= PASSES_APART_SECONDS):
            self.failed, self.counted_seconds = self.failed + 1, now

    def _judge(self, events: list[AnyEvent], *, opens: bool, closes: bool) -> None:
        opened = [event for event in events if isinstance(event, ModelDeclaredUnsatisfiable)]
        closed = [event for event in events if isinstance(event, ModelDeclaredSatisfiable)]
        placed = [event for event in events if isinstance(event, ReplicaPlaced)]
        assert (len(opened), len(closed)) == (int(opens), int(closes))
        if opens:
            assert opened[0].failed_passes == 3
            assert opened[0].reason
            self.until_seconds = self.world.seconds + COOL_DOWN_SECONDS
        elif self.until_seconds is not None and not closes:
            assert not placed, "an open breaker holds placements back"
        if opens or closes:
            # Nothing is kept over it: the next one needs three failed passes of its own (X27).
            self.failed, self.counted_seconds = 0, None
            self.until_seconds = self.until_seconds if opens else None

    def _beat(self) -> None:
        for name, free in self.measured.items():
            if name in self.world.fleet.nodes:
                heartbeat = msgspec.structs.replace(self.world.demand.nodes[name].heartbeat, vram_free={0: free})
                self.world.demand.hear_node(heartbeat, now_ns=self.world.now_ns)

    def _look(self, node: NodeState) -> Seen:
        held = frozenset(node.reservations)
        return Seen(dict(node.labels), isinstance(node.intent, Schedulable), node.max_replicas_per_model, held)

    def _counts(self, state: ReplicaState) -> bool:
        return self.world.fleet.nodes[state.node].labels.get("tier") == "gpu"

    def _held(self, node: str) -> list[ReservationId]:
        reservations = self.world.fleet.reservations.values()
        return [each.id for each in reservations if each.node == node and isinstance(each.holder, OperatorHolder)]


TestAnyShortage = AnyShortage.TestCase
TestAnyShortage.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
