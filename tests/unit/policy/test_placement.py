"""Placement: what is claimed, what is refused, and the account of both (rules P1, P2, P5, P6, R2-R5)."""

import base64
from collections.abc import Callable

import msgspec
import pytest

from modelyard_events.decision import DECISION_BYTES_MAX
from modelyard_events.envelope import AnyEvent
from modelyard_events.ids import CommandId, ModelName, NodeName, ReplicaId, ReservationId
from modelyard_events.model import ModelPlacementRefused, ModelReplicaAdded, ModelScheduleSet
from modelyard_events.node import (
    NodeApproved,
    NodeCordoned,
    NodeDrainStarted,
    NodeIncarnationStarted,
    NodeLost,
    NodeRegistered,
    NodeVramBudgetOverridden,
)
from modelyard_events.replica import ProcessExit, ReplicaCrashed, ReplicaLoadFailed, ReplicaPlaced
from modelyard_events.reservation import OperatorHolder, ReservationGranted, ReservationResized
from modelyard_events.selectors import parse_selector
from modelyard_events.sizes import Bytes, Fraction
from modelyard_events.spec import Estimate, ModelSpec, Schedule, SpreadAll
from modelyard_events.telemetry import Heartbeat, ReplicaReading, RouterReport
from modelyard_projections.demand import Demand
from modelyard_projections.fleet import Fleet
from modelyard_services.errors import ModelUnknownError
from modelyard_services.policy.ending import end
from modelyard_services.policy.explain import explain
from modelyard_services.policy.placement import Outcome, Request, load_on_demand, place, wish_of
from modelyard_services.policy.readings import Readings, read
from modelyard_services.policy.tokens import digest_of
from tests.support.given import (
    GIB,
    SECOND_NS,
    START_NS,
    Given,
    a_drain,
    a_loading_replica,
    a_model,
    a_pending_node,
    a_placed_replica,
    a_ready_replica,
    an_approved_node,
    given,
    incarnation_of,
    record,
    some_facts,
    some_process,
    some_spec,
)

M = ModelName("m")


def request(model: str = "m", *, command: str = "c-1", node: str | None = None, selector: str = "") -> Request:
    return Request(
        model=ModelName(model),
        command=CommandId(command),
        now_ns=START_NS + 1_000 * SECOND_NS,
        node=None if node is None else NodeName(node),
        selector=parse_selector(selector),
    )


def placed(history: Given, readings: Readings | None = None, asked: Request | None = None) -> ReplicaPlaced:
    """The placement that was decided, folded."""
    outcome = place(history.fleet, readings or Readings(), asked or request())
    assert outcome.refused is None, outcome.refused
    record(history.fleet, *outcome.events)
    event = outcome.events[0]
    assert isinstance(event, ReplicaPlaced)
    return event


def refusal(*events: AnyEvent, readings: Readings | None = None, asked: Request | None = None) -> Outcome:
    outcome = place(given(*events).fleet, readings or Readings(), asked or request())
    assert outcome.refused is not None
    return outcome


def heard(fleet: Fleet, *heartbeats: Heartbeat, reports: tuple[RouterReport, ...] = ()) -> Readings:
    demand = Demand()
    for heartbeat in heartbeats:
        demand.hear_node(heartbeat, now_ns=0)
    for report in reports:
        demand.hear_router(report, now_ns=0)
    return read(fleet, demand, heard_ns=SECOND_NS)


def test_a_placement_claims_slot_memory_and_count_together() -> None:
    """R2, R3: in one append, before anything is started."""
    history = given(*an_approved_node(), *a_model(spec=some_spec(vram=8 * GIB)))
    outcome = place(history.fleet, Readings(), request())
    first, granted, added = outcome.events
    assert isinstance(first, ReplicaPlaced)
    assert isinstance(granted, ReservationGranted)
    assert isinstance(added, ModelReplicaAdded)
    assert (first.node, first.replica_index, first.gpus, first.footprint_rule) == ("n1", 0, (0,), "spec")
    assert first.vram == granted.vram == {0: 8 * GIB}
    assert first.replica == added.replica == outcome.replica
    record(history.fleet, *outcome.events)
    assert history.fleet.nodes[NodeName("n1")].vram_free == 16 * GIB


