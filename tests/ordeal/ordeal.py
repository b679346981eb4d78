"""One ordeal: a small fleet, commands at random in any order, and the judge after each of them.

Invariant: whatever is appended goes through the judge, and the fold is held against its books.
"""

from collections import deque
from collections.abc import Sequence

import msgspec

from modelyard_events.codec import decode, encode
from modelyard_events.envelope import Actor, AnyEvent, Recorded
from modelyard_events.errors import InvalidValueError
from modelyard_events.ids import CommandId, LeaseId, NodeName
from modelyard_events.requests import Fact
from modelyard_events.telemetry import RouterReport
from modelyard_projections.fleet import Fleet, NodeDraining
from modelyard_projections.hashing import StateHash
from modelyard_services.errors import ModelyardError
from modelyard_services.policy.actions import Action
from modelyard_services.policy.desired import floor, shortage
from modelyard_services.policy.routing import Candidate
from modelyard_services.router.leases import Lease
from modelyard_services.simulation.router import SimulatedRouter
from modelyard_services.simulation.world import START_NS, Decide, World
from tests.ordeal.compare import compare, is_settled
from tests.ordeal.judge import Judge
from tests.ordeal.ledger import require, subject

NODES = ("n0", "n1", "n2", "n3")
MODELS = ("a", "b", "c", "d")
OPERATOR = Actor("operator", "ordeal")

REST_SECONDS = 10
REST_PASSES = 200
"""What is left to happen is over in that time: longest are a drain's deadline, a back-off and a breaker's cool-down."""

SAID_MAX = 60
"""Lines of the story told with a failure: what led to it is near its end."""

QUIET_PASSES = 12
"""Two minutes without an event, but for refusals and breakers that time brings: nothing is left to do."""


class Asked(msgspec.Struct, frozen=True):
    """Somebody's command: who, which, and how it is decided."""

    actor: Actor
    command: CommandId
    decide: Decide
    again: bool = True
    """Whether asking twice must change nothing."""


class JudgedRouter(SimulatedRouter):
    """A router whose every lease the judge hears of."""

    def __init__(self, name: str, ordeal: "Ordeal") -> None:
        super().__init__(name, ordeal.world.fleet, ordeal.world.demand)
        self.told_ns = 0
        self._ordeal = ordeal

    def grant(self, candidate: Candidate, *, now_ns: int) -> Lease:
        lease = super().grant(candidate, now_ns=now_ns)
        self._ordeal.judge.leases.granted(self.name, lease.lease, lease.replica, folded=self.folded)
        return lease

    def release(self, lease: LeaseId, *, now_ns: int) -> Lease | None:
        ended = super().release(lease, now_ns=now_ns)
        if ended is not None:
            self._ordeal.judge.leases.ended(self.name, ended.lease)
        return ended

    def report(self) -> RouterReport:
        report = super().report()
        self.told_ns = self._ordeal.world.now_ns
        self._ordeal.judge.leases.reported(self.name, now_ns=self.told_ns)
        return report


