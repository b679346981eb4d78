"""Which GPUs this worker's own environment leaves it, as CUDA's and ROCm's variables say.

Invariant: the drivers' tools list every GPU whatever these variables say; the worker offers none beyond them, or two
workers of one machine, each started with its own devices, would both offer all (rule W6).
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

from modelyard_events.errors import InvalidValueError
from modelyard_services.worker.gpus import GpuReading, GpuSource

NVIDIA: Final = (("CUDA_VISIBLE_DEVICES",),)
AMD: Final = (("ROCR_VISIBLE_DEVICES",), ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"))
"""ROCm's layers, each with the variables that it heeds, the first of these that is set; each counts anew what the
one below leaves it."""

NOTHING: Final = frozenset({"", "-1", "none", "nodevfiles", "void"})
"""What hides all."""


class Visible:
    """The GPUs of `source` with those indexes alone."""

    def __init__(self, source: GpuSource, indexes: Collection[int]) -> None:
        self._source = source
        self._indexes = indexes

    def read(self) -> tuple[GpuReading, ...]:
        return tuple(reading for reading in self._source.read() if reading.index in self._indexes)

    def process_memory(self, pids: frozenset[int]) -> dict[int, int] | None:
        return self._source.process_memory(pids)


def visible(source: GpuSource, environment: Mapping[str, str]) -> GpuSource:
    """`source` within what `environment` leaves visible.

    Raises:
        InvalidValueError: a variable names a GPU that isn't there.
    """
    found = left = source.read()
    layers = AMD if any(reading.vendor == "amd" for reading in found) else NVIDIA
    for position, variables in enumerate(layers):
        name = next((variable for variable in variables if variable in environment), None)
        if name is not None:
            numbered = enumerate(left) if position else ((reading.index, reading) for reading in left)
            left = _named(name, environment[name], dict(numbered))
    return source if left == found else Visible(source, frozenset(reading.index for reading in left))


def _named(variable: str, text: str, numbered: Mapping[int, GpuReading]) -> tuple[GpuReading, ...]:
    if text.strip().lower() in NOTHING:
        return ()
    return tuple(_one(variable, text, word.strip(), numbered) for word in text.split(","))


def _one(variable: str, text: str, word: str, numbered: Mapping[int, GpuReading]) -> GpuReading:
    matching: Sequence[GpuReading]
    if word.isdigit():
        matching = [numbered[int(word)]] if int(word) in numbered else []
    else:
        matching = [reading for reading in numbered.values() if word and reading.uuid.startswith(word)]
    if len(matching) != 1:
        raise InvalidValueError(variable, text, f"names {word!r}; this machine has {_told(numbered.values())}")
    return matching[0]


def _told(readings: Iterable[GpuReading]) -> str:
    each = [f"{reading.index} {reading.uuid}".rstrip() for reading in readings]
    return ", ".join(each) or "no GPU"
