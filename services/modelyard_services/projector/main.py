"""The projector process: the projection, the relay and the readers' copy, side by side.

Invariant: none waits for another; each has its own connection, and each its own reader of the log.
"""

import asyncio
from typing import Final

from prometheus_client import Gauge

from modelyard_services.effects.bus import NatsBus
from modelyard_services.effects.clock import Clock
from modelyard_services.effects.connect import connected
from modelyard_services.effects.database import Database
from modelyard_services.effects.log.endpoint import NatsEndpoint, close, connect
from modelyard_services.effects.log.streams import Layout
from modelyard_services.effects.nats_access.readers import keep_copy
from modelyard_services.effects.status import serve_status
from modelyard_services.projector.duty import Duty
from modelyard_services.projector.projector import Projector
from modelyard_services.projector.public_stream import PublicStream
from modelyard_services.projector.relay import Relay
from modelyard_services.settings import ProjectorSettings

LAG_READY_MAX: Final = 1_000
"""Sequences behind the log beyond which the read model doesn't call itself ready: half a transaction's worth."""

_SEQUENCE: Final = Gauge("modelyard_projector_sequence", "Last log sequence committed to PostgreSQL.")
_LAG: Final = Gauge("modelyard_projector_lag", "Sequences between PostgreSQL and the log's end.")
_RELAY_SEQUENCE: Final = Gauge("modelyard_relay_sequence", "Last log sequence told on the lifecycle stream.")
_RELAY_LAG: Final = Gauge("modelyard_relay_lag", "Sequences between the lifecycle stream and the log's end.")


async def serve(settings: ProjectorSettings, stop: asyncio.Event) -> None:
    """Project and relay until `stop` is set; a failure that nobody foresaw ends the process."""
    process = ProjectorProcess(settings)
    process.measure()
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(duty.run(), name=duty.name) for duty in process.duties]
            if (port := settings.process.status_port) is not None:
                tasks.append(group.create_task(serve_status(port, lambda: process.problems), name="status"))
            # Also when all duties have stopped the process stays, so that their reasons can be read.
            await stop.wait()
            for task in tasks:
                task.cancel()
    finally:
        await process.close()


class ProjectorProcess:
    """The duties, and what they say of themselves."""

    def __init__(self, settings: ProjectorSettings) -> None:
        clock = Clock()
        self._settings = settings
        self._database = Database(settings.database_url, process=settings.process.process)
        self.projector = Projector(self._database, clock)
        self.relay = Relay(clock)
        self.duties = [Duty("projection", self._project, clock), Duty("relay", self._relay, clock)]
        if settings.copier_url is not None:
            self.duties.append(Duty("copy", self._copy, clock))

    async def close(self) -> None:
        """Let go of the database."""
        await self._database.close()

    @property
    def problems(self) -> list[str]:
        """Why the process isn't ready; empty when it is."""
        found = [f"{duty.name}: {duty.problem}" for duty in self.duties if duty.problem is not None]
        if self.projector.problem is not None:
            found.append(f"database: {self.projector.problem}")
        if self.relay.problem is not None:
            found.append(f"public stream: {self.relay.problem}")
        if not found and self.projector.lag > LAG_READY_MAX:
            found.append(f"projection: {self.projector.lag} sequences behind the log")
        return found

    def measure(self) -> None:
        """Have the process's figures among its metrics."""
        _SEQUENCE.set_function(lambda: self.projector.sequence)
        _LAG.set_function(lambda: self.projector.lag)
        _RELAY_SEQUENCE.set_function(lambda: self.relay.sequence)
        _RELAY_LAG.set_function(lambda: self.relay.lag)

    async def _project(self, duty: Duty) -> None:
        async with connected(self._settings.process.nats, "projection") as (log, _bus):
            duty.begun()
            await self.projector.run(log)

    async def _relay(self, duty: Duty) -> None:
        async with connected(self._settings.process.nats, "relay") as (log, bus):
            if not isinstance(bus, NatsBus):
                raise TypeError("the public stream is on NATS")
            duty.begun()
            await self.relay.run(log, PublicStream(bus.client))

    async def _copy(self, duty: Duty) -> None:
        """Make the readers' copy; the servers keep it from then on."""
        urls = tuple((self._settings.copier_url or "").split(","))
        client = await connect(NatsEndpoint(urls=urls, name="modelyard copier"))
        try:
            replicas = self._settings.process.nats.replicas
            await keep_copy(client.jsm(), Layout(replicas=replicas))
            duty.begun()
        finally:
            await close(client)
