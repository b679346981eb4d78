"""`--wait`: look again until it is so, with something to watch meanwhile."""

import sys
import time
from collections.abc import Callable
from typing import Final

from modelyard_services.cli.session import CommandFailedError, Session

WAIT_SECONDS_MAX: Final = 1_800.0
"""Half an hour: longer than any default deadline of a load or a drain."""

POLL_SECONDS: Final = 0.25


def until(session: Session, goal: str, reached: Callable[[], bool], *, seconds: float = WAIT_SECONDS_MAX) -> None:
    """Return once `reached()` holds.

    Raises:
        CommandFailedError: it doesn't within `seconds`.
    """
    started = time.monotonic()  # the command line is at the edge, like the effects
    shown = 0.0
    while not reached():
        waited = time.monotonic() - started
        if waited > seconds:
            raise CommandFailedError(f"after {seconds:.0f} s still not so: {goal}")
        if waited - shown >= 1 and not session.as_json:
            shown = waited
            sys.stderr.write(f"\rwaiting {waited:.0f}s until {goal} ")
            sys.stderr.flush()
        time.sleep(POLL_SECONDS)
    if shown:
        sys.stderr.write("\n")
