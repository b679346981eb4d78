"""Operator labels: theirs alone, many at once, never the system's (rule N5)."""

import msgspec
import pytest

from modelyard_events.errors import InvalidValueError
from modelyard_events.ids import LabelKey, NodeName
from modelyard_events.node import Gpu, NodeLabelsChanged, NodeMaxReplicasOverridden
from modelyard_projections.fleet import Fleet
from modelyard_services.errors import ConflictError, NotFoundError
from modelyard_services.policy.labels import LABELS_MAX, patch_labels, remove_label, replace_labels
from tests.support.given import a_pending_node, an_approved_node, given, record, some_facts

N1 = NodeName("n1")
TIER, ZONE, RACK = LabelKey("tier"), LabelKey("zone"), LabelKey("rack")
LABELLED = [*an_approved_node(labels={"zone": "a"}), NodeLabelsChanged(node="n1", changed={TIER: "gpu", RACK: "7"})]


def test_many_labels_change_in_one_event() -> None:
    given(*LABELLED).when(
        lambda fleet: patch_labels(fleet, node=N1, changes={"tier": "fast", "rack": None, "zone": "b"})
    ).then(NodeLabelsChanged(node="n1", changed={TIER: "fast", ZONE: "b"}, removed=(RACK,)))


def test_labels_that_already_hold_change_nothing() -> None:
    """I11."""
    given(*LABELLED).when(
        lambda fleet: patch_labels(fleet, node=N1, changes={"tier": "gpu", "unknown": None})
    ).then_nothing()


def test_the_operators_value_wins_and_the_workers_is_kept_beneath() -> None:
    """N5."""
    history = given(*LABELLED, NodeLabelsChanged(node="n1", changed={ZONE: "b"}))
    assert history.fleet.nodes[N1].labels["zone"] == "b"
    history.when(lambda fleet: remove_label(fleet, node=N1, key="zone")).then(
        NodeLabelsChanged(node="n1", removed=(ZONE,))
    )
    assert history.fleet.nodes[N1].labels["zone"] == "a"


@pytest.mark.parametrize(
    ("mebibytes", "bucket"),
    [
        (143_771, "80GB+"),  # H200, as its driver tells
        (81_559, "80GB+"),  # H100 80 GB
        (49_140, "48GB"),  # L40S
        (40_960, "24GB"),
        (24_564, "24GB"),  # RTX 4090
        (16_380, "16GB"),
        (15_360, "8GB"),  # T4 tells less than its name
        (8_192, "8GB"),
        (6_144, "6GB"),
    ],
)
def test_the_system_labels_tell_gpu_name_type_and_slots(mebibytes: int, bucket: str) -> None:
    """N6: of the largest GPU; slots are those in force."""
    small = Gpu(0, "nvidia", "Small", 2**30)
    facts = msgspec.structs.replace(some_facts(slots=2), gpus=(small, Gpu(1, "amd", "Large", mebibytes * 2**20)))
    history = given(*a_pending_node("n1", facts))
    assert system_labels(history.fleet) == {
        "node.name": "n1", "node.type": "backend", "node.replica-slots": "2", "gpu.vendor": "amd", "gpu.vram": bucket
    }  # fmt: skip
    record(history.fleet, NodeMaxReplicasOverridden(node="n1", max_replicas_per_model=5))
    assert system_labels(history.fleet)["node.replica-slots"] == "5"


def test_a_node_without_a_gpu_has_no_gpu_labels() -> None:
    """N6."""
    fleet = given(*an_approved_node("n1", gpus=0)).fleet
    assert system_labels(fleet) == {"node.name": "n1", "node.type": "backend", "node.replica-slots": "1"}


def system_labels(fleet: Fleet) -> dict[str, str]:
    return {key: value for key, value in fleet.nodes[N1].labels.items() if key.startswith(("gpu.", "node."))}


@pytest.mark.parametrize("key", ["gpu.vram", "gpu.tier", "node.name"])
def test_the_systems_labels_cannot_be_set_or_removed(key: str) -> None:
    """N5."""
    given(*LABELLED).when(lambda fleet: patch_labels(fleet, node=N1, changes={key: "x"})).then_raises(
        InvalidValueError, "derived by the system"
    )
    given(*LABELLED).when(lambda fleet: remove_label(fleet, node=N1, key=key)).then_raises(InvalidValueError)


def test_replacing_leaves_exactly_the_labels_given() -> None:
    given(*LABELLED).when(lambda fleet: replace_labels(fleet, node=N1, labels={"tier": "gpu", "zone": "c"})).then(
        NodeLabelsChanged(node="n1", changed={ZONE: "c"}, removed=(RACK,))
    )


def test_removing_a_label_that_is_not_there_says_so() -> None:
    """X28."""
    given(*LABELLED).when(lambda fleet: remove_label(fleet, node=N1, key="colour")).then_raises(NotFoundError, "colour")


def test_a_workers_label_is_removed_at_the_worker() -> None:
    """N5."""
    given(*LABELLED).when(lambda fleet: remove_label(fleet, node=N1, key="zone")).then_raises(ConflictError, "worker")


def test_one_bad_label_refuses_them_all() -> None:
    given(*LABELLED).when(
        lambda fleet: patch_labels(fleet, node=N1, changes={"good": "1", "bad key": "2"})
    ).then_raises(InvalidValueError, "bad key")


def test_a_node_has_a_bounded_number_of_labels() -> None:
    changes = {f"k{number}": "v" for number in range(LABELS_MAX - 1)}
    given(*LABELLED).when(lambda fleet: patch_labels(fleet, node=N1, changes=changes)).then_raises(
        InvalidValueError, str(LABELS_MAX)
    )
