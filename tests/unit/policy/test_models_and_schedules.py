"""Definitions and schedules: what is said again is nothing, what isn't there can't be removed."""

import msgspec
import pytest

from modelyard_events.decision import Decision
from modelyard_events.ids import ModelName
from modelyard_events.model import (
    ModelDeclaredUnsatisfiable,
    ModelRedefined,
    ModelRemoved,
    ModelScheduleSet,
)
from modelyard_events.node import NodeRegistered
from modelyard_events.replica import ReplicaDrainStarted
from modelyard_events.selectors import parse_selector
from modelyard_events.spec import Autoscale, Estimate, Health, ModelSpec, Schedule, SecretRef, revision_of
from modelyard_projections.fleet import Fleet
from modelyard_services.errors import InvalidRequestError, ModelUnknownError, NotFoundError
from modelyard_services.policy.models import SPEC_BYTES_MAX, define, group_conflicts, remove
from modelyard_services.policy.schedules import clear_schedule, schedule_warnings, set_schedule
from tests.support.given import a_model, a_ready_replica, an_approved_node, given, some_spec

M = ModelName("m")


def test_defining_the_same_again_is_nothing() -> None:
    given(*a_model()).when(lambda fleet: define(fleet, model=M, spec=some_spec())).then_nothing()


def test_a_redefinition_ends_nothing_by_itself() -> None:
    """R6: the reconciler replaces; the event only says what holds now."""
    spec = ModelSpec(command=("other",), vram=1)
    given(*an_approved_node(), *a_model(), *a_ready_replica()).when(
        lambda fleet: define(fleet, model=M, spec=spec)
    ).then(ModelRedefined(model=M, spec=spec, revision=revision_of(spec), previous=revision_of(some_spec())))


@pytest.mark.parametrize(
    "changed",
    [
        {"command": ("serve", "--other")},
        {"environment": {"TOKEN": SecretRef(from_env="OTHER")}},
        {"files": ("weights.gguf",)},
        {"devices": ("/dev/dri/renderD128",)},
        {"health": Health(grpc="")},
        {"working_directory": "/models"},
    ],
)
def test_what_the_process_runs_is_what_a_revision_is_made_of(changed: dict[str, object]) -> None:
    """R6: command, environment, files, devices, health."""
    assert revision_of(msgspec.structs.replace(some_spec(), **changed)) != revision_of(some_spec())


def test_a_redefinition_that_makes_running_models_conflict_ends_nothing_and_is_reported() -> None:
    """R5: judged by the groups copied into `placed`; each pair with its node, its group and its replicas."""
    heavy = some_spec(groups=("heavy",))
    history = given(
        *an_approved_node(slots=2),
        *a_model(),
        *a_ready_replica(),
        *a_model("other", heavy),
        *a_ready_replica("r-2", model="other", groups=("heavy",)),
    )
    (found,) = group_conflicts(history.fleet, model=M, spec=heavy)
    assert (found.node, found.group, found.replica, found.other_replica) == ("n1", "heavy", "r-1", "r-2")
    history.when(lambda fleet: define(fleet, model=M, spec=heavy)).then(
        ModelRedefined(model=M, spec=heavy, revision=revision_of(heavy), previous=revision_of(some_spec()))
    )
    assert len(history.fleet.replicas) == 2


def test_groups_are_trimmed_and_each_counts_once() -> None:
    """R5: a blank more is no other group."""
    spec = some_spec(groups=(" heavy", "heavy", "", "light "))
    assert spec.concurrency_groups == ("heavy", "light")


def test_scheduling_fields_leave_the_revision_alone() -> None:
    """R6: a pinned or grouped model runs the same process."""
    assert revision_of(some_spec(pinned=True, groups=("g",))) == revision_of(some_spec())


def test_a_spec_that_placements_could_not_copy_is_refused() -> None:
    spec = ModelSpec(command=("serve",), environment={"LARGE": "x" * SPEC_BYTES_MAX})
    given().when(lambda fleet: define(fleet, model=M, spec=spec)).then_raises(InvalidRequestError, "at most")


