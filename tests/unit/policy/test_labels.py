"""Operator labels: theirs alone, many at once, never the system's (rule N5)."""

import pytest

from modelyard_events.errors import InvalidValueError
from modelyard_events.ids import LabelKey, NodeName
from modelyard_events.node import NodeLabelsChanged
from modelyard_services.errors import ConflictError, NotFoundError
from modelyard_services.policy.labels import LABELS_MAX, patch_labels, remove_label, replace_labels
from tests.support.given import an_approved_node, given

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
