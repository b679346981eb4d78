"""Tables are read at 80 columns, copied from, and show what stands there, whatever it looks like."""

import pytest
from rich.cells import cell_len
from rich.console import Console

from modelyard_services.cli import tables

ID = "r-2rbr3x3th4xfiapd"
PROSE = "the command 'serve' isn't on this node, or isn't executable; put it there, or correct the model's command"


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal of 80 columns."""

    def narrow(*, errors: bool = False) -> Console:
        return Console(stderr=errors, force_terminal=True, width=80, color_system=None)

    monkeypatch.setattr(tables, "console", narrow)


def test_what_looks_like_markup_is_shown_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    """One model of that name would have ended every list with a trace."""
    tables.table([("[/bold]x", "[red]y[/red]", None, True)], "A[/b]", "B", "C", "D")
    tables.line("model [/bold]x defined [red]")
    head, row, line = capsys.readouterr().out.splitlines()
    assert head.split() == ["A[/b]", "B", "C", "D"]
    assert row.split() == ["[/bold]x", "[red]y[/red]", "-", "true"]
    assert line == "model [/bold]x defined [red]"


@pytest.mark.usefixtures("terminal")
def test_prose_wraps_at_a_narrow_terminal_and_nothing_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    tables.table([("whisper", "yes", "8aa059184c9f", PROSE)], "MODEL", "DEFINED", "REVISION", "TROUBLE")
    lines = capsys.readouterr().out.splitlines()
    assert all(cell_len(line.rstrip()) <= 80 for line in lines)
    assert " ".join(" ".join(lines[1:]).split()).startswith("whisper yes 8aa059184c9f the command")
    for word in PROSE.split():
        assert word in " ".join(lines)


@pytest.mark.usefixtures("terminal")
def test_names_and_ids_stay_in_one_piece_however_narrow_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """What can't be copied from a table can't be used in the next command."""
    columns = [f"COLUMN {number}" for number in range(8)]
    tables.table([[ID] * 8], *columns)
    assert capsys.readouterr().out.splitlines()[1].split() == [ID] * 8
