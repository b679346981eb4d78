"""Which GPUs this machine has and how much of their memory is free: NVIDIA through NVML, AMD through its tool.

Invariant: a figure that can't be read is None, never zero (rules N9, W6); a GPU that was there stays, unread or lost,
and costs no other's readings.
"""

import contextlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec
import psutil
import pynvml  # type: ignore[import-untyped]
import structlog

from modelyard_events.node import Gpu

TOOL_SECONDS: Final = 10.0
"""AMD's tools answer within a second per GPU; longer means a driver that hangs."""

UNIFIED_VRAM_MAX: Final = 4 * 2**30
"""AMD graphics without memory of their own set a sliver of RAM aside; no card that ROCm runs on has so little."""

PARTS_OF_A_CARD: Final = 100
"""The parts of GPU 0 in MIG mode are 100, 101 …, those of GPU 1 are 200 …: a card has seven at most."""

PART: Final = "MIG-"
"""How the UUID of a part of a card begins."""

UNREADABLE: Final = "unreadable GPU"
"""The name of one that failed before it was read once."""

MIB: Final = 2**20

_log = structlog.get_logger(__name__)


class GpuReading(msgspec.Struct, frozen=True):
    """One GPU now; bytes, None is unknown. `unified`: its memory is the machine's RAM. `uuid` where the driver tells.

    One that is lost keeps its place with an unknown size, so that what several workers divide stays divided.
    """

    index: int
    vendor: str
    name: str
    vram_total: int | None
    vram_free: int | None
    unified: bool = False
    uuid: str = ""

    @property
    def device(self) -> str:
        """What `CUDA_VISIBLE_DEVICES` and its like call it: by number, but a part of a card by its UUID alone."""
        return self.uuid if self.uuid.startswith(PART) else str(self.index)


class GpuSource(Protocol):
    """Blocking: call from a thread."""

    def read(self) -> tuple[GpuReading, ...]:
        """Every GPU, by index."""

    def process_memory(self, pids: frozenset[int]) -> dict[int, int] | None:
        """Bytes by GPU index that these processes use; None if that isn't known."""


class NoGpus:
    """A machine without GPUs."""

    def read(self) -> tuple[GpuReading, ...]:
        return ()

    def process_memory(self, pids: frozenset[int]) -> dict[int, int] | None:
        del pids
        return None


