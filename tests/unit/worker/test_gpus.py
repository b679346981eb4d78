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

from modelyard_events.errors import InvalidValueError
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
from modelyard_services.worker.visible import visible
from tests.support.driver import pynvml as driver
from tests.support.driver.cards import Cards, card

GIB = 2**30


class RecordedNvml:
    """Answers as NVML did: two cards, with errors where told."""

    NVMLError = pynvml.NVMLError
    NVMLError_NotSupported = pynvml.NVMLError_NotSupported
    NVMLError_GpuIsLost = pynvml.NVMLError_GpuIsLost
    NVMLError_NoPermission = pynvml.NVMLError_NoPermission
    NVMLError_LibraryNotFound = pynvml.NVMLError_LibraryNotFound

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

    def nvmlDeviceGetUUID(self, device: int) -> str:  # noqa: N802
        return f"GPU-{device}a2b"

    def nvmlDeviceGetMigMode(self, _: int) -> list[int]:  # noqa: N802
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

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


def keeps_the_contract(source: GpuSource) -> None:
    """Indexes are distinct, free is within total, nothing unknown is zero, strangers use nothing we know of."""
    readings = source.read()
    assert len({reading.index for reading in readings}) == len(readings)
    for reading in readings:
        assert reading.name
        assert reading.device
        assert reading.vram_total is None or reading.vram_total > 0
        assert reading.vram_free is None or 0 <= reading.vram_free <= (reading.vram_total or 0)
    assert source.process_memory(frozenset({2**22 + 1})) is None


@pytest.mark.parametrize("source", sources(), ids=lambda source: type(source).__name__)
def test_every_source_keeps_the_contract(source: GpuSource) -> None:
    keeps_the_contract(source)


@pytest.fixture
def cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cards:
    """The stand-in driver that acceptance tests use: a card of one piece, and one in two parts."""
    parts = [{"name": "H100 MIG 3g.40gb", "uuid": f"MIG-{part}", "total": 40 * GIB} for part in "ab"]
    cards = Cards(tmp_path / "cards.json", card(0), card(1, name="H100", gib=80, mig=parts))
    monkeypatch.setenv(driver.VARIABLE, cards.variables()[driver.VARIABLE])
    monkeypatch.setattr(driver, "_begun", [])
    return cards


