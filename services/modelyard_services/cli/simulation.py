"""`modelyard simulate`: stories told on the scheduler in memory; no server is needed."""

import sys
from pathlib import Path
from typing import Annotated, Final

import msgspec
from cyclopts import App, Parameter

from modelyard_services.cli.session import CommandFailedError, Session, WrongUsageError
from modelyard_services.simulation.story import Transcript, read_story, tell

CHARACTERS_MAX: Final = 1_000_000
"""Of one story: a hundred times the longest that is told here."""

Here = Annotated[Session, Parameter(parse=False)]


def register(app: App) -> None:
    """Add the command to `app`."""
    app.command(simulate)


def simulate(*files: Path, session: Here) -> None:
    """Let each story in FILES happen in memory and print its transcript; fails when an expectation does.

    Parameters
    ----------
    files
        Stories as text; docs/simulation.md has the words.
    """
    if not files:
        raise WrongUsageError("name at least one file with a story")
    failures = [(file, _simulated(file, session)) for file in files]
    failed = [f"{file}: {count} of its expectations failed" for file, count in failures if count]
    if failed:
        raise CommandFailedError("\n".join(failed))


def _simulated(file: Path, session: Session) -> int:
    try:
        with file.open(encoding="utf-8") as story:
            text = story.read(CHARACTERS_MAX + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise CommandFailedError(f"{file}: {error}") from error
    if len(text) > CHARACTERS_MAX:
        raise CommandFailedError(f"{file}: longer than {CHARACTERS_MAX} characters; a person wrote it?")
    transcript = tell(read_story(text, name=str(file)))
    _show(transcript, session)
    return transcript.failures


def _show(transcript: Transcript, session: Session) -> None:
    sys.stdout.write(str(transcript) if not session.as_json else _json(transcript))


def _json(transcript: Transcript) -> str:
    return "".join(msgspec.json.encode(line).decode() + "\n" for line in transcript.lines)