def test_a_loading_deadline_grows_with_the_model() -> None:
    """C7, X25: five minutes and twenty seconds a GiB; the spec's own timeout when that is longer."""
    assert placed(given(*an_approved_node(), *a_model(spec=some_spec(vram=8 * GIB)))).load_seconds == 300 + 160
    slow = ModelSpec(command=("x",), vram=GIB, ready_timeout_seconds=7_200)
    assert placed(given(*an_approved_node(), *a_model(spec=slow))).load_seconds == 7_200


def test_the_lowest_free_index_is_taken() -> None:
    """R2, X1: the second replica gets its own slot."""
    history = given(
        *an_approved_node(slots=3), *a_model(), *a_ready_replica("r-0", index=0), *a_ready_replica("r-2", index=2)
    )
    assert placed(history).replica_index == 1


def test_a_model_never_gets_more_replicas_on_a_node_than_its_slots() -> None:
    outcome = refusal(*an_approved_node(slots=1), *a_model(), *a_ready_replica())
    assert outcome.refused is not None
    assert outcome.refused.kind == "exhausted"
    assert outcome.refused.message == "0/1 nodes: 1 slot"
    assert outcome.refused.unblock == "raise max-replicas-per-model of node n1 above 1"


def test_no_room_refuses_with_the_gap_on_each_node() -> None:
    """X6, P5: never over-commits; the message counts by filter and gives the range."""
    outcome = refusal(
        *an_approved_node("n1", vram=8 * GIB),
        *an_approved_node("n2", vram=16 * GIB),
        *an_approved_node("n3", vram=24 * GIB, labels={"tier": "gpu"}),
        *a_model("full", some_spec(vram=20 * GIB, pinned=True)),
        *a_ready_replica("r-9", node="n3", model="full", vram={0: 20 * GIB}),
        *a_model(spec=some_spec(vram=18 * GIB)),
    )
    assert outcome.refused is not None
    assert outcome.refused.message == "0/3 nodes: 3 vram (short by 2.0–14.0 GiB); on n3, full#0 is pinned"  # noqa: RUF001
    assert outcome.refused.kind == "exhausted"
    assert outcome.refused.unblock == "free 14.0 GiB of VRAM on n3, or unpin full"


def test_a_footprint_above_every_budget_is_unsatisfiable() -> None:
    """P5: nothing about load can help."""
    outcome = refusal(*an_approved_node(vram=8 * GIB), *a_model(spec=some_spec(vram=9 * GIB)))
    assert outcome.refused is not None
    assert outcome.refused.kind == "unsatisfiable"
    assert outcome.refused.unblock == "add a node with 9.0 GiB of VRAM"


def test_a_budget_is_to_be_raised_where_the_device_is_large_enough() -> None:
    """P5: the smallest change that would unblock it."""
    capped = NodeVramBudgetOverridden(node="n1", vram_budget=Bytes(8 * GIB))
    outcome = refusal(*an_approved_node(vram=24 * GIB), capped, *a_model(spec=some_spec(vram=9 * GIB)))
    assert outcome.refused is not None
    assert outcome.refused.unblock == "raise the budget of node n1 to 9.0 GiB of VRAM"


def test_a_node_without_any_memory_to_offer_is_told_apart() -> None:
    """P5, W6: no budget helps there."""
    bare = an_approved_node(gpus=0, vram=0)
    outcome = refusal(*bare, *a_model(spec=some_spec(vram=9 * GIB)))
    assert outcome.refused is not None
    assert outcome.refused.unblock is not None
    assert outcome.refused.unblock.startswith("add a node with 9.0 GiB of VRAM, or start the worker of n1 with --vram")


def test_a_refusal_is_told_once_until_it_changes() -> None:
    """P5: repeats are metrics, not history; the asker is answered all the same."""
    history = given(*an_approved_node(vram=8 * GIB), *a_model(spec=some_spec(vram=9 * GIB)))
    first = place(history.fleet, Readings(), request())
    assert isinstance(first.events[0], ModelPlacementRefused)
    record(history.fleet, *first.events)
    again = place(history.fleet, Readings(), request(command="c-2"))
    assert again.events == ()
    assert again.refused == first.refused
    record(history.fleet, NodeCordoned(node="n1"))
    other = place(history.fleet, Readings(), request(command="c-3"))
    assert len(other.events) == 1