class Ordeal:
    """The fleet, its judge, and what happened lately."""

    def __init__(self) -> None:
        self.judge = Judge()
        self.log: list[Recorded] = []
        self.said: deque[tuple[int, object]] = deque(maxlen=SAID_MAX)
        self.world = World(self._heard, lambda what, text: self.say(f"{what} {text}"))
        self.late: list[Action] = []
        self.facts: list[tuple[NodeName, Fact]] = []
        self.commands: list[CommandId] = []
        self.routers = 0
        self.made = 0

    def say(self, what: object) -> None:
        """Remember it, to be told if something breaks."""
        self.said.append((self.world.seconds, what))

    @property
    def story(self) -> str:
        """What happened lately."""
        return "\n".join(f"{seconds:>6} s  {what}" for seconds, what in self.said)

    def command(self) -> CommandId:
        self.made += 1
        return CommandId(f"o-{self.made}")

    def router(self) -> JudgedRouter:
        """A router that begins now, and is heard."""
        self.routers += 1
        router = JudgedRouter(f"router-{self.routers}", self)
        self.world.routers[router.name] = router
        self.world.tell_routers()
        return router

    def ask(self, asked: Asked) -> bool:
        """Decide and append; whether anything was."""
        self.commands.append(asked.command)
        try:
            return self.world.commit(asked.actor, asked.decide, asked.command)
        except (ModelyardError, InvalidValueError) as refused:
            self.say(f"refused: {refused}")
            return False

    def require_again_nothing(self, asked: Asked) -> None:
        """I11: the same wish, under a new command, finds its outcome there."""
        try:
            events = list(asked.decide(self.world.fleet))
        except (ModelyardError, InvalidValueError):
            return
        require("I11", not events, f"asked twice: {events}")

    def race(self, first: Asked, second: Asked) -> str:
        """Two decide on the same fleet; the log takes the second only if nothing that it writes to has moved."""
        try:
            events = list(second.decide(self.world.fleet))
        except (ModelyardError, InvalidValueError) as refused:
            return f"refused: {refused}"
        books = self.judge.ledger.subjects
        relied = {subject(event): books.get(subject(event)) for event in events}
        self.ask(first)
        if self.world.fleet.recorded_command(second.command) is not None:
            return "the same command"
        if all(books.get(where) == sequence for where, sequence in relied.items()):
            self.commands.append(second.command)
            self.world.append(second.actor, second.command, events)
            return "both appended"
        self.ask(second)
        return "decided again"

    # The end.

    def rest(self) -> None:
        """Everybody comes back and time passes: what was begun ends, and what can be had is there (C1, C5, X16)."""
        world = self.world
        self._calm()
        quiet = 0
        for _ in range(REST_PASSES):
            before = len(self.log)
            world.seconds += REST_SECONDS
            world.hear()
            world.tell_routers()
            world.carry_out(world.due())
            world.work()
            if len(self.log) > before:
                compare(world.fleet, self.judge.ledger)
            quiet = quiet + 1 if all(_is_idle_talk(one.event) for one in self.log[before:]) else 0
        require("C1", quiet >= QUIET_PASSES, f"never rests: {[type(one.event).__name__ for one in self.log[-20:]]}")
        self._require_rest(world.fleet)

    def replay(self) -> None:
        """I9: the log as stored, folded anew, is the same state."""
        fleet = Fleet()
        for one in self.log:
            body = encode(one.event, one.envelope)
            fleet.apply(
                decode(body, sequence=one.sequence, time_ns=one.time_ns, event_id=one.event_id, batch_end=one.batch_end)
            )
        live, replayed = StateHash.of(self.world.fleet).text, StateHash.of(fleet).text
        require("I9", live == replayed, f"live {live}, replayed {replayed}")

    def _calm(self) -> None:
        world = self.world
        world.loading.clear()
        world.answers.clear()
        for router in world.routers.values():
            router.slow = router.cut_off = False
            router.catch_up()
            for lease in list(router.leases):
                router.release(lease, now_ns=world.now_ns)
        for name, machine in world.machines.items():
            node = world.fleet.nodes.get(name)
            if node is None or machine.state == "off":
                world.register(name)
            machine.state = "up"
        self.ask(Asked(OPERATOR, self.command(), _thawed))
        self.ask(Asked(OPERATOR, self.command(), _real_loss))

    def _require_rest(self, fleet: Fleet) -> None:
        for state in fleet.replicas.values():
            require("R1", is_settled(fleet, state), f"{state.id} stays {state.phase}")
        for node in fleet.nodes.values():
            stuck = isinstance(node.intent, NodeDraining) and not node.intent.finished
            require("N10", not stuck, f"{node.name} never gets empty: {list(node.replicas)}")
        for model in fleet.models.values():
            open_breaker = model.breaker is not None and model.breaker.until_ns <= self.world.now_ns
            require("C5", not open_breaker, f"the breaker of {model.name} stays open: {model.breaker}")
            if model.spec is not None and shortage(fleet, model):
                why = model.refusal or model.breaker or model.last_failure
                require("C2", why is not None, f"{model.name} below its floor of {floor(model)}, and nobody says why")

    def _heard(self, batch: Sequence[Recorded]) -> None:
        self.log += batch
        for one in batch:
            self.said.append(((one.time_ns - START_NS) // 1_000_000_000, one.event))
        self.judge.hear(batch)


def _is_idle_talk(event: AnyEvent) -> bool:
    """What time alone brings, over and over: a breaker that opens and shuts, and refusals that differ."""
    return type(event).__name__ in {
        "ModelPlacementRefused",
        "ModelDeclaredUnsatisfiable",
        "ModelDeclaredSatisfiable",
    }


def _thawed(fleet: Fleet) -> Sequence[AnyEvent]:
    from modelyard_services.policy.settings import thaw  # noqa: PLC0415

    return thaw(fleet, parts=("reconciler", "evictions"))


def _real_loss(fleet: Fleet) -> Sequence[AnyEvent]:
    from modelyard_services.policy.liveness import clear_mass_loss  # noqa: PLC0415

    return clear_mass_loss(fleet)
