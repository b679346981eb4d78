"""Nodes with several GPUs: what each has free, which of them a replica gets, and what people are told (P5, P6, R3)."""

import msgspec
import pytest
from hypothesis import given as given_
from hypothesis import strategies as st

from modelyard_events.envelope import AnyEvent
from modelyard_events.ids import CommandId, ModelName, NodeName, ReplicaId
from modelyard_events.model import ModelScheduleSet
from modelyard_events.node import NodeVramBudgetOverridden
from modelyard_events.replica import ReplicaPlaced
from modelyard_events.sizes import Bytes
from modelyard_events.spec import Schedule
from modelyard_projections.fleet import Fleet
from modelyard_services.policy.ending import end
from modelyard_services.policy.explain import explain
from modelyard_services.policy.fitting import fit
from modelyard_services.policy.memory import Room, Space, choose_devices, room
from modelyard_services.policy.placement import Outcome, Request, place, wish_of
from modelyard_services.policy.readings import NodeReading, Readings
from tests.support.given import (
    GIB,
    SECOND_NS,
    START_NS,
    a_model,
    a_placed_replica,
    a_ready_replica,
    an_approved_node,
    given,
    record,
    some_spec,
)

N1 = NodeName("n1")


def asked(model: str = "m") -> Request:
    return Request(model=ModelName(model), command=CommandId("c-1"), now_ns=START_NS + 1_000 * SECOND_NS)


def on_two_gpus(*, vram: int | None, **schedule: int) -> list[AnyEvent]:
    """The model `m`, on two GPUs unless told otherwise."""
    wanted = Schedule(**{"gpus": 2, **schedule})  # type: ignore[arg-type]  # its own fields
    return [*a_model(spec=some_spec(vram=vram)), ModelScheduleSet(model=ModelName("m"), schedule=wanted, source="api")]


def newcomer(outcome: Outcome) -> ReplicaPlaced:
    assert outcome.refused is None, outcome.refused
    return next(event for event in outcome.events if isinstance(event, ReplicaPlaced))


def placed(fleet: Fleet) -> ReplicaPlaced:
    return newcomer(place(fleet, Readings(), asked()))


@pytest.mark.parametrize("budget", [2, 20 * GIB, 30 * GIB, 40 * GIB, 48 * GIB])
def test_an_unknown_footprint_is_placed_on_as_many_gpus_as_it_asks_for_within_any_budget(budget: int) -> None:
    """P6, R4, N12: what a cap leaves is divided, so that no GPU is left out."""
    cap = NodeVramBudgetOverridden(node=N1, vram_budget=Bytes(budget))
    event = placed(given(*an_approved_node(gpus=2), cap, *on_two_gpus(vram=None)).fleet)
    assert event.gpus == (0, 1)
    assert sum(event.vram.values()) <= budget
    assert all(event.vram.values())


def test_a_gpu_that_holds_more_than_it_has_takes_nothing_from_the_others() -> None:
    """R3: on one card a stranger's process leaves less than nothing, and the other is as free as it was measured."""
    tenant = a_placed_replica("r-1", model="t", vram={0: 8 * GIB})
    fleet = given(*an_approved_node(gpus=2), *a_model("t"), *tenant).fleet
    reading = NodeReading(vram_free={0: 2 * GIB, 1: 20 * GIB})
    free = room(fleet, fleet.nodes[N1], reading)
    assert free == Room({0: 0, 1: 20 * GIB}, 20 * GIB)
    freed = Space(fleet, fleet.nodes[N1], reading).without(fleet.replicas[ReplicaId("r-1")]).room()
    assert freed == Room({0: 2 * GIB, 1: 20 * GIB}, 22 * GIB)


def test_a_gpu_whose_footprints_grew_beyond_it_is_full_and_no_more_than_full() -> None:
    """N12: its debt counts once, in what the node's budget leaves."""
    tenant = a_placed_replica("r-1", model="t", vram={0: 30 * GIB})
    fleet = given(*an_approved_node(gpus=2), *a_model("t"), *tenant).fleet
    assert room(fleet, fleet.nodes[N1], NodeReading()) == Room({0: 0, 1: 24 * GIB}, 18 * GIB)


def test_what_has_ended_since_the_last_measurement_is_free() -> None:
    """R3: a load right after an unload isn't refused for the memory that a heartbeat saw before it."""
    tenant = a_ready_replica("r-1", model="t", vram={0: 20 * GIB})
    history = given(*an_approved_node(gpus=2), *a_model("t"), *tenant)
    seen = NodeReading(
        vram_free={0: 3 * GIB, 1: 24 * GIB}, visible={ReplicaId("r-1"): {0: 20 * GIB}}, folded=history.fleet.sequence
    )
    fleet, before = history.fleet, room(history.fleet, history.fleet.nodes[N1], seen)
    assert before.devices == {0: 3 * GIB, 1: 24 * GIB}
    record(fleet, *end(fleet, [ReplicaId("r-1")], reason="requested"))
    assert room(fleet, fleet.nodes[N1], seen).devices == {0: 23 * GIB, 1: 24 * GIB}
    lives_on = msgspec.structs.replace(seen, folded=fleet.sequence)
    assert room(fleet, fleet.nodes[N1], lives_on).devices == {0: 3 * GIB, 1: 24 * GIB}


