"""Looks at model files: sizes, and the headers of GGUF and safetensors (rule R4).

Invariant: reads no further than a header and never more than `HEADER_BYTES_MAX`; opens regular files only; what a
header claims is believed only as far as the file reaches. A file that can't be looked at gives nothing, not zero.
"""

import os
import re
import stat
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

import msgspec
import structlog

from modelyard_events.files import Metadata, ModelFile

HEADER_BYTES_MAX: Final = 128 * 2**20
"""A vocabulary of 256,000 tokens takes some ten mebibytes in a GGUF header, and safetensors allows 100 MB."""

FILES_MAX: Final = 1_000
"""Files of one model: the largest come in some two hundred parts."""

VALUES_MAX: Final = 2_000_000
"""Values in one header, each looked at: a few seconds, and twice the largest vocabulary with its merges."""

KEY_BYTES_MAX: Final = 65_535
"""As GGUF has it."""

_WANTED: Final = re.compile(
    r"general\.architecture|[\w.-]+\.(context_length|block_count|embedding_length"
    r"|attention\.(head_count|head_count_kv|key_length|value_length))"
)
_PART: Final = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})(?P<suffix>\.gguf|\.safetensors)")
_INDEX: Final = ".safetensors.index.json"

_GGUF: Final = b"GGUF"
_SCALARS: Final = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING: Final = 8
_ARRAY: Final = 9
_LAYERS_MAX: Final = 10_000
"""Numbers of one wanted array: one a layer."""

Read = Callable[[Sequence[str]], Sequence[ModelFile]]

_log = structlog.get_logger(__name__)


class FilesUnreadableError(Exception):
    """A file isn't here, isn't what its name says, or ends too soon."""


class _Tensor(msgspec.Struct, frozen=True):
    """An entry of a safetensors header; `__metadata__` is one without offsets."""

    data_offsets: tuple[int, int] = (0, 0)


class _Index(msgspec.Struct, frozen=True):
    """Which part holds which tensor."""

    weight_map: dict[str, str]


def read_files(names: Sequence[str]) -> list[ModelFile]:
    """A look at all of `names`; empty where one can't be looked at."""
    try:
        return look_at(names)
    except FilesUnreadableError as error:
        # Where the files are on the workers alone this is the rule: the first load is measured there.
        _log.info("model files can't be looked at from here", files=list(names)[:3], problem=str(error))
        return []


def look_at(names: Sequence[str]) -> list[ModelFile]:
    """A look at all of `names`: files, the other parts of those that have some, and what is in directories.

    Raises:
        FilesUnreadableError: one can't be looked at; says why.
    """
    # By path: whoever lists all parts of a model names each of them as often as there are parts.
    found: dict[Path, ModelFile] = {}
    for name in names:
        try:
            paths = [path for path in _meant(Path(name)) if path not in found]
            if len(found) + len(paths) > FILES_MAX:
                raise FilesUnreadableError(f"there are over {FILES_MAX} files")  # noqa: TRY301 - told with its name
            found |= {path: _look(path) for path in paths}
        except (FilesUnreadableError, OSError, ValueError, RecursionError, msgspec.MsgspecError) as error:
            raise FilesUnreadableError(f"{name}: {error}") from error
    return list(found.values())


def _meant(path: Path) -> list[Path]:
    if not path.is_absolute():
        raise FilesUnreadableError("is relative, and only its worker knows to what")
    return _in_directory(path) if path.is_dir() else _parts(path)


def _in_directory(path: Path) -> list[Path]:
    """The weights in a model's directory, in one format: a repository often has them in several."""
    for pattern in ("*.safetensors", "*.gguf", "*.bin", "*.pt", "*.onnx"):
        found = sorted(path.glob(pattern))
        if pattern == "*.gguf" and not set(found) <= set(_parts(found[0]) if found else ()):
            raise FilesUnreadableError("holds several models: name the file")
        if found:
            return found
    raise FilesUnreadableError("holds no weights")


def _parts(path: Path) -> list[Path]:
    """The file, and its other parts where its name says that there are some."""
    if path.name.endswith(_INDEX):
        with _opened(path) as header:
            index = msgspec.json.decode(header.take(header.size), type=_Index)
        return [path.with_name(Path(name).name) for name in sorted(set(index.weight_map.values()))]
    part = _PART.fullmatch(path.name)
    if part is None:
        return [path]
    count = int(part["count"])
    numbers = range(1, min(count, FILES_MAX + 1) + 1)
    return [path.with_name(f"{part['stem']}-{number:05}-of-{count:05}{part['suffix']}") for number in numbers]


