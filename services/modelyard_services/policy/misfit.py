"""What a type says of a value that it refuses, in the words of whoever wrote the value.

Invariant: a converter's own names (`array`, `object`, `int | null`) reach nobody: what is told is what to write.
"""

import re
from collections.abc import Iterator
from typing import Any, Final, Literal, get_args, get_origin

import msgspec

_KINDS: Final = {
    "array": "a list",
    "bool": "true or false",
    "float": "a number",
    "int": "a whole number",
    "object": "a mapping",
    "str": "a text",
}

_ANOTHER_TYPE: Final = re.compile(r"Expected `(?P<wanted>[^`]+)`, got `(?P<found>[^`]+)`")
_OUT_OF_BOUNDS: Final = re.compile(r"Expected `(?:int|float)` (?P<sign>[<>]=?) (?P<bound>\S+)")
_NO_SUCH_WORD: Final = re.compile(r"Invalid enum value")
_WITHIN: Final = re.compile(r" - at `\$(?P<path>[^`]*)`")

_BOUNDS: Final = {">": "more than {}", ">=": "{} or more", "<": "less than {}", "<=": "{} or less"}


def misfit(error: msgspec.ValidationError, hint: Any) -> str:
    """Why a value doesn't fit `hint`: `is not a list`, `is out of range; give 1 or more`, `is none of a, b`."""
    text = str(error)
    within = _WITHIN.search(text)
    where = f" (at {within['path']})" if within is not None and within["path"] else ""
    if found := _ANOTHER_TYPE.match(text):
        wanted = [_KINDS[kind] for kind in found["wanted"].split(" | ") if kind in _KINDS]
        return f"is not {' or '.join(wanted) or found['wanted']}{where}"
    if found := _OUT_OF_BOUNDS.match(text):
        bound = float(found["bound"])
        return f"is out of range; give {_BOUNDS[found['sign']].format(f'{bound:.15g}')}{where}"
    if _NO_SUCH_WORD.match(text) and (words := list(_words(hint))):
        return f"is none of {', '.join(words)}{where}"
    return text[:1].lower() + text[1:]


def _words(hint: Any) -> Iterator[str]:
    """The words that a type of fixed words allows, however it is wrapped."""
    if get_origin(hint) is Literal:
        yield from map(str, get_args(hint))
        return
    for part in get_args(hint):
        yield from _words(part)
