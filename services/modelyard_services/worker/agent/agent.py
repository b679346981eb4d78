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
from modelyard_events.telemetry import Heartbeat, ReplicaReading
from modelyard_projections.fleet import Fleet
from modelyard_services.effects.bus import NatsBus
from modelyard_services.effects.clock import Clock, backoff_seconds
from modelyard_services.effects.nats_access.node_log import NodeLog
from modelyard_services.effects.tracing import Span, span
from modelyard_services.errors import (
    NameTakenError,
    NodeGoneError,
    StaleFactError,
    UnauthorizedError,
    UnavailableError,
)
from modelyard_services.worker.agent.answers import Answers
from modelyard_services.worker.agent.inventory import Inventory
from modelyard_services.worker.agent.loads import Loads
from modelyard_services.worker.agent.news import news
from modelyard_services.worker.agent.own_fold import OwnFold
from modelyard_services.worker.agent.progress import progress_in
from modelyard_services.worker.agent.pulse import Pulse
from modelyard_services.worker.agent.reporter import Reporter
from modelyard_services.worker.agent.settings import WorkerSettings
from modelyard_services.worker.agent.steps import Start, Step, Stop, TellStopped, request_of, steps
from modelyard_services.worker.processes.kept import ProcessFact
from modelyard_services.worker.processes.supervisor import Processes, StillAliveError

CONVERGE_SECONDS: Final = 5.0
"""The longest time until a step that failed is tried again."""

ANSWER_SECONDS: Final = 10.0
RETRY_BASE_SECONDS: Final = 0.2
RETRY_CAP_SECONDS: Final = 10.0
GOODBYE_SECONDS: Final = 5.0
"""How long a stopping worker tries to say what it has to; after that the silence says it."""

