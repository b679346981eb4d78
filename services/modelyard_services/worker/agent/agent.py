"""One life of a worker: register, follow the node's events, make processes match, tell facts, beat.

Invariant: the worker never appends; what it does follows from its node's events and from what runs, and every fact
reaches the registrar or is called stale (rules W1, W8).
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import msgspec
import nats.errors
import structlog
from nats.aio.client import Client

from modelyard_events.codec import decode
from modelyard_events.ids import IncarnationId, ReplicaId
from modelyard_events.requests import (
    OFFER,
    REGISTER,
    Departing,
    Offer,
    Offered,
    OfferReply,
    Refused,
    Register,
    Registered,
    RegisterReply,
    Stopped,
)
from modelyard_events.subjects import node_command_subject, node_telemetry_subject
from modelyard_events.telemetry import HEARTBEAT_SECONDS, Heartbeat
from modelyard_projections.fleet import Fleet, ReplicaState
from modelyard_services.effects.bus import NatsBus
from modelyard_services.effects.clock import Clock, backoff_seconds
from modelyard_services.effects.nats_access.node_log import NodeLog
from modelyard_services.errors import NameTakenError, NodeGoneError, UnauthorizedError, UnavailableError
from modelyard_services.worker.agent.answers import Answers
from modelyard_services.worker.agent.inventory import Inventory
from modelyard_services.worker.agent.reporter import Reporter
from modelyard_services.worker.agent.settings import WorkerSettings
from modelyard_services.worker.agent.steps import Start, Step, Stop, TellStopped, steps
from modelyard_services.worker.processes.kept import ProcessFact
from modelyard_services.worker.processes.running import StartRequest
from modelyard_services.worker.processes.supervisor import Processes, StillAliveError

CONVERGE_SECONDS: Final = 5.0
"""The longest time until a step that failed is tried again."""

ANSWER_SECONDS: Final = 10.0
RETRY_BASE_SECONDS: Final = 0.2
RETRY_CAP_SECONDS: Final = 10.0
DEPART_SECONDS: Final = 5.0
"""How long a stopping worker tries to say that it leaves; after that the silence says it."""

_REGISTER: Final = msgspec.json.Decoder(RegisterReply)
_OFFER: Final = msgspec.json.Decoder(OfferReply)
_log = structlog.get_logger(__name__)

Answer = TypeVar("Answer")


class Agent:
    """One incarnation of the worker, over processes that may outlive it."""

    def __init__(
        self, settings: WorkerSettings, incarnation: IncarnationId, processes: Processes, inventory: Inventory
    ) -> None:
        self._settings = settings
        self._incarnation = incarnation
        self._processes = processes
        self._inventory = inventory
        self._fleet = Fleet()
        self._reporter = Reporter(settings.name, incarnation)
        self._answers = Answers(settings.name, incarnation, processes)
        self._changed = asyncio.Event()
        self._registered_at: int | None = None
        self._heartbeat_seconds = HEARTBEAT_SECONDS
        self._beat_now = asyncio.Event()
        self._steps: dict[ReplicaId, asyncio.Task[None]] = {}
        self._started: set[ReplicaId] = set()
        self._told: set[ReplicaId] = set()
        self._leaving = False

    def hear(self, fact: ProcessFact) -> None:
        """Take a fact of the supervisor's; never blocks."""
        if not self._leaving:
            self._reporter.tell(fact)
        self._changed.set()
        self._beat_now.set()

    def last_used_ns(self, replica: ReplicaId) -> int:
        """When a router last sent a request to `replica`, as far as it told us; 0 for never."""
        return self._answers.last_used_ns.get(replica, 0)

    async def live(self, client: Client, reconnected: asyncio.Event) -> None:
        """Serve until cancelled.

        Raises:
            NodeGoneError: the node was removed; this incarnation is over.
            NameTakenError: another live worker has the name.
            UnauthorizedError: the registration token is refused.
        """
        bus = NatsBus(client)
        await self._answers.listen(client)
        await self._register(bus)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._reregister(bus, reconnected))
                tasks.create_task(self._reporter.run(bus))
                tasks.create_task(self._follow(client, bus))
                tasks.create_task(self._converge())
                tasks.create_task(self._beat(bus))
        except* NodeGoneError as gone:
            raise NodeGoneError("the node was removed") from gone
        except* NameTakenError as taken:
            raise NameTakenError(f"another worker took the name {self._settings.name!r}") from taken
        finally:
            await self._answers.close()
            for step in list(self._steps.values()):
                step.cancel()

    async def depart(self, client: Client) -> None:
        """End all processes and say goodbye."""
        self._leaving = True
        await self._processes.end_all()
        self._reporter.tell(Departing())
        try:
            async with asyncio.timeout(DEPART_SECONDS):
                await self._reporter.flush(NatsBus(client))
        except (TimeoutError, NodeGoneError) as error:
            _log.warning("left without a goodbye", problem=str(error) or "no answer in time")

    async def _register(self, bus: NatsBus) -> None:
        request = Register(
            node=self._settings.name,
            node_type=self._settings.node_type,
            incarnation=self._incarnation,
            facts=self._inventory.facts(),
            secret=self._processes.state_secret(),
            token=self._settings.registration_token,
            inventory=await self._processes.readings(),
        )
        registered = await _until_answered(lambda: self._ask_to_register(bus, request))
        if self._registered_at is None:
            _log.info("registered", node=self._settings.name, admission=registered.admission)
        self._registered_at = registered.sequence
        self._heartbeat_seconds = registered.heartbeat_seconds
        self._changed.set()
        self._beat_now.set()

    async def _ask_to_register(self, bus: NatsBus, request: Register) -> Registered | None:
        subject = node_command_subject(self._settings.name, REGISTER)
        body = await bus.ask(subject, msgspec.json.encode(request), timeout_seconds=ANSWER_SECONDS)
        if body is None:
            return None
        reply: RegisterReply = _REGISTER.decode(body)
        match reply:
            case Registered():
                return reply
            case Refused(code="name_taken", detail=detail):
                raise NameTakenError(detail)
            case Refused(code="unauthorized" | "forbidden" | "invalid_request", detail=detail):
                raise UnauthorizedError(detail)
            case Refused(code="gone", detail=detail):
                raise NodeGoneError(detail)
            case Refused(code=code, detail=detail):
                _log.warning("registration has to wait", code=code, reason=detail)
                return None

    async def _reregister(self, bus: NatsBus, reconnected: asyncio.Event) -> None:
        while True:
            await reconnected.wait()
            reconnected.clear()
            await self._register(bus)

    async def _follow(self, client: Client, bus: NatsBus) -> None:
        async def offer(after: int) -> None:
            await _until_answered(lambda: self._ask_for_events(bus, after))

        log = NodeLog(client, self._settings.name, offer, clock=Clock())
        async for chunk in log.follow(after=self._fleet.sequence):
            for one in chunk:
                event = decode(one.body, sequence=one.sequence, time_ns=one.time_ns, event_id=one.event_id)
                self._fleet.apply(event)
            self._fleet.take_touched()
            self._changed.set()

    async def _ask_for_events(self, bus: NatsBus, after: int) -> Offered | None:
        request = Offer(self._settings.name, self._incarnation, after)
        subject = node_command_subject(self._settings.name, OFFER)
        body = await bus.ask(subject, msgspec.json.encode(request), timeout_seconds=ANSWER_SECONDS)
        if body is None:
            return None
        reply: OfferReply = _OFFER.decode(body)
        match reply:
            case Offered():
                return reply
            case Refused(code="gone", detail=detail):
                raise NodeGoneError(detail)
            case Refused(code=code, detail=detail):
                _log.warning("events have to wait", code=code, reason=detail)
                return None

    async def _converge(self) -> None:
        while True:
            self._changed.clear()
            self._take_steps()
            try:
                async with asyncio.timeout(CONVERGE_SECONDS):
                    await self._changed.wait()
            except TimeoutError:
                pass  # level-triggered: look again, whatever was missed

    def _take_steps(self) -> None:
        # Before the own registration is folded, the fold shows a life that is over: its claims aren't ours to judge.
        if self._registered_at is None or self._fleet.sequence < self._registered_at:
            return
        if self._settings.name not in self._fleet.nodes:
            raise NodeGoneError("the node was removed")
        running = [running.replica for running in self._processes.running()]
        for step in steps(self._fleet, self._settings.name, running=running):
            replica = step.replica.id if isinstance(step, Start) else step.replica
            if replica not in self._steps and not self._was_taken(step, replica):
                self._steps[replica] = asyncio.create_task(self._take(step, replica))

    def _was_taken(self, step: Step, replica: ReplicaId) -> bool:
        """Whether a step that is taken once was taken: a replica is started, or its end told, once in a life."""
        self._started &= self._fleet.replicas.keys()
        self._told &= self._fleet.replicas.keys()
        if isinstance(step, Stop):
            return False
        taken = self._started if isinstance(step, Start) else self._told
        if replica in taken:
            return True
        taken.add(replica)
        return False

    async def _take(self, step: Step, replica: ReplicaId) -> None:
        try:
            match step:
                case Start(replica=state):
                    await self._processes.start(_request_of(state))
                case Stop():
                    await self._processes.stop(replica)
                case TellStopped():
                    self._reporter.tell(Stopped(replica))
        except StillAliveError as error:
            _log.error("a process won't end", problem=str(error))
        finally:
            del self._steps[replica]
            self._changed.set()
            self._beat_now.set()

    async def _beat(self, bus: NatsBus) -> None:
        subject = node_telemetry_subject(self._settings.name)
        while True:
            self._beat_now.clear()
            try:
                await bus.publish(subject, msgspec.json.encode(await self._heartbeat()))
            except UnavailableError as error:
                _log.info("heartbeat has to wait", problem=error.detail)
            try:
                async with asyncio.timeout(self._heartbeat_seconds):
                    await self._beat_now.wait()
            except TimeoutError:
                pass  # the ordinary beat

    async def _heartbeat(self) -> Heartbeat:
        used = self._answers.last_used_ns
        readings = await self._processes.readings()
        machine = await self._inventory.read()
        return Heartbeat(
            node=self._settings.name,
            incarnation=self._incarnation,
            folded_sequence=self._fleet.sequence,
            vram_free=machine.vram_free,
            ram_free=machine.ram_free,
            disk_free=machine.disk_free,
            replicas=tuple(
                msgspec.structs.replace(reading, last_used_ns=used.get(reading.replica)) for reading in readings
            ),
        )


def _request_of(state: ReplicaState) -> StartRequest:
    return StartRequest(
        replica=state.id,
        model=state.model,
        replica_index=state.replica_index,
        revision=state.revision,
        launch=state.launch,
        gpus=state.gpus,
    )


async def _until_answered(ask: Callable[[], Awaitable[Answer | None]]) -> Answer:
    attempt = 0
    while True:
        try:
            answer = await ask()
        except (UnavailableError, nats.errors.Error) as error:
            _log.info("the registrar is away", problem=str(error))
            answer = None
        if answer is not None:
            return answer
        await asyncio.sleep(backoff_seconds(attempt, base=RETRY_BASE_SECONDS, cap=RETRY_CAP_SECONDS))
        attempt += 1
