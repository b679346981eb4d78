"""`--wait`: look again until it is so, with something to watch meanwhile.

Invariant: a terminal sees one line that counts, anything else whole lines now and then, without control characters; and
who stops waiting is told that what was asked for goes on.
"""

import sys
import time
from collections.abc import Callable
from typing import Final

from modelyard_services.cli import tables
from modelyard_services.cli.session import CommandFailedError, Session

WAIT_SECONDS_MAX: Final = 1_800.0
"""Half an hour: longer than any default deadline of a load or a drain."""

POLL_SECONDS: Final = 0.25

TERMINAL_SECONDS: Final = 1.0
LINES_SECONDS: Final = 30.0
"""Between two signs of life: a terminal's line is overwritten, a log keeps each."""

_CLEAR_TO_END: Final = "\x1b[K"


def until(session: Session, goal: str, reached: Callable[[], bool], *, seconds: float = WAIT_SECONDS_MAX) -> None:
    """Return once `reached()` holds.

    Raises:
        CommandFailedError: it doesn't within `seconds`.
        KeyboardInterrupt: somebody stopped waiting, which stops nothing else; that is told.
    """
    told = _Told(goal, silent=session.as_json)
    try:
        _poll(goal, reached, told, seconds=seconds)
    except KeyboardInterrupt:
        told.end()
        tables.line(f"stopped waiting until {goal}; what was asked for goes on", errors=True)
        raise
    except CommandFailedError:
        told.end()
        raise
    told.end()


def _poll(goal: str, reached: Callable[[], bool], told: "_Told", *, seconds: float) -> None:
    started = time.monotonic()  # the command line is at the edge, like the effects
    while not reached():
        waited = time.monotonic() - started
        if waited > seconds:
            raise CommandFailedError(f"after {seconds:.0f} s still not so: {goal}")
        told.so_far(waited)
        time.sleep(POLL_SECONDS)


class _Told:
    """What of the waiting was shown, on stderr."""

    def __init__(self, goal: str, *, silent: bool) -> None:
        self._goal = goal
        self._silent = silent
        self._terminal = sys.stderr.isatty()
        self._next = TERMINAL_SECONDS
        self._open = False

    def so_far(self, waited: float) -> None:
        if self._silent or waited < self._next:
            return
        text = f"waiting {waited:.0f}s until {self._goal}"
        if self._terminal:
            sys.stderr.write(f"\r{text}{_CLEAR_TO_END}")
            sys.stderr.flush()
            self._next, self._open = waited + TERMINAL_SECONDS, True
        else:
            tables.line(text, errors=True)
            self._next = waited + LINES_SECONDS

    def end(self) -> None:
        """Leave the line that a terminal stands in."""
        if self._open:
            sys.stderr.write("\n")
            self._open = False
