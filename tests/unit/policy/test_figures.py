"""Every figure that deciders go by is a setting: another value, another decision (rule S1).

Each case is one story, told under the rule's own figure and under another; it answers with what came of it.
"""

from collections.abc import Callable
from typing import Final

import msgspec
import pytest

from modelyard_events.envelope import AnyEvent
from modelyard_events.fleet import FleetSettingsChanged, Settings
from modelyard_events.ids import NodeName, ReplicaId
from modelyard_events.node import Gpu, NodeCapacityChanged
from modelyard_events.replica import ReplicaLoadFailed
from modelyard_events.spec import Estimate, ModelSpec
from modelyard_events.telemetry import Heartbeat, ReplicaReading
from modelyard_services.policy.affinity import Affinities, Hint
from modelyard_services.policy.due import next_due_ns
from modelyard_services.policy.index import PlacementIndex
from modelyard_services.policy.placement import place
from modelyard_services.policy.routing import Ranking
from modelyard_services.policy.searcher import PLAIN
from tests.support.given import (
    GIB,
    SECOND_NS,
    a_loading_replica,
    a_model,
    a_ready_replica,
    an_approved_node,
    given,
    incarnation_of,
    record,
    some_process,
    some_spec,
)
from tests.support.world import World
from tests.unit.policy.test_affinity import M, a_replica
from tests.unit.policy.test_placement import heard, placed, request

R1 = ReplicaId("r-1")
STEPS_MAX: Final = 2_000
"""Steps that a story waits for something to happen."""

Story = Callable[[tuple[AnyEvent, ...]], object]


def set_to(**settings: object) -> FleetSettingsChanged:
    return FleetSettingsChanged(settings=Settings(**settings), changed=tuple(settings))  # type: ignore[arg-type]


def until(world: World, over: Callable[[World], bool], *, beat: bool = True) -> int:
    """Seconds until it is `over`, with a pass at every one."""
    for seconds in range(STEPS_MAX):
        world.settle()
        if over(world):
            return seconds
        (world.later if beat else world.after)(1)
    raise AssertionError("it never happens")


# Liveness and deadlines.


def accepted_late(chosen: tuple[AnyEvent, ...]) -> object:
    """C7: seconds that a worker has to accept."""
    return placed(given(*chosen, *an_approved_node(), *a_model())).accept_seconds


def a_slow_load(chosen: tuple[AnyEvent, ...]) -> object:
    """C7: seconds that 8 GiB may take."""
    return placed(given(*chosen, *an_approved_node(), *a_model(spec=some_spec(vram=8 * GIB)))).load_seconds


def a_stalled_load(chosen: tuple[AnyEvent, ...]) -> object:
    """C7, X25: seconds that a load past its deadline stands still before it fails."""
    world = World(*chosen, *an_approved_node(), *a_model(), *a_loading_replica(R1, load_seconds=10.0))
    reading = ReplicaReading(R1, "m#0", "rev", "starting", some_process(R1), progress=0.5)
    heartbeat = Heartbeat(NodeName("n1"), incarnation_of("n1"), 0, replicas=(reading,))
    for tens in range(100):
        world.demand.hear_node(heartbeat, now_ns=world.now_ns)
        if world.settle():
            assert world.of(ReplicaLoadFailed)
            return 10 * tens
        world.after(10)
    raise AssertionError("it goes on for ever")


def missed(chosen: tuple[AnyEvent, ...]) -> object:
    """C6: heartbeats without a replica until it is ended."""
    world = World(*chosen, *an_approved_node(), *a_model(), *a_ready_replica(R1))
    for count in range(1, 10):
        world.after(10).beat(without=[R1])
        world.settle()
        if not world.fleet.replicas:
            return count
    raise AssertionError("it is never missed")


def lost(chosen: tuple[AnyEvent, ...]) -> object:
    """N9: seconds of silence until a node is lost."""
    world = World(*chosen, *an_approved_node())
    world.beat()
    return until(world, lambda world: world.fleet.nodes[NodeName("n1")].liveness_name == "lost", beat=False)


def fresh(chosen: tuple[AnyEvent, ...]) -> object:
    """N8: whether a reading of half a minute and a bit still counts."""
    world = World(*chosen, *an_approved_node())
    world.beat()
    return bool(world.after(31).readings().nodes)


def a_silent_router(chosen: tuple[AnyEvent, ...]) -> object:
    """T2, R8: seconds of silence until a router's lease keeps nobody from ending."""
    world = World(*chosen, *an_approved_node(), *a_model(), *a_ready_replica(R1))
    world.route(r_1=1)
    for seconds in range(1, 60):
        if not world.after(1).readings().in_flight:
            return seconds
    raise AssertionError("it is never gone")


