"""Documents judged whole: each mistake has its line and its field, all are told at once, and none gets through."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard_events.ids import ModelName
from modelyard_events.spec import Autoscale, SecretRef, SpreadAll
from modelyard_projections.fleet import Fleet
from modelyard_services.effects.documents import DEPTH_MAX, parse_text
from modelyard_services.errors import InvalidEntriesError
from modelyard_services.policy.apply import apply
from modelyard_services.policy.configuration import Configuration, Document, read_documents, read_model, read_schedule
from modelyard_services.policy.entries import ScheduleBody
from modelyard_services.policy.faults import Fault

M = ModelName("m")


def read(text: str) -> Configuration:
    return read_documents([Document(*parse_text(text, name="f", source="file"))])


def faults(text: str) -> list[tuple[int | None, str]]:
    """Line and field of each fault."""
    with pytest.raises(InvalidEntriesError) as refused:
        read(text)
    found = msgspec.convert(refused.value.errors, list[Fault])
    return [(fault.line, fault.field) for fault in found]


@pytest.mark.parametrize(
    ("entry", "mode"),
    [
        ("replicas: all", SpreadAll()),
        ("replicas: true", SpreadAll()),
        ("spread_all: true", SpreadAll()),
        ("replicas: all\n  spread_all: true", SpreadAll()),
        ("replicas: ''", Autoscale()),
        ("replicas: auto", Autoscale()),
        ("replicas: false", Autoscale()),
        ("replicas: null", Autoscale()),
        ("min_replicas: 2", Autoscale(2, 0)),
        ("min_replicas: 2\n  max_replicas: 2\n  replicas: auto", Autoscale(2, 2)),
        ("replicas: all\n  min_replicas: 0\n  max_replicas: 0", SpreadAll()),
    ],
)
def test_replicas_are_all_or_a_range(entry: str, mode: object) -> None:
    """S1, S2."""
    assert read(f"- model_name: m\n  {entry}").schedules[M].schedule.mode == mode


@pytest.mark.parametrize(
    ("entry", "field"),
    [
        ("replicas: 3", "replicas"),
        ("replicas: some", "replicas"),
        ("replicas: 2.5", "replicas"),
        ("min_replicas: -1", "min_replicas"),
        ("max_replicas: -1", "max_replicas"),
        ("min_replicas: 3\n  max_replicas: 2", "min_replicas"),
        ("min_replicas: 99999999999999999999", "min_replicas"),
        ("replicas: all\n  min_replicas: 1", "replicas"),
        ("spread_all: true\n  max_replicas: 1", "spread_all"),
        ("replicas: all\n  spread_all: false", "spread_all"),
        ("target_in_flight: -1", "target_in_flight"),
        ("target_in_flight: .nan", "target_in_flight"),
        ("target_in_flight: .inf", "target_in_flight"),
        ("idle_timeout_seconds: 0", "idle_timeout_seconds"),
        ("max_per_node: 0", "max_per_node"),
        ("max_per_node: 99999999999999999999", "max_per_node"),
        ("gpus: 65", "gpus"),
        ("gpus: two", "gpus"),
        ("placement: anywhere", "placement"),
        ("node_selector: '  '", "node_selector"),
        ("node_selector: ','", "node_selector"),
        ("node_selector: a in ()", "node_selector"),
        ("node_selector: a=1,a=2", "node_selector"),
        ("node_selector: {gpu: 1}", "node_selector"),
        ("min_replica: 1", "min_replica"),
    ],
)
def test_a_schedule_that_can_not_be_meant_is_refused_by_the_name_of_its_field(entry: str, field: str) -> None:
    """S2, N7: of a number that isn't one to two modes at once; nothing of it gets into the log."""
    assert [name for _, name in faults(f"- model_name: m\n  {entry}")] == [field]


@pytest.mark.parametrize(
    ("entry", "field"),
    [
        ("vram: 99999999999999999999", "vram"),
        ("vram: .inf", "vram"),
        ("max_concurrency: 0", "max_concurrency"),
        ("max_concurrency: 99999999999999999999", "max_concurrency"),
        ('working_directory: "a\\0b"', "working_directory"),
        ('environment: {A: "\\ud800"}', "environment"),
        ("environment: {'A=B': x}", "environment"),
        ("environment: {'': x}", "environment"),
        ("environment: {A: {from_env: X, from_file: /y}}", "environment"),
        ("health: {http: nowhere}", "health"),
    ],
)
def test_a_model_that_no_worker_could_start_is_refused_by_the_name_of_its_field(entry: str, field: str) -> None:
    assert [name for _, name in faults(f"models:\n- name: m\n  command: [x]\n  {entry}")] == [field]


def test_a_command_that_is_empty_or_has_an_empty_word_is_refused() -> None:
    for command in ("[]", "['']", "[a, '']"):
        assert faults(f"models:\n- name: m\n  command: {command}") == [(3, "command")]


def test_what_is_written_twice_is_told_with_all_other_faults() -> None:
    """S2: YAML would take the last one in silence."""
    text = "- model_name: m\n  min_replicas: 1\n  min_replicas: 2\n- model_name: n\n  gpus: 0\n"
    assert faults(text) == [(3, "min_replicas"), (5, "gpus")]


