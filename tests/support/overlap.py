"""Whether processes of two models are ever alive at once, seen from outside."""

from tests.support.background import Background
from tests.support.installation import ECHO, Installation

LOOK_SECONDS = 0.02
"""How often processes are looked at: a backend takes ten times as long to start and to stop."""

SLOW_TO_STOP = ["sh", "-c", 'trap "sleep 1; kill $!; wait $!; exit 0" TERM; "$@" & wait $!', "backend", *ECHO]
"""A backend that takes a second to end: whoever doesn't wait for it overlaps."""


class Overlap(Background):
    """Looks, while it is open, whether backends of two models are ever alive at once."""

    def __init__(self, installation: Installation, *models: str) -> None:
        super().__init__()
        self.seen = False
        self._installation = installation
        self._models = models

    def run(self) -> None:
        while not self.stop.wait(LOOK_SECONDS):
            found = [self._installation.processes(f"--model\0{model}\0") for model in self._models]
            self.seen = self.seen or all(found)