def _look(path: Path) -> ModelFile:
    with _opened(path) as header:
        if path.suffix == ".gguf":
            return ModelFile("gguf", header.size, _gguf(header))
        if path.suffix == ".safetensors":
            return ModelFile("safetensors", _safetensors(header))
        return ModelFile("other", header.size)


@contextmanager
def _opened(path: Path) -> Iterator["_Header"]:
    # Not blocking: what looks like a file may be a pipe that nobody writes to.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise FilesUnreadableError("is no regular file")
        yield _Header(file, status.st_size)


class _Header:
    """A file read from its beginning, no further than allowed."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.size = size
        self._file = file
        self._left = min(size, HEADER_BYTES_MAX)
        self._values = 0

    @property
    def position(self) -> int:
        return self._file.tell()

    def take(self, count: int) -> bytes:
        self._spend(count)
        found = self._file.read(count)
        if len(found) != count:
            raise FilesUnreadableError("the file ended while it was read")
        return found

    def skip(self, count: int) -> None:
        self._spend(count)
        self._file.seek(count, os.SEEK_CUR)

    def number(self, form: str) -> int:
        self._values += 1
        if self._values > VALUES_MAX:
            raise FilesUnreadableError(f"its header has over {VALUES_MAX} values")
        found: int = struct.unpack(form, self.take(struct.calcsize(form)))[0]
        return found

    def _spend(self, count: int) -> None:
        if count > self._left:
            raise FilesUnreadableError("its header goes on beyond the file, or beyond all reason")
        self._left -= count


def _safetensors(header: _Header) -> int:
    """Bytes of all tensors."""
    length = header.number("<Q")
    tensors = msgspec.json.decode(header.take(length), type=dict[str, _Tensor])
    weights = max((tensor.data_offsets[1] for tensor in tensors.values()), default=0)
    if not 0 <= weights <= header.size - 8 - length:
        raise FilesUnreadableError("its tensors go on beyond the file; was its download broken off?")
    return weights


def _gguf(header: _Header) -> Metadata:
    """The wanted values of the header."""
    if header.take(4) != _GGUF:
        raise FilesUnreadableError("it doesn't begin with GGUF")
    version = header.number("<I")
    if version not in {2, 3}:
        raise FilesUnreadableError(f"its version {version} isn't known")
    tensors = header.number("<Q")
    found: Metadata = {}
    for _ in range(header.number("<Q")):
        key = _text(header, most=KEY_BYTES_MAX)
        kind = header.number("<I")
        value = _value(header, kind, wanted=_WANTED.fullmatch(key) is not None)
        if value is not None:
            found[key] = value
    last = max((_tensor_begins(header) for _ in range(tensors)), default=0)
    if header.position + last > header.size:
        raise FilesUnreadableError("its tensors go on beyond the file; was its download broken off?")
    return found


def _tensor_begins(header: _Header) -> int:
    """Where a tensor begins, counted from the end of the header."""
    header.skip(header.number("<Q"))
    header.skip(8 * header.number("<I") + 4)  # its dimensions and its type
    return header.number("<Q")


def _value(header: _Header, kind: int, *, wanted: bool) -> int | str | tuple[int, ...] | None:
    if kind == _STRING:
        if wanted:
            return _text(header, most=KEY_BYTES_MAX)
        header.skip(header.number("<Q"))
        return None
    if kind == _ARRAY:
        return _array(header, wanted=wanted)
    if kind not in _SCALARS:
        raise FilesUnreadableError(f"its header has a value of the unknown type {kind}")
    value = header.number(_SCALARS[kind])
    return value if wanted and isinstance(value, int) else None


def _array(header: _Header, *, wanted: bool) -> tuple[int, ...] | None:
    kind, count = header.number("<I"), header.number("<Q")
    if kind in _SCALARS:
        form = _SCALARS[kind]
        if wanted and count <= _LAYERS_MAX:
            return tuple(int(header.number(form)) for _ in range(count))
        header.skip(count * struct.calcsize(form))
    elif kind == _STRING:
        for _ in range(count):
            header.skip(header.number("<Q"))
    else:
        raise FilesUnreadableError(f"its header has an array of the type {kind}")
    return None


def _text(header: _Header, *, most: int) -> str:
    length = header.number("<Q")
    if length > most:
        raise FilesUnreadableError(f"its header has a name of {length} bytes")
    return header.take(length).decode()