def test_who_can_not_look_at_the_files_does_not_unsay_what_was_seen_of_them() -> None:
    """R4, S3: the reconciler sees the files and the API doesn't, say; else each would undo the other for ever."""
    seen = ModelSpec(command=("x",), files=("/m.gguf",), estimate=Estimate("gguf", 10, 5, 100))
    blind = msgspec.structs.replace(seen, estimate=None)
    history = given(*a_model(spec=seen))
    history.when(lambda fleet: define(fleet, model=M, spec=blind)).then_nothing()
    for other in (
        msgspec.structs.replace(blind, files=("/other.gguf",)),
        msgspec.structs.replace(blind, context_length=50),
        msgspec.structs.replace(blind, files=()),
    ):
        (event,) = define(history.fleet, model=M, spec=other)
        assert isinstance(event, ModelRedefined)
        assert event.spec.estimate is None


def test_removing_drains_what_runs_in_the_same_append() -> None:
    """R7, R8: `requested`, as all that operators end."""
    events = (
        given(*an_approved_node(), *a_model(), *a_ready_replica()).when(lambda fleet: remove(fleet, model=M)).events
    )
    assert isinstance(events[0], ModelRemoved)
    assert [event.reason for event in events if isinstance(event, ReplicaDrainStarted)] == ["requested"]


def test_removing_what_is_not_there_says_so() -> None:
    """X28: a delete that deleted nothing is no success."""
    given().when(lambda fleet: remove(fleet, model=M)).then_raises(ModelUnknownError, "nothing was removed")
    given().when(lambda fleet: clear_schedule(fleet, model=M, source="api")).then_raises(
        NotFoundError, "nothing was cleared"
    )


def test_running_models_that_a_redefinition_brings_into_conflict_are_reported() -> None:
    """R5: reported, not ended."""
    fleet = given(
        *an_approved_node(),
        *a_model("a", some_spec(groups=("g",))),
        *a_model(),
        *a_ready_replica("r-1", model="a", groups=("g",)),
        *a_ready_replica("r-2", model="m"),
    ).fleet
    conflicts = group_conflicts(fleet, model=M, spec=some_spec(groups=("g",)))
    assert [str(conflict) for conflict in conflicts] == ["group g on node n1 is shared with the running a"]


def test_an_unchanged_schedule_appends_nothing() -> None:
    """S3: a restart with the same file leaves no trace."""
    schedule = Schedule(mode=Autoscale(1, 2))
    history = given(ModelScheduleSet(model=M, schedule=schedule, source="file"))
    history.when(lambda fleet: set_schedule(fleet, model=M, schedule=schedule, source="file")).then_nothing()
    history.when(lambda fleet: set_schedule(fleet, model=M, schedule=schedule, source="api")).then_nothing()


def test_a_ceiling_below_its_floor_is_refused_by_the_name_of_its_field() -> None:
    """S2."""
    with pytest.raises(InvalidRequestError) as refused:
        set_schedule(Fleet(), model=M, schedule=Schedule(mode=Autoscale(3, 2)), source="api")
    assert refused.value.field == "max_replicas"


def test_a_change_of_schedule_closes_the_breaker() -> None:
    """C5."""
    decision = Decision(kind="breaker", outcome="", policy="p", basis=0)
    opened = ModelDeclaredUnsatisfiable(
        model=M, reason="full", failed_passes=3, cool_down_seconds=300, decision=decision
    )
    history = given(*a_model(), opened)
    history.when(lambda fleet: set_schedule(fleet, model=M, schedule=Schedule(), source="api"))
    events = history.when(lambda fleet: set_schedule(fleet, model=M, schedule=Schedule(), source="api")).events
    assert msgspec.to_builtins(events[-1]) == {
        "type": "model.declared_satisfiable.v1",
        "model": "m",
        "cause": "schedule set",
    }


def test_schedules_are_accepted_with_what_there_is_to_say_about_them() -> None:
    """N7, S1, S3: nodes and models may come later; a file's entry comes back at the next start."""
    schedule = Schedule(node_selector=parse_selector("tier=gpu"))
    fleet = given(*an_approved_node(), ModelScheduleSet(model=M, schedule=Schedule(), source="file")).fleet
    found = schedule_warnings(fleet, model=M, schedule=schedule, source="api")
    assert len(found) == 3
    assert "comes from file" in found[0]
    assert "not defined yet" in found[1]
    assert "no node matches tier=gpu" in found[2]


def test_a_node_that_hosts_no_models_counts_for_no_selector() -> None:
    """N7: an empty selector means every backend node."""
    fleet = given(NodeRegistered(node="n1", node_type="agent"), *a_model()).fleet
    (found,) = schedule_warnings(fleet, model=M, schedule=Schedule(), source="api")
    assert "no node matches" in found
