"""A fleet with simulated workers, routers and time: the real policy decides, the real fold folds.

Invariant: every event comes from a decider and goes through the fold; the same calls give the same events.
"""

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from modelyard_events.envelope import Actor, AnyEvent, Envelope, Recorded
from modelyard_events.errors import InvalidValueError
from modelyard_events.fleet import FleetRegistrationTokenCreated
from modelyard_events.ids import CommandId, ModelName, NodeName, ReplicaId
from modelyard_events.requests import Fact, ProbeFailed
from modelyard_events.telemetry import Heartbeat, ReplicaReading
from modelyard_projections.demand import Demand
from modelyard_projections.fleet import Fleet, Ready, ReplicaState, Touched
from modelyard_services.errors import InvalidRequestError, ModelyardError
from modelyard_services.policy.actions import NANOSECONDS, Action, Moment, View, Watch
from modelyard_services.policy.configuration import Configuration
from modelyard_services.policy.facts import report
from modelyard_services.policy.liveness import judge
from modelyard_services.policy.look import look
from modelyard_services.policy.placement import Outcome, Request, load_on_demand, place
from modelyard_services.policy.probing import Answer, misses_after
from modelyard_services.policy.readings import read
from modelyard_services.policy.reconcile import reconcile
from modelyard_services.policy.registration import register
from modelyard_services.policy.routing import expected
from modelyard_services.policy.tokens import digest_of
from modelyard_services.settings import WorkerFigures
from modelyard_services.simulation.machine import TOKEN, LoadsAs, Machine, fact_of, report_of, request_of
from modelyard_services.simulation.router import SimulatedRouter

START_NS: Final = 1_750_000_000 * NANOSECONDS
"""The log's time at second 0."""

CONNECTED_NS: Final = START_NS - 100 * NANOSECONDS
"""The reconciler has listened long enough to know every router."""

ROUNDS_MAX: Final = 100
"""Rounds of reconciler and workers until both rest; more than that is a circle."""

SYSTEM: Final = Actor("system", "reconciler")

Watcher = Callable[[Sequence[Recorded]], None]
Speaker = Callable[[str, str], None]
Decide = Callable[[Fleet], Sequence[AnyEvent]]
Act = Callable[["World"], str | None]
"""Does one line of a story; the text says what an expectation found instead."""

REPROBE_SECONDS: Final = 2
"""How often a router asks a replica again that didn't answer it."""

WORKER: Final = WorkerFigures()
"""How workers look after their replicas: by the rule (T4)."""

WAIT_SECONDS: Final = 60
"""How long a request waits for a model that loads (rule T5)."""


class RestlessError(Exception):
    """Reconciler and workers go on for ever without time passing."""


class Waiting(msgspec.Struct, frozen=True):
    """A request that found no replica yet; `held_up` while others are in its way, when it was `asked` for last."""

    model: ModelName
    router: str
    since: int
    held_up: bool = False
    asked: int = 0


