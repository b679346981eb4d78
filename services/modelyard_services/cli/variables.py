"""`MODELYARD_*`: a variable for every option of every command (rule S1).

Invariant: what a command acts on (a node, a model, a token's name) is no option and comes from the command line alone:
a variable that was meant for another command must never choose what this one removes.
"""

import inspect

from cyclopts import App, Parameter
from cyclopts.argument import Argument, ArgumentCollection
from cyclopts.config import Env

PREFIX = "MODELYARD_"


class Variables(Env):
    """Reads options from the environment where the command line doesn't give them."""

    def __init__(self) -> None:
        super().__init__(PREFIX, command=False)

    def __call__(self, app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
        """Fill in `arguments`, but for those that stand on the line by their place."""
        options = arguments.copy()
        options[:] = [each for each in arguments if is_option(each)]
        super().__call__(app, commands, options)

    def _convert_argument(self, commands: tuple[str, ...], argument: Argument) -> str:
        """What the help says; of what has no variable it says none."""
        if not is_option(argument):
            argument.parameter = Parameter.combine(argument.parameter, Parameter(show_env_var=False))
        return super()._convert_argument(commands, argument)


def is_option(argument: Argument) -> bool:
    """Whether `argument` is given by its name, not by its place."""
    return argument.parse and argument.field_info.kind is inspect.Parameter.KEYWORD_ONLY


def variable_of(option: str) -> str:
    """The variable of an option: `--nats-url` is `MODELYARD_NATS_URL`."""
    return PREFIX + option.removeprefix("--").upper().replace("-", "_")
