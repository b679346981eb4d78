"""Whoever asks for help learns what each argument means, without the source."""

from tests.unit.cli.commands import arguments, commands


def test_every_argument_of_every_command_is_told_what_it_is_for() -> None:
    untold = {
        " ".join((*path, argument.name))
        for path, command in commands()
        for argument in arguments(command)
        if argument.name != "*" and not argument.parameter.help
    }
    assert untold == set()
