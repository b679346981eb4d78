"""Every option of every command has its variable (rule S1), and what a command acts on has none."""

import inspect
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from cyclopts import CycloptsError
from cyclopts.argument import Argument

from modelyard_services.cli.main import app
from modelyard_services.cli.variables import is_option, variable_of
from tests.unit.cli.commands import Command, arguments, commands

REQUIRED = {
    "MODELYARD_NATS_URL": "nats://here",
    "MODELYARD_DATABASE_URL": "postgresql://here",
    "MODELYARD_HOLDER": "me",
}
BY_PLACE = inspect.Parameter.POSITIONAL_OR_KEYWORD
ALL = {path: arguments(command) for path, command in commands()}
OPTIONS = [
    (path, each)
    for path, known in ALL.items()
    for each in known
    if is_option(each) and each.names[0].startswith("--")  # a group of options has none itself
]
PLACES = [(path, each) for path, known in ALL.items() for each in known if each.field_info.kind is BY_PLACE]


def named(found: list[tuple[Command, Argument]]) -> list[str]:
    return [f"{' '.join(path)} {each.names[0]}" for path, each in found]


def taken(path: Command, *places: str) -> dict[str, Any]:
    """What the command would be called with, in words that can be compared."""
    bound = app.parse_args([*path, *places], exit_on_error=False, print_error=False)[1]
    return {name: vars(value) if hasattr(value, "__dict__") else value for name, value in bound.arguments.items()}


def another(argument: Argument) -> str:
    """A value that the option takes and that isn't its default."""
    hints = [argument.hint, *get_args(argument.hint)]
    default = argument.field_info.default
    literal = next((hint for hint in hints if get_origin(hint) is Literal), None)
    if literal is not None:
        return str(next(choice for choice in get_args(literal) if choice != default))
    if bool in hints:
        return str(not default).lower()
    if int in hints or float in hints:
        return str(17 + (default if isinstance(default, int | float) else 0))
    return "/some/path" if Path in hints else "something"


@pytest.fixture(autouse=True)
def only_what_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in REQUIRED.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(("path", "option"), OPTIONS, ids=named(OPTIONS))
def test_every_option_of_every_command_has_its_variable(
    monkeypatch: pytest.MonkeyPatch, path: Command, option: Argument
) -> None:
    """S1."""
    places = ["1" for of, each in PLACES if of == path and each.required]
    before = taken(path, *places)
    name = variable_of(option.names[0])
    monkeypatch.setenv(name, another(option))
    assert taken(path, *places) != before, f"{name} changes nothing"


@pytest.mark.parametrize(("option", "value"), [("--api", "http://else"), ("--token", "t"), ("--json", "true")])
def test_the_options_of_all_commands_have_theirs(monkeypatch: pytest.MonkeyPatch, option: str, value: str) -> None:
    """S1."""
    monkeypatch.setenv(variable_of(option), value)
    bound = app.meta.parse_args(["nodes"], exit_on_error=False, print_error=False)[1]
    name = {"--json": "as_json"}.get(option, option.removeprefix("--"))
    assert str(bound.arguments[name]).lower() == value


@pytest.mark.parametrize(("path", "place"), PLACES, ids=named(PLACES))
def test_what_a_command_acts_on_never_comes_from_a_variable(
    monkeypatch: pytest.MonkeyPatch, path: Command, place: Argument
) -> None:
    """A worker's MODELYARD_NAME must not choose the token that somebody revokes on that machine."""
    monkeypatch.setenv(variable_of(place.names[0]), "reconciler" if place.names[0] == "--what" else "7")
    try:
        bound = taken(path)
    except CycloptsError:
        return  # it is missing, and says so
    assert place.field_info.name not in bound
