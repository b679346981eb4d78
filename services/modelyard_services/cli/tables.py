"""Tables and lines for people.

Invariant: what a table shows is never read as markup, and names, ids and figures are never cut or broken: prose wraps
to the terminal, and where the rest alone is wider than that, the terminal wraps the line.
"""

import sys
from collections.abc import Iterable, Sequence
from typing import Final

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDTH_MAX: Final = 10_000
"""Of a line that goes to a file or a program: there a wrapped cell is a broken one."""

PROSE: Final = frozenset(
    {"TROUBLE", "WHY NOT", "UNSATISFIABLE", "NOTE", "LABELS", "NODES", "FOUND", "TO DO", "WHAT FOR", "OUTCOME", ""}
)
"""Columns that may wrap: texts of several words, whose lines read well below one another."""

PROSE_WIDTH_MIN: Final = 24
"""A narrower column of prose is harder to read than a line that the terminal wraps."""

GAP: Final = 2


def table(rows: Iterable[Sequence[object]], *columns: str) -> None:
    """Print `rows` under `columns`."""
    texts = [[_cell(value) for value in row] for row in rows]
    shown = Table(box=None, pad_edge=False, header_style="bold", padding=(0, GAP, 0, 0), collapse_padding=True)
    for column in columns:
        shown.add_column(Text(column), no_wrap=column not in PROSE, overflow="fold")
    for row in texts:
        shown.add_row(*map(Text, row))
    out = console()
    if out.is_terminal:
        out.width = max(out.width, _least(texts, columns))
    out.print(shown)


def line(text: str, *, style: str | None = None, errors: bool = False) -> None:
    """Print one line, as it stands."""
    out = console(errors=errors)
    out.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


def console(*, errors: bool = False) -> Console:
    """Where people read; as wide as the text needs when it isn't a terminal, so that nothing is cut."""
    terminal = (sys.stderr if errors else sys.stdout).isatty()
    return Console(stderr=errors, soft_wrap=not terminal, width=None if terminal else WIDTH_MAX)


def _cell(value: object) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return str(value).lower()
        case _:
            return str(value)


def _least(texts: Sequence[Sequence[str]], columns: Sequence[str]) -> int:
    """The width below which something would be cut or hard to read."""
    widths = [max(cell_len(part) for part in parts) for parts in zip(columns, *texts, strict=True)]
    least = [
        min(width, PROSE_WIDTH_MIN) if column in PROSE else width for column, width in zip(columns, widths, strict=True)
    ]
    return sum(least) + GAP * (len(columns) - 1)
