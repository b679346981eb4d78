"""Every command of the command line, as its parser knows them.

Invariant: nothing is listed by hand, so that a new command can't be forgotten.
"""

from collections.abc import Iterator

from cyclopts import App
from cyclopts.argument import Argument

from modelyard_services.cli.main import app

Command = tuple[str, ...]


def commands(within: App = app, path: Command = ()) -> Iterator[tuple[Command, App]]:
    """Each command with its words."""
    for name in within:
        if not name.startswith("-"):
            command = within[name]
            if command.default_command is not None:
                yield (*path, name), command
            yield from commands(command, (*path, name))


def arguments(command: App) -> list[Argument]:
    """What a command takes."""
    return [each for each in command.assemble_argument_collection(parse_docstring=True) if each.parse]