class NvidiaGpus:
    """Through NVML; `nvml` is the module that binds it, initialized.

    A card in MIG mode is as many GPUs as it has parts, for a process can use one of these and never the whole card.
    """

    def __init__(self, nvml: Any = pynvml) -> None:
        self._nvml = nvml
        self._known: dict[int, tuple[GpuReading, ...]] = {}

    def read(self) -> tuple[GpuReading, ...]:
        for card in self._cards():
            known = self._known.get(card, (lost(GpuReading(card, "nvidia", UNREADABLE, None, None)),))
            try:
                self._known[card] = tuple(self._reading(number, device) for number, device in self._devices(card))
            except self._nvml.NVMLError_NoPermission:  # counted, and another's: this process may not even look at it
                self._known[card] = ()
            except self._nvml.NVMLError_GpuIsLost as error:
                _log.error("a GPU is lost", gpu=card, error=str(error))
                self._known[card] = tuple(lost(reading) for reading in known)
            except self._nvml.NVMLError as error:
                _log.warning("a GPU can't be read", gpu=card, error=str(error))
                self._known[card] = tuple(unread(reading) for reading in known)
        return tuple(reading for card in sorted(self._known) for reading in self._known[card])

    def process_memory(self, pids: frozenset[int]) -> dict[int, int] | None:
        """None also if the driver knows none of the pids: in a container it counts in another namespace."""
        used: dict[int, int] = {}
        for index, process in self._processes():
            if process.pid in pids:
                if process.usedGpuMemory is None:
                    return None
                used[index] = used.get(index, 0) + process.usedGpuMemory
        return used or None

    def _cards(self) -> Sequence[int]:
        """All there are; those there were while the driver is away."""
        try:
            return range(self._nvml.nvmlDeviceGetCount())
        except self._nvml.NVMLError as error:
            _log.warning("GPUs can't be counted", error=str(error))
            self._begin_again()
            return sorted(self._known)

    def _begin_again(self) -> None:
        """A driver that was loaded anew answers only those who began after that."""
        for call in (self._nvml.nvmlShutdown, self._nvml.nvmlInit):
            try:
                call()
            except self._nvml.NVMLError as error:
                _log.debug("NVML stays away", error=str(error))

    def _devices(self, card: int) -> Iterator[tuple[int, Any]]:
        """What of a card can be used, by index: the whole, or its parts."""
        whole = self._nvml.nvmlDeviceGetHandleByIndex(card)
        if not self._is_divided(whole):
            yield card, whole
            return
        for part in range(self._nvml.nvmlDeviceGetMaxMigDeviceCount(whole)):
            with contextlib.suppress(self._nvml.NVMLError_NotFound):  # a card may have fewer parts than it could
                yield (card + 1) * PARTS_OF_A_CARD + part, self._nvml.nvmlDeviceGetMigDeviceHandleByIndex(whole, part)

    def _is_divided(self, device: Any) -> bool:
        try:
            current, _pending = self._nvml.nvmlDeviceGetMigMode(device)
        except self._nvml.NVMLError_NotSupported:  # most cards
            return False
        return bool(current == self._nvml.NVML_DEVICE_MIG_ENABLE)

    def _reading(self, index: int, device: Any) -> GpuReading:
        name, uuid = self._nvml.nvmlDeviceGetName(device), self._nvml.nvmlDeviceGetUUID(device)
        try:
            memory = self._nvml.nvmlDeviceGetMemoryInfo(device)
        except self._nvml.NVMLError_NotSupported:  # Grace, Jetson, Spark: no memory but the machine's
            return unified(index, "nvidia", name, uuid=uuid)
        return GpuReading(index, "nvidia", name, vram_total=memory.total, vram_free=memory.free, uuid=uuid)

    def _processes(self) -> Iterator[tuple[int, Any]]:
        """Every process with each GPU that it uses."""
        for card in self._cards():
            try:
                for index, device in self._devices(card):
                    for process in self._nvml.nvmlDeviceGetComputeRunningProcesses(device):
                        yield index, process
            except self._nvml.NVMLError_NoPermission:
                continue
            except self._nvml.NVMLError as error:
                _log.warning("a GPU's processes can't be read", gpu=card, error=str(error))


class AmdGpus:
    """Through `amd-smi`, or the older `rocm-smi`. Which process uses how much, neither tells reliably."""

    def __init__(self, tool: str) -> None:
        self._ask = _amd_smi(tool) if tool.endswith("amd-smi") else _rocm_smi(tool)
        self._known: dict[int, GpuReading] = {}

    def read(self) -> tuple[GpuReading, ...]:
        try:
            now = {reading.index: reading for reading in self._ask()}
            self._known = {index: lost(reading) for index, reading in self._known.items()} | now
        except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError, AttributeError) as error:
            _log.warning("AMD's tool can't be read", error=str(error))
            self._known = {index: unread(reading) for index, reading in self._known.items()}
        return tuple(self._known[index] for index in sorted(self._known))

    def process_memory(self, pids: frozenset[int]) -> dict[int, int] | None:
        del pids
        return None


def discover(nvml: Any = pynvml) -> GpuSource:
    """The first source that has a GPU."""
    try:
        nvml.nvmlInit()
    except nvml.NVMLError_LibraryNotFound:
        _log.debug("no NVML here")
    except nvml.NVMLError as error:
        _log.warning("NVML is here and can't be used; GPUs stay unused until the worker restarts", error=str(error))
    else:
        source = NvidiaGpus(nvml)
        if source.read():
            return source
    for name in ("amd-smi", "rocm-smi"):
        tool = shutil.which(name)
        if tool is not None and (amd := AmdGpus(tool)).read():
            return amd
    return NoGpus()


def unread(reading: GpuReading) -> GpuReading:
    """The GPU is there, and how much of it is free isn't known."""
    return msgspec.structs.replace(reading, vram_free=None)