# Placement.


def weights_alone(chosen: tuple[AnyEvent, ...]) -> object:
    """R4: what a file of 10 GiB reserves."""
    event = placed(given(*chosen, *an_approved_node(), *a_model(spec=ModelSpec(command=("x",), file_size=10 * GIB))))
    return event.vram[0] // GIB


def weights_by_header(chosen: tuple[AnyEvent, ...]) -> object:
    """R4: and 10 GiB of weights, by the headers of their files."""
    spec = ModelSpec(command=("x",), estimate=Estimate("safetensors", 10 * GIB))
    return placed(given(*chosen, *an_approved_node(), *a_model(spec=spec))).vram[0] // GIB


def disk_short(payload: int, free: float) -> Story:
    """P1: by how many GiB the disk is too small for the payload and its headroom; both forms of the search agree."""

    def story(chosen: tuple[AnyEvent, ...]) -> object:
        spec = ModelSpec(command=("x",), vram=GIB, disk=payload * GIB)
        fleet = given(*chosen, *an_approved_node(), *a_model(spec=spec)).fleet
        readings = heard(fleet, Heartbeat(NodeName("n1"), incarnation_of("n1"), 9, disk_free=round(free * GIB)))
        found = [place(fleet, readings, request(), search=search).refused for search in (PLAIN, PlacementIndex())]
        assert found[0] == found[1]
        return None if found[0] is None else found[0].message.partition("short by ")[2].removesuffix(")")

    return story


def rest_after(failures: int) -> Story:
    """T6: seconds that a model rests on its node after so many failed loads, and the reconciler wakes by then."""

    def story(chosen: tuple[AnyEvent, ...]) -> object:
        world = World(*chosen, *an_approved_node(slots=failures + 1), *a_model())
        for number in range(failures):
            world.append(*a_loading_replica(f"r-{number}", index=number))
            world.append(ReplicaLoadFailed(node="n1", replica=ReplicaId(f"r-{number}"), detail="boom"))
        fleet, failed_ns = world.fleet, world.now_ns
        for seconds in range(STEPS_MAX):
            asked = msgspec.structs.replace(request(), now_ns=failed_ns + seconds * SECOND_NS)
            if place(fleet, world.readings(), asked).refused is None:
                due_ns = next_due_ns(fleet, now_ns=failed_ns + (seconds - 1) * SECOND_NS)
                assert due_ns == failed_ns + seconds * SECOND_NS
                return seconds
        raise AssertionError("it rests for ever")

    return story


def resident(chosen: tuple[AnyEvent, ...]) -> object:
    """P3: seconds after its load until another model may take a replica's memory."""
    small, large = some_spec(vram=GIB), some_spec(vram=24 * GIB)
    world = World(*chosen, *an_approved_node(), *a_model(spec=small), *a_model("large", large), *a_ready_replica(R1))

    def fits(world: World) -> bool:
        world.route()
        asked = msgspec.structs.replace(request("large"), now_ns=world.now_ns)
        return place(world.fleet, world.readings(), asked).refused is None

    return until(world, fits)


def nearly_full(chosen: tuple[AnyEvent, ...]) -> object:
    """C8: whether a node at 90 % of its budget makes room."""
    ready = a_ready_replica(R1, vram={0: round(0.9 * 24 * GIB)})
    world = World(*chosen, *an_approved_node(), *a_model(), *ready)
    world.later(100).route()
    world.settle()
    return world.replicas()[0][1]


# Affinity.


class Pair:
    """Two replicas; what is sent stays with the first, which has as many requests as a story says."""

    def __init__(self, chosen: tuple[AnyEvent, ...]) -> None:
        self.affinities = Affinities(given(*chosen).fleet)
        self.ranking = Ranking()
        for number in range(2):
            self.ranking.put(a_replica(number))

    def ask(self, prompt: bytes) -> str:
        pick = self.affinities.pick(M, "prefix", self.ranking, hint=Hint(prompt=prompt))
        assert pick is not None
        self.affinities.learn(pick)
        return pick.candidate.replica

    def busy(self, replica: str, requests: int) -> None:
        candidate = self.ranking.get(ReplicaId(replica))
        assert candidate is not None
        candidate.own = requests
        self.ranking.moved(candidate)


def more_than_the_other(others: int) -> Story:
    """T3: how many more requests than the other's the preferred replica may have."""

    def story(chosen: tuple[AnyEvent, ...]) -> object:
        for more in range(100):
            pair = Pair(chosen)
            first = pair.ask(b"p" * 4_096)
            pair.busy("r-0", others)
            pair.busy("r-1", others)
            pair.busy(first, others + more)
            if pair.ask(b"p" * 4_096) != first:
                return more - 1
        raise AssertionError("it is preferred whatever it has")

    return story


