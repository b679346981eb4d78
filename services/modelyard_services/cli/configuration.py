"""`modelyard plan`, `modelyard apply`: models and schedules from files.

Invariant: files go to the API as they are written, so faults have their file, line and field, all of them at once.
"""

# ruff: noqa: PLC0415 - a query on the command line must not pay for loading the policy

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
from cyclopts import App, Parameter

from modelyard_events.sizes import format_size
from modelyard_services.cli import formats, tables
from modelyard_services.cli.session import CommandFailedError, Session, WrongUsageError

Here = Annotated[Session, Parameter(parse=False)]
Prune = Annotated[bool, Parameter(negative="")]


def register(app: App) -> None:
    """Put the commands on `app`."""
    app.command(plan)
    app.command(apply)
    app.command(measure)


def plan(*files: Path, prune: Prune = False, session: Here) -> None:
    """Show what `apply` would change, place and end; changes nothing.

    Parameters
    ----------
    files
        Models and schedules, YAML or JSON; the later wins.
    prune
        Also end models and clear schedules that no file lists, by section.
    """
    answer = session.call("POST", "/plan", body=_body(files, prune=prune))
    _show(session, answer, done=False)


def apply(*files: Path, prune: Prune = False, session: Here) -> None:
    """Make models and schedules as the files say, all or nothing.

    Parameters
    ----------
    files
        Models and schedules, YAML or JSON; the later wins.
    prune
        Also end models and clear schedules that no file lists, by section.
    """
    answer = session.call("POST", "/apply", body=_body(files, prune=prune))
    _show(session, answer, done=True)


def measure(*files: Path, context_length: int | None = None, session: Here) -> None:
    """Show what model files on this machine come to: weights, cache and the footprint a placement would reserve.

    Parameters
    ----------
    files
        GGUF or safetensors files, or a directory of them; of a model in parts one is enough.
    context_length
        Tokens that the cache is for; by default what the file says.
    """
    from modelyard_services.effects.model_files import FilesUnreadableError, look_at
    from modelyard_services.policy.estimate import estimate

    if not files:
        raise WrongUsageError("name at least one file")
    try:
        found = estimate(look_at([str(file.absolute()) for file in files]), context_length=context_length)
    except FilesUnreadableError as error:
        raise CommandFailedError(str(error)) from error
    if found is None:
        raise CommandFailedError(f"{', '.join(map(str, files))}: holds no weights, or more than there can be")
    answer = {**msgspec.to_builtins(found), "vram": found.size}
    rows = [("rule", found.rule), ("weights", format_size(found.weights)), ("cache", format_size(found.cache))]
    rows += [("context length", str(found.context_length or "-")), ("vram", format_size(found.size))]
    session.show(answer, rows, "MEASURED", "")


def _body(files: tuple[Path, ...], *, prune: bool) -> dict[str, Any]:
    if not files:
        raise WrongUsageError("name at least one file")
    return {"documents": [{"name": str(file), "text": _read(file)} for file in files], "prune": prune}


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandFailedError(f"{file}: can't be read: {error}") from error


def _show(session: Session, answer: dict[str, Any], *, done: bool) -> None:
    if session.as_json:
        session.show_json(answer)
        return
    for change in answer["changes"]:
        _show_change(change)
    for line in _consequences(answer["consequences"]):
        tables.line(line)
    count = len(answer["changes"])
    sequence = f"(sequence {answer['sequence']})"
    tables.line(f"{count} {'applied' if done else 'to apply'} {sequence}" if count else f"nothing to do {sequence}")
    if not answer["consequences"]["complete"]:
        tables.line("there is more to come than is shown")
    for warning in answer["warnings"]:
        tables.line(f"warning: {warning}", style="yellow")


def _show_change(change: dict[str, Any]) -> None:
    tables.line(f"{change['change']:<7} {change['kind']} {change['model']}")
    for each in change["fields"]:
        before, after = (formats.field(each["field"], each[moment]) for moment in ("before", "after"))
        was = "" if change["change"] == "added" else f"{before} -> "
        tables.line(f"          {each['field']}: {was}{after}")


def _consequences(found: dict[str, Any]) -> Iterator[str]:
    for each in found["placements"]:
        yield f"place   {each['model']}#{each['replica_index']} on {each['node']}"
    for each in found["endings"]:
        yield f"end     {each['replica']} of {each['model']} on {each['node']}: {each['reason']}"
    for each in found["unplaced"]:
        yield f"can't place {each['model']}: {_reason(each)}"


def _reason(unplaced: dict[str, Any]) -> str:
    where = "" if unplaced["document"] is None else f"{unplaced['document']}:{unplaced['line'] or '-'}: "
    field = "" if unplaced["field"] is None else f"{unplaced['field']}: "
    helps = "" if unplaced["unblock"] is None else f"; {unplaced['unblock']}"
    return f"{where}{field}{unplaced['missing']} missing: {unplaced['reason']} ({unplaced['kind']}{helps})"
