"""Plan and apply: the same again is nothing, a plan is what apply leads to, what can't be is told by day (S1-S3)."""

import copy

import msgspec
import pytest
from hypothesis import given as over
from hypothesis import settings
from hypothesis import strategies as st

from modelyard_events.decision import Decision
from modelyard_events.ids import ModelName
from modelyard_events.model import ModelDeclaredSatisfiable, ModelDeclaredUnsatisfiable, ModelScheduleSet
from modelyard_events.spec import Autoscale, Schedule
from modelyard_events.telemetry import Heartbeat, ReplicaReading
from modelyard_services.effects.documents import PARTS_MAX, parse_text
from modelyard_services.errors import InvalidEntriesError, InvalidRequestError
from modelyard_services.policy.apply import API, EVENTS_MAX, Change, apply, changes, parts, warnings
from modelyard_services.policy.configuration import Configuration, Document, read_documents
from modelyard_services.policy.plan import Consequences, consequences
from modelyard_services.policy.rehearsal import Rehearsal
from tests.support.given import GIB, a_model, a_ready_replica, an_approved_node, given, some_process, some_spec
from tests.support.world import World

M = ModelName("m")

GROUPED = """\
models:
  - name: a
    command: [serve]
    vram: 1GiB
    concurrency_groups: [g]
  - name: b
    command: [serve]
    vram: 1GiB
    concurrency_groups: [g]
schedules:
  - {model_name: a, min_replicas: 1}
  - {model_name: b, min_replicas: 1}
"""


def read(*texts: str) -> Configuration:
    return read_documents(
        [Document(*parse_text(text, name=f"{number}.yaml", source="api")) for number, text in enumerate(texts)]
    )


def planned(world: World, configuration: Configuration, *, prune: bool = False) -> Consequences:
    events = apply(world.fleet, configuration, prune=prune)
    return consequences(Rehearsal(world.view()), events, configuration)


def applied(world: World, configuration: Configuration, *, prune: bool = False) -> None:
    world.append(*apply(world.fleet, configuration, prune=prune))


def test_the_same_configuration_again_is_nothing() -> None:
    """S3: a restart, or an apply run every hour, leaves no trace in the log."""
    world, configuration = World(), read(GROUPED)
    applied(world, configuration)
    assert apply(world.fleet, configuration) == []
    assert apply(world.fleet, configuration, prune=True) == []
    world.append(*apply(world.fleet, configuration, source=None))
    assert apply(world.fleet, configuration, source=None) == []


def test_over_the_api_entries_are_the_api_s_and_at_a_start_those_of_their_documents() -> None:
    """S3."""
    document = Document([{"model_name": "m", "min_replicas": 1}], "fleet.yaml", "file")
    configuration = read_documents([document])
    for source, owner in ((API, "api"), (None, "file")):
        (event,) = apply(World().fleet, configuration, source=source)
        assert isinstance(event, ModelScheduleSet)
        assert event.source == owner


def test_a_start_applies_all_of_a_configuration_in_parts_that_fit_an_append() -> None:
    """S3."""
    entries = [{"model_name": f"m{number}", "min_replicas": 1} for number in range(2 * EVENTS_MAX)]
    world = World()
    for part in parts(read_documents([Document(entries, "fleet.yaml", "file")])):
        world.append(*apply(world.fleet, part, source=None))
    assert len(world.fleet.models) == 2 * EVENTS_MAX


def test_changes_name_each_field_with_what_it_was() -> None:
    """S3."""
    world = World()
    applied(world, read(GROUPED))
    edited = read(GROUPED.replace("model_name: b, min_replicas: 1", "model_name: b, min_replicas: 2"))
    found = changes(world.fleet, apply(world.fleet, edited))
    assert [(each.kind, each.model, each.change) for each in found] == [("schedule", "b", "changed")]
    (field,) = found[0].fields
    assert (field.field, field.before, field.after) == ("min_replicas", 1, 2)