def test_the_stand_in_driver_keeps_the_contract_in_whatever_state(cards: Cards) -> None:
    source = discover(driver)
    assert isinstance(source, NvidiaGpus)
    keeps_the_contract(source)
    for error in (pynvml.NVML_ERROR_TIMEOUT, pynvml.NVML_ERROR_GPU_IS_LOST):
        cards.fail(error, number=0)
        keeps_the_contract(source)
    cards.fail(pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
    keeps_the_contract(source)


def test_a_card_in_mig_mode_is_as_many_gpus_as_it_has_parts(cards: Cards) -> None:
    """W6: each with its own memory, and told to processes by its UUID, as CUDA wants it."""
    del cards
    readings = discover(driver).read()
    assert [(reading.index, reading.device, reading.vram_total) for reading in readings] == [
        (0, "0", 24 * GIB),
        (200, "MIG-a", 40 * GIB),
        (201, "MIG-b", 40 * GIB),
    ]


def test_a_card_that_is_anothers_has_no_place_here(cards: Cards) -> None:
    """W6: NVML counts all that there are; what this process may not look at can't be divided among workers either."""
    cards.fail(pynvml.NVML_ERROR_NO_PERMISSION, number=0)
    source = discover(driver)
    assert [reading.uuid for reading in source.read()] == ["MIG-a", "MIG-b"]
    assert source.process_memory(frozenset({2**22 + 1})) is None


def test_a_lost_card_takes_its_parts_with_it(cards: Cards) -> None:
    source = discover(driver)
    cards.fail(pynvml.NVML_ERROR_GPU_IS_LOST, number=1)
    assert [(reading.index, reading.vram_total) for reading in source.read()] == [
        (0, 24 * GIB),
        (200, None),
        (201, None),
    ]


def test_a_driver_that_goes_away_leaves_sizes_known_and_what_is_free_unknown(cards: Cards) -> None:
    """N9: nothing is lost by it, and once it is loaded anew it is asked anew."""
    source = discover(driver)
    before = facts(source.read())
    cards.fail(pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
    readings = source.read()
    assert facts(readings) == before
    assert {reading.vram_free for reading in readings} == {None}
    assert source.process_memory(frozenset({1})) is None
    cards.reload()
    source.read()
    assert [reading.vram_free for reading in source.read()] == [24 * GIB, 40 * GIB, 40 * GIB]


def visible_indexes(variables: dict[str, str], source: GpuSource) -> list[int]:
    return [reading.index for reading in visible(source, variables).read()]


@pytest.mark.parametrize(
    ("text", "indexes"),
    [
        (None, [0, 200, 201]),
        ("0", [0]),
        (" 0 ", [0]),
        ("GPU-0000", [0]),
        ("MIG-b", [201]),
        ("MIG-b,0", [0, 201]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
    ],
)
def test_a_worker_offers_no_gpu_that_cuda_hides_from_it(cards: Cards, text: str | None, indexes: list[int]) -> None:
    """W6: NVML tells of every card, whatever CUDA_VISIBLE_DEVICES says."""
    del cards
    variables = {} if text is None else {"CUDA_VISIBLE_DEVICES": text}
    assert visible_indexes(variables, discover(driver)) == indexes


@pytest.mark.parametrize("text", ["7", "GPU-dead", "0,x", "0,", "MIG-"])
def test_a_variable_that_names_what_isnt_there_stops_the_start(cards: Cards, text: str) -> None:
    """`MIG-` names two."""
    del cards
    with pytest.raises(
        InvalidValueError, match=r"CUDA_VISIBLE_DEVICES.*this machine has 0 GPU-00000000-0000, 200 MIG-a"
    ):
        visible(discover(driver), {"CUDA_VISIBLE_DEVICES": text})


class Amd:
    """Four cards."""

    def read(self) -> tuple[GpuReading, ...]:
        return tuple(GpuReading(index, "amd", "MI300X", vram_total=GIB, vram_free=GIB) for index in range(4))

    def process_memory(self, pids: frozenset[int]) -> dict[int, int] | None:
        del pids
        return None


@pytest.mark.parametrize(
    ("variables", "indexes"),
    [
        ({"ROCR_VISIBLE_DEVICES": "2,3"}, [2, 3]),
        ({"HIP_VISIBLE_DEVICES": "1"}, [1]),
        ({"CUDA_VISIBLE_DEVICES": "1,3"}, [1, 3]),
        ({"HIP_VISIBLE_DEVICES": "0", "CUDA_VISIBLE_DEVICES": "1"}, [0]),
        ({"ROCR_VISIBLE_DEVICES": "2,3", "HIP_VISIBLE_DEVICES": "1"}, [3]),
    ],
)
def test_a_worker_offers_no_gpu_that_rocm_hides_from_it(variables: dict[str, str], indexes: list[int]) -> None:
    """W6: HIP counts within what ROCr leaves it."""
    assert visible_indexes(variables, Amd()) == indexes


def test_what_is_hidden_stays_hidden_when_cards_fail(cards: Cards) -> None:
    source = visible(discover(driver), {"CUDA_VISIBLE_DEVICES": "0"})
    cards.fail(pynvml.NVML_ERROR_GPU_IS_LOST, number=0)
    assert [(reading.index, reading.vram_total) for reading in source.read()] == [(0, None)]


def test_cards_are_told_with_size_and_what_is_free() -> None:
    readings = NvidiaGpus(RecordedNvml()).read()
    assert readings[1] == GpuReading(
        1, "nvidia", "NVIDIA H200 1", vram_total=141 * GIB, vram_free=100 * GIB, uuid="GPU-1a2b"
    )
    assert facts(readings)[0] == Gpu(index=0, vendor="nvidia", name="NVIDIA H200 0", vram_total=141 * GIB)


def test_a_lost_card_is_no_capacity_any_more_and_one_that_is_only_silent_is_unknown() -> None:
    """N9: and neither costs another card's reading, or its place."""
    nvml = RecordedNvml()
    source = NvidiaGpus(nvml)
    source.read()
    nvml.error_of_first = pynvml.NVML_ERROR_TIMEOUT
    assert [(reading.vram_total, reading.vram_free) for reading in source.read()] == [
        (141 * GIB, None),
        (141 * GIB, 100 * GIB),
    ]
    nvml.error_of_first = pynvml.NVML_ERROR_GPU_IS_LOST
    readings = source.read()
    assert [(reading.index, reading.vram_total) for reading in readings] == [(0, None), (1, 141 * GIB)]
    assert [gpu.index for gpu in facts(readings)] == [1]


def test_a_card_that_fails_from_the_start_keeps_its_place_and_is_taken_once_it_answers() -> None:
    """N9, W6."""
    nvml = RecordedNvml()
    nvml.error_of_first = pynvml.NVML_ERROR_TIMEOUT
    source = NvidiaGpus(nvml)
    assert [(reading.index, reading.vram_total) for reading in source.read()] == [(0, None), (1, 141 * GIB)]
    nvml.error_of_first = None
    assert [gpu.index for gpu in facts(source.read())] == [0, 1]


def test_a_card_without_memory_of_its_own_counts_ram() -> None:
    """W6: unified memory."""
    reading = NvidiaGpus(RecordedNvml(unified=True)).read()[0]
    assert reading.unified
    ram = psutil.virtual_memory()
    assert reading.vram_total == ram.total
    # The two looks are a moment apart; what is in use is the larger part of the difference.
    assert abs((reading.vram_free or 0) - ram.available) < (ram.total - ram.available) / 2


def test_memory_is_told_per_process_and_card() -> None:
    source = NvidiaGpus(RecordedNvml())
    assert source.process_memory(frozenset({100, 101})) == {0: 3 * GIB, 1: 3 * GIB}
    assert source.process_memory(frozenset({7})) == {0: GIB, 1: GIB}


def test_memory_that_the_driver_hides_is_unknown_and_not_zero() -> None:
    """N9."""
    source = NvidiaGpus(RecordedNvml(hidden=True))
    assert source.process_memory(frozenset({100})) is None
    assert source.process_memory(frozenset({7, 100})) is None  # a sum without it would be too little


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


def test_where_amds_newer_tool_has_no_answer_the_older_one_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W6: before ROCm 6 there is `rocm-smi` alone, and beside a broken `amd-smi` it answers as well."""
    tool(tmp_path, "amd-smi", "exit 1")
    tool(tmp_path, "rocm-smi", f"case $* in *--showmeminfo*) echo '{json.dumps(ROCM)}';; esac")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    source = discover(NoNvml())
    assert isinstance(source, AmdGpus)
    assert source.read()[1].name == "MI250X"


@pytest.mark.parametrize("script", ["exit 1", "echo nonsense", "echo '[]'", "echo '{\"gpu_data\": [{}]}'"])
def test_a_tool_that_fails_leaves_a_machine_without_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    for name in ("amd-smi", "rocm-smi"):
        tool(tmp_path, name, script)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert isinstance(discover(NoNvml()), NoGpus)
