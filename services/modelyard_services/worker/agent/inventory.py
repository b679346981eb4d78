"""What this worker has of its machine, told at registration, and what of it is free, told with each heartbeat.

Invariant: unknown stays unknown: a reading that fails is None, never zero (rule N9).
"""

import asyncio

from modelyard_events.node import NodeFacts
from modelyard_services import __version__
from modelyard_services.worker.agent.settings import WorkerSettings
from modelyard_services.worker.machine import Machine, MachineFacts, MachineReading, select, share


class Inventory:
    """The worker's part of `machine`."""

    def __init__(self, machine: Machine, settings: WorkerSettings) -> None:
        part, parts = settings.share
        chosen = select(machine.facts(), settings.gpus)
        mine = share(chosen, parts)[part]
        # `--vram` is this worker's own figure, not a part of one, and counts only where there is no GPU (rule W6).
        self._share = MachineFacts(
            gpus=mine.gpus,
            vram_total=None if mine.gpus else settings.vram,
            ram_total=mine.ram_total,
            disk_total=mine.disk_total,
        )
        self._machine = machine
        self._settings = settings

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
        """What is free now."""
        return await asyncio.to_thread(self._machine.read, self._share)
