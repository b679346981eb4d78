"""What this machine has for models, and what of it is free now: GPUs, RAM, disk (rules N2, N8, W6).

Invariant: what several workers on one machine report adds up to the machine, never to more.
"""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final, Literal

import msgspec
import psutil
import structlog

from modelyard_events.errors import InvalidValueError
from modelyard_events.node import HOST_MEMORY, Gpu
from modelyard_services.worker.gpus import GpuReading, GpuSource, facts

CGROUP: Final = Path("/sys/fs/cgroup")
"""Where a container finds its own limits (cgroup version 2)."""

_log = structlog.get_logger(__name__)


class MachineFacts(msgspec.Struct, frozen=True):
    """What a worker may use, in bytes; None is unknown. `vram_total` is RAM set aside for models, without GPUs.

    `places` are the indexes of all GPUs, those that are lost too: several workers divide these, so that a lost GPU
    costs the one that had it, and nobody's share moves.
    """

    gpus: tuple[Gpu, ...] = ()
    places: tuple[int, ...] = ()
    vram_total: int | None = None
    ram_total: int | None = None
    disk_total: int | None = None


class MachineReading(msgspec.Struct, frozen=True):
    """What of that is free, in bytes, by device index (`HOST_MEMORY` without GPUs); None is unknown."""

    vram_free: dict[int, int | None]
    ram_free: int | None
    disk_free: int | None


class Machine:
    """`disk` is any path on the disk that models are kept on. Blocking: call from a thread.

    Facts and readings are of one look at the GPUs, the first of them at its making; the disk's size is of that first.
    """

    def __init__(self, source: GpuSource, *, disk: Path) -> None:
        self._source = source
        self._disk = disk
        self._disk_total = _disk(disk, "total")
        self.look()

    def look(self) -> None:
        """See the GPUs as they are now."""
        self._gpus = {reading.index: reading for reading in self._source.read()}

    def facts(self) -> MachineFacts:
        return MachineFacts(
            gpus=facts(self._gpus.values()),
            places=tuple(self._gpus),
            ram_total=ram_total(),
            disk_total=self._disk_total,
        )

    def read(self, share: MachineFacts) -> MachineReading:
        """What is free of `share`, the part of the machine that this worker has."""
        ram_free = _at_most(ram_available(), share.ram_total)
        vram_free = {gpu.index: _free_of(gpu, self._gpus.get(gpu.index)) for gpu in share.gpus}
        if not share.gpus and share.vram_total is not None:
            vram_free[HOST_MEMORY] = _at_most(ram_free, share.vram_total)
        disk_free = _at_most(_disk(self._disk, "free"), share.disk_total)
        return MachineReading(vram_free=vram_free, ram_free=ram_free, disk_free=disk_free)

    def devices(self, gpus: Iterable[int]) -> tuple[str, ...]:
        """What processes are told to use those GPUs by."""
        return tuple(self._gpus[index].device if index in self._gpus else str(index) for index in gpus)

    def process_memory(self, pids: frozenset[int]) -> dict[int, int] | None:
        """VRAM in bytes by GPU that these processes use; None is unknown."""
        return self._source.process_memory(pids)


def select(machine: MachineFacts, text: str | None, *, field: str = "gpus") -> MachineFacts:
    """The machine with the GPUs that `--gpus` names: `0,2`, `all` (also when not given) or `none`.

    Raises:
        InvalidValueError: it names one that isn't there, or can't be read.
    """
    if text is None or text.strip() == "all":
        return machine
    if text.strip() == "none":
        return only(machine, ())
    words = [word.strip() for word in text.split(",")]
    there = {str(index): index for index in places_of(machine)}
    for word in words:
        if word not in there:
            has = ", ".join(there) or "none"
            raise InvalidValueError(field, text, f"names GPU {word!r}; this machine has {has} (write 0,2, all or none)")
    return only(machine, {there[word] for word in words})


def only(machine: MachineFacts, indexes: Collection[int]) -> MachineFacts:
    """The machine with those GPUs alone."""
    return msgspec.structs.replace(
        machine,
        gpus=tuple(gpu for gpu in machine.gpus if gpu.index in indexes),
        places=tuple(index for index in places_of(machine) if index in indexes),
    )


def places_of(machine: MachineFacts) -> tuple[int, ...]:
    """The indexes of all its GPUs."""
    return machine.places or tuple(gpu.index for gpu in machine.gpus)


def share(machine: MachineFacts, workers: int) -> tuple[MachineFacts, ...]:
    """The machine in as many parts as there are workers.

    With a GPU for each, every GPU goes whole to one worker; else those that share one divide its memory.
    """
    return tuple(_part_of(machine, worker, workers) for worker in range(workers))


def ram_total(cgroup: Path = CGROUP) -> int:
    """RAM of the machine, or of the container if that has less."""
    limit = _cgroup_number(cgroup / "memory.max")
    total = int(psutil.virtual_memory().total)
    return total if limit is None else min(total, limit)


def ram_available(cgroup: Path = CGROUP) -> int:
    """RAM that can be had without swapping, in the container too."""
    available = int(psutil.virtual_memory().available)
    limit, used = _cgroup_number(cgroup / "memory.max"), _cgroup_number(cgroup / "memory.current")
    return available if limit is None or used is None else min(available, max(0, limit - used))


def _disk(disk: Path, figure: Literal["total", "free"]) -> int | None:
    try:
        return int(getattr(psutil.disk_usage(str(disk)), figure))
    except OSError as error:  # a network disk that is away says nothing, and takes no heartbeat with it
        _log.warning("a disk can't be read", disk=str(disk), error=str(error))
        return None


def _part_of(machine: MachineFacts, worker: int, workers: int) -> MachineFacts:
    mine, sharers = _seats(places_of(machine), worker, workers)
    gpus = (gpu for gpu in machine.gpus if gpu.index in mine)
    return MachineFacts(
        gpus=tuple(msgspec.structs.replace(gpu, vram_total=gpu.vram_total // sharers) for gpu in gpus),
        places=mine,
        vram_total=_part(machine.vram_total, workers),
        ram_total=_part(machine.ram_total, workers),
        disk_total=_part(machine.disk_total, workers),
    )


def _seats(places: tuple[int, ...], worker: int, workers: int) -> tuple[tuple[int, ...], int]:
    """The places of one worker, and how many workers have the same."""
    if workers <= len(places) or not places:
        return places[worker::workers], 1
    seat = worker % len(places)
    return (places[seat],), len(range(seat, workers, len(places)))


def _free_of(gpu: Gpu, reading: GpuReading | None) -> int | None:
    return None if reading is None else _at_most(reading.vram_free, gpu.vram_total)


def _at_most(free: int | None, total: int | None) -> int | None:
    return free if free is None or total is None else min(free, total)


def _part(total: int | None, workers: int) -> int | None:
    return None if total is None else total // workers


def _cgroup_number(path: Path) -> int | None:
    """A limit or count; None if there is none (`max`) or no such file."""
    try:
        text = path.read_text().strip()
    except FileNotFoundError:
        return None
    return int(text) if text.isdigit() else None
