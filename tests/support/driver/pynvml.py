"""NVML on a machine without a GPU: its cards stand in a file, and real processes are what uses them.

With this folder on PYTHONPATH a worker finds it in place of the real module, whose errors it raises.

Invariant: a process uses the cards that its own CUDA_VISIBLE_DEVICES names and no others, as CUDA has it: with the
wrong devices in its environment, its memory shows on the wrong cards.
"""

import json
import os
import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Final

VARIABLE: Final = "TEST_DRIVER"
"""The file of the machine's cards; the processes that inherit it are those of this machine."""


def _real() -> ModuleType:
    """Under a name of its own, which it looks itself up by."""
    here = Path(__file__).resolve().parent
    found = PathFinder.find_spec("pynvml", [path for path in sys.path if Path(path).resolve() != here])
    spec = spec_from_file_location("real_pynvml", found.origin) if found and found.origin else None
    if spec is None or spec.loader is None:
        raise ImportError("the real pynvml isn't installed")
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_nvml: Final = _real()
NVMLError: Final = _nvml.NVMLError
NVMLError_NotSupported: Final = _nvml.NVMLError_NotSupported
NVMLError_NoPermission: Final = _nvml.NVMLError_NoPermission
NVMLError_GpuIsLost: Final = _nvml.NVMLError_GpuIsLost
NVMLError_NotFound: Final = _nvml.NVMLError_NotFound
NVMLError_LibraryNotFound: Final = _nvml.NVMLError_LibraryNotFound
NVML_DEVICE_MIG_ENABLE: Final = _nvml.NVML_DEVICE_MIG_ENABLE

Device = dict[str, Any]
"""A card, or a part of one: `name uuid total`, `used` by others, `error` of its readings, `mig` its parts."""

NO_INSTANCE: Final = 0xFFFFFFFF
"""Which part of a card a process uses, where the card is of one piece."""

PARTS_MAX: Final = 7
"""Of a card in MIG mode."""

_begun: list[int] = []
"""Which loading of the driver this process began with, once for each time that it began."""


def nvmlInit() -> None:  # noqa: N802 - NVML's names
    _begun.append(_begun[0] if _begun else _file()["loading"])


def nvmlShutdown() -> None:  # noqa: N802
    if not _begun:
        raise NVMLError(_nvml.NVML_ERROR_UNINITIALIZED)
    _begun.pop()


def nvmlDeviceGetCount() -> int:  # noqa: N802
    return len(_machine()["cards"])


def nvmlDeviceGetHandleByIndex(index: int) -> Device:  # noqa: N802
    cards = _machine()["cards"]
    if not 0 <= index < len(cards):
        raise NVMLError(_nvml.NVML_ERROR_INVALID_ARGUMENT)
    return _checked({**cards[index], "index": str(index)})


def nvmlDeviceGetName(device: Device) -> str:  # noqa: N802
    return str(device["name"])


def nvmlDeviceGetUUID(device: Device) -> str:  # noqa: N802
    return str(device["uuid"])


def nvmlDeviceGetMemoryInfo(device: Device) -> SimpleNamespace:  # noqa: N802
    used = device.get("used", 0) + sum(process.usedGpuMemory for process in _using(device))
    return SimpleNamespace(total=device["total"], free=device["total"] - used, used=used)


def nvmlDeviceGetComputeRunningProcesses(device: Device) -> list[SimpleNamespace]:  # noqa: N802
    return list(_using(device))


def nvmlDeviceGetMigMode(device: Device) -> list[int]:  # noqa: N802
    if "mig" not in device:
        raise NVMLError(_nvml.NVML_ERROR_NOT_SUPPORTED)
    return [NVML_DEVICE_MIG_ENABLE] * 2


def nvmlDeviceGetMaxMigDeviceCount(device: Device) -> int:  # noqa: N802
    return PARTS_MAX if "mig" in device else 0


def nvmlDeviceGetMigDeviceHandleByIndex(device: Device, index: int) -> Device:  # noqa: N802
    parts: list[Device] = device["mig"]
    if not 0 <= index < PARTS_MAX:
        raise NVMLError(_nvml.NVML_ERROR_INVALID_ARGUMENT)
    if index >= len(parts):
        raise NVMLError(_nvml.NVML_ERROR_NOT_FOUND)
    return _checked(parts[index])


def _checked(device: Device) -> Device:
    if device.get("error") is not None:
        raise NVMLError(device["error"])
    return device


def _machine() -> dict[str, Any]:
    content = _file()
    if {*_begun} != {content["loading"]}:
        raise NVMLError(_nvml.NVML_ERROR_UNINITIALIZED)
    return content


def _file() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(os.environ[VARIABLE]).read_bytes())
    if content.get("error") is not None:
        raise NVMLError(content["error"])
    return content


def _using(device: Device) -> Iterator[SimpleNamespace]:
    """The backends that see `device`, each with what the machine says that its model takes of every card."""
    sizes: dict[str, int] = _machine()["use"]
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            size = _size_on(process, device, sizes)
            if size is not None:
                whole = NO_INSTANCE
                yield SimpleNamespace(
                    pid=int(process.name), usedGpuMemory=size, gpuInstanceId=whole, computeInstanceId=whole
                )


def _size_on(process: Path, device: Device, sizes: dict[str, int]) -> int | None:
    try:
        words = process.joinpath("cmdline").read_bytes().decode(errors="replace").split("\0")
        pairs = process.joinpath("environ").read_bytes().decode(errors="replace").split("\0")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None  # ended meanwhile, or somebody else's
    environment = dict(pair.partition("=")[::2] for pair in pairs)
    if environment.get(VARIABLE) != os.environ[VARIABLE] or "--model" not in words:
        return None
    visible = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
    seen = {device.get("index"), device["uuid"]} & set(visible)
    return sizes.get(words[words.index("--model") + 1]) if seen else None