def test_changes_of_a_schedule_have_the_names_that_a_file_has() -> None:
    """S3: what is told of a change can be looked up in the file."""
    world = World()
    applied(world, read("- {model_name: a, min_replicas: 1, max_replicas: 2, node_selector: {tier: gpu}}"))
    edited = read("- {model_name: a, replicas: all, node_selector: 'tier=gold, !spot', max_per_node: 1}")
    (change,) = changes(world.fleet, apply(world.fleet, edited))
    assert {each.field: (each.before, each.after) for each in change.fields} == {
        "min_replicas": (1, None),
        "max_replicas": (2, None),
        "replicas": (None, "all"),
        "node_selector": ("tier=gpu", "tier=gold, !spot"),
        "max_per_node": (None, 1),
    }


def test_prune_ends_what_a_section_does_not_list_and_leaves_other_sections_alone() -> None:
    """S3: a file of schedules says nothing about models."""
    world = World()
    applied(world, read(GROUPED))
    schedules_only = read("- {model_name: a, min_replicas: 1}")
    assert apply(world.fleet, schedules_only) == []
    found = changes(world.fleet, apply(world.fleet, schedules_only, prune=True))
    assert found == [Change("schedule", ModelName("b"), "removed")]
    both = read("models:\n- {name: a, command: [serve], vram: 1GiB, concurrency_groups: [g]}\nschedules: []")
    found = changes(world.fleet, apply(world.fleet, both, prune=True))
    assert {(each.kind, each.model, each.change) for each in found} == {
        ("schedule", "a", "removed"),
        ("schedule", "b", "removed"),
        ("model", "b", "removed"),
    }


def test_a_model_redefined_and_scheduled_anew_is_declared_satisfiable_once() -> None:
    """C5: the breaker closes at once, and history tells it once."""
    decision = Decision(kind="breaker", outcome="", policy="p", basis=0)
    opened = ModelDeclaredUnsatisfiable(
        model=M, reason="full", failed_passes=3, cool_down_seconds=300, decision=decision
    )
    fleet = given(*a_model(), opened).fleet
    text = "{models: [{name: m, command: [other]}], schedules: [{model_name: m, min_replicas: 1}]}"
    events = apply(fleet, read(text))
    assert [type(event) for event in events].count(ModelDeclaredSatisfiable) == 1


def test_more_than_one_append_holds_is_refused_and_nothing_is_applied() -> None:
    entries = "\n".join(f"- {{model_name: m{number}, min_replicas: 1}}" for number in range(EVENTS_MAX + 1))
    given().when(lambda fleet: apply(fleet, read(entries))).then_raises(InvalidRequestError, "nothing was applied")


def test_a_plan_leaves_the_fleet_it_looked_at_as_it_is() -> None:
    """S3: whatever it plays through, nothing of it is true."""
    world = World(*an_approved_node(), *an_approved_node("n2"), *a_model(), *a_ready_replica())
    world.fleet.take_touched()
    before = copy.deepcopy(world.fleet)
    found = planned(world, read(GROUPED + "  - {model_name: m, replicas: all}"))
    assert found.placements
    assert world.fleet == before


def test_two_models_of_one_group_and_one_node_are_told_with_file_line_and_what_would_help() -> None:
    """S3, R5: at plan, not at night."""
    world = World(*an_approved_node())
    found = planned(world, read(GROUPED))
    assert [(each.model, each.node) for each in found.placements] == [("a", "n1")]
    (refused,) = found.unplaced
    assert (refused.model, refused.missing, refused.field) == ("b", 1, "concurrency_groups")
    assert (refused.document, refused.line) == ("0.yaml", 6)
    assert refused.reason == "0/1 nodes: 1 concurrency_group; on n1, a#0 is needed for its model's min_replicas"
    assert refused.unblock == "lower min_replicas of a"


def test_nobody_serves_what_exists_in_a_plan_alone() -> None:
    """N9, S3: in a process's first seconds what runs may be busy, but no router can know what was never placed."""
    view = World(*an_approved_node()).view()
    deaf = msgspec.structs.replace(view, readings=msgspec.structs.replace(view.readings, knows_routers=False))
    configuration = read(GROUPED)
    found = consequences(Rehearsal(deaf), apply(view.fleet, configuration), configuration)
    (refused,) = found.unplaced
    assert refused.reason.endswith("on n1, a#0 is needed for its model's min_replicas")
    assert refused.unblock == "lower min_replicas of a"
    assert not deaf.readings.unserved


