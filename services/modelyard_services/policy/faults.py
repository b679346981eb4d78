"""What is to be mended in what operators write: where it stands, which field, what is there and what would be right.

Invariant: all faults are told together, in the order in which they stand.
"""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from modelyard_services.errors import InvalidEntriesError

FAULTS_MAX: Final = 100
"""Faults told of one document; a file with more has one cause."""

VALUE_SHOWN_MAX: Final = 40
"""Characters of a value told with its fault: enough to recognise it by."""

FIGURE_SHOWN_MAX: Final = 1e18
"""A larger figure is no help, and one of thousands of digits can't even be written."""


class Fault(msgspec.Struct, frozen=True):
    """One thing to mend."""

    document: str
    line: int | None
    field: str
    value: Any
    problem: str

    def __str__(self) -> str:
        where = f"{self.document}:{self.line}" if self.line else self.document
        return f"{where}: {self.field}: {_shown(self.value)}{self.problem}"


def raise_for(faults: Sequence[Fault]) -> None:
    """Tell `faults`, if there are any.

    Raises:
        InvalidEntriesError: with every fault.
    """
    if not faults:
        return
    documents = list(dict.fromkeys(fault.document for fault in faults))
    in_order = sorted(faults, key=lambda fault: (documents.index(fault.document), fault.line or 0))
    told = in_order[:FAULTS_MAX]
    errors = [msgspec.to_builtins(fault, enc_hook=str) for fault in told]
    raise InvalidEntriesError([str(fault) for fault in told], errors=errors, field=told[0].field)


def _shown(value: Any) -> str:
    """A value that is short enough to be recognised by; a mapping or a list is at its line."""
    match value:
        case bool():
            return f"{str(value).lower()} "
        case int() | float() if abs(value) < FIGURE_SHOWN_MAX:
            return f"{value} "
        case str():
            return f"{value!r} " if len(value) <= VALUE_SHOWN_MAX else f"{value[:VALUE_SHOWN_MAX]!r}… "
        case _:
            return ""
