"""What people may write: sizes, names, selectors (rules N5, N7, N12, W2)."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard_events.errors import InvalidValueError
from modelyard_events.ids import LabelKey
from modelyard_events.names import label_value, model_name, node_name, operator_label_key
from modelyard_events.selectors import (
    Absent,
    Equals,
    Exists,
    In,
    NotEquals,
    NotIn,
    Selector,
    Term,
    contradiction,
    format_selector,
    matches,
    parse_selector,
)
from modelyard_events.sizes import (
    Bytes,
    Fraction,
    format_budget,
    format_size,
    parse_size,
    parse_vram_budget,
    resolve_budget,
)
from modelyard_events.subjects import escape_name, model_subject, node_of_subject, node_subject, unescape_name

GIB = 2**30


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("80%", Fraction(0.8)),
        ("0.5", Fraction(0.5)),
        ("1", Fraction(1.0)),
        ("100%", Fraction(1.0)),
        ("12GB", Bytes(12 * 10**9)),
        ("12 GiB", Bytes(12 * GIB)),
        ("1.5gib", Bytes(3 * GIB // 2)),
        ("4096", Bytes(4096)),
        ("", None),
        ("0", None),
        (None, None),
    ],
)
def test_a_budget_is_written_in_percent_fractions_or_bytes(text: str | None, budget: object) -> None:
    """N12."""
    assert parse_vram_budget(text) == budget


@pytest.mark.parametrize(
    "text", ["-3GB", "120%", "1.5", "lots", "12XB", "GB", "0x10", "1e3", "\u0661\u0662GB", "NaN", "inf"]
)
def test_nonsense_is_no_budget_and_the_error_names_field_and_value(text: str) -> None:
    """N12."""
    with pytest.raises(InvalidValueError) as refused:
        parse_vram_budget(text)
    assert refused.value.field == "vram_budget"
    assert refused.value.value == text


def test_a_budget_never_exceeds_what_there_is() -> None:
    assert resolve_budget(Bytes(100), total=60) == 60
    assert resolve_budget(Fraction(0.5), total=60) == 30
    assert resolve_budget(None, total=60) == 60


@given(st.one_of(st.none(), st.integers(2, 2**50).map(Bytes), st.sampled_from([0.1, 0.25, 0.8, 1.0]).map(Fraction)))
def test_a_budget_can_be_given_again_as_it_is_shown(budget: Bytes | Fraction | None) -> None:
    assert parse_vram_budget(format_budget(budget)) == budget


def test_sizes_are_shown_with_one_decimal() -> None:
    assert [format_size(n) for n in (512, 2048, 3 * GIB // 2, 2 * 2**40)] == ["512 B", "2.0 KiB", "1.5 GiB", "2.0 TiB"]


def test_a_size_out_of_range_is_refused() -> None:
    with pytest.raises(InvalidValueError):
        parse_size("99999999TiB", field="vram")


@pytest.mark.parametrize(
    ("name", "token"),
    [("Qwen/Qwen3-32B:q4", "Qwen/Qwen3-32B:q4"), ("a b.c", "a=20b=2Ec"), ("*>", "=2A=3E"), ("ä=20", "=C3=A4=3D20")],
)
def test_names_become_one_subject_token(name: str, token: str) -> None:
    assert escape_name(name) == token
    assert unescape_name(token) == name


@given(st.text(min_size=1, max_size=50))
def test_every_name_comes_back_from_its_token(name: str) -> None:
    token = escape_name(name)
    assert unescape_name(token) == name
    assert not set(token) & set(". *>\t\r\n")


@pytest.mark.parametrize("token", ["a=2", "=zz", "=41", "=FF", "a.b"])
def test_a_token_that_no_name_gives_is_refused(token: str) -> None:
    with pytest.raises(InvalidValueError):
        unescape_name(token)


def test_a_subject_tells_its_node() -> None:
    name = node_name("rack.1/gpu")
    assert node_of_subject(node_subject(name)) == name
    assert node_of_subject(model_subject(model_name("m"))) is None


@pytest.mark.parametrize("name", ["", "x" * 254, "a b", "a\n", "a\x00b", "\u2028"])
def test_names_are_printable_without_white_space_and_at_most_253_characters(name: str) -> None:
    """W2."""
    with pytest.raises(InvalidValueError):
        node_name(name)


def test_a_model_name_has_no_hash_sign() -> None:
    """W2: any other printable sign will do."""
    for name in ("Qwen/Qwen3-32B:q4", "modèle_1.5+fine@tuned%", "名前"):
        assert model_name(name) == name
    with pytest.raises(InvalidValueError):
        model_name("m#1")


@pytest.mark.parametrize("key", ["gpu.vram", "node.name", "", "a=b", "a,b", "(a)"])
def test_system_keys_and_odd_characters_are_refused_as_label_keys(key: str) -> None:
    """N5."""
    with pytest.raises(InvalidValueError):
        operator_label_key(key)


def test_a_label_key_may_hold_a_slash_and_a_dot() -> None:
    assert operator_label_key("nvidia.com/gpu") == "nvidia.com/gpu"


@pytest.mark.parametrize("value", ["a,b", "x" * 256, "a b", "(x)", "a\tb"])
def test_odd_label_values_are_refused(value: str) -> None:
    with pytest.raises(InvalidValueError):
        label_value(value)


@pytest.mark.parametrize(
    ("text", "labels", "holds"),
    [
        ("tier=gpu", {"tier": "gpu"}, True),
        ("tier=gpu", {"tier": "cpu"}, False),
        ("tier=gpu", {}, False),
        ("tier!=gpu", {}, True),
        ("tier!=gpu", {"tier": "cpu"}, True),
        ("tier!=gpu", {"tier": "gpu"}, False),
        ("zone in (a,b)", {"zone": "b"}, True),
        ("zone in (a,b)", {"zone": "c"}, False),
        ("zone in (a,b)", {}, False),
        ("zone notin (a, b)", {}, True),
        ("zone notin (a,b)", {"zone": "a"}, False),
        ("zone notin (a,b)", {"zone": "c"}, True),
        ("spot", {"spot": ""}, True),
        ("spot", {}, False),
        ("!spot", {}, True),
        ("!spot", {"spot": ""}, False),
        ("tier=gpu, !spot,zone in (a)", {"tier": "gpu", "zone": "a"}, True),
        ("tier=gpu, !spot,zone in (a)", {"tier": "gpu", "zone": "b"}, False),
        ("", {}, True),
    ],
)
def test_all_terms_of_a_selector_must_hold(text: str, labels: dict[str, str], *, holds: bool) -> None:
    """N7."""
    assert matches(parse_selector(text), labels) is holds


def test_a_plain_map_is_equality_on_each_key() -> None:
    """N7."""
    both = parse_selector({"tier": "gpu", "zone": "a"})
    assert both == (Equals(LabelKey("tier"), "gpu"), Equals(LabelKey("zone"), "a"))
    assert matches(both, {"tier": "gpu", "zone": "a"})
    assert not matches(both, {"tier": "gpu"})


@pytest.mark.parametrize(
    "text",
    [
        "a=b,",
        "a b",
        "in (a)",
        "=",
        ",",
        "a in b",
        "!a=b",
        "a=b c",
        "a in (",
        "a,,b",
        "  ",
        "\n",
        "a in ()",
        "a notin ( )",
    ],
)
def test_a_selector_that_parses_to_nothing_is_refused(text: str) -> None:
    """N7: it is never read as "any node"."""
    with pytest.raises(InvalidValueError) as refused:
        parse_selector(text)
    assert refused.value.field == "node_selector"


_KEYS = st.from_regex(r"[a-z][a-z0-9./-]{0,8}", fullmatch=True)
_VALUES = st.from_regex(r"[a-z0-9._-]{1,8}", fullmatch=True)


@st.composite
def _selectors(draw: st.DrawFn) -> Selector:
    terms: list[Term] = []
    for kind in draw(st.lists(st.sampled_from([Equals, In, NotIn]), max_size=4)):
        key = LabelKey(draw(_KEYS))
        values = tuple(draw(st.lists(_VALUES, min_size=1)))
        terms.append(
            Equals(key, values[0]) if kind is Equals else In(key, values) if kind is In else NotIn(key, values)
        )
    return tuple(terms)


@given(_selectors().filter(lambda selector: contradiction(selector) is None))
def test_a_selector_is_read_back_from_its_own_text(selector: Selector) -> None:
    assert parse_selector(format_selector(selector)) == selector


@pytest.mark.parametrize(
    "text", ["a=1, a=2", "a, !a", "a=1, !a", "a=1, a!=1", "a in (1,2), a notin (2,1)", "b, a in (1), a=2"]
)
def test_a_selector_that_no_labels_fulfil_is_refused(text: str) -> None:
    """N7: a node that matches will never come."""
    with pytest.raises(InvalidValueError, match="holds on no node"):
        parse_selector(text)


_FEW = st.sampled_from("abc")
_TERMS = st.one_of(
    st.builds(Equals, _FEW.map(LabelKey), _FEW),
    st.builds(NotEquals, _FEW.map(LabelKey), _FEW),
    st.builds(In, _FEW.map(LabelKey), st.lists(_FEW, min_size=1, max_size=3).map(tuple)),
    st.builds(NotIn, _FEW.map(LabelKey), st.lists(_FEW, min_size=1, max_size=3).map(tuple)),
    st.builds(Exists, _FEW.map(LabelKey)),
    st.builds(Absent, _FEW.map(LabelKey)),
)


@given(st.lists(_TERMS, max_size=5).map(tuple))
def test_a_contradiction_is_what_no_labels_fulfil_and_nothing_else(selector: Selector) -> None:
    """N7: held against every labelling of three keys with three values, one that is never named, or none."""
    values = (None, "a", "b", "c", "other")
    labellings = [
        {key: value for key, value in zip("abc", chosen, strict=True) if value is not None}
        for chosen in product(values, repeat=3)
    ]
    assert (contradiction(selector) is None) is any(matches(selector, labels) for labels in labellings)
