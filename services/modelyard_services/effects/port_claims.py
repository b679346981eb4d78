"""Ports of this machine that nobody else may have: chosen and not listened on yet, in use, or used a moment ago.

Who is given a port binds it seconds later: a backend when its model is loaded, a server at the end of its start.
Until then the port looks free to every other process of ours; what that one starts fails to bind, or answers a health
probe that was meant for another. After its end somebody may still send there: a router sends to the address of a
replica until it hears of its end, and nobody tells it while the replica's worker is dead (trap X22). So each port has
a file: a lock on it says that somebody has the port, its content what to think of the port once nobody locks it.

    (blank)  nobody ever had it, or gave it back unused: anybody's
    held     whoever had it is dead, for the kernel unlocked it: rests from the moment when somebody sees that
    NUMBER   rests until that moment, in nanoseconds of the machine's monotonic clock

Invariant: of all processes of one user on one machine at most one claims a port at any moment, and none claims a port
that rests, however the one who had it before has ended.
"""

import fcntl
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from modelyard_services.effects.clock import Clock

ABANDONED_SECONDS: Final = 90.0
"""How long a port rests whose holder died without a word. Longer than a router believes in the replicas of a worker
that never comes back: nodes are lost after 60 s of silence, looked at every 15 s (rule N9)."""

_ANYBODYS: Final = b""
_HELD: Final = b"held"
_CONTENT_BYTES: Final = 20
"""Always as many, so that one write replaces the whole content; two hundred years in nanoseconds have 19 digits."""


def claims_directory() -> Path:
    """Where all processes of this user on this machine claim."""
    return Path(tempfile.gettempdir()) / f"modelyard-ports-{os.getuid()}"


def nobody_listens(host: str, port: int) -> bool:
    """Whether a server could bind the port now. As servers do: remains of old connections don't count."""
    return refusal(host, port) is None


def refusal(host: str, port: int) -> str | None:
    """Why a server could not bind the port now, in the system's words; None if it could."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
        except OSError as error:
            return error.strerror or str(error)
    return None


class Claims:
    """What this process claims of the ports on this machine; `directory` is shared by all of the user's processes.

    They share the monotonic clock as well, until the machine is booted again.
    """

    def __init__(self, directory: Path, *, clock: Clock | None = None) -> None:
        self._directory = directory
        self._clock = clock or Clock()
        self._files: dict[int, int] = {}

    def claim(self, port: int) -> bool:
        """Whether the port is ours now. Ask only for one on which nobody listens: a dead holder's rest begins here."""
        return self._lock_if(port, self._has_rested)

    def take_over(self, port: int) -> bool:
        """Whether the port is ours now, though it may rest: for what listened there before and does so again."""
        return self._lock_if(port, lambda _file: True)

    def give_back(self, port: int) -> None:
        """Nobody ever listened on it, so it is anybody's."""
        file = self._files.pop(port, None)
        if file is not None:
            _write(file, _ANYBODYS)
            os.close(file)

    def rest(self, port: int, *, seconds: float, exited_seconds_ago: float = 0.0) -> None:
        """Who listened on the port has exited: it is anybody's `seconds` after that."""
        ours = self._files.pop(port, None)
        if ours is not None:
            os.close(ours)
        # Ours, or the claim of a dead worker that the next one knows better about; by its name, for whoever tidies up
        # temporary files may have taken the old file away.
        file = self._locked(port)
        if file is None:
            return  # somebody else's meanwhile, or being looked at, which makes it rest as well
        try:
            if ours is not None or not _read(file) or not self._written_within(file, exited_seconds_ago):
                _write(file, self._in(seconds - exited_seconds_ago))
        finally:
            os.close(file)

    def close(self) -> None:
        """End as if by death: what still listens on a port of ours keeps it, and the port rests after that."""
        for file in self._files.values():
            os.close(file)
        self._files.clear()

    def _lock_if(self, port: int, may: Callable[[int], bool]) -> bool:
        if port in self._files:
            return True
        file = self._locked(port)
        if file is None:
            return False
        if not may(file):
            os.close(file)
            return False
        _write(file, _HELD)
        self._files[port] = file
        return True

    def _locked(self, port: int) -> int | None:
        """The port's file, locked; None if another holds it."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        file = os.open(self._directory / str(port), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return None
        return file

    def _has_rested(self, file: int) -> bool:
        content = _read(file)
        if content == _ANYBODYS:
            return True
        abandoned = self._in(ABANDONED_SECONDS)
        if not content.isdigit() or int(content) > int(abandoned):
            # Dead and seen so for the first time, or written before this boot: by another clock.
            _write(file, abandoned)
            return False
        return self._clock.monotonic_ns() >= int(content)

    def _written_within(self, file: int, seconds: float) -> bool:
        """Whether somebody else had the port, or saw its holder dead, in the last `seconds`."""
        return self._clock.now_ns() - os.fstat(file).st_mtime_ns < seconds * 1e9

    def _in(self, seconds: float) -> bytes:
        return b"%d" % max(0, self._clock.monotonic_ns() + round(seconds * 1e9))


def _read(file: int) -> bytes:
    return os.pread(file, _CONTENT_BYTES, 0).rstrip()


def _write(file: int, content: bytes) -> None:
    os.pwrite(file, content.ljust(_CONTENT_BYTES), 0)