ROUTERS_HEAR_SECONDS: Final = 1.0
"""From a goodbye that was decided to the first SIGTERM: routers fold it within 250 ms, and what they sent a moment
before arrives. Requests in flight then have the backend's own `stop_grace_seconds`."""

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
        self._clock = Clock()
        self._own = OwnFold()
        self._rejoin = asyncio.Event()
        self._reporter = Reporter(settings.name, incarnation, on_stale=self._rejoin.set)
        self._pulse = Pulse()
        self._answers = Answers(settings.name, incarnation, processes, on_beat=self._pulse.every)
        self._changed = asyncio.Event()
        self._steps: dict[ReplicaId, asyncio.Task[None]] = {}
        self._started: set[ReplicaId] = set()
        self._told: set[ReplicaId] = set()
        self._loads = Loads()
        self._leaving = False

    def hear(self, fact: ProcessFact, occurred_ns: int) -> None:
        """Take a fact of the supervisor's, and when it happened; never blocks."""
        if not self._leaving:
            self._reporter.tell(fact, occurred_ns)
        self._loads.hear(fact)
        self._changed.set()
        self._pulse.now()

    def last_used_ns(self, replica: ReplicaId) -> int:
        """When a router last sent a request to `replica`, as far as it told us; 0 for never."""
        return self._answers.last_used_ns.get(replica, 0)

    @property
    def registered(self) -> bool:
        """Whether this life was ever let in: the fleet knows of its processes."""
        return self._own.registered_at is not None

    @property
    def _fleet(self) -> Fleet:
        return self._own.fleet

    def rejoin(self) -> None:
        """The link is back, or something was said of another life: ask who we are now."""
        self._rejoin.set()

    async def live(self, client: Client) -> None:
        """Serve until cancelled.

        Raises:
            NodeGoneError: the node was removed; this incarnation is over.
            NameTakenError: another live worker has the name.
            UnauthorizedError: the registration token is refused.
        """
        bus = NatsBus(client)
        await self._answers.listen(client)
        try:
            await self._register(bus)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._reregister(bus))
                tasks.create_task(self._reporter.run(bus))
                tasks.create_task(self._follow(client, bus))
                tasks.create_task(self._converge())
                tasks.create_task(self._beat(bus))
        except ExceptionGroup as group:
            raise _verdict(group) from group
        finally:
            await self._answers.close()
            await self._end_steps()

    async def depart(self, client: Client) -> None:
        """Say goodbye, then end all processes.

        The goodbye comes first so that routers send nothing more while requests in flight end. It frees slots and
        memory in the books a moment before the processes are gone, which promises them to nobody: nothing is placed
        on a node that departed, and its next incarnation begins once this state directory is free, after the last
        process has exited; ports stay claimed until then (trap X22).
        """
        self._leaving = True
        if self.registered:
            self._reporter.tell(Departing(), self._clock.now_ns())
        # While the link is away nobody hears: better to end what runs first than to wait in vain twice.
        said = client.is_connected and await self.say_last(client)
        if said and self._processes.running():
            await asyncio.sleep(ROUTERS_HEAR_SECONDS)
        await self._processes.end_all()
        if not said:
            await self.say_last(client)

    async def say_last(self, client: Client) -> bool:
        """Whether all facts were decided in the time that a stop has for it."""
        if not self.registered:
            return True
        try:
            async with asyncio.timeout(GOODBYE_SECONDS):
                await self._reporter.flush(NatsBus(client))
        except (TimeoutError, NodeGoneError) as error:
            _log.warning("not all was told", pending=self._reporter.pending, problem=str(error) or "no answer in time")
            return False
        return True

    async def _register(self, bus: NatsBus) -> None:
        registered = await _until_answered(lambda: self._ask_to_register(bus))
        if self._own.registered_at is None:
            _log.info("registered", node=self._settings.name, admission=registered.admission)
        self._own.registered_at = registered.sequence
        self._pulse.every(registered.heartbeat_seconds)
        self._pulse.now()
        self._changed.set()

    async def _request(self) -> Register:
        """Made anew for every try: what ran before a long outage says little of what runs after it."""
        return Register(
            node=self._settings.name,
            node_type=self._settings.node_type,
            incarnation=self._incarnation,
            facts=self._inventory.facts(),
            secret=self._processes.state_secret(),
            token=self._settings.registration_token,
            inventory=await self._processes.readings(),
        )

    async def _ask_to_register(self, bus: NatsBus) -> Registered | None:
        subject = node_command_subject(self._settings.name, REGISTER)
        body = await bus.ask(subject, msgspec.json.encode(await self._request()), timeout_seconds=ANSWER_SECONDS)
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

    async def _reregister(self, bus: NatsBus) -> None:
        while True:
            await self._rejoin.wait()
            self._rejoin.clear()
            await self._register(bus)

    async def _follow(self, client: Client, bus: NatsBus) -> None:
        async def offer(after: int) -> None:
            await _until_answered(lambda: self._ask_for_events(bus, after))

        log = NodeLog(client, self._settings.name, offer, clock=self._clock)
        async for chunk in log.follow(after=self._fleet.sequence):
            if not self._own.take(chunk):
                return
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
            case Refused(code=StaleFactError.code, detail=detail):
                _log.warning("events of a life that is over", reason=detail)
                self._rejoin.set()
                return None
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
        if not self._own.caught_up:
            return
        if self._settings.name not in self._fleet.nodes:
            raise NodeGoneError("the node was removed")
        running = [running.replica for running in self._processes.running()]
        for step in steps(self._fleet, self._settings.name, running=running):
            replica = step.replica.id if isinstance(step, Start) else step.replica
            if replica not in self._steps and not self._was_taken(step, replica):
                self._steps[replica] = asyncio.create_task(self._take(step, replica), name=type(step).__name__)

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
                    with self._traced("start process", replica):
                        self._loads.begin(state)
                        await self._processes.start(request_of(state))
                case Stop():
                    with self._traced("stop process", replica):
                        await self._processes.stop(replica)
                case TellStopped():
                    self._reporter.tell(Stopped(replica), self._clock.now_ns())
        except StillAliveError as error:
            _log.error("a process won't end", problem=str(error))
        except Exception:  # noqa: BLE001 - said below
            # One replica's step must not end the node's other replicas. A stop is tried again with the next look, a
            # start that isn't told of ends by its deadline.
            _log.exception("a step failed", replica=replica, step=type(step).__name__)
        finally:
            del self._steps[replica]
            self._changed.set()
            self._pulse.now()

    def _traced(self, name: str, replica: ReplicaId) -> Span:
        """A span in the trace of the last event about `replica`: what the step follows from."""
        state = self._fleet.replicas.get(replica)
        work = span(name, parent=state.trace if state else None)
        work.note(replica=replica, model=state.model if state else None)
        return work

    async def _end_steps(self) -> None:
        """Stops go on by themselves; starts are waited for, or what they began would be nobody's (rule W4)."""
        stops = [task for task in self._steps.values() if task.get_name() == Stop.__name__]
        for task in stops:
            task.cancel()
        await asyncio.gather(*self._steps.values(), return_exceptions=True)

    async def _beat(self, bus: NatsBus) -> None:
        subject = node_telemetry_subject(self._settings.name)
        while True:
            try:
                # Kept for a link that is away, it would be told as news once it is back.
                if bus.connected:
                    await bus.publish(subject, msgspec.json.encode(await self._heartbeat()))
            except UnavailableError as error:
                _log.info("heartbeat has to wait", problem=error.detail)
            await self._pulse.due()

    def _tell_news(self, readings: tuple[ReplicaReading, ...]) -> None:
        node = self._fleet.nodes.get(self._settings.name) if self._own.caught_up else None
        # What waits to be decided may be the same news.
        if node is not None and not self._reporter.pending and not self._leaving:
            for fact in news(self._fleet, node, now=self._inventory.facts(), readings=readings):
                self._reporter.tell(fact, self._clock.now_ns())

    async def _heartbeat(self) -> Heartbeat:
        used, folded = self._answers.last_used_ns, self._fleet.sequence  # before measuring: an end told later shows
        readings = await self._processes.readings()
        machine = await self._inventory.read()
        self._tell_news(readings)
        return Heartbeat(
            node=self._settings.name,
            incarnation=self._incarnation,
            folded_sequence=folded,
            vram_free=machine.vram_free,
            ram_free=machine.ram_free,
            disk_free=machine.disk_free,
            replicas=tuple(
                msgspec.structs.replace(
                    reading, last_used_ns=used.get(reading.replica), progress=progress_in(self._fleet, reading)
                )
                for reading in readings
            ),
        )


def _verdict(group: ExceptionGroup) -> Exception:
    """What ended a life, as one error: a typed one that says what is to do, if there is any."""
    verdicts, others = group.split((NodeGoneError, NameTakenError, UnauthorizedError))
    found: Exception | None = verdicts or others
    while isinstance(found, ExceptionGroup):
        found = found.exceptions[0]
    return found or group


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