class World:
    """A fleet, its machines and routers, and the time in whole seconds since the start.

    `watch_log` is told every append, `say` what happens beside the log. `refused` is what the last
    refusal said, `answered` what the last request was told that had waited in vain.
    """

    def __init__(self, watch_log: Watcher, say: Speaker = lambda _what, _text: None) -> None:
        self.fleet = Fleet()
        self.demand = Demand()
        self.seconds = 0
        self.machines: dict[NodeName, Machine] = {}
        self.loading: dict[ModelName, LoadsAs] = {}
        self.routers: dict[str, SimulatedRouter] = {}
        self.waiting: list[Waiting] = []
        self.written = Configuration()
        self.answers: dict[ReplicaId, Answer] = {}
        self.refused = ""
        self.answered = ""
        self.say = say
        self._misses: dict[ReplicaId, int] = {}
        self._watch = Watch()
        self._watch_log = watch_log
        self._commands = 0
        token = FleetRegistrationTokenCreated(name="simulation", digest=digest_of(TOKEN))
        self.commit(Actor("system", "simulation"), lambda _fleet: [token])

    @property
    def now_ns(self) -> int:
        return START_NS + self.seconds * NANOSECONDS

    def commit(self, actor: Actor, decide: Decide, command: CommandId | None = None) -> bool:
        """Append what `decide` says, once per command; whether anything was appended."""
        identity = command or self.next_command()
        if self.fleet.recorded_command(identity) is not None:
            return False
        return self.append(actor, identity, decide(self.fleet))

    def append(self, actor: Actor, command: CommandId, events: Sequence[AnyEvent]) -> bool:
        """Append what was decided already; whether that is anything."""
        envelope = Envelope(actor, command, command)
        recorded = [
            Recorded(
                self.fleet.sequence + 1 + position,
                self.now_ns,
                envelope.event_id(position),
                event,
                envelope,
                position == len(events) - 1,
            )
            for position, event in enumerate(events)
        ]
        if recorded:
            # The log has it before anybody folds it.
            self._watch_log(recorded)
            self.fleet.apply_all(recorded)
            touched: list[Touched] = self.fleet.take_touched()
            for router in self.routers.values():
                router.hear_log(touched)
        return bool(recorded)

    def ask(self, actor: Actor, decide: Decide) -> bool:
        """As `commit`; a refusal is kept in `refused` as whoever asked would read it."""
        self.refused = ""
        try:
            return self.commit(actor, decide)
        except InvalidValueError as error:
            self.refused = f"{InvalidRequestError.code}: {error}"
        except ModelyardError as error:
            self.refused = f"{error.code}: {error.detail}"
        return False

    def load(self, model: ModelName, *, shut: frozenset[ReplicaId] = frozenset()) -> Outcome:
        """A replica for a request for `model`; those in `shut` answered it no probe."""
        command, answer = self.next_command(), Outcome()

        def decide(fleet: Fleet) -> Sequence[AnyEvent]:
            nonlocal answer
            readings = read(fleet, self.demand, heard_ns=self.now_ns, connected_ns=CONNECTED_NS)
            request = Request(model=model, command=command, now_ns=self.now_ns)
            # As the router does: what the model counts as serving may be lost, or answer no probe.
            usable = expected(fleet, model, shut=shut)
            answer = (load_on_demand if usable else place)(fleet, readings, request)
            return answer.events

        self.ask(Actor("client", "simulation"), decide)
        if answer.refused is not None:
            self.refused = f"{answer.refused.kind}: {answer.refused.message}"
        return answer

    def request(self, model: ModelName, router: str) -> None:
        """One request: sent to the best replica, else it waits for one that loads, or is refused."""
        shut = self._send(model, router)
        if shut is not None:
            self._wait(Waiting(model, router, self.seconds), shut)

    def serve_waiting(self) -> bool:
        """Send on what waits and can be served, and ask again for what is held up; whether any was sent."""
        waiting, self.waiting = self.waiting, []
        refused_before = self.refused
        for one in waiting:
            shut = self._send(one.model, one.router)
            if shut is None:
                continue
            if one.held_up and self.seconds - one.asked >= self.fleet.settings.held_up_retry_seconds:
                self._wait(one, shut)
            elif self.seconds - one.since >= WAIT_SECONDS:
                self._answer(one, f"model_loading: not ready within {WAIT_SECONDS} s")
            else:
                self.waiting.append(one)
        self.refused = refused_before
        return len(self.waiting) < len(waiting)

    def _wait(self, one: Waiting, shut: frozenset[ReplicaId]) -> None:
        """Ask for a replica, and wait for it; where others are in its way, ask again soon (rule P4)."""
        answer = self.load(one.model, shut=shut)
        if not self.refused:
            self.waiting.append(msgspec.structs.replace(one, held_up=False))
        elif answer.refused is None or not answer.refused.held_up or self._gives_up(one):
            self._answer(one, self.refused)
        else:
            if not one.held_up:
                self.say("waits", f"{one.model} {self.refused}")
            self.waiting.append(msgspec.structs.replace(one, held_up=True, asked=self.seconds))
            self.refused = ""

    def _gives_up(self, one: Waiting) -> bool:
        return self.seconds - one.since >= self.fleet.settings.held_up_seconds

    def _answer(self, one: Waiting, answer: str) -> None:
        self.answered = answer
        if self.seconds > one.since:
            self.say("answer", f"{one.model} {answer}")

    def _send(self, model: ModelName, name: str) -> frozenset[ReplicaId] | None:
        """None once the request is with a replica, else those that answered no probe."""
        router = self.router(name)
        lease, shut = router.route(model, self.answer_of, now_ns=self.now_ns)
        for each in shut:
            state = self.fleet.replicas[each.replica]
            self.say("out", f"{state.node} {state.model}#{state.replica_index} for {name}: its answer is {each.answer}")
        if lease is None:
            return frozenset(each.replica for each in shut)
        self.say("lease", f"{lease.node} {lease.model}#{lease.replica_index} from {name}")
        self.tell_routers()
        return None

    def register(self, node: NodeName, *, keeping: bool = False, auto_approve: bool = True) -> None:
        """The machine's worker starts its next life, with its processes or without."""
        machine = self.machines[node]
        machine.life += 1
        machine.state = "up"
        request = request_of(machine, self.readings_on(node) if keeping else ())
        self.ask(Actor("worker", node), lambda fleet: register(fleet, request, auto_approve=auto_approve))
        self.hear(node)

    def replicas(self, model: str | None = None, node: str | None = None) -> list[ReplicaState]:
        """The living replicas of `model` on `node`, in the order of node, model and index."""
        found = [
            state
            for state in self.fleet.replicas.values()
            if model in {None, state.model} and node in {None, state.node}
        ]
        return sorted(found, key=lambda state: (state.node, state.model, state.replica_index, state.id))

    def hear(self, *nodes: NodeName) -> None:
        """Heartbeats of `nodes`, where a worker is up."""
        for node in nodes or tuple(self.machines):
            machine, state = self.machines[node], self.fleet.nodes.get(node)
            if machine.state == "up" and state is not None:
                beat = Heartbeat(node, machine.incarnation, self.fleet.sequence, replicas=self.readings_on(node))
                self.demand.hear_node(beat, now_ns=self.now_ns)

    def readings_on(self, node: NodeName) -> tuple[ReplicaReading, ...]:
        """The processes on `node`, as its worker sees them."""
        return tuple(
            ReplicaReading(state.id, f"{state.model}#{state.replica_index}", state.revision, "ready", state.process)
            for state in self.replicas(node=node)
            if state.process is not None
        )

    def view(self) -> View:
        """What a reconciler sees now."""
        view = look(self._watch, self.fleet, self.demand, Moment(self.now_ns, self.now_ns, CONNECTED_NS))
        self._watch = view.watch
        return view

    def due(self) -> list[Action]:
        """What a reconciler would do now."""
        view = self.view()
        return [*judge(view), *reconcile(view)]

    def carry_out(self, actions: Sequence[Action]) -> bool:
        """Do `actions`, also late or for the second time; whether anything was appended."""
        done = False
        for action in actions:
            done |= self._carry_out(action)
        return done

    def work(self) -> bool:
        """Every worker that is up starts, loads and stops as its events say; whether it had to."""
        done = False
        for node, machine in self.machines.items():
            if machine.state == "up" and node in self.fleet.nodes:
                for state in self.replicas(node=node):
                    fact = fact_of(state, loading=self.loading.get(state.model, "work"))
                    done |= fact is not None and self.tell(node, fact)
        return done

    def tell(self, node: NodeName, *facts: Fact) -> bool:
        """The worker of `node` reports `facts`; whether they changed anything."""
        told = report_of(self.machines[node], *facts)
        return self.ask(Actor("worker", node), lambda fleet: report(fleet, told).events)

    def router(self, name: str) -> SimulatedRouter:
        """The router of that name; it begins now if it is new."""
        if name not in self.routers:
            self.routers[name] = SimulatedRouter(name, self.fleet, self.demand)
        return self.routers[name]

    def answer_of(self, replica: ReplicaId) -> Answer:
        """What the replica's process says when it is asked whether it is well."""
        return self.answers.get(replica, "healthy")

    def requests_on(self, replica: ReplicaId) -> int:
        """The requests that all routers have on it."""
        return sum(lease.replica == replica for one in self.routers.values() for lease in one.leases.values())

    def tell_routers(self) -> None:
        """Every router reports its leases, and hears of the others'; those on ended replicas broke with them."""
        for router in self.routers.values():
            router.drop_broken(now_ns=self.now_ns)
            if not router.cut_off:
                self.demand.hear_router(router.report(), now_ns=self.now_ns)
        for router in self.routers.values():
            router.hear_others(now_ns=self.now_ns)

    def settle(self) -> None:
        """Reconciler and workers in turn until both rest, no time passing.

        Raises:
            RestlessError: they never do.
        """
        for _ in range(ROUNDS_MAX):
            self.tell_routers()
            if not (self.carry_out(self.due()) | self.work() | self.serve_waiting()):
                return
        raise RestlessError(f"reconciler and workers run in circles after {ROUNDS_MAX} rounds")

    def pass_time(self, seconds: int) -> None:
        """Live through `seconds`, everybody acting each second."""
        for _ in range(seconds):
            self.seconds += 1
            self.hear()
            self.tell_routers()
            if self.seconds % WORKER.probe_interval_seconds == 0:
                self.probe()
            if self.seconds % REPROBE_SECONDS == 0:
                self._reopen()
            self.carry_out(self.due())
            self.work()
            self.serve_waiting()

    def probe(self) -> None:
        """Every worker that is up asks its own ready processes whether they are well (rule T4)."""
        for state in self.replicas():
            if self.machines[state.node].state == "up" and isinstance(state.phase, Ready):
                idle = not self.requests_on(state.id)
                missed = self.answer_of(state.id) != "healthy"
                self._misses[state.id] = misses_after(self._misses.get(state.id, 0), missed=missed, idle=idle)
                if self._misses[state.id] == WORKER.probe_misses:
                    self.tell(state.node, ProbeFailed(state.id, "no answer in time"))

    def next_command(self) -> CommandId:
        """An id that no command had."""
        self._commands += 1
        return CommandId(f"c-{self._commands}")

    def _reopen(self) -> None:
        for router in self.routers.values():
            for replica in router.try_again(self.answer_of):
                state = self.fleet.replicas[replica]
                self.say("back", f"{state.node} {state.model}#{state.replica_index} for {router.name}")

    def _carry_out(self, action: Action) -> bool:
        return self.commit(SYSTEM, lambda fleet: action.decide(fleet, action.command), action.command)
