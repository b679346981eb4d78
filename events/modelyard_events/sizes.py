"""Sizes as people write them: `80%`, `0.5`, `12GB`, `12GiB`, plain bytes (rule N12).

Invariant: a size is never negative and never a guess; what can't be read is refused by name.
"""

import re
from typing import Final

import msgspec

from modelyard_events.errors import InvalidValueError

_DECIMAL: Final = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_BINARY: Final = {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_UNITS: Final = _DECIMAL | _BINARY
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", re.ASCII)
_PERCENT: Final = re.compile(r"(\d+(?:\.\d+)?)\s*%", re.ASCII)

SIZE_MAX: Final = 2**60
"""One exbibyte: beyond any machine, and small enough for PostgreSQL's bigint sums."""


class Bytes(msgspec.Struct, frozen=True, tag="bytes"):
    """A budget as a number of bytes."""

    value: int


class Fraction(msgspec.Struct, frozen=True, tag="fraction"):
    """A budget as a share of what the node has, in (0, 1]."""

    value: float


VramBudget = Bytes | Fraction


def parse_size(text: str | int, *, field: str) -> int:
    """Bytes in `text` (`512MiB`, `12GB`, `4096`).

    Raises:
        InvalidValueError: it isn't a size.
    """
    if isinstance(text, int) and not isinstance(text, bool):
        return _bounded(text, field=field, given=text)
    match = _SIZE.fullmatch(str(text).strip())
    unit = match.group(2).upper() if match else None
    if match is None or unit not in _UNITS:
        raise InvalidValueError(field, text, "is not a size; write bytes, 512MiB, 12GB or 12GiB")
    number = float(match.group(1))
    if unit == "" and not number.is_integer():
        raise InvalidValueError(field, text, "is not a whole number of bytes; add a unit, for example 1.5GiB")
    return _bounded(round(number * _UNITS[unit]), field=field, given=text)


def parse_vram_budget(text: str | float | None, *, field: str = "vram_budget") -> VramBudget | None:
    """The budget in `text`, None for none (empty or `0`). Fractions lie in (0, 1]; over 100 % is refused.

    Raises:
        InvalidValueError: it isn't a budget.
    """
    stripped = "" if text is None else str(text).strip()
    if stripped in {"", "0", "0%", "0.0"}:
        return None
    percent = _PERCENT.fullmatch(stripped)
    if percent:
        return _fraction(float(percent.group(1)) / 100, field=field, given=stripped)
    if "." in stripped and _SIZE.fullmatch(stripped) and stripped[-1].isdigit():
        return _fraction(float(stripped), field=field, given=stripped)
    if stripped == "1":
        return Fraction(1.0)
    try:
        return Bytes(parse_size(stripped, field=field))
    except InvalidValueError as error:
        raise InvalidValueError(
            field, text, "is not a budget; write 80%, a fraction in (0,1], 12GB, 12GiB or bytes"
        ) from error


def resolve_budget(budget: VramBudget | None, *, total: int) -> int:
    """Bytes a node may use: the budget, never more than `total`; all of it when there is no budget."""
    match budget:
        case None:
            return total
        case Bytes(value):
            return min(value, total)
        case Fraction(value):
            return int(total * value)


def format_size(value: int) -> str:
    """`value` bytes for people, binary units, one decimal: `2.1 GiB`."""
    amount = float(value)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(amount) < 1024:  # noqa: PLR2004 - the step between binary units
            return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def format_budget(budget: VramBudget | None) -> str | None:
    """The budget as its grammar writes it, so that it can be given again."""
    match budget:
        case None:
            return None
        case Bytes(value):
            return str(value)
        case Fraction(value):
            return f"{value * 100:g}%"


def _fraction(value: float, *, field: str, given: str) -> Fraction:
    if not 0 < value <= 1:
        raise InvalidValueError(field, given, "is over 100 %; a share lies in (0, 100 %]")
    return Fraction(value)


def _bounded(value: int, *, field: str, given: object) -> int:
    if not 0 <= value <= SIZE_MAX:
        raise InvalidValueError(field, given, f"is out of range; sizes lie in 0 … {SIZE_MAX} bytes")
    return value
