"""Other names of models: one holder each, refused to a second, and handed on when the first gives them up."""

import pytest
from hypothesis import given as over
from hypothesis import strategies as st

from modelyard_events.ids import ModelName
from modelyard_events.model import ModelDefined, ModelRemoved
from modelyard_events.spec import ModelSpec, Schedule, revision_of
from modelyard_projections.fleet import Fleet
from modelyard_services.errors import ConflictError, InvalidEntriesError
from modelyard_services.policy.apply import apply
from modelyard_services.policy.configuration import Configuration, Document, read_documents
from modelyard_services.policy.models import define
from modelyard_services.policy.schedules import schedule_warnings, set_schedule
from tests.support.given import given, record


def spec(*aliases: str) -> ModelSpec:
    return ModelSpec(command=("serve",), vram=1, aliases=aliases)


def defined(model: str, *aliases: str) -> ModelDefined:
    return ModelDefined(model=model, spec=spec(*aliases), revision=revision_of(spec()))


def read(*models: dict[str, object]) -> Configuration:
    return read_documents(
        [Document({"models": [{"command": ["serve"], "vram": 1, **each} for each in models]}, "f", "api")]
    )


def test_an_alias_means_its_model_and_a_name_means_itself() -> None:
    fleet = given(defined("m", "gpt-4", " chat ", "chat")).fleet
    assert [fleet.model_named(name) for name in ("m", "gpt-4", "chat", "x")] == ["m", "m", "m", "x"]
    record(fleet, ModelRemoved(model="m"))
    assert fleet.model_named("gpt-4") == "gpt-4"
    assert fleet.aliases == {}


def test_aliases_leave_the_revision_alone() -> None:
    """R6: the process runs on."""
    assert revision_of(spec("a")) == revision_of(spec())


@pytest.mark.parametrize(
    ("model", "aliases", "says"),
    [
        ("n", ("gpt-4",), "'gpt-4' is an alias of model 'm' already"),
        ("n", ("m",), "'m' is a model"),
        ("gpt-4", (), "'gpt-4' is an alias of model 'm' already"),
        ("n", ("n",), "'n' is a model"),
    ],
)
def test_a_name_that_is_anothers_is_refused(model: str, aliases: tuple[str, ...], says: str) -> None:
    given(defined("m", "gpt-4")).when(
        lambda fleet: define(fleet, model=ModelName(model), spec=spec(*aliases))
    ).then_raises(ConflictError, says)


def test_two_models_of_one_document_that_claim_one_name_are_told_with_their_line() -> None:
    """S2."""
    with pytest.raises(InvalidEntriesError) as refused:
        read({"name": "a", "aliases": ["x", "b"]}, {"name": "b", "aliases": ["x"]}, {"name": "c", "aliases": ["c"]})
    assert [fault["problem"] for fault in refused.value.errors] == [
        "'b' is a name of model 'b'",
        "'x' is an alias of model 'a'",
        "'c' is a name of model 'c'",
    ]
    with pytest.raises(InvalidEntriesError, match="index"):
        read({"name": "a", "aliases": ["x#1"]})


def test_an_alias_moves_from_one_model_to_another_in_one_apply_whatever_their_order() -> None:
    """S3."""
    for first, second in (("a", "b"), ("b", "a")):
        fleet = given(defined("a", "x"), defined("b")).fleet
        moved: dict[str, dict[str, object]] = {"a": {"name": "a"}, "b": {"name": "b", "aliases": ["x"]}}
        record(fleet, *apply(fleet, read(moved[first], moved[second])))
        assert fleet.model_named("x") == "b"


def test_an_alias_of_a_model_that_is_pruned_is_free_in_the_same_apply() -> None:
    """S3."""
    fleet = given(defined("a", "x")).fleet
    record(fleet, *apply(fleet, read({"name": "x"}), prune=True))
    assert (fleet.model_named("x"), fleet.aliases) == ("x", {})


def test_of_two_that_raced_for_an_alias_the_second_gets_it_when_the_first_gives_it_up() -> None:
    """Two appends on two models can't see each other; the fold decides, and everywhere the same."""
    fleet = given(defined("a", "x"), defined("b", "x")).fleet
    assert fleet.model_named("x") == "a"
    record(fleet, ModelRemoved(model="a"))
    assert fleet.model_named("x") == "b"


def test_a_model_of_that_name_goes_before_an_alias() -> None:
    assert given(defined("a", "x"), defined("x")).fleet.model_named("x") == "x"


def test_a_schedule_for_an_alias_is_kept_and_told_to_do_nothing() -> None:
    """S1."""
    fleet = given(defined("m", "x")).fleet
    record(fleet, *set_schedule(fleet, model=ModelName("x"), schedule=Schedule(), source="api"))
    assert fleet.model_named("x") == "m"
    (told, *_) = schedule_warnings(fleet, model=ModelName("x"), schedule=Schedule(), source="api")
    assert told == "x is an alias of model m; schedule that one, this does nothing for it"


NAMES = st.sampled_from("abcd")
CHANGES = st.lists(st.tuples(NAMES, st.none() | st.lists(NAMES, max_size=3)), max_size=12)


@over(CHANGES)
def test_whatever_is_accepted_no_two_models_answer_to_one_name(changes: list[tuple[str, list[str] | None]]) -> None:
    fleet = Fleet()
    for model, aliases in changes:
        state = fleet.models.get(ModelName(model))
        if aliases is None:
            record(fleet, *([ModelRemoved(model=model)] if state is not None else []))
            continue
        try:
            record(fleet, *define(fleet, model=ModelName(model), spec=spec(*aliases)))
        except ConflictError:
            continue
    answers = [name for state in fleet.models.values() if state.spec for name in (state.name, *state.spec.aliases)]
    assert len(answers) == len(set(answers))
    for state in fleet.models.values():
        assert state.spec is not None
        assert {fleet.model_named(name) for name in (state.name, *state.spec.aliases)} == {state.name}
    assert fleet.aliases.keys() == {
        alias for state in fleet.models.values() for alias in (state.spec or spec()).aliases
    }