def test_a_node_that_hosts_no_models_is_no_candidate() -> None:
    """N4, P1: an agent registers like others, and takes nothing."""
    agent: list[AnyEvent] = [
        NodeRegistered(node="n1", node_type="agent"),
        NodeIncarnationStarted(
            node="n1", incarnation=incarnation_of("n1"), facts=some_facts(), secret_digest=digest_of("state directory")
        ),
        NodeApproved(node="n1"),
    ]
    outcome = refusal(*agent, *a_model())
    assert outcome.refused is not None
    assert (outcome.refused.kind, outcome.refused.message) == ("unsatisfiable", "0/1 nodes: 1 type")


def test_a_node_holds_nine_hundred_replicas_and_no_more() -> None:
    """R2: so that all of them can end in one append."""
    models = [f"m{number}" for number in range(900)]
    living = [event for model in models for event in a_placed_replica(f"r-{model}", model=model, vram={})]
    defined = [event for model in models for event in a_model(model, some_spec(vram=0))]
    history = given(*an_approved_node(), *defined, *a_model(spec=some_spec(vram=0)), *living)
    found = place(history.fleet, Readings(), request()).refused
    assert found is not None
    assert found.message == "0/1 nodes: 1 replicas"
    record(history.fleet, *end(history.fleet, [ReplicaId("r-m7")], reason="requested"))
    assert place(history.fleet, Readings(), request()).refused is None


def test_what_is_placed_copies_footprint_and_groups_as_they_were() -> None:
    """R2, R5: a redefinition changes neither under a replica that lives."""
    spec = some_spec(vram=3 * GIB, groups=("heavy",))
    event = placed(given(*an_approved_node(), *a_model(spec=spec)))
    assert (event.vram, event.footprint_rule, event.groups) == ({0: 3 * GIB}, "spec", ("heavy",))


@pytest.mark.parametrize(
    ("history", "message", "unblock"),
    [
        ([], "no node is registered yet", "register a node"),
        (a_pending_node(), "0/1 nodes: 1 admitted", "approve node n1"),
        ([*an_approved_node(), NodeCordoned(node="n1")], "0/1 nodes: 1 schedulable", "uncordon node n1"),
        (
            [*an_approved_node(), NodeDrainStarted(node="n1", deadline_seconds=60)],
            "0/1 nodes: 1 schedulable",
            "resume node n1",
        ),
        (
            [
                *an_approved_node(),
                NodeLost(node="n1", incarnation=incarnation_of("n1"), silent_seconds=60, grace_seconds=600),
            ],
            "0/1 nodes: 1 alive",
            None,
        ),
    ],
)
def test_each_facet_of_a_node_is_its_own_filter(history: list[AnyEvent], message: str, unblock: str | None) -> None:
    """N1, N10, P1: nodes that don't take replicas make a wish unsatisfiable, and the way out is named."""
    outcome = refusal(*history, *a_model())
    assert outcome.refused is not None
    assert (outcome.refused.message, outcome.refused.unblock) == (message, unblock)
    assert outcome.refused.kind == "unsatisfiable"


def test_a_selector_that_matches_nothing_is_never_read_as_any_node() -> None:
    """N7, X20."""
    schedule = ModelScheduleSet(model=M, schedule=Schedule(node_selector=parse_selector("tier=gpu")), source="api")
    outcome = refusal(*an_approved_node(), *a_model(), schedule)
    assert outcome.refused is not None
    assert outcome.refused.message == "0/1 nodes: 1 selector"
    assert outcome.refused.unblock == "label node n1 so that it matches tier=gpu"


def test_a_request_narrows_the_schedule_and_never_widens_it() -> None:
    schedule = ModelScheduleSet(model=M, schedule=Schedule(node_selector=parse_selector("tier=gpu")), source="api")
    history = [*an_approved_node("n1", labels={"tier": "gpu"}), *an_approved_node("n2"), *a_model(), schedule]
    assert placed(given(*history)).node == "n1"
    assert refusal(*history, asked=request(node="n2")).refused is not None
    assert refusal(*history, asked=request(selector="zone=b")).refused is not None


