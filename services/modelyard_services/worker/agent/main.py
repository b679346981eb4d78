"""The worker process: one life after another until it is told to stop.

Invariant: a stop ends the replicas and departs, or leaves them all to the next worker, as it was told; nothing between.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Coroutine, Mapping
from typing import Any, Final, Literal, TypeVar, assert_never

import msgspec
import structlog

from modelyard_events.ids import IncarnationId, ReplicaId
from modelyard_services.effects.clock import Clock, Ids
from modelyard_services.errors import NameTakenError, NodeGoneError
from modelyard_services.worker.agent.agent import Agent
from modelyard_services.worker.agent.inventory import Inventory
from modelyard_services.worker.agent.link import linked
from modelyard_services.worker.agent.settings import AtEnd, WorkerSettings
from modelyard_services.worker.gpus import discover
from modelyard_services.worker.machine import Machine
from modelyard_services.worker.processes.kept import ProcessFact
from modelyard_services.worker.processes.running import ProcessesSettings
from modelyard_services.worker.processes.supervisor import Processes
from modelyard_services.worker.visible import visible

IDLE_NS: Final = 5_000_000_000
"""A replica unused for 5 s counts as idle for the background probe; routers tell of use every second."""

AT_WORKER_END: Final[Mapping[AtEnd, Literal["keep", "end", "end_with_parent"]]] = {
    "end": "end",
    "end-with-parent": "end_with_parent",
    "keep": "keep",
    "depart": "keep",
}
"""What the processes are told; a departing worker ends them by itself, in its own order."""

Result = TypeVar("Result")

_log = structlog.get_logger(__name__)


async def serve(settings: WorkerSettings, stop: asyncio.Event) -> None:
    """Work until `stop` is set.

    Raises:
        InvalidValueError: told to use a GPU that isn't there, by its settings or its environment.
        NameTakenError: another live worker has the name.
        UnauthorizedError: the registration token is refused.
    """
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    machine = await asyncio.to_thread(_machine, settings)
    inventory = await asyncio.to_thread(Inventory, machine, settings)
    replaced = asyncio.Event()
    if settings.at_end == "depart":
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, _replace, replaced, stop)
    while not stop.is_set():
        try:
            await _one_life(settings, inventory, machine, Ending(stop, replaced))
        except NodeGoneError as gone:
            _log.warning("this node was removed; beginning anew", reason=gone.detail)


def _machine(settings: WorkerSettings) -> Machine:
    return Machine(visible(discover(), os.environ), disk=settings.state_dir)


def _replace(replaced: asyncio.Event, stop: asyncio.Event) -> None:
    replaced.set()
    stop.set()


class Ending(msgspec.Struct, frozen=True):
    """How a worker is told to end: `stop` it; if `replaced` is set too, another one is about to take over."""

    stop: asyncio.Event
    replaced: asyncio.Event

    def departs(self, settings: WorkerSettings) -> bool:
        """Whether the replicas end with the worker."""
        match settings.at_end:
            case "end" | "end-with-parent":
                return True
            case "depart":
                return not self.replaced.is_set()
            case "keep":
                return False
            case _ as never:
                assert_never(never)


async def _one_life(settings: WorkerSettings, inventory: Inventory, machine: Machine, ending: Ending) -> None:
    incarnation = IncarnationId(Ids().new("i"))
    clock = Clock()
    agents: list[Agent] = []

    def on_fact(fact: ProcessFact, occurred_ns: int) -> None:
        agents[0].hear(fact, occurred_ns)

    def is_idle(replica: ReplicaId) -> bool:
        return clock.now_ns() - agents[0].last_used_ns(replica) > IDLE_NS

    processes = Processes(
        ProcessesSettings(
            state_dir=settings.state_dir,
            incarnation=incarnation,
            host=settings.host,
            advertise=settings.advertise,
            ports=settings.ports,
            allow_commands=settings.allow_commands,
            figures=settings.figures,
            at_worker_end=AT_WORKER_END[settings.at_end],
        ),
        on_fact=on_fact,
        is_idle=is_idle,
        vram_of=machine.process_memory,
        devices_of=machine.devices,
    )
    async with processes:
        agents.append(Agent(settings, incarnation, processes, inventory))
        await processes.recover()
        await _live(agents[0], settings, processes, ending)


async def _live(agent: Agent, settings: WorkerSettings, processes: Processes, ending: Ending) -> None:
    async with contextlib.AsyncExitStack() as stack:
        link = stack.enter_async_context(linked(settings, agent.rejoin))
        client = await _unless(ending.stop, link)
        if client is None:
            return
        try:
            await _unless(ending.stop, agent.live(client))
        except (NodeGoneError, NameTakenError):
            # Nobody believes in these processes any more; one that was never let in has yet to hear what is believed.
            if agent.registered:
                await processes.end_all()
            raise
        if ending.departs(settings):
            await agent.depart(client)
        else:
            await agent.say_last(client)


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, Result]) -> Result | None:
    """What `work` comes to; None once `stop` is set, which cancels it, however far it is."""
    working = asyncio.create_task(work)
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        if not working.done():
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
    return None if working.cancelled() else working.result()