@pytest.mark.parametrize(
    "text",
    [
        "&a [*a]",
        "[" * 5_000 + "]" * 5_000,
        "[" * (DEPTH_MAX + 2) + "]" * (DEPTH_MAX + 2),
        "{[a, b]: c}",
        "? {a: b}\n: c",
    ],
    ids=["holds itself", "deep", "a little too deep", "a list as key", "a mapping as key"],
)
def test_a_document_of_an_impossible_form_is_refused(text: str) -> None:
    """S2."""
    assert [field for _, field in faults(text)] == ["document"]


def test_the_later_of_two_entries_wins_with_a_warning() -> None:
    """S3."""
    documents = [
        Document([{"model_name": "m", "min_replicas": 1}], "MODELYARD_MODEL_SCHEDULING", "env"),
        Document([{"model_name": "m", "min_replicas": 2}], "fleet.yaml", "file"),
    ]
    configuration = read_documents(documents)
    assert configuration.schedules[M].schedule.mode == Autoscale(2)
    assert configuration.schedules[M].source == "file"
    assert configuration.warnings == ("fleet.yaml: 'm' was scheduled before; this entry wins",)


DEFAULTS = """\
models:
- {name: plain, command: [serve]}
- {name: own, command: [serve], vram: null, environment: {HF_HOME: /mine, MORE: "1"}, pinned: false}
defaults:
  vram: 2GiB
  pinned: true
  environment: {HF_HOME: /srv/hf, TOKEN: {from_env: HF_TOKEN}}
"""


def test_a_document_s_defaults_hold_for_its_models_unless_they_say_otherwise() -> None:
    """S1: wherever they stand; the environment variable by variable."""
    document = Document(*parse_text(DEFAULTS, name="f", source="file"))
    other = Document({"models": [{"name": "elsewhere", "command": ["serve"]}]}, "g", "file")
    models = read_documents([document, other]).models
    plain, own, elsewhere = (models[ModelName(name)] for name in ("plain", "own", "elsewhere"))
    assert (plain.vram, plain.pinned, plain.environment["HF_HOME"]) == (2 * 2**30, True, "/srv/hf")
    assert (own.vram, own.pinned) == (None, False)
    assert own.environment == {"HF_HOME": "/mine", "TOKEN": SecretRef(from_env="HF_TOKEN"), "MORE": "1"}
    assert (elsewhere.vram, elsewhere.environment) == (None, {})


def test_a_mistake_in_defaults_is_told_once_and_where_it_stands() -> None:
    """S2."""
    assert faults(DEFAULTS.replace("2GiB", "-2").replace("pinned: true", "pined: true")) == [(6, "pined")]
    assert faults("defaults: [x]\nmodels: [{name: m, command: [x]}]") == [(1, "defaults")]


@pytest.mark.parametrize(
    ("entry", "at", "told"),
    [
        (
            'command: [serve, "--port={prot}"]',
            (3, "command"),
            "{prot}, which no node fills in; known are {port} {host} {model}",
        ),
        ('command: [serve, "{NAME}"]', (3, "command"), "holds {NAME}, which no node fills in"),
        (
            'command: [x]\n  environment:\n    A: b\n    U: "http://{hots}"',
            (6, "environment.U"),
            "holds {hots}, which",
        ),
        ('command: [x, "{name}"]', (3, "command"), r"for the text itself write \{name}"),
    ],
)
def test_a_name_in_braces_that_no_node_fills_is_refused(entry: str, at: tuple[int, str], told: str) -> None:
    """W3: a slip of the pen would reach the backend as it is, which fails far from where it was written."""
    document = f"models:\n- name: m\n  {entry}\n"
    with pytest.raises(InvalidEntriesError) as refused:
        read(document)
    (fault,) = msgspec.convert(refused.value.errors, list[Fault])
    assert (fault.line, fault.field) == at
    assert told in fault.problem
    assert "{" in fault.value


def test_a_slip_in_the_defaults_is_told_once_and_other_braces_are_none() -> None:
    """W3: JSON, shells and templates have braces of their own; a backslash makes a name in braces plain text."""
    slip = 'defaults:\n  environment: {A: "{prot}"}\nmodels:\n- {name: a, command: [x]}\n- {name: b, command: [x]}\n'
    assert faults(slip) == [(2, "environment.A")]
    words = ["{port}", '{"a":1}', '{"a": {"b": "{model}"}}', "${HOME}", "{{name}}", "{}", "{0}", "{ a }", r"\{name}"]
    assert read_model({"command": words, "environment": {"A": words[1]}}, name="m").command == tuple(words)


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8))
ENTRIES = st.dictionaries(
    st.sampled_from(ScheduleBody.__struct_fields__),
    st.one_of(SCALARS, st.sampled_from(["all", "spread", "binpack", "session", 1, 2, 0.5])),
    max_size=4,
)


@given(ENTRIES)
def test_whatever_is_accepted_is_read_back_from_the_log(entry: dict[str, Any]) -> None:
    """S2: an event that its own type refuses would stop every process that reads it."""
    try:
        schedule = read_schedule(entry, name="drawn")
    except InvalidEntriesError:
        return
    (event,) = apply(Fleet(), read_documents([Document([{"model_name": "m", **entry}], "drawn", "api")]))
    assert msgspec.json.decode(msgspec.json.encode(event), type=type(event)).schedule == schedule  # type: ignore[union-attr]