def test_models_of_one_group_never_share_a_node() -> None:
    """R5, X8: hard, and without any selector; judged by the groups that were copied at placement."""
    history = [
        *an_approved_node("n1"),
        *a_model("a", some_spec(groups=("heavy",), pinned=True)),
        *a_ready_replica("r-1", model="a", groups=("heavy",)),
        *a_model(spec=some_spec(groups=(" heavy ", "heavy"))),
    ]
    outcome = refusal(*history)
    assert outcome.refused is not None
    assert outcome.refused.message == "0/1 nodes: 1 concurrency_group; on n1, a#0 is pinned"
    assert outcome.refused.unblock == "unpin a"
    assert placed(given(*history, *an_approved_node("n2"))).node == "n2"


def test_a_group_still_holds_while_its_holder_drains() -> None:
    """R5: live is live until its end."""
    outcome = refusal(
        *an_approved_node(),
        *a_model("a"),
        *a_ready_replica("r-1", model="a", groups=("heavy",)),
        *a_drain("r-1", model="a"),
        *a_model(spec=some_spec(groups=("heavy",))),
    )
    assert outcome.refused is not None


def test_a_model_of_unknown_footprint_needs_an_empty_node_and_keeps_it() -> None:
    """R4: with nothing to go on it goes where nobody else is, and nobody joins it until it is measured."""
    unknown = ModelSpec(command=("serve",))
    history = given(
        *an_approved_node("n1"),
        *an_approved_node("n2"),
        *a_model("a"),
        *a_ready_replica("r-1", node="n1", model="a"),
        *a_model(spec=unknown),
    )
    taken = place(history.fleet, Readings(), request(command="c-0", node="n1")).refused
    assert taken is not None
    assert taken.message.startswith("0/1 nodes: 1 exclusive")
    event = placed(history)
    assert (event.node, event.exclusive, event.footprint_rule, event.vram) == ("n2", True, "unknown", {0: 24 * GIB})
    beside = place(history.fleet, Readings(), request("a", command="c-2", node="n2"))
    assert beside.refused is not None
    assert beside.refused.message == "0/1 nodes: 1 exclusive; on n2, m#0 is loading"


def test_what_was_measured_beats_every_estimate_but_the_operators_own_figure() -> None:
    """R4: of living replicas of the same revision; recorded as the rule that gave it."""
    spec = ModelSpec(command=("serve", "{port}"), file_size=10 * GIB)
    measured = ReservationResized(node="n1", reservation=ReservationId("v-1"), vram={0: 7 * GIB})
    history = given(*an_approved_node("n1"), *an_approved_node("n2"), *a_model(spec=spec), *a_ready_replica(), measured)
    event = placed(history)
    assert (event.footprint_rule, event.vram) == ("measured", {0: 7 * GIB})
    own = given(*an_approved_node("n1"), *an_approved_node("n2"), *a_model(), *a_ready_replica(), measured)
    assert placed(own).footprint_rule == "spec"


def test_replicas_of_one_model_share_a_node_though_their_model_is_in_a_group() -> None:
    """R5: two models that share a group, not two replicas of one."""
    spec = some_spec(groups=("heavy",))
    history = given(*an_approved_node(slots=2), *a_model(spec=spec), *a_ready_replica(groups=("heavy",)))
    assert placed(history).replica_index == 1


def test_a_share_of_a_node_is_the_same_share_of_each_of_its_gpus() -> None:
    """N12: half a node with two GPUs isn't one of them whole."""
    half = NodeVramBudgetOverridden(node="n1", vram_budget=Fraction(0.5))
    history = [*an_approved_node(gpus=2, vram=16 * GIB), half]
    assert placed(given(*history, *a_model(spec=some_spec(vram=8 * GIB)))).vram == {0: 8 * GIB}
    found = refusal(*history, *a_model(spec=some_spec(vram=9 * GIB))).refused
    assert found is not None
    assert found.message == "0/1 nodes: 1 vram (short by 1.0 GiB)"


def test_a_file_size_gives_the_footprint_with_a_fifth_on_top() -> None:
    """R4."""
    event = placed(given(*an_approved_node(), *a_model(spec=ModelSpec(command=("x",), file_size=10 * GIB))))
    assert (event.footprint_rule, event.vram) == ("file_size", {0: 12 * GIB})