def alike(common: int, length: int) -> Story:
    """T3: whether a prompt goes where another went that began with the same `common` of `length` bytes."""

    def story(chosen: tuple[AnyEvent, ...]) -> object:
        pair = Pair(chosen)
        first = pair.ask(b"p" * length)
        pair.busy(first, 1)
        return pair.ask(b"p" * common + b"q" * (length - common)) == first

    return story


EFFECTS: Final[tuple[tuple[dict[str, object], Story, object, object], ...]] = (
    ({"accept_deadline_seconds": 60.0}, accepted_late, 120, 60),
    ({"load_deadline_seconds": 600.0}, a_slow_load, 460, 760),
    ({"load_deadline_seconds_per_gib": 10.0}, a_slow_load, 460, 380),
    ({"load_stall_seconds": 60.0}, a_stalled_load, 300, 60),
    ({"missed_heartbeats_max": 4}, missed, 2, 4),
    ({"missed_heartbeats_max": 1}, missed, 2, 1),
    ({"lost_after_seconds": 30.0}, lost, 61, 31),
    ({"heartbeat_seconds": 20.0}, fresh, False, True),
    ({"router_silence_seconds": 12.0}, a_silent_router, 5, 12),
    ({"file_size_factor": 1.5}, weights_alone, 12, 15),
    ({"file_size_factor": 1.5}, weights_by_header, 12, 15),
    ({"disk_headroom_share": 0.1}, disk_short(100, 104), "1.0 GiB", "6.0 GiB"),
    ({"disk_headroom_bytes": 3 * GIB}, disk_short(10, 9), "2.0 GiB", "4.0 GiB"),
    ({"load_backoff_seconds": 3.0}, rest_after(1), 10, 3),
    ({"load_backoff_seconds": 3.0}, rest_after(3), 40, 12),
    ({"load_backoff_max_seconds": 45.0}, rest_after(7), 300, 45),
    ({"load_backoff_seconds": 40.0, "load_backoff_max_seconds": 2_000.0}, rest_after(6), 300, 1_280),
    ({"min_residency_seconds": 20.0}, resident, 60, 20),
    ({"reclaim_memory": True, "reclaim_above_share": 0.85}, nearly_full, "ready", "draining"),
    ({"affinity_slack": 1}, more_than_the_other(4), 2, 1),
    ({"affinity_slack_base": 2}, more_than_the_other(0), 1, 2),
    ({"affinity_slack_factor": 1.0}, more_than_the_other(2), 2, 1),
    ({"affinity_match_share": 0.6}, alike(2_048, 4_096), True, False),
    ({"affinity_block_bytes": 1_024}, alike(512, 1_024), True, False),
    ({"affinity_blocks_max": 2}, alike(512, 4_096), False, True),
)


@pytest.mark.parametrize(
    ("settings", "story", "by_rule", "by_choice"),
    EFFECTS,
    ids=[f"{'-'.join(settings)}-{number}" for number, (settings, *_) in enumerate(EFFECTS)],
)
def test_a_figure_that_operators_choose_is_the_one_that_is_gone_by(
    settings: dict[str, object], story: Story, by_rule: object, by_choice: object
) -> None:
    """S1; N8, N9, C6, C7, C8, P1, P3, R4, T2, T3, T6."""
    assert story(()) == by_rule
    assert story((set_to(**settings),)) == by_choice


def test_what_an_index_keeps_does_not_outlive_a_change_of_the_figures() -> None:
    """S1, P1: who could hold a payload when empty is another question with another headroom."""
    cards, disk = (Gpu(0, "nvidia", "Test GPU", 24 * GIB),), 100 * GIB
    grown = NodeCapacityChanged(node="n1", incarnation=incarnation_of("n1"), gpus=cards, disk_total=disk)
    fleet = given(*an_approved_node(), grown, *a_model(spec=ModelSpec(command=("x",), vram=GIB, disk=95 * GIB))).fleet
    index, readings = PlacementIndex(), heard(fleet, Heartbeat(NodeName("n1"), incarnation_of("n1"), 9, disk_free=GIB))
    for share, kind in ((0.05, "exhausted"), (0.1, "unsatisfiable"), (0.05, "exhausted")):
        record(fleet, set_to(disk_headroom_share=share))
        index.note(fleet, fleet.take_touched())
        found = [place(fleet, readings, request(), search=search).refused for search in (index, PLAIN)]
        assert found[0] == found[1]
        assert found[0] is not None
        assert found[0].kind == kind
