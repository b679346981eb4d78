"""`modelyard`: the command line. An ordinary client of the API, and the starter of each process.

Invariant: every command has `--json`; exit 0 is done, 1 refused or failed, 2 wrong usage.
"""

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
    processes,
    replicas,
    simulation,
)
from modelyard_services.cli.session import (
    DEFAULT_API,
    EXIT_FAILED,
    EXIT_USAGE,
    CommandFailedError,
    Session,
    console,
)
from modelyard_services.cli.variables import Variables
from modelyard_services.errors import InvalidRequestError, ModelyardError

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
    command(*bound.args, **bound.kwargs)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run one command; its exit code."""
    err = console()
    err.stderr = True
    try:
        app.meta(list(arguments), exit_on_error=False, print_error=False)
    except CycloptsError as error:
        err.print(f"usage: {error}", style="red", highlight=False, markup=False)
        return EXIT_USAGE
    except CommandFailedError as error:
        err.print(str(error), style="red", highlight=False, markup=False)
        return EXIT_FAILED
    except InvalidValueError as error:
        err.print(f"{InvalidRequestError.code}: {error}", style="red", highlight=False, markup=False)
        return EXIT_FAILED
    except ModelyardError as error:
        err.print(f"{error.code}: {error.detail}", style="red", highlight=False, markup=False)
        return EXIT_FAILED
    except BrokenPipeError:
        # The reader of a pipe has enough (`modelyard events | head`); nothing to tell, nothing to flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    main()