def test_what_the_files_headers_tell_gives_the_footprint_and_is_recorded_as_its_rule() -> None:
    """R4: the operator's own figure goes before it, the size of a file comes after it."""
    gguf = Estimate("gguf", weights=10 * GIB, cache=3 * GIB, context_length=4_096)
    for spec, rule, size in (
        (ModelSpec(command=("x",), estimate=gguf), "gguf", 13 * GIB),
        (ModelSpec(command=("x",), estimate=gguf, file_size=GIB), "gguf", 13 * GIB),
        (ModelSpec(command=("x",), estimate=gguf, vram=2 * GIB), "spec", 2 * GIB),
        (ModelSpec(command=("x",), estimate=Estimate("safetensors", 10 * GIB)), "safetensors", 12 * GIB),
        (ModelSpec(command=("x",), estimate=Estimate("file_size", 5 * GIB)), "file_size", 6 * GIB),
        (ModelSpec(command=("x",), estimate=Estimate("file_size", 5 * GIB), file_size=10 * GIB), "file_size", 12 * GIB),
    ):
        event = placed(given(*an_approved_node(), *a_model(spec=spec)))
        assert (event.footprint_rule, event.vram, event.exclusive) == (rule, {0: size}, False)


def test_several_gpus_split_the_footprint_evenly() -> None:
    """P6: `gpus: 2`; a node with one GPU can't ever take it."""
    schedule = ModelScheduleSet(model=M, schedule=Schedule(gpus=2), source="api")
    history = [*an_approved_node("n1"), *a_model(spec=some_spec(vram=30 * GIB)), schedule]
    found = refusal(*history).refused
    assert found is not None
    assert found.kind == "unsatisfiable"
    event = placed(given(*history, *an_approved_node("n2", gpus=4)))
    assert (event.node, event.vram, event.gpus) == ("n2", {0: 15 * GIB, 1: 15 * GIB}, (0, 1))


def test_binpack_fills_and_spread_empties() -> None:
    """P2, P6: over nodes and over the GPUs of one node."""
    history = [
        *an_approved_node("n1", gpus=2, slots=2),
        *an_approved_node("n2", gpus=2, slots=2),
        *a_model("a"),
        *a_ready_replica("r-1", node="n1", model="a", vram={1: 4 * GIB}),
        *a_model(),
    ]
    spread = placed(given(*history))
    assert (spread.node, spread.gpus) == ("n2", (0,))
    binpack = ModelScheduleSet(model=M, schedule=Schedule(placement="binpack"), source="api")
    packed = placed(given(*history, binpack))
    assert (packed.node, packed.gpus) == ("n1", (1,))


@pytest.mark.parametrize("under_way", [a_placed_replica, a_loading_replica])
def test_a_node_that_is_loading_is_not_idle(under_way: Callable[..., list[AnyEvent]]) -> None:
    """P2: loads under way compare before free memory, from the moment that they are placed."""
    history = given(
        *an_approved_node("big", vram=80 * GIB),
        *an_approved_node("small"),
        *a_model("a"),
        *under_way("r-1", node="big", model="a"),
        *a_model(),
    )
    assert placed(history).node == "small"


def test_replicas_go_where_the_model_is_not_yet_and_then_where_fewest_requests_are() -> None:
    history = given(
        *an_approved_node("n1", vram=80 * GIB, slots=2),
        *an_approved_node("n2", vram=40 * GIB),
        *an_approved_node("n3"),
        *a_model("a"),
        *a_ready_replica("r-1", node="n1"),
        *a_ready_replica("r-2", node="n2", model="a"),
        *a_model(),
    )
    busy = heard(history.fleet, reports=(RouterReport("router", 0, {ReplicaId("r-2"): 3}),))
    event = placed(history, busy)
    assert event.node == "n3"
    assert [each.node for each in event.decision.runners_up] == ["n2", "n1"]
    assert event.decision.runners_up[0].scores["in_flight"] == 3


