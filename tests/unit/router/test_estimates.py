"""How long a load still takes: by its own progress once that says something, else by the last one (T5)."""

import pytest

from modelyard_projections.fleet import ReplicaState
from modelyard_services.router.estimates import LoadTimes
from tests.support.given import SECOND_NS, a_loading_replica, a_model, an_approved_node, given


@pytest.fixture
def loading() -> ReplicaState:
    (state,) = given(*an_approved_node(), *a_model(), *a_loading_replica()).fleet.replicas.values()
    return state


@pytest.mark.parametrize(
    ("progress", "left"),
    [(None, None), (0.0, None), (0.02, None), (0.09, None), (0.1, 90.0), (0.5, 10.0), (0.99, 10.0 / 99)],
)
def test_progress_says_what_is_left_once_it_is_more_than_rounding(
    loading: ReplicaState, progress: float | None, left: float | None
) -> None:
    """A first process at 2 % would be told of as nine minutes, and its callers sent away for two."""
    told = LoadTimes().left_seconds(loading, progress=progress, now_ns=loading.since_ns + 10 * SECOND_NS)
    assert told == (None if left is None else pytest.approx(left, rel=0.2))
