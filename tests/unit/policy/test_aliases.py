"""Other names of models: one holder each, refused to a second, and handed on when the first gives them up."""

from collections.abc import Iterable

import pytest
from hypothesis import given as over
from hypothesis import strategies as st

from modelyard_events.envelope import AnyEvent
from modelyard_events.ids import ModelName
from modelyard_events.model import ModelAliasClaimed, ModelDefined, ModelRemoved
from modelyard_events.spec import ModelSpec, Schedule, revision_of
from modelyard_projections.fleet import Fleet
from modelyard_services.errors import ConflictError, InvalidEntriesError, InvalidRequestError
from modelyard_services.policy.apply import apply, parts
from modelyard_services.policy.configuration import Configuration, Document, read_documents
from modelyard_services.policy.models import ALIASES_MAX, define
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


def claimed(events: Iterable[AnyEvent]) -> list[tuple[str, str]]:
    return [(event.model, event.holder) for event in events if isinstance(event, ModelAliasClaimed)]


def test_a_name_is_claimed_where_others_who_want_it_write_and_only_when_it_is_gained() -> None:
    """DESIGN 2: a decision writes to what it relied on; a definition without aliases writes to its model alone."""
    m = ModelName("m")
    fleet = given().fleet
    assert not claimed(define(fleet, model=m, spec=spec()))
    first = define(fleet, model=m, spec=spec("x", "y"))
    assert claimed(first) == [("x", "m"), ("y", "m")]
    record(fleet, *first)
    assert claimed(define(fleet, model=m, spec=spec("y", "z"))) == [("z", "m")]
    assert not claimed(define(fleet, model=m, spec=spec("x")))
    assert not define(fleet, model=m, spec=spec("x", "y"))
    assert fleet.models.keys() == {"m"}
    assert fleet.guard_of(defined("x")) == fleet.sequence - 1


def test_a_model_has_so_many_aliases_that_they_fit_one_append() -> None:
    names = [f"alias-{number}" for number in range(ALIASES_MAX + 1)]
    m = ModelName("m")
    given().when(lambda fleet: define(fleet, model=m, spec=spec(*names))).then_raises(InvalidRequestError, "101")
    assert len(given().when(lambda fleet: define(fleet, model=m, spec=spec(*names[1:]))).events) == ALIASES_MAX + 1


def test_a_start_claims_all_aliases_in_appends_that_each_hold_them() -> None:
    """S3."""
    models: list[dict[str, object]] = [
        {"name": f"m{n}", "aliases": [f"m{n}-{also}" for also in range(ALIASES_MAX)]} for n in range(30)
    ]
    fleet = Fleet()
    for part in parts(read(*models)):
        record(fleet, *apply(fleet, part))
    assert (len(fleet.models), len(fleet.aliases)) == (30, 30 * ALIASES_MAX)


def test_of_two_that_raced_for_an_alias_in_an_older_log_the_second_gets_it_when_the_first_gives_it_up() -> None:
    """From before names were claimed; the fold decides, and everywhere the same."""
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
