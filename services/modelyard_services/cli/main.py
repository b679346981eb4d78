"""`modelyard`: the command line. An ordinary client of the API, and the starter of each process.

Invariant: every command has `--json`; exit 0 is done, 1 refused or failed, 2 wrong usage.
"""

import json
import os
import sys
from collections.abc import Sequence
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter

from modelyard_events.errors import InvalidValueError
from modelyard_services.cli import (
    access,
    configuration,
    doctor,
    history,
    models,
    nodes,
    past,
    processes,
    replicas,
    simulation,
    tables,
)
from modelyard_services.cli.session import (
    DEFAULT_API,
    EXIT_FAILED,
    EXIT_USAGE,
    CommandFailedError,
    Session,
    WrongUsageError,
)
from modelyard_services.cli.variables import Variables
from modelyard_services.errors import InvalidRequestError, ModelyardError

FAILURES = (CommandFailedError, InvalidValueError, ModelyardError)
"""What a command may end with: expected, and told without a trace."""

app = App(
    name="modelyard",
    help="The event-sourced scheduler for fleets of GPU nodes that serve AI models.",
    config=Variables(),
)
app.command(nodes.app)
app.command(nodes.ls, name="nodes")
app.command(models.model_app)
app.command(models.list_models, name="models")
app.command(models.schedule_app)
app.command(models.list_schedules, name="schedules")
app.command(access.token_app)
access.register(app)
configuration.register(app)
replicas.register(app)
history.register(app)
past.register(app)
simulation.register(app)
processes.register(app)
doctor.register(app)


@app.meta.default
def launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    api: str = DEFAULT_API,
    token: str | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Options of every command.

    Parameters
    ----------
    api
        Where the API is.
    token
        Who asks.
    as_json
        Print the API's own answer.
    """
    command, bound, ignored = app.parse_args(tokens, exit_on_error=False, print_error=False)
    if "session" in ignored:
        bound.arguments["session"] = Session(api.rstrip("/"), token, as_json)
    try:
        command(*bound.args, **bound.kwargs)
    except FAILURES as error:
        failed = failure(error)
        raise CommandFailedError(json.dumps(failed.problem, indent=2) if as_json else str(failed)) from error


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run one command; its exit code."""
    try:
        app.meta(list(arguments), exit_on_error=False, print_error=False)
    except (CycloptsError, WrongUsageError) as error:
        tables.line(f"usage: {error}", style="red", errors=True)
        return EXIT_USAGE
    except CommandFailedError as error:
        tables.line(str(error), style="red", errors=True)
        return EXIT_FAILED
    except BrokenPipeError:
        # The reader of a pipe has enough (`modelyard events | head`); nothing to tell, nothing to flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return 130
    return 0


def failure(error: Exception) -> CommandFailedError:
    """An expected failure as it is told: what the API answered, or what failed here in the same shape."""
    match error:
        case CommandFailedError():
            return error
        case InvalidValueError():
            return _failure(InvalidRequestError.code, str(error))
        case ModelyardError():
            return _failure(error.code, error.detail)
        case _:
            raise error


def _failure(code: str, detail: str) -> CommandFailedError:
    return CommandFailedError(f"{code}: {detail}", problem={"code": code, "detail": detail})


if __name__ == "__main__":
    main()
