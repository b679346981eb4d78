"""GPU facts and readings (rules N9, W6).

`RecordedNvml` stands in for a driver where there is none; where NVML is there, the same contract runs against it.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pynvml  # type: ignore[import-untyped]
import pytest

from modelyard_events.node import Gpu
from modelyard_services.worker.gpus import (
    AmdGpus,
    GpuReading,
    GpuSource,
    NoGpus,
    NvidiaGpus,
    amd_smi_readings,
    discover,
    facts,
    rocm_smi_readings,
)

GIB = 2**30


class RecordedNvml:
    """Answers as NVML did: two cards, with errors where told."""

    NVMLError = pynvml.NVMLError
    NVMLError_NotSupported = pynvml.NVMLError_NotSupported
    NVMLError_GpuIsLost = pynvml.NVMLError_GpuIsLost

    def __init__(self, *, unified: bool = False, hidden: bool = False) -> None:
        self.error_of_first: int | None = None
        self._unified = unified
        self._hidden = hidden

    def nvmlInit(self) -> None:  # noqa: N802 - NVML's names
        pass

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        if index == 0 and self.error_of_first is not None:
            raise pynvml.NVMLError(self.error_of_first)
        return index

    def nvmlDeviceGetName(self, device: int) -> str:  # noqa: N802
        return f"NVIDIA H200 {device}"

    def nvmlDeviceGetMemoryInfo(self, _: int) -> SimpleNamespace:  # noqa: N802
        if self._unified:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return SimpleNamespace(total=141 * GIB, free=100 * GIB, used=41 * GIB)

    def nvmlDeviceGetComputeRunningProcesses(self, device: int) -> list[SimpleNamespace]:  # noqa: N802
        memory = None if self._hidden else 3 * GIB
        return [SimpleNamespace(pid=100 + device, usedGpuMemory=memory), SimpleNamespace(pid=7, usedGpuMemory=GIB)]


class NoNvml(RecordedNvml):
    """A machine without the driver."""

    def nvmlInit(self) -> None:  # noqa: N802
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)


def sources() -> list[GpuSource]:
    """Recorded ones, and the machine's own, whatever it is."""
    return [NoGpus(), NvidiaGpus(RecordedNvml()), NvidiaGpus(RecordedNvml(unified=True)), discover()]


@pytest.mark.parametrize("source", sources(), ids=lambda source: type(source).__name__)
def test_every_source_keeps_the_contract(source: GpuSource) -> None:
    """Indexes are distinct, free is within total, nothing unknown is zero, strangers use nothing we know of."""
    readings = source.read()
    assert len({reading.index for reading in readings}) == len(readings)
    for reading in readings:
        assert reading.name
        assert reading.vram_total is None or reading.vram_total > 0
        assert reading.vram_free is None or 0 <= reading.vram_free <= (reading.vram_total or 0)
    assert source.process_memory(frozenset({2**22 + 1})) is None


def test_cards_are_told_with_size_and_what_is_free() -> None:
    readings = NvidiaGpus(RecordedNvml()).read()
    assert readings[1] == GpuReading(1, "nvidia", "NVIDIA H200 1", vram_total=141 * GIB, vram_free=100 * GIB)
    assert facts(readings)[0] == Gpu(index=0, vendor="nvidia", name="NVIDIA H200 0", vram_total=141 * GIB)


def test_a_lost_card_is_gone_and_one_that_is_only_silent_is_unknown() -> None:
    """N9: and neither costs another card's reading."""
    nvml = RecordedNvml()
    source = NvidiaGpus(nvml)
    source.read()
    nvml.error_of_first = pynvml.NVML_ERROR_TIMEOUT
    assert [(reading.vram_total, reading.vram_free) for reading in source.read()] == [
        (141 * GIB, None),
        (141 * GIB, 100 * GIB),
    ]
    nvml.error_of_first = pynvml.NVML_ERROR_GPU_IS_LOST
    assert [reading.index for reading in source.read()] == [1]


def test_a_card_without_memory_of_its_own_counts_ram() -> None:
    """W6: unified memory."""
    reading = NvidiaGpus(RecordedNvml(unified=True)).read()[0]
    assert reading.unified
    assert reading.vram_total == psutil.virtual_memory().total


def test_memory_is_told_per_process_and_card() -> None:
    source = NvidiaGpus(RecordedNvml())
    assert source.process_memory(frozenset({100, 101})) == {0: 3 * GIB, 1: 3 * GIB}
    assert source.process_memory(frozenset({7})) == {0: GIB, 1: GIB}


def test_memory_that_the_driver_hides_is_unknown_and_not_zero() -> None:
    """N9."""
    assert NvidiaGpus(RecordedNvml(hidden=True)).process_memory(frozenset({100})) is None


AMD_MEMORY = [
    {
        "gpu": 0,
        "mem_usage": {
            "total_vram": {"value": 196592, "unit": "MB"},
            "used_vram": {"value": 592, "unit": "MB"},
            "free_vram": {"value": 196000, "unit": "MB"},
        },
    },
    {"gpu": 1, "mem_usage": {"total_vram": {"value": 196592, "unit": "MB"}, "used_vram": "N/A"}},
]
AMD_NAMES = [{"gpu": gpu, "asic": {"market_name": "AMD Instinct MI300X"}} for gpu in (0, 1)]
ROCM = {
    "card1": {"VRAM Total Memory (B)": str(64 * GIB), "VRAM Total Used Memory (B)": str(GIB), "Card Series": "MI250X"},
    "card0": {"VRAM Total Memory (B)": "536870912", "VRAM Total Used Memory (B)": "1", "Card series": "Radeon 680M"},
    "system": {"Driver version": "6.10"},
}


@pytest.mark.parametrize("wrap", [lambda entries: entries, lambda entries: {"gpu_data": entries}])
def test_amd_smi_is_read_in_its_old_and_new_form(wrap: Callable[[object], object]) -> None:
    first, second = amd_smi_readings(wrap(AMD_MEMORY), wrap(AMD_NAMES))
    assert first == GpuReading(0, "amd", "AMD Instinct MI300X", vram_total=196592 * 2**20, vram_free=196000 * 2**20)
    assert second.vram_free is None


def test_rocm_smi_is_read_and_integrated_graphics_count_ram() -> None:
    integrated, card = rocm_smi_readings(ROCM)
    assert card == GpuReading(1, "amd", "MI250X", vram_total=64 * GIB, vram_free=63 * GIB)
    assert (integrated.name, integrated.unified) == ("Radeon 680M", True)


def tool(directory: Path, name: str, script: str) -> str:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_amds_tool_is_found_and_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, names = (json.dumps(content) for content in (AMD_MEMORY, AMD_NAMES))
    tool(tmp_path, "amd-smi", f"case $1 in metric) echo '{memory}';; static) echo '{names}';; esac")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    source = discover(NoNvml())
    assert isinstance(source, AmdGpus)
    assert [reading.index for reading in source.read()] == [0, 1]
    tool(tmp_path, "amd-smi", "exit 1")
    assert [(reading.index, reading.vram_free) for reading in source.read()] == [(0, None), (1, None)]


@pytest.mark.parametrize("script", ["exit 1", "echo nonsense", "echo '[]'", "echo '{\"gpu_data\": [{}]}'"])
def test_a_tool_that_fails_leaves_a_machine_without_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    for name in ("amd-smi", "rocm-smi"):
        tool(tmp_path, name, script)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert isinstance(discover(NoNvml()), NoGpus)
