"""The lines that a replica's processes wrote, as their keeper stored them (rule W7).

Invariant: lines come in time order, also those of several replicas; a follower misses none while
files rotate, as long as it is less than one file behind.
"""

import contextlib
import os
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

from modelyard_events.ids import ReplicaId
from modelyard_events.requests import LogLine
from modelyard_services.worker.processes.keys import ProcessKey

FOLLOW_SECONDS: Final = 0.25
"""A person reads along; this is as fast as that needs to be."""

FOLLOW_LINES_MAX: Final = 1_000
"""Lines a follower takes from one replica at a time, so that a chatty one can't fill the memory."""

STREAMS: Final = {b"o": "stdout", b"e": "stderr"}


class LogFile:
    """One replica's log. Reading goes on where it ended before."""

    def __init__(self, directory: Path, replica: ReplicaId, key: ProcessKey) -> None:
        self.directory = directory
        self._replica = replica
        self._key = key
        self._file: BinaryIO | None = None

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def last(self, lines: int, *, stream: bytes | None = None) -> list[LogLine]:
        """The last lines so far (of one stream only, if asked), and go on behind them."""
        kept: deque[bytes] = deque(maxlen=lines)
        self._open("log")
        older = LogFile(self.directory, self._replica, self._key)
        older._open("log.1")
        sources = (older, self) if older.inode != self.inode else (self,)  # equal if rotated between the two openings
        for source in sources:
            kept.extend(raw for raw in source.raw_lines(None) if stream is None or raw.split(b" ", 2)[1] == stream)
        older.close()
        return [self._line(raw) for raw in kept]

    def new(self) -> list[LogLine]:
        """What came since, a bounded number of lines."""
        if self._file is None:
            self._open("log")
        behind = self._was_rotated()  # asked first: once it was, what is left to read there is all there will be
        lines = [self._line(raw) for raw in self.raw_lines(FOLLOW_LINES_MAX)]
        if behind and len(lines) < FOLLOW_LINES_MAX:
            self._open_next()
        return lines

    @property
    def inode(self) -> int | None:
        return None if self._file is None else os.fstat(self._file.fileno()).st_ino

    def raw_lines(self, limit: int | None) -> Iterator[bytes]:
        """Whole lines from here on."""
        if self._file is None:
            return
        count = 0
        while limit is None or count < limit:
            before = self._file.tell()
            raw = self._file.readline()
            if not raw.endswith(b"\n"):  # the keeper is writing it
                self._file.seek(before)
                return
            yield raw
            count += 1

    def _open(self, name: str) -> None:
        self.close()
        with contextlib.suppress(FileNotFoundError):  # the process has not started, or never filled a file
            self._file = (self.directory / name).open("rb")

    def _was_rotated(self) -> bool:
        return self._file is not None and self.inode != _inode(self.directory / "log")

    def _open_next(self) -> None:
        """The file after the one that was read: a reader that is two rotations behind goes on with the oldest."""
        self._open("log" if self.inode == _inode(self.directory / "log.1") else "log.1")

    def _line(self, raw: bytes) -> LogLine:
        time_ns, stream, text = raw.rstrip(b"\n").split(b" ", 2)
        return LogLine(
            time_ns=int(time_ns),
            replica=self._replica,
            key=self._key,
            stream=STREAMS[stream],
            text=text.decode(errors="replace"),
        )


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def merged(lines: Iterable[LogLine]) -> list[LogLine]:
    """In time order; lines of one replica keep their own."""
    return sorted(lines, key=lambda line: line.time_ns)


def stderr_tail(directory: Path, lines: int) -> tuple[str, ...]:
    """The last lines that went to stderr."""
    log = LogFile(directory, ReplicaId(""), ProcessKey(""))
    try:
        errors = log.last(lines, stream=b"e")
    finally:
        log.close()
    return tuple(line.text for line in errors)
