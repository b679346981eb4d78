"""Ports that a process has chosen and nobody listens on yet.

Who is given a port binds it seconds later: a backend when its model is loaded, a server at the end of its start.
Until then the port looks free to every other process of ours; what that one starts fails to bind, or answers a health
probe that was meant for another. A lock on a file per port says otherwise; the kernel lets go of it when its holder
dies, and then the port itself is bound or free.

Invariant: of all processes of one user on one machine, at most one claims a port at any moment.
"""

import fcntl
import os
import tempfile
from pathlib import Path


def claims_directory() -> Path:
    """Where all processes of this user on this machine claim."""
    return Path(tempfile.gettempdir()) / f"modelyard-ports-{os.getuid()}"


class Claims:
    """What this process claims of the ports on this machine; `directory` is shared by all of the user's processes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files: dict[int, int] = {}

    def claim(self, port: int) -> bool:
        """Whether the port is ours now."""
        if port in self._files:
            return True
        self._directory.mkdir(mode=0o700, exist_ok=True)
        file = os.open(self._directory / str(port), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return False
        self._files[port] = file
        return True

    def give_up(self, port: int) -> None:
        """The port is anybody's."""
        file = self._files.pop(port, None)
        if file is not None:
            os.close(file)