def test_max_per_node_and_spread_all_limit_a_node_whatever_its_slots() -> None:
    """P6, X18: two slots are no reason for two replicas."""
    for schedule in (Schedule(max_per_node=1), Schedule(mode=SpreadAll())):
        found = refusal(
            *an_approved_node(slots=2),
            *a_model(),
            ModelScheduleSet(model=M, schedule=schedule, source="api"),
            *a_ready_replica(),
        ).refused
        assert found is not None
        assert found.message == "0/1 nodes: 1 max_per_node"


def test_a_budget_caps_use_not_only_what_is_free() -> None:
    """N12: the sum of what was placed counts, over all GPUs."""
    budget = NodeVramBudgetOverridden(node="n1", vram_budget=Bytes(10 * GIB))
    history = [*an_approved_node(gpus=2, slots=2), budget, *a_model(spec=some_spec(vram=6 * GIB))]
    fleet = given(*history)
    placed(fleet)
    second = place(fleet.fleet, Readings(), request(command="c-2"))
    assert second.refused is not None
    assert "short by 2.0 GiB" in second.refused.message


def test_an_operators_reservation_is_not_given_away() -> None:
    """R3."""
    held = ReservationGranted(
        node="n1",
        reservation=ReservationId("v-op"),
        holder=OperatorHolder("training"),
        vram={0: 20 * GIB},
    )
    assert refusal(*an_approved_node(), held, *a_model(spec=some_spec(vram=5 * GIB))).refused is not None


def test_a_heartbeat_in_mid_load_frees_nothing() -> None:
    """X5, R3: the measured free memory still holds what the load will take; the reservation stands in for it."""
    history = given(
        *an_approved_node(),
        *a_model("a"),
        *a_loading_replica("r-1", model="a", vram={0: 16 * GIB}),
        *a_model(spec=some_spec(vram=10 * GIB)),
    )
    empty = Heartbeat(NodeName("n1"), incarnation_of("n1"), 99, vram_free={0: 24 * GIB})
    found = place(history.fleet, heard(history.fleet, empty), request()).refused
    assert found is not None
    assert found.message == "0/1 nodes: 1 vram (short by 2.0 GiB); on n1, a#0 is loading"


def test_measured_free_memory_bounds_what_the_budget_leaves() -> None:
    """R3: another program's memory counts; what replicas hold but don't show yet is subtracted besides."""
    history = given(
        *an_approved_node(),
        *a_model("a"),
        *a_loading_replica("r-1", model="a", vram={0: 8 * GIB}),
        *a_model(spec=some_spec(vram=7 * GIB)),
    )
    partly = ReplicaReading(ReplicaId("r-1"), "a#0", "rev", "starting", some_process(), memory={0: 3 * GIB})
    heartbeat = Heartbeat(NodeName("n1"), incarnation_of("n1"), 99, vram_free={0: 11 * GIB}, replicas=(partly,))
    found = place(history.fleet, heard(history.fleet, heartbeat), request()).refused
    assert found is not None
    assert found.message == "0/1 nodes: 1 vram (short by 1.0 GiB); on n1, a#0 is loading"


def test_memory_that_is_measured_free_beyond_the_budget_is_not_given_away() -> None:
    """R3, N12, X6: device by device, though nothing of what is reserved shows as used."""
    history = given(
        *an_approved_node(gpus=2, vram=16 * GIB, slots=2),
        *a_model("a"),
        *a_ready_replica("r-1", model="a", vram={0: 8 * GIB}),
        *a_ready_replica("r-2", model="a", index=1, vram={1: 12 * GIB}),
        *a_model(spec=some_spec(vram=10 * GIB)),
    )
    unseen = tuple(
        ReplicaReading(ReplicaId(name), "a#0", "rev", "ready", some_process(), memory=None) for name in ("r-1", "r-2")
    )
    heartbeat = Heartbeat(
        NodeName("n1"), incarnation_of("n1"), 99, vram_free={0: 16 * GIB, 1: 4 * GIB}, replicas=unseen
    )
    found = place(history.fleet, heard(history.fleet, heartbeat), request()).refused
    assert found is not None
    assert found.message.startswith("0/1 nodes: 1 vram (short by 2.0 GiB)")


