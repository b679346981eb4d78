"""The full account of any decision is recomputed from the log at its basis (rule H2)."""

from collections.abc import Iterator, Sequence

import pytest

from modelyard_events.decision import Decision
from modelyard_events.envelope import Recorded
from modelyard_events.ids import ModelName
from modelyard_projections.fleet import Fleet
from modelyard_services.policy.recount import recount
from tests.ordeal.runs import run

SEEDS = range(40, 44)
STEPS = range(200)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_decision_is_recomputed_from_the_log(seed: int) -> None:
    """H2: placements, refusals and breakers of any order of commands, with the measurements they were made with."""
    log = run(seed, STEPS).log
    wanted = sorted(_decisions(log), key=lambda each: each[0].basis)
    assert len(wanted) > 10
    fleet, events = Fleet(), iter(log)
    for decision, model in wanted:
        while fleet.sequence < decision.basis:
            fleet.apply(next(events))
        found = recount(fleet, decision, model)
        assert found.agrees
        assert found.measured
        assert len(found.nodes) == decision.considered
        rejected = sum(each.rejection is not None for each in found.nodes)
        assert rejected == sum(count.nodes for count in decision.filters)


def _decisions(log: Sequence[Recorded]) -> Iterator[tuple[Decision, ModelName]]:
    for recorded in log:
        decision = getattr(recorded.event, "decision", None)
        if isinstance(decision, Decision) and decision.asked is not None:
            yield decision, ModelName(getattr(recorded.event, "model", ""))
