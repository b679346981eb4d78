"""A fleet that lives in memory: the real policy decides, the real fold folds, and the test plays the workers.

Invariant: every event goes through the fold at the world's own time; nothing else changes the fleet.
"""

from collections.abc import Sequence

import msgspec

from modelyard_events.envelope import Actor, AnyEvent, Envelope, Recorded
from modelyard_events.ids import CommandId, ModelName, NodeName, ReplicaId
from modelyard_events.model import ModelReplicaReady
from modelyard_events.replica import ReplicaLoaded, ReplicaLoadStarted
from modelyard_events.telemetry import Heartbeat, ReplicaReading, RouterReport
from modelyard_projections.demand import Demand
from modelyard_projections.fleet import Alive, Draining, Fleet, Loading, Placed, Ready, ReplicaState
from modelyard_services.policy.actions import Action, Moment, View, Watch
from modelyard_services.policy.ending import end
from modelyard_services.policy.liveness import judge
from modelyard_services.policy.look import look
from modelyard_services.policy.readings import Readings, read
from modelyard_services.policy.reconcile import reconcile
from tests.support.given import SECOND_NS, START_NS, some_process

PASSES_MAX = 50
"""Passes until nothing is left to do: a story that needs more runs in circles."""


class World:
    """A fleet, its telemetry and its time, in seconds since the start."""

    def __init__(self, *events: AnyEvent) -> None:
        self.fleet = Fleet()
        self.demand = Demand()
        self.watch = Watch()
        self.seconds = 0.0
        self.connected_seconds: float | None = -100.0
        self.told: list[AnyEvent] = []
        self.append(*events)

    @property
    def now_ns(self) -> int:
        return START_NS + round(self.seconds * SECOND_NS)

    def append(self, *events: AnyEvent, command: str | None = None) -> None:
        """Fold `events` as one append."""
        for position, event in enumerate(events):
            sequence = self.fleet.sequence + 1
            envelope = Envelope(Actor("system", "test"), CommandId(command or f"test-{sequence}"), "test")
            self.fleet.apply(Recorded(sequence, self.now_ns, envelope.event_id(position), event, envelope))
            self.told.append(event)

    def after(self, seconds: float) -> "World":
        self.seconds += seconds
        return self

    def later(self, seconds: float) -> "World":
        """`after`, with every worker heard just now."""
        self.after(seconds).beat()
        return self

    def view(self) -> View:
        connected = self.connected_seconds
        moment = Moment(
            self.now_ns, self.now_ns, None if connected is None else START_NS + round(connected * SECOND_NS)
        )
        view = look(self.watch, self.fleet, self.demand, moment)
        self.watch = view.watch
        return view

    def readings(self) -> Readings:
        connected = self.connected_seconds
        since_ns = None if connected is None else START_NS + round(connected * SECOND_NS)
        return read(self.fleet, self.demand, heard_ns=self.now_ns, connected_ns=since_ns)

    def one_pass(self) -> list[AnyEvent]:
        """One pass of the reconciler; what it appended."""
        view = self.view()
        return self.carry_out([*judge(view), *reconcile(view)])

    def carry_out(self, actions: Sequence[Action]) -> list[AnyEvent]:
        before = len(self.told)
        for action in actions:
            if self.fleet.recorded_command(action.command) is None:
                self.append(*action.decide(self.fleet, action.command), command=action.command)
        return self.told[before:]

    def settle(self) -> list[AnyEvent]:
        """Passes until one appends nothing; all that they appended."""
        before = len(self.told)
        for _ in range(PASSES_MAX):
            if not self.one_pass():
                return self.told[before:]
        raise AssertionError(f"{PASSES_MAX} passes and still something to do: {self.told[-3:]}")

    def work(self) -> None:
        """Every living worker does as its events say, loads and stops; every router folds on."""
        for router, heard in self.demand.routers.items():
            report = msgspec.structs.replace(heard.report, folded_sequence=self.fleet.sequence)
            self.demand.routers[router] = msgspec.structs.replace(heard, report=report)
        for state in list(self.fleet.replicas.values()):
            if isinstance(self.fleet.nodes[state.node].liveness, Alive):
                self._work_on(state)

    def live(self) -> None:
        """Reconciler and workers in turn until both have nothing to do."""
        for _ in range(PASSES_MAX):
            before = self.fleet.sequence
            self.settle()
            self.work()
            if self.fleet.sequence == before:
                return
        raise AssertionError("reconciler and workers run in circles")

    def beat(self, *nodes: str, folded: int | None = None, without: Sequence[str] = ()) -> None:
        """Heartbeats of `nodes`, or of all; replicas in `without` aren't reported."""
        for name in nodes or tuple(self.fleet.nodes):
            node = self.fleet.nodes[NodeName(name)]
            readings = tuple(
                ReplicaReading(state.id, f"{state.model}#{state.replica_index}", state.revision, "ready", state.process)
                for state in self.fleet.replicas_on(node.name)
                if state.process is not None and state.id not in without
            )
            sequence = self.fleet.sequence if folded is None else folded
            heartbeat = Heartbeat(node.name, node.incarnation, sequence, replicas=readings)
            self.demand.hear_node(heartbeat, now_ns=self.now_ns)

    def route(self, router: str = "router", *, folded: int | None = None, **in_flight: int) -> None:
        """A router's report; replicas by id with `_` for `-`."""
        leases = {ReplicaId(replica.replace("_", "-")): count for replica, count in in_flight.items()}
        report = RouterReport(router, self.fleet.sequence if folded is None else folded, leases)
        self.demand.hear_router(report, now_ns=self.now_ns)

    def replicas(self, model: str = "m") -> list[tuple[str, str]]:
        """Node and phase of the model's replicas, sorted."""
        found = self.fleet.replicas_of(ModelName(model))
        return sorted((state.node, state.phase_name) for state in found)

    def of(self, kind: type[AnyEvent]) -> list[AnyEvent]:
        return [event for event in self.told if isinstance(event, kind)]

    def _work_on(self, state: ReplicaState) -> None:
        incarnation = self.fleet.nodes[state.node].incarnation
        match state.phase:
            case Placed() if not state.waits_for:
                process = some_process(state.id)
                self.append(
                    ReplicaLoadStarted(node=state.node, replica=state.id, incarnation=incarnation, process=process)
                )
            case Loading():
                self.append(
                    ReplicaLoaded(node=state.node, replica=state.id, incarnation=incarnation, address="127.0.0.1:1"),
                    ModelReplicaReady(model=state.model, replica=state.id),
                )
            case Draining(stopping=True):
                self.append(*end(self.fleet, [state.id], reason="requested"))
            case Placed() | Draining() | Ready():
                pass
