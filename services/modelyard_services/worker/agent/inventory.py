"""What this worker has of its machine, told at registration, and what of it is free, told with each heartbeat.

Invariant: unknown stays unknown: a reading that fails is None, never zero (rule N9).
"""

import asyncio

import msgspec

from modelyard_events.node import NodeFacts
from modelyard_services import __version__
from modelyard_services.worker.agent.settings import WorkerSettings
from modelyard_services.worker.machine import Machine, MachineFacts, MachineReading, only, places_of, select, share


class Inventory:
    """The worker's part of `machine`."""

    def __init__(self, machine: Machine, settings: WorkerSettings) -> None:
        chosen = select(machine.facts(), settings.gpus)
        # Without a choice of its own it takes what comes later too.
        self._only = None if settings.gpus is None else places_of(chosen)
        self._machine = machine
        self._settings = settings
        self._share = self._now()

    def facts(self) -> NodeFacts:
        """What the registration says."""
        settings = self._settings
        return NodeFacts(
            address=settings.advertise,
            gpus=self._share.gpus,
            vram_total=self._share.vram_total,
            ram_total=self._share.ram_total,
            disk_total=self._share.disk_total,
            max_replicas_per_model=settings.max_replicas_per_model,
            vram_budget=settings.vram_budget,
            labels=settings.labels,
            worker_version=__version__,
        )

    async def read(self) -> MachineReading:
        """What is free now; the facts are of the same look."""
        return await asyncio.to_thread(self._look)

    def _look(self) -> MachineReading:
        self._machine.look()
        self._share = self._now()
        return self._machine.read(self._share)

    def _now(self) -> MachineFacts:
        machine, (part, parts) = self._machine.facts(), self._settings.share
        mine = share(machine if self._only is None else only(machine, self._only), parts)[part]
        # `--vram` is this worker's own figure, not a part of one, and counts only where there is no GPU (rule W6).
        return msgspec.structs.replace(mine, vram_total=None if mine.places else self._settings.vram)