def test_what_a_pinned_model_keeps_out_names_it_though_other_nodes_are_out_of_question() -> None:
    """S3, R5: the group's holder, not a label that would bring in another node, is what the operator asks for."""
    world = World(*an_approved_node(), *an_approved_node("n2"))
    text = GROUPED.replace("command: [serve]", "command: [serve]\n    pinned: true", 1).replace(
        "min_replicas: 1", "min_replicas: 1, node_selector: node.name=n1"
    )
    (refused,) = planned(world, read(text)).unplaced
    assert (refused.model, refused.kind) == ("b", "exhausted")
    assert refused.reason.endswith("on n1, a#0 is pinned")
    assert refused.unblock == "unpin a"


def test_a_selector_no_node_matches_is_told_where_the_schedule_is_written() -> None:
    """N7, S3."""
    world = World(*an_approved_node())
    text = (
        "models:\n- {name: a, command: [serve], vram: 1GiB}\nschedules:\n- model_name: a\n  node_selector: tier=gpu\n"
    )
    (refused,) = planned(world, read(text + "  min_replicas: 1")).unplaced
    assert (refused.kind, refused.field, refused.document, refused.line) == (
        "unsatisfiable",
        "node_selector",
        "0.yaml",
        4,
    )


def test_the_end_of_one_makes_room_for_the_other_as_measured() -> None:
    """R3: the measured free memory that an ending replica shows as its own comes back with its end."""
    world = World(*an_approved_node(vram=10 * GIB), *a_model("m", some_spec(vram=8 * GIB)))
    world.append(*a_ready_replica(vram={0: 8 * GIB}), ModelScheduleSet(model=M, schedule=Schedule(), source="api"))
    node, state = next(iter(world.fleet.nodes.values())), next(iter(world.fleet.replicas.values()))
    reading = ReplicaReading(state.id, "m#0", state.revision, "ready", some_process(), memory={0: 8 * GIB})
    heard = Heartbeat(node.name, node.incarnation, world.fleet.sequence, vram_free={0: 2 * GIB}, replicas=(reading,))
    world.demand.hear_node(heard, now_ns=world.now_ns)
    text = "models: [{name: b, command: [serve], vram: 9GiB}]\nschedules: [{model_name: b, min_replicas: 1}]"
    found = planned(world, read(text), prune=True)
    assert [(each.model, each.reason) for each in found.endings] == [("m", "requested")]
    assert [(each.model, each.node) for each in found.placements] == [("b", "n1")]
    assert found.unplaced == ()


def test_an_eviction_is_told_before_it_is_caused() -> None:
    """S3, P3: who makes room for whom, and why."""
    world = World(*an_approved_node(vram=10 * GIB), *a_model("m", some_spec(vram=8 * GIB)))
    world.append(*a_ready_replica(vram={0: 8 * GIB}))
    world.later(3_600).route()
    text = "models: [{name: b, command: [serve], vram: 9GiB}]\nschedules: [{model_name: b, min_replicas: 1}]"
    found = planned(world, read(text))
    (ending,) = found.endings
    assert (ending.model, ending.reason) == ("m", "evicted_memory: m#0 on n1 made room for b")
    assert [(each.model, each.node) for each in found.placements] == [("b", "n1")]
    assert (found.unplaced, found.complete) == ((), True)


def test_a_rollout_is_told_to_its_end() -> None:
    """R6: the newcomer first, then the end of the old one."""
    world = World(*an_approved_node(), *an_approved_node("n2"), *a_model(), *a_ready_replica())
    text = "models: [{name: m, command: [better], vram: 1GiB}]\nschedules: [{model_name: m, min_replicas: 1}]"
    found = planned(world, read(text))
    assert [(each.model, each.node) for each in found.placements] == [("m", "n2")]
    assert [each.reason for each in found.endings] == ["superseded: its newcomer is ready"]
    assert found.complete


def test_what_is_loaded_in_a_plan_after_a_quiet_hour_is_loaded_now() -> None:
    """C4, P3: else it has been idle, and past its residency, from its first moment on."""
    world = World(*an_approved_node(), *a_model()).after(3_600)
    rehearsal = Rehearsal(world.view())
    rehearsal.play(apply(world.fleet, read("- {model_name: m, min_replicas: 1}")))
    assert [state.loaded_ns for state in rehearsal.fleet.replicas.values()] == [world.now_ns]


