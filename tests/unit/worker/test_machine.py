"""What a machine has, and how several workers divide it (rule W6)."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard_events.errors import InvalidValueError
from modelyard_events.node import HOST_MEMORY, Gpu
from modelyard_services.worker.gpus import GpuReading, NoGpus
from modelyard_services.worker.machine import Machine, MachineFacts, ram_available, ram_total, select, share

GIB = 2**30


def gpu(index: int, vram_total: int = 24 * GIB) -> Gpu:
    return Gpu(index=index, vendor="nvidia", name="L4", vram_total=vram_total)


class Readings:
    """A source with fixed readings."""

    def __init__(self, *readings: GpuReading) -> None:
        self._readings = readings

    def read(self) -> tuple[GpuReading, ...]:
        return self._readings

    def process_memory(self, pids: frozenset[int]) -> dict[int, int] | None:
        del pids
        return None


machines = st.builds(
    MachineFacts,
    gpus=st.lists(st.integers(0, 2**40), max_size=8).map(
        lambda sizes: tuple(gpu(index, size) for index, size in enumerate(sizes))
    ),
    vram_total=st.none() | st.integers(0, 2**40),
    ram_total=st.none() | st.integers(0, 2**40),
    disk_total=st.none() | st.integers(0, 2**50),
)


@given(machine=machines, workers=st.integers(1, 20))
def test_the_shares_never_add_up_to_more_than_the_machine(machine: MachineFacts, workers: int) -> None:
    shares = share(machine, workers)
    assert len(shares) == workers
    for whole in machine.gpus:
        parts = [one.vram_total for each in shares for one in each.gpus if one.index == whole.index]
        assert sum(parts) <= whole.vram_total
        assert parts
    for field in ("vram_total", "ram_total", "disk_total"):
        total, parts = getattr(machine, field), [getattr(each, field) for each in shares]
        assert parts == [None] * workers if total is None else sum(parts) <= total


def test_with_a_gpu_for_each_no_gpu_is_divided() -> None:
    first, second = share(MachineFacts(gpus=tuple(gpu(index) for index in range(3))), 2)
    assert (first.gpus, second.gpus) == ((gpu(0), gpu(2)), (gpu(1),))


@given(lost=st.sets(st.integers(0, 5)), workers=st.integers(1, 8))
def test_a_lost_gpu_costs_the_worker_that_had_it_and_moves_nobodys_share(lost: set[int], workers: int) -> None:
    """W6: a worker that starts again after a loss takes nothing of what another one has."""
    cards = tuple(gpu(index) for index in range(6))
    whole = MachineFacts(gpus=cards, places=tuple(range(6)))
    left = msgspec.structs.replace(whole, gpus=tuple(card for card in cards if card.index not in lost))
    for before, after in zip(share(whole, workers), share(left, workers), strict=True):
        assert after.gpus == tuple(card for card in before.gpus if card.index not in lost)


def test_workers_that_share_a_gpu_divide_its_memory() -> None:
    shares = share(MachineFacts(gpus=(gpu(0), gpu(1))), 3)
    assert [each.gpus for each in shares] == [(gpu(0, 12 * GIB),), (gpu(1),), (gpu(0, 12 * GIB),)]


@pytest.mark.parametrize(
    ("text", "indexes"), [(None, [0, 1, 2]), ("all", [0, 1, 2]), ("none", []), ("2, 0", [0, 2]), ("1", [1])]
)
def test_gpus_are_chosen_by_index(text: str | None, indexes: list[int]) -> None:
    machine = MachineFacts(gpus=(gpu(0), gpu(1), gpu(2)))
    assert [one.index for one in select(machine, text).gpus] == indexes


def test_a_gpu_is_chosen_by_its_place_even_while_it_is_lost() -> None:
    machine = MachineFacts(gpus=(gpu(0), gpu(2)), places=(0, 1, 2))
    chosen = select(machine, "1,2")
    assert (chosen.places, chosen.gpus) == ((1, 2), (gpu(2),))


@pytest.mark.parametrize("text", ["3", "0,", "", "a", "-1"])
def test_a_gpu_that_is_not_there_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidValueError, match="this machine has 0"):
        select(MachineFacts(gpus=(gpu(0),)), text)


def test_a_reading_is_of_the_share_and_unknown_stays_unknown(tmp_path: Path) -> None:
    """N9: a GPU that can't be read is None, never zero."""
    source = Readings(GpuReading(0, "nvidia", "L4", vram_total=24 * GIB, vram_free=20 * GIB))
    reading = Machine(source, disk=tmp_path).read(MachineFacts(gpus=(gpu(0, 12 * GIB), gpu(1)), ram_total=1))
    assert reading.vram_free == {0: 12 * GIB, 1: None}
    assert reading.ram_free == 1
    assert reading.disk_free is not None


def test_a_disk_that_cannot_be_read_is_unknown_and_costs_no_other_reading(tmp_path: Path) -> None:
    """N9, X20: neither full nor empty, and the heartbeat goes out."""
    reading = Machine(NoGpus(), disk=tmp_path / "gone").read(MachineFacts(ram_total=1, disk_total=GIB))
    assert (reading.ram_free, reading.disk_free) == (1, None)


def test_a_part_of_a_card_is_told_to_processes_by_its_uuid(tmp_path: Path) -> None:
    """W3, W6."""
    part = GpuReading(200, "nvidia", "H100 MIG", vram_total=GIB, vram_free=GIB, uuid="MIG-a")
    whole = GpuReading(0, "nvidia", "L4", vram_total=GIB, vram_free=GIB, uuid="GPU-b")
    assert Machine(Readings(whole, part), disk=tmp_path).devices((0, 200, 7)) == ("0", "MIG-a", "7")


def test_a_node_without_gpus_offers_the_ram_it_was_told_to(tmp_path: Path) -> None:
    machine = Machine(NoGpus(), disk=tmp_path)
    facts = machine.facts()
    assert facts.gpus == ()
    assert facts.ram_total is not None
    assert machine.read(facts).vram_free == {}
    assert machine.read(msgspec.structs.replace(facts, vram_total=GIB)).vram_free == {HOST_MEMORY: GIB}


def test_a_container_counts_its_own_limit(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text(f"{GIB}\n")
    (tmp_path / "memory.current").write_text(f"{GIB // 4}\n")
    assert ram_total(tmp_path) == GIB
    assert ram_available(tmp_path) == GIB - GIB // 4
    (tmp_path / "memory.max").write_text("max\n")
    assert ram_total(tmp_path) > GIB