def test_several_gpus_are_reserved_each_with_its_own_part() -> None:
    """P6, R3."""
    event = placed(given(*an_approved_node(gpus=3), *on_two_gpus(vram=21 * GIB)).fleet)
    assert event.vram == {0: 21 * GIB // 2, 1: 21 * GIB // 2}


@pytest.mark.parametrize(("binpack", "chosen"), [(False, [2, 1]), (True, [0, 1])])
def test_the_emptiest_gpus_or_the_fullest_that_fit(binpack: bool, chosen: list[int]) -> None:  # noqa: FBT001
    """P6: spread and binpack, among the devices of a node too."""
    free = Room({0: 5 * GIB, 1: 6 * GIB, 2: 9 * GIB, 3: GIB}, 21 * GIB)
    held = choose_devices(free, gpus=2, per_gpu=4 * GIB, binpack=binpack)
    assert held == dict.fromkeys(chosen, 4 * GIB)


@given_(
    free=st.dictionaries(st.integers(0, 7), st.integers(0, 40), max_size=8),
    total=st.integers(0, 160),
    gpus=st.integers(1, 4),
    per_gpu=st.none() | st.integers(1, 40),
    binpack=st.booleans(),
)
def test_what_fits_is_placed_on_as_many_devices_as_it_asks_for(
    free: dict[int, int],
    total: int,
    gpus: int,
    per_gpu: int | None,
    binpack: bool,  # noqa: FBT001 - drawn by name
) -> None:
    """I1, P6: within what each device has and what the node has as a whole."""
    available = Room(free, min(total, sum(free.values())))
    if available.fit(gpus) >= (per_gpu or 1):
        held = choose_devices(available, gpus=gpus, per_gpu=per_gpu, binpack=binpack)
        assert len(held) == gpus
        assert all(0 < size <= free[device] for device, size in held.items())
        assert sum(held.values()) <= available.total


def tenants(*gib: int) -> list[AnyEvent]:
    """A pinned model that holds so much of each GPU."""
    each = [
        event
        for device, size in enumerate(gib)
        for event in a_ready_replica(f"r-{device}", model="t", index=device, vram={device: size * GIB})
    ]
    return [*a_model("t", spec=some_spec(pinned=True)), *each]


def test_a_refusal_tells_what_each_gpu_has_free() -> None:
    """P5: the sum would do, no single one does."""
    history = [*an_approved_node(gpus=2, slots=4), *tenants(16, 18), *a_model(spec=some_spec(vram=10 * GIB))]
    fleet = given(*history).fleet
    refused = place(fleet, Readings(), asked()).refused
    assert refused is not None
    assert refused.message.startswith(
        "0/1 nodes: 1 vram (short by 2.0 GiB); GPUs of n1 have 8.0, 6.0 GiB free; on n1, t#0"
    )
    assert refused.unblock is not None
    assert refused.unblock.startswith("free 2.0 GiB of VRAM on one GPU of n1")
    (node,) = explain(fleet, Readings(), wish_of(fleet, asked()))
    assert node.rejection is not None
    assert node.rejection.detail == "GPUs of n1 have 8.0, 6.0 GiB free"
    assert fit(fleet, Readings(), asked()).nodes[0].rejected == node.rejection


def test_a_refusal_of_several_gpus_tells_that_each_must_have_room() -> None:
    """P5, P6."""
    refused = place(
        given(*an_approved_node(gpus=3, slots=4), *tenants(0, 18, 20), *on_two_gpus(vram=20 * GIB)).fleet,
        Readings(),
        asked(),
    ).refused
    assert refused is not None
    assert "(short by 4.0 GiB); GPUs of n1 have 24.0, 6.0, 4.0 GiB free" in refused.message
    assert refused.unblock is not None
    assert refused.unblock.startswith("free 4.0 GiB of VRAM on each of 2 GPUs of n1")


def test_a_node_of_one_gpu_is_told_as_before() -> None:
    fleet = given(*an_approved_node(slots=4), *tenants(16), *a_model(spec=some_spec(vram=10 * GIB))).fleet
    refused = place(fleet, Readings(), asked()).refused
    assert refused is not None
    assert refused.message.startswith("0/1 nodes: 1 vram (short by 2.0 GiB); on n1, t#0 is pinned")
    assert refused.unblock == "free 2.0 GiB of VRAM on n1, or unpin t"
