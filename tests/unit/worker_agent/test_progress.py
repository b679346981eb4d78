"""How far a load has come, told by the memory it has taken (C7, X25)."""

import math

import msgspec
import pytest

from modelyard_events.ids import ReplicaId
from modelyard_events.node import HOST_MEMORY
from modelyard_events.replica import Process
from modelyard_events.spec import LaunchSpec
from modelyard_events.telemetry import ReplicaActivity, ReplicaReading
from modelyard_services.worker.agent.progress import progress, progress_in
from modelyard_services.worker.processes.running import ready_deadline
from tests.support.given import a_loading_replica, a_model, an_approved_node, given

GIB = 2**30


def reading(activity: ReplicaActivity, memory: dict[int, int] | None) -> ReplicaReading:
    return ReplicaReading(ReplicaId("r-1"), "m#0", "r", activity, Process(1, 0.0, 1), memory=memory)


@pytest.mark.parametrize(
    ("activity", "footprint", "memory", "share"),
    [
        ("starting", 8 * GIB, {HOST_MEMORY: 2 * GIB}, 0.25),
        ("starting", 8 * GIB, {0: 2 * GIB, 1: 2 * GIB}, 0.5),
        ("starting", 8 * GIB, {0: 2 * GIB + GIB // 100}, 0.25),  # not a whole percent more
        ("starting", 8 * GIB, {0: 9 * GIB}, 0.99),  # only the health check says that it is done
        ("starting", 8 * GIB, {}, None),
        ("starting", 8 * GIB, None, None),
        ("starting", 0, {0: GIB}, None),
        ("starting", None, {0: GIB}, None),
        ("ready", 8 * GIB, {0: 2 * GIB}, None),
        ("stopping", 8 * GIB, {0: 2 * GIB}, None),
    ],
)
def test_a_load_has_come_as_far_as_the_share_of_its_footprint_that_it_holds(
    activity: ReplicaActivity, footprint: int | None, memory: dict[int, int] | None, share: float | None
) -> None:
    assert progress(reading(activity, memory), footprint) == share


def test_the_footprint_is_what_the_nodes_events_reserve() -> None:
    """R3."""
    fleet = given(*an_approved_node(), *a_model(), *a_loading_replica("r-1", vram={0: 8 * GIB})).fleet
    assert progress_in(fleet, reading("starting", {0: 2 * GIB})) == 0.25
    unknown = msgspec.structs.replace(reading("starting", {0: 2 * GIB}), replica=ReplicaId("r-2"))
    assert progress_in(fleet, unknown) is None


def test_a_worker_ends_a_load_by_its_models_own_limit_and_by_no_other() -> None:
    """X25: how long a large model may take is for the reconciler to say."""
    assert ready_deadline(LaunchSpec(command=("serve",)), started_at=1_000.0) == math.inf
    assert ready_deadline(LaunchSpec(command=("serve",), ready_timeout_seconds=90.0), started_at=1_000.0) == 1_090.0
