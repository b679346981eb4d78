"""Node selectors: which nodes a model may run on (rule N7).

Invariant: all terms must hold; an empty selector means every backend node; text and terms convert both ways.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Final, assert_never

import msgspec

from modelyard_events.errors import InvalidValueError
from modelyard_events.ids import LabelKey
from modelyard_events.names import label_key, label_value

TERMS_MAX: Final = 32
"""Terms in one selector: far above any real one, low enough to judge 5,000 nodes in a placement."""


class Equals(msgspec.Struct, frozen=True, tag="equals"):
    key: LabelKey
    value: str


class NotEquals(msgspec.Struct, frozen=True, tag="not_equals"):
    """Holds too where the key is absent, as in Kubernetes."""

    key: LabelKey
    value: str


class In(msgspec.Struct, frozen=True, tag="in"):
    key: LabelKey
    values: tuple[str, ...]


class NotIn(msgspec.Struct, frozen=True, tag="notin"):
    """Holds too where the key is absent, as in Kubernetes."""

    key: LabelKey
    values: tuple[str, ...]


class Exists(msgspec.Struct, frozen=True, tag="exists"):
    key: LabelKey


class Absent(msgspec.Struct, frozen=True, tag="absent"):
    key: LabelKey


Term = Equals | NotEquals | In | NotIn | Exists | Absent
Selector = tuple[Term, ...]

_TERM: Final = re.compile(
    r"""(?P<absent>!)?\s*(?P<key>[^\s=!,()]+)
        (?:\s*(?P<sign>!=|==|=)\s*(?P<value>[^,()\s]*)
          |\s+(?P<set>in|notin)\s*\(\s*(?P<values>[^()]*)\))?""",
    re.VERBOSE,
)


def parse_selector(given: str | Mapping[str, str] | None, *, field: str = "node_selector") -> Selector:
    """The terms of `tier=gpu, zone in (a,b), !spot`, or of a map (equality on each key).

    Raises:
        InvalidValueError: it isn't a selector.
    """
    if given is None:
        return ()
    if isinstance(given, str):
        terms = tuple(_parse_terms(given, field=field))
        if given and not terms:
            raise _unreadable(field, given)
    else:
        terms = tuple(
            Equals(label_key(key, field=field), label_value(str(value), field=field)) for key, value in given.items()
        )
    if len(terms) > TERMS_MAX:
        raise InvalidValueError(field, given, f"has {len(terms)} terms; at most {TERMS_MAX} are judged")
    if (opposed := contradiction(terms)) is not None:
        raise InvalidValueError(field, given, f"holds on no node, whatever its labels: {format_selector(opposed)}")
    return terms


def format_selector(selector: Selector) -> str:
    """The selector as text that `parse_selector` reads back."""
    return ", ".join(_format_term(term) for term in selector)


def matches(selector: Selector, labels: Mapping[str, str]) -> bool:
    """Whether every term holds for effective `labels`."""
    return all(_holds(term, labels) for term in selector)


def contradiction(selector: Selector) -> Selector | None:
    """The terms about one key that no label can fulfil together; None where some labels fulfil all."""
    by_key: dict[str, list[Term]] = {}
    for term in selector:
        by_key.setdefault(term.key, []).append(term)
    return next((tuple(terms) for terms in by_key.values() if not _possible(terms)), None)


def _possible(terms: Sequence[Term]) -> bool:
    """Whether a label could be absent, or have one of the values that are named, or one that isn't."""
    key = terms[0].key
    named = {value for term in terms for value in _values(term)}
    # Longer than all that are named, so it is none of them.
    other = max(named, key=len, default="") + "x"
    candidates = [{}, *({str(key): value} for value in (*named, other))]
    return any(matches(tuple(terms), labels) for labels in candidates)


def _values(term: Term) -> tuple[str, ...]:
    match term:
        case Equals(_, value) | NotEquals(_, value):
            return (value,)
        case In(_, values) | NotIn(_, values):
            return values
        case Exists() | Absent():
            return ()
        case _:
            assert_never(term)


def _holds(term: Term, labels: Mapping[str, str]) -> bool:
    match term:
        case Equals(key, value):
            return labels.get(key) == value
        case NotEquals(key, value):
            return labels.get(key) != value
        case In(key, values):
            return labels.get(key) in values
        case NotIn(key, values):
            return labels.get(key) not in values
        case Exists(key):
            return key in labels
        case Absent(key):
            return key not in labels
        case _:
            assert_never(term)


def _format_term(term: Term) -> str:
    match term:
        case Equals(key, value):
            return f"{key}={value}"
        case NotEquals(key, value):
            return f"{key}!={value}"
        case In(key, values):
            return f"{key} in ({','.join(values)})"
        case NotIn(key, values):
            return f"{key} notin ({','.join(values)})"
        case Exists(key):
            return key
        case Absent(key):
            return f"!{key}"
        case _:
            assert_never(term)


def _parse_terms(text: str, *, field: str) -> list[Term]:
    terms: list[Term] = []
    position = 0
    stripped = text.strip()
    while position < len(stripped):
        match = _TERM.match(stripped, position)
        if match is None:
            raise _unreadable(field, text)
        terms.append(_term(match, field=field, text=text))
        rest = stripped[match.end() :].lstrip()
        if rest and not rest.startswith(","):
            raise _unreadable(field, text)
        position = len(stripped) - len(rest.removeprefix(",").lstrip())
        if rest.startswith(",") and position >= len(stripped):
            raise _unreadable(field, text)
    return terms


def _term(match: re.Match[str], *, field: str, text: str) -> Term:
    key = label_key(match["key"], field=field)
    if match["absent"]:
        if match["sign"] or match["set"]:
            raise _unreadable(field, text)
        return Absent(key)
    if match["sign"]:
        value = label_value(match["value"].strip(), field=field)
        return NotEquals(key, value) if match["sign"] == "!=" else Equals(key, value)
    if match["set"]:
        if not match["values"].strip():
            raise InvalidValueError(field, text, f"names no value in {match['set']} ()")
        values = tuple(label_value(value.strip(), field=field) for value in match["values"].split(","))
        return In(key, values) if match["set"] == "in" else NotIn(key, values)
    return Exists(key)


def _unreadable(field: str, text: str) -> InvalidValueError:
    return InvalidValueError(
        field, text, "is not a selector; write terms like tier=gpu, zone in (a,b), key!=value, key, !key"
    )