def test_an_unknown_reading_is_neither_empty_nor_full() -> None:
    """N9, X20: no measurement, an old one or another life's leave the budget alone to decide."""
    history = given(*an_approved_node(), *a_model(spec=some_spec(vram=20 * GIB)))
    silent = Heartbeat(NodeName("n1"), incarnation_of("n1"), 9, vram_free={0: None})
    former = Heartbeat(NodeName("n1"), incarnation_of("other"), 9, vram_free={0: 0})
    for heartbeat in (silent, former):
        assert place(history.fleet, heard(history.fleet, heartbeat), request()).refused is None
    demand = Demand()
    demand.hear_node(msgspec.structs.replace(silent, vram_free={0: 0}), now_ns=0)
    for seconds, is_old in ((30, False), (31, True)):
        readings = read(history.fleet, demand, heard_ns=seconds * SECOND_NS)
        assert (place(history.fleet, readings, request()).refused is None) == is_old


def test_disk_must_hold_the_payload_and_its_headroom() -> None:
    """P1: payload plus the larger of 5 % and 1 GiB; unknown disk passes, and so does an unknown payload."""
    spec = ModelSpec(command=("x",), vram=GIB, disk=40 * GIB)
    history = given(*an_approved_node(), *a_model(spec=spec))
    short = Heartbeat(NodeName("n1"), incarnation_of("n1"), 9, disk_free=41 * GIB)
    found = place(history.fleet, heard(history.fleet, short), request()).refused
    assert found is not None
    assert found.message == "0/1 nodes: 1 disk (short by 1.0 GiB)"
    assert place(history.fleet, Readings(), request()).refused is None
    small = given(*an_approved_node(), *a_model(spec=ModelSpec(command=("x",), vram=GIB, disk=GIB)))
    found = place(small.fleet, heard(small.fleet, msgspec.structs.replace(short, disk_free=GIB)), request()).refused
    assert found is not None
    assert found.message == "0/1 nodes: 1 disk (short by 1.0 GiB)"
    without = given(*an_approved_node(), *a_model(spec=ModelSpec(command=("x",), vram=GIB)))
    full = msgspec.structs.replace(short, disk_free=0)
    assert place(without.fleet, heard(without.fleet, full), request()).refused is None


def test_a_failed_load_backs_off_on_its_node_and_others_are_tried() -> None:
    """T6: ten seconds, doubling; another node takes it meanwhile."""
    failed = [*a_loading_replica("r-1"), ReplicaLoadFailed(node="n1", replica=ReplicaId("r-1"), detail="boom")]
    history = given(*an_approved_node("n1", slots=2, vram=80 * GIB), *an_approved_node("n2"), *a_model(), *failed)
    soon = msgspec.structs.replace(request(), now_ns=history.fleet.time_ns + 4 * SECOND_NS)
    assert placed(history, asked=soon).node == "n2"
    alone = given(*an_approved_node("n1", slots=2), *a_model(), *failed)
    soon = msgspec.structs.replace(request(), now_ns=alone.fleet.time_ns + 4 * SECOND_NS)
    found = place(alone.fleet, Readings(), soon).refused
    assert found is not None
    assert found.message == "0/1 nodes: 1 backoff (for 6 s)"
    later = msgspec.structs.replace(soon, now_ns=soon.now_ns + 7 * SECOND_NS)
    assert place(alone.fleet, Readings(), later).refused is None


def test_a_crash_backs_off_like_a_failed_load() -> None:
    """W5, T6: what crashes as soon as it is ready isn't started again in a hot loop; a load that works resets it."""
    crashed = ReplicaCrashed(node="n1", replica=ReplicaId("r-1"), exit=ProcessExit(exit_code=70))
    history = given(*an_approved_node(slots=2), *a_model(), *a_ready_replica("r-1"), crashed)
    soon = msgspec.structs.replace(request(), now_ns=history.fleet.time_ns + 4 * SECOND_NS)
    found = place(history.fleet, Readings(), soon).refused
    assert found is not None
    assert found.message == "0/1 nodes: 1 backoff (for 6 s)"
    record(history.fleet, *a_ready_replica("r-2", index=1))
    assert place(history.fleet, Readings(), soon).refused is not None, "both slots are taken"
    assert history.fleet.nodes[NodeName("n1")].load_failures == {}