def test_whoever_applies_is_told_what_comes_back_and_what_is_kept() -> None:
    """S1, S3, R5: accepted all the same."""
    world = World(*an_approved_node(), *a_model("a"), *a_ready_replica(model="a", groups=("g",)))
    world.append(ModelScheduleSet(model=M, schedule=Schedule(mode=Autoscale(1)), source="file"))
    configuration = read("- {model_name: m, min_replicas: 2}\n- {model_name: x, node_selector: tier=gpu}")
    told = warnings(world.fleet, configuration, apply(world.fleet, configuration))
    assert any("comes from file" in text for text in told)
    assert any("x is not defined yet" in text for text in told)
    assert any("no node matches tier=gpu" in text for text in told)


def test_faults_of_all_documents_are_told_together_parsed_or_not() -> None:
    """S2."""
    good = Document(*parse_text("- {model_name: m, min_replicas: -1}", name="b.yaml", source="api"))
    with pytest.raises(InvalidEntriesError) as torn:
        parse_text("models: [", name="a.yaml", source="api")
    with pytest.raises(InvalidEntriesError) as refused:
        read_documents([good], unread=[torn.value])
    assert [(error["document"], error["field"]) for error in refused.value.errors] == [
        ("a.yaml", "document"),
        ("b.yaml", "min_replicas"),
    ]


def test_a_few_lines_that_stand_for_billions_are_refused() -> None:
    """YAML's aliases: nine levels of nine are a third of a billion values in half a kilobyte."""
    levels = [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9) if n else '0'}]" for n in range(10)]
    with pytest.raises(InvalidEntriesError, match=str(PARTS_MAX)):
        parse_text("\n".join(levels), name="bomb.yaml", source="api")


MODELS = st.fixed_dictionaries(
    {
        "vram": st.sampled_from(["1GiB", "9GiB", "20GiB", "30GiB"]),
        "concurrency_groups": st.lists(st.sampled_from(["g", "h"]), max_size=2),
        "command": st.just(["serve"]),
    }
)
SCHEDULES = st.one_of(
    st.just({"replicas": "all"}),
    st.builds(
        lambda floor, more, limit: {
            "min_replicas": floor,
            "max_replicas": floor + more,
            "max_per_node": limit,
        },
        st.integers(0, 3),
        st.integers(0, 2),
        st.integers(1, 2),
    ),
)
ENTRIES = st.dictionaries(st.sampled_from("abcd"), st.tuples(MODELS, SCHEDULES), max_size=4)


def configured(entries: dict[str, tuple[dict[str, object], dict[str, object]]]) -> Configuration:
    document = {
        "models": [{"name": name, **model} for name, (model, _) in entries.items()],
        "schedules": [{"model_name": name, **schedule} for name, (_, schedule) in entries.items()],
    }
    return read_documents([Document(document, "drawn", "api")])


@settings(max_examples=60)
@over(before=ENTRIES, after=ENTRIES, nodes=st.integers(0, 3), prune=st.booleans())
def test_a_plan_promises_what_apply_leads_to(
    before: dict[str, tuple[dict[str, object], dict[str, object]]],
    after: dict[str, tuple[dict[str, object], dict[str, object]]],
    nodes: int,
    prune: bool,  # noqa: FBT001 - drawn by name
) -> None:
    """S3: replicas as the plan tells them are those that are there once reconciler and workers have settled."""
    world = World(*(event for number in range(nodes) for event in an_approved_node(f"n{number}", slots=2)))
    applied(world, configured(before))
    world.live()
    wanted = configured(after)
    rehearsal = Rehearsal(world.view())
    events = apply(world.fleet, wanted, prune=prune)
    held = {replica: (state.model, state.node) for replica, state in world.fleet.replicas.items()}
    found = consequences(rehearsal, events, wanted)
    world.append(*events)
    world.live()
    ended = {each.replica for each in found.endings}
    promised = [at for replica, at in held.items() if replica not in ended]
    promised += [(each.model, each.node) for each in found.placements]
    assert found.complete
    assert sorted(promised) == sorted((state.model, state.node) for state in world.fleet.replicas.values())
