"""What a worker says it has (rules N2, N9, W6)."""

from pathlib import Path

from modelyard_events.ids import LabelKey, NodeName
from modelyard_events.node import HOST_MEMORY
from modelyard_services.worker.agent.inventory import Inventory
from modelyard_services.worker.agent.settings import WorkerSettings
from modelyard_services.worker.gpus import GpuReading
from modelyard_services.worker.machine import Machine

GIB = 2**30


class Gpus:
    """A machine's GPUs as their driver would tell of them; `lost` can't be read any more, `gone` have no size."""

    def __init__(self, count: int) -> None:
        self.lost = False
        self.gone = False
        self.count = count

    def read(self) -> tuple[GpuReading, ...]:
        free, total = None if self.lost else 20 * GIB, None if self.gone else 24 * GIB
        return tuple(GpuReading(index, "nvidia", "L4", vram_total=total, vram_free=free) for index in range(self.count))

    def process_memory(self, pids: frozenset[int]) -> dict[int, int] | None:
        return None if self.lost else dict.fromkeys(range(self.count), len(pids))


def an_inventory(
    gpus: Gpus, directory: Path, *, vram: int | None = None, share: tuple[int, int] = (0, 1), only: str | None = None
) -> Inventory:
    settings = WorkerSettings(
        name=NodeName("n1"),
        nats_url="nats://nowhere",
        registration_token="join me",  # noqa: S106 - of nobody
        state_dir=directory,
        advertise="10.0.0.7",
        labels={LabelKey("tier"): "gold"},
        vram=vram,
        gpus=only,
        max_replicas_per_model=3,
        share=share,
    )
    return Inventory(Machine(gpus, disk=directory), settings)


def test_a_registration_says_what_the_worker_was_told_and_what_the_machine_has(tmp_path: Path) -> None:
    """N2."""
    facts = an_inventory(Gpus(2), tmp_path).facts()
    assert [gpu.vram_total for gpu in facts.gpus] == [24 * GIB] * 2
    assert (facts.address, facts.max_replicas_per_model, facts.labels) == ("10.0.0.7", 3, {"tier": "gold"})
    assert facts.ram_total
    assert facts.worker_version


def test_a_workers_own_figure_counts_only_where_there_is_no_gpu(tmp_path: Path) -> None:
    """W6: and it is this worker's, whatever its part of the machine."""
    assert an_inventory(Gpus(0), tmp_path, vram=3 * GIB, share=(1, 2)).facts().vram_total == 3 * GIB
    assert an_inventory(Gpus(1), tmp_path, vram=3 * GIB).facts().vram_total is None


def test_workers_of_one_machine_share_nothing_twice(tmp_path: Path) -> None:
    """W6."""
    parts = [an_inventory(Gpus(1), tmp_path, share=(part, 3)).facts() for part in range(3)]
    whole = an_inventory(Gpus(1), tmp_path).facts()
    assert sum(part.gpus[0].vram_total for part in parts) <= whole.gpus[0].vram_total
    assert sum(part.ram_total or 0 for part in parts) <= (whole.ram_total or 0)


async def test_a_reading_that_fails_is_unknown_and_never_zero(tmp_path: Path) -> None:
    """N9."""
    gpus = Gpus(1)
    inventory = an_inventory(gpus, tmp_path)
    assert (await inventory.read()).vram_free == {0: 20 * GIB}
    gpus.lost = True
    assert (await inventory.read()).vram_free == {0: None}
    assert HOST_MEMORY not in (await inventory.read()).vram_free


async def test_each_look_tells_the_facts_anew(tmp_path: Path) -> None:
    """N8: a worker that lost its GPUs has none, and no RAM to offer in their place."""
    gpus = Gpus(2)
    inventory = an_inventory(gpus, tmp_path, vram=3 * GIB)
    gpus.gone = True
    await inventory.read()
    assert (inventory.facts().gpus, inventory.facts().vram_total) == ((), None)
    gpus.gone = False
    await inventory.read()
    assert len(inventory.facts().gpus) == 2


async def test_a_worker_that_was_told_its_gpus_takes_no_other_that_comes(tmp_path: Path) -> None:
    """W6."""
    gpus = Gpus(2)
    told, free = an_inventory(gpus, tmp_path, only="1"), an_inventory(gpus, tmp_path)
    gpus.count = 3
    for inventory in (told, free):
        await inventory.read()
    assert [[gpu.index for gpu in inventory.facts().gpus] for inventory in (told, free)] == [[1], [0, 1, 2]]


def test_a_worker_told_to_use_no_gpu_offers_ram(tmp_path: Path) -> None:
    """W6."""
    facts = an_inventory(Gpus(2), tmp_path, vram=3 * GIB, only="none").facts()
    assert (facts.gpus, facts.vram_total) == ((), 3 * GIB)