def lost(reading: GpuReading) -> GpuReading:
    """The GPU is gone, and its place isn't another's."""
    return msgspec.structs.replace(reading, vram_total=None, vram_free=None)


def unified(index: int, vendor: str, name: str, *, uuid: str = "") -> GpuReading:
    """A GPU whose memory is the machine's RAM."""
    ram = psutil.virtual_memory()
    return GpuReading(index, vendor, name, vram_total=ram.total, vram_free=ram.available, unified=True, uuid=uuid)


def facts(readings: Iterable[GpuReading]) -> tuple[Gpu, ...]:
    """What stays the same: GPUs whose size is known. One that hides it can hold nothing that is to be counted."""
    return tuple(Gpu(one.index, one.vendor, one.name, one.vram_total) for one in readings if one.vram_total is not None)


def amd_smi_readings(memory: Any, names: Any) -> tuple[GpuReading, ...]:
    """From `amd-smi metric --mem-usage --json` and `amd-smi static --asic --json`."""
    named = {entry["gpu"]: entry.get("asic", {}).get("market_name", "") for entry in _entries(names)}
    return tuple(_amd_smi_reading(entry, str(named.get(entry["gpu"], ""))) for entry in _entries(memory))


def rocm_smi_readings(cards: Mapping[str, Mapping[str, str]]) -> tuple[GpuReading, ...]:
    """From `rocm-smi --showproductname --showmeminfo vram --json`."""
    indexed = [(int(match.group(1)), card) for key, card in cards.items() if (match := re.fullmatch(r"card(\d+)", key))]
    return tuple(_rocm_smi_reading(index, card) for index, card in sorted(indexed, key=lambda pair: pair[0]))


def _entries(content: Any) -> list[dict[str, Any]]:
    """ROCm 7 wraps the list that earlier versions printed."""
    found: list[dict[str, Any]] = content["gpu_data"] if isinstance(content, dict) else content
    return found


def _amd_smi_reading(entry: Mapping[str, Any], name: str) -> GpuReading:
    usage = entry.get("mem_usage", {})
    return _amd(entry["gpu"], name, total=_megabytes(usage.get("total_vram")), used=_megabytes(usage.get("used_vram")))


def _rocm_smi_reading(index: int, card: Mapping[str, str]) -> GpuReading:
    name = card.get("Card Series") or card.get("Card series") or card.get("Card model") or ""
    total, used = (_number(card.get(f"VRAM Total {what}(B)")) for what in ("Memory ", "Used Memory "))
    return _amd(index, name, total=total, used=used)


def _amd(index: int, name: str, *, total: int | None, used: int | None) -> GpuReading:
    if total is not None and total < UNIFIED_VRAM_MAX:
        return unified(index, "amd", name)
    free = None if total is None or used is None else total - used
    return GpuReading(index, "amd", name, vram_total=total, vram_free=free)


def _megabytes(value: Any) -> int | None:
    """`{"value": 196592, "unit": "MB"}`, by which the tool means MiB; `"N/A"` where it doesn't know."""
    number = _number(value.get("value")) if isinstance(value, dict) else None
    return None if number is None else number * MIB


def _number(value: Any) -> int | None:
    try:
        return int(value)
    except (TypeError, ValueError):  # "N/A"
        return None


def _amd_smi(tool: str) -> Callable[[], tuple[GpuReading, ...]]:
    def read() -> tuple[GpuReading, ...]:
        memory = _json_of(tool, "metric", "--mem-usage", "--json")
        return amd_smi_readings(memory, _json_of(tool, "static", "--asic", "--json"))

    return read


def _rocm_smi(tool: str) -> Callable[[], tuple[GpuReading, ...]]:
    return lambda: rocm_smi_readings(_json_of(tool, "--showproductname", "--showmeminfo", "vram", "--json"))


def _json_of(*command: str) -> Any:
    run = subprocess.run(command, capture_output=True, check=True, timeout=TOOL_SECONDS)  # noqa: S603 - found on PATH
    return json.loads(run.stdout)
