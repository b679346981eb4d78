"""Whether processes of two models are ever alive at once, seen from outside."""

import threading
from types import TracebackType
from typing import Self

from tests.support.installation import ECHO, Installation

LOOK_SECONDS = 0.02
"""How often processes are looked at: a backend takes ten times as long to start and to stop."""

SLOW_TO_STOP = ["sh", "-c", 'trap "sleep 1; kill $!; wait $!; exit 0" TERM; "$@" & wait $!', "backend", *ECHO]
"""A backend that takes a second to end: whoever doesn't wait for it overlaps."""


class Overlap:
    """Looks, while it is open, whether backends of two models are ever alive at once."""

    def __init__(self, installation: Installation, *models: str) -> None:
        self.seen = False
        self._installation = installation
        self._models = models
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(LOOK_SECONDS):
            found = [self._installation.processes(f"--model\0{model}\0") for model in self._models]
            self.seen = self.seen or all(found)