def test_the_back_off_doubles_up_to_five_minutes_for_that_model_alone() -> None:
    """T6: 10, 20, 40, 80, 160, 300 seconds."""
    history = given(*an_approved_node(slots=1), *a_model(), *a_model("other"))
    for number, seconds in enumerate((10, 20, 40, 80, 160, 300, 300)):
        replica = f"r-{number}"
        record(
            history.fleet,
            *a_loading_replica(replica),
            ReplicaLoadFailed(node="n1", replica=ReplicaId(replica), detail="boom"),
        )
        failed_ns = history.fleet.time_ns
        record(history.fleet, *end(history.fleet, [ReplicaId(replica)], reason="load_failed"))
        for after, refused in ((seconds - 1, True), (seconds, False)):
            asked = msgspec.structs.replace(request(), now_ns=failed_ns + after * SECOND_NS)
            assert (place(history.fleet, Readings(), asked).refused is not None) is refused, (number, after)
    soon = msgspec.structs.replace(request("other"), now_ns=history.fleet.time_ns)
    assert place(history.fleet, Readings(), soon).refused is None


def test_a_model_nobody_defined_is_unknown() -> None:
    """T8, S1: scheduled is not defined."""
    history = given(*an_approved_node(), ModelScheduleSet(model=M, schedule=Schedule(), source="api"))
    history.when(lambda fleet: place(fleet, Readings(), request()).events).then_raises(ModelUnknownError, "'m'")


def test_a_request_for_a_model_on_its_way_joins_that_load() -> None:
    """T5: one load, however many ask."""
    history = given(*an_approved_node(slots=2), *a_model(), *a_placed_replica("r-1"))
    joined = load_on_demand(history.fleet, Readings(), request())
    assert (joined.events, joined.replica) == ((), "r-1")


def test_a_replica_that_drains_serves_nobody_new() -> None:
    history = given(*an_approved_node(slots=2), *a_model(), *a_ready_replica("r-1"), *a_drain("r-1"))
    assert len(load_on_demand(history.fleet, Readings(), request()).events) == 3


def test_the_decision_says_on_what_it_was_decided() -> None:
    """H2, I12: basis, policy, figures, filters with examples, and the telemetry in one column."""
    history = given(*an_approved_node("n1"), *a_pending_node("n2"), *a_model())
    basis = history.fleet.sequence
    decision = placed(history).decision
    assert (decision.kind, decision.basis, decision.policy, decision.considered) == (
        "placement",
        basis,
        "placement/3",
        2,
    )
    assert decision.figures["footprint"] == GIB
    assert [(count.filter, count.nodes, count.examples) for count in decision.filters] == [("admitted", 1, ("n2",))]
    assert decision.telemetry


def test_a_decision_stays_within_its_limit_whatever_the_names() -> None:
    """H2: 16 KiB with the longest names people could give, and a fleet of them."""
    names = [f"{number:03}" + "\N{GRINNING FACE}" * 250 for number in range(60)]
    events = [
        event
        for number, name in enumerate(names)
        for event in (an_approved_node(name) if number % 3 else a_pending_node(name))
    ]
    history = given(*events, *a_model(spec=some_spec(vram=8 * GIB)))
    heartbeats = [Heartbeat(NodeName(name), incarnation_of(name), 0, vram_free={0: 20 * GIB}) for name in names]
    decision = placed(history, heard(history.fleet, *heartbeats)).decision
    assert len(msgspec.json.encode(decision)) <= DECISION_BYTES_MAX
    assert decision.runners_up


def test_a_column_takes_as_many_bytes_in_a_decision_as_it_has_letters() -> None:
    """H2: a decision's size is told without encoding its column, for JSON writes none of the 85 letters otherwise."""
    column = base64.b85encode(bytes(range(256)) * 64).decode()
    assert len(set(column)) == 85
    assert len(msgspec.json.encode(column)) == len(f'"{column}"')


def test_the_full_account_names_every_node() -> None:
    history = given(*an_approved_node("n1"), *a_pending_node("n2"), *a_model())
    account = explain(history.fleet, Readings(), wish_of(history.fleet, request()))
    assert [(each.node, each.rejection and each.rejection.filter) for each in account] == [
        ("n1", None),
        ("n2", "admitted"),
    ]
    assert account[0].scores is not None
