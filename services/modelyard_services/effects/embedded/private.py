"""Files that only their owner may read, written whole or not at all.

Invariant: a reader sees the old content or the new one, and at no instant could another user have opened it.
"""

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from modelyard_services.effects.embedded.errors import DataDirectoryUnusableError

_PRIVATE_DIRECTORY_MODE = 0o700

_OF_THE_DISK: Final = frozenset(
    {
        errno.EACCES,
        errno.EDQUOT,
        errno.EEXIST,
        errno.ENOENT,
        errno.ENOSPC,
        errno.ENOTDIR,
        errno.EPERM,
        errno.EROFS,
    }
)
"""What a directory or its disk is refused by; anything else that goes wrong with a file is a defect of ours."""

Kept = TypeVar("Kept", bound=msgspec.Struct)


@contextlib.contextmanager
def usable(data_dir: Path) -> Iterator[None]:
    """Tell a data directory that can't be made or written as such.

    Raises:
        DataDirectoryUnusableError: it can't be; says where and why.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _OF_THE_DISK:
            raise
        raise DataDirectoryUnusableError(
            f"{error.filename or data_dir}: {error.strerror}; mend that, or choose another --data-dir",
            field="data_dir",
            value=str(data_dir),
        ) from error


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
