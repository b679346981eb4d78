"""Files that only their owner may read, written whole or not at all.

Invariant: a reader sees the old content or the new one, and at no instant could another user have opened it.
"""

import os
import tempfile
from pathlib import Path
from typing import TypeVar

import msgspec

_PRIVATE_DIRECTORY_MODE = 0o700

Kept = TypeVar("Kept", bound=msgspec.Struct)


def private_directory(path: Path) -> Path:
    """`path` as a directory for its owner alone; made with its parents if it isn't there."""
    path.mkdir(parents=True, exist_ok=True, mode=_PRIVATE_DIRECTORY_MODE)
    path.chmod(_PRIVATE_DIRECTORY_MODE)
    return path


def write_private(path: Path, content: bytes) -> None:
    """Replace `path` by `content`, durably, with mode 0600."""
    # mkstemp creates with 0600, and next to the target, so the rename is atomic.
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read_private(path: Path, kept_type: type[Kept]) -> Kept | None:
    """What `write_private` kept at `path`; None if there is nothing yet."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kept_type)
    except FileNotFoundError:
        return None
