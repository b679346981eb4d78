"""Histories that could have happened, drawn at random: every kind of event, each valid where it stands.

Invariant: what is drawn folds; the same draws give the same history, so a failing one can be replayed and shrunk.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from modelyard_events.codec import decode, encode
from modelyard_events.decision import Decision, FilterCount
from modelyard_events.envelope import Actor, AnyEvent, Envelope, Recorded
from modelyard_events.fleet import (
    FleetMassLossCleared,
    FleetMassLossDeclared,
    FleetRegistrationTokenCreated,
    FleetRegistrationTokenRevoked,
    FleetSettingsChanged,
    FleetTokenCreated,
    FleetTokenRevoked,
    Settings,
)
from modelyard_events.ids import CommandId, IncarnationId, LabelKey, ModelName, NodeName, ReplicaId, ReservationId
from modelyard_events.model import (
    ModelAliasClaimed,
    ModelDeclaredSatisfiable,
    ModelDeclaredUnsatisfiable,
    ModelDefined,
    ModelPlacementRefused,
    ModelRedefined,
    ModelRemoved,
    ModelReplicaEnded,
    ModelReplicaReady,
    ModelRestartRequested,
    ModelScaled,
    ModelScheduleCleared,
    ModelScheduleSet,
)
from modelyard_events.node import (
    NodeApproved,
    NodeCapacityChanged,
    NodeCordoned,
    NodeDeparted,
    NodeDrainFinished,
    NodeDrainStarted,
    NodeIncarnationStarted,
    NodeLabelsChanged,
    NodeLost,
    NodeMaxReplicasOverridden,
    NodeOverrideCleared,
    NodeRecovered,
    NodeRejected,
    NodeRemoved,
    NodeResumed,
    NodeVramBudgetOverridden,
    NodeWatchdogOverridden,
    WatchdogOverrides,
)
from modelyard_events.replica import (
    EndReason,
    ProcessExit,
    ReplicaAdopted,
    ReplicaCrashed,
    ReplicaLoaded,
    ReplicaLoadFailed,
    ReplicaLoadStarted,
    ReplicaStopRequested,
    ReplicaUnloaded,
)
from modelyard_events.reservation import OperatorHolder, ReservationGranted, ReservationReleased, ReservationResized
from modelyard_events.selectors import parse_selector
from modelyard_events.sizes import Bytes, Fraction
from modelyard_events.spec import Autoscale, Schedule, ScheduleMode, SpreadAll, revision_of
from modelyard_projections.fleet import (
    Draining,
    Fleet,
    Loading,
    ModelState,
    NodeState,
    Placed,
    Ready,
    ReplicaState,
    ReservationState,
)
from modelyard_services.effects.log.contract import Stored
from tests.support.given import (
    GIB,
    SECOND_NS,
    START_NS,
    a_drain,
    a_pending_node,
    a_placed_replica,
    incarnation_of,
    some_facts,
    some_process,
    some_spec,
)

T = TypeVar("T")
DECISION = Decision(
    kind="placement",
    outcome="placed",
    policy="test-1",
    basis=0,
    figures={"vram": GIB, "share": 0.5, "rule": "spec", "unknown": None},
    filters=(FilterCount("vram", 3, low=1, high=2.5, unit="bytes", examples=("n1",)),),
)
_MODES: Sequence[ScheduleMode] = (Autoscale(1, 3), SpreadAll())
STRANGE = ("", "a b", "ünïcödé ✓", 'quote " back \\ slash', "nul \0 and \\u0000", "tab\tline\n")
"""Texts that processes and people produce and that databases trip over."""

WATCHDOGS = (WatchdogOverrides(), WatchdogOverrides(max_loaded_models=1), WatchdogOverrides(0.0, 300.0, 0, False))


class Choose(Protocol):
    """Draws one of the options."""

    def __call__(self, options: Sequence[T], /) -> T: ...


class Historian:
    """Draws a history, batch by batch; `fleet` is its fold."""

    def __init__(self, choose: Choose, *, nodes: int = 4, models: int = 3) -> None:
        self.fleet = Fleet()
        self._choose = choose
        self._nodes = [f"n{number}" for number in range(nodes)]
        self._models = ["m", "Qwen/Qwen3-32B:q4", *(f"model {number}" for number in range(models))][:models]
        self._made = 0

    def batch(self) -> list[Recorded]:
        """The next batch, folded."""
        events: list[AnyEvent] = []
        while not events:
            events = self._choose(_OPERATIONS)(self)
        return self.record(events)

    def record(self, events: Sequence[AnyEvent]) -> list[Recorded]:
        """Those events as the next batch, folded."""
        self._made += 1
        envelope = Envelope(
            Actor(self._choose(("operator", "system", "worker")), "somebody"),
            CommandId(f"c-{self._made}"),
            f"story-{self._made % 7}",
            trace="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01" if self._made % 3 else None,
        )
        recorded = [
            Recorded(
                self.fleet.sequence + position + 1,
                START_NS + (self._made * 7 + 1) * SECOND_NS // 3,
                envelope.event_id(position),
                event,
                envelope,
                batch_end=position == len(events) - 1,
            )
            for position, event in enumerate(events)
        ]
        self.fleet.apply_all(recorded)
        return recorded

    def one(self, options: Sequence[T]) -> T:
        return self._choose(options)

    def happens(self) -> bool:
        return self._choose((True, False))

    def id(self, prefix: str) -> str:
        return f"{prefix}-{self._made}"

    @property
    def node_names(self) -> list[str]:
        return self._nodes

    @property
    def model_names(self) -> list[str]:
        return self._models

    def node(self) -> NodeState | None:
        return self._any(list(self.fleet.nodes.values()))

    def model(self) -> ModelState | None:
        return self._any(list(self.fleet.models.values()))

    def replica(self, *phases: type) -> ReplicaState | None:
        return self._any([one for one in self.fleet.replicas.values() if isinstance(one.phase, phases)])

    def _any(self, found: Sequence[T]) -> T | None:
        return self._choose(found) if found else None


def stored(recorded: Sequence[Recorded]) -> list[Stored]:
    """The events as a log holds them."""
    return [
        Stored(
            one.sequence,
            one.time_ns,
            "modelyard.log.any",
            one.event_id,
            encode(one.event, one.envelope),
            batch_end=one.batch_end,
        )
        for one in recorded
    ]


def decoded(one: Stored) -> Recorded:
    """The event behind a stored body."""
    return decode(one.body, sequence=one.sequence, time_ns=one.time_ns, event_id=one.event_id, batch_end=one.batch_end)


def _register(draw: Historian) -> list[AnyEvent]:
    name = draw.one(draw.node_names)
    facts = some_facts(
        gpus=draw.one((0, 1, 4)),
        vram=draw.one((24 * GIB, 80 * GIB)),
        slots=draw.one((1, 3)),
        labels=draw.one(({}, {"zone": "a", "tier": "gpu"}, {"zone": draw.one(STRANGE)})),
    )
    if NodeName(name) not in draw.fleet.nodes:
        return [*a_pending_node(name, facts), *([NodeApproved(node=name)] if draw.happens() else [])]
    incarnation = IncarnationId(draw.id(name))
    return [NodeIncarnationStarted(node=name, incarnation=incarnation, facts=facts, secret_digest="d" * 64)]


def _change_node(draw: Historian) -> list[AnyEvent]:
    node = draw.node()
    if node is None:
        return []
    name, life = node.name, node.incarnation
    events: tuple[AnyEvent, ...] = (
        NodeApproved(node=name),
        NodeRejected(node=name, reason=draw.one(STRANGE)),
        NodeCordoned(node=name),
        NodeDrainStarted(node=name, deadline_seconds=draw.one((0.5, 600.0))),
        NodeDrainFinished(node=name),
        NodeResumed(node=name),
        NodeLost(node=name, incarnation=life, silent_seconds=61.25, grace_seconds=600.0),
        NodeRecovered(node=name, incarnation=life),
        NodeDeparted(node=name, incarnation=life),
        NodeLabelsChanged(node=name, changed={LabelKey("tier"): draw.one(STRANGE), LabelKey("own"): "1"}),
        NodeLabelsChanged(node=name, removed=(LabelKey("tier"),)),
        NodeCapacityChanged(node=name, incarnation=life, gpus=node.facts.gpus[:1], ram_total=64 * GIB),
        NodeMaxReplicasOverridden(node=name, max_replicas_per_model=draw.one((1, 5))),
        NodeVramBudgetOverridden(node=name, vram_budget=draw.one((None, Fraction(0.8), Bytes(12 * GIB)))),
        NodeWatchdogOverridden(node=name, overrides=draw.one(WATCHDOGS), changed=("max_loaded_models",)),
        NodeOverrideCleared(node=name, override=draw.one(("max_replicas_per_model", "vram_budget"))),
    )
    return [draw.one(events)]


def _remove_node(draw: Historian) -> list[AnyEvent]:
    node = draw.node()
    if node is None or draw.one((False, False, True)):
        return []
    events: list[AnyEvent] = []
    for replica in draw.fleet.replicas_on(node.name):
        events += _end(draw.fleet, replica, "node_removed")
    held = [one for one in node.reservations if isinstance(draw.fleet.reservations[one].holder, OperatorHolder)]
    if held:
        events.append(ReservationReleased(node=node.name, reservations=tuple(held)))
    return [*events, NodeRemoved(node=node.name)]


def _change_model(draw: Historian) -> list[AnyEvent]:
    name = draw.one(draw.model_names)
    spec = some_spec(vram=draw.one((None, GIB)), groups=draw.one(((), ("heavy",))))
    model = draw.fleet.models.get(ModelName(name))
    if model is None or model.spec is None:
        return [ModelDefined(model=name, spec=spec, revision=revision_of(spec))]
    events: tuple[AnyEvent, ...] = (
        ModelRedefined(model=name, spec=spec, revision=revision_of(spec), previous=revision_of(spec)),
        ModelRemoved(model=name),
        ModelPlacementRefused(
            model=name, kind=draw.one(("unsatisfiable", "exhausted")), revision=revision_of(spec), decision=DECISION
        ),
        ModelScaled(model=name, previous=1, wanted=2, reason=draw.one(STRANGE), decision=DECISION),
        ModelAliasClaimed(model="another-name", holder=ModelName(name)),
        ModelRestartRequested(model=name, replicas=(ReplicaId("r-gone"), *list(model.replicas)[:1])),
        ModelDeclaredUnsatisfiable(
            model=name, reason=draw.one(STRANGE), failed_passes=3, cool_down_seconds=300.0, decision=DECISION
        ),
        ModelDeclaredSatisfiable(model=name, cause="capacity"),
    )
    return [draw.one(events)]


def _schedule(draw: Historian) -> list[AnyEvent]:
    name = draw.one(draw.model_names)
    model = draw.fleet.models.get(ModelName(name))
    if model is not None and model.schedule is not None and draw.happens():
        return [ModelScheduleCleared(model=name, source="api")]
    schedule = Schedule(
        mode=draw.one(_MODES),
        node_selector=parse_selector(draw.one(("", "tier=gpu, zone in (a,b), !spot"))),
        target_in_flight=draw.one((None, 2.5, 1e16)),
    )
    return [ModelScheduleSet(model=name, schedule=schedule, source=draw.one(("file", "api")))]


def _place(draw: Historian) -> list[AnyEvent]:
    node, model = draw.node(), draw.model()
    if node is None or model is None:
        return []
    victims = [one.id for one in draw.fleet.replicas_on(node.name) if isinstance(one.phase, Draining)]
    also: dict[str, Any] = {"waits_for": (victims[0],)} if victims and draw.happens() else {}
    taken = node.slots.get(model.name, {})
    index = next(number for number in range(len(taken) + 1) if number not in taken)
    return a_placed_replica(
        draw.id("r"),
        node=node.name,
        model=model.name,
        index=index,
        vram=draw.one(({0: GIB}, {0: GIB, 1: 2 * GIB, 10: 3}, {-1: GIB})),
        exclusive=draw.happens(),
        groups=draw.one(((), ("heavy",))),
        decision=DECISION,
        **also,
    )


def _advance(draw: Historian) -> list[AnyEvent]:
    replica = draw.replica(Placed, Loading, Ready, Draining)
    if replica is None:
        return []
    node, one = replica.node, replica.id
    life = incarnation_of(node)
    match replica.phase:
        case Placed():
            return [ReplicaLoadStarted(node=node, replica=one, incarnation=life, process=some_process(one))]
        case Loading():
            return [
                ReplicaLoaded(node=node, replica=one, incarnation=life, address="127.0.0.1:9"),
                ModelReplicaReady(model=replica.model, replica=one),
            ]
        case Ready():
            return a_drain(one, node=node, model=replica.model, reason=draw.one(("evicted_lru", "idle")))
        case Draining(stopping=False):
            return [ReplicaStopRequested(node=node, replicas=(one,), forced=draw.happens())]
        case Draining():
            return _end(draw.fleet, replica, replica.phase.reason)


def _fail(draw: Historian) -> list[AnyEvent]:
    replica = draw.replica(Loading, Ready)
    if replica is None:
        return []
    exit_ = ProcessExit(exit_code=137, signal="SIGKILL", stderr_tail=STRANGE)
    if isinstance(replica.phase, Loading):
        failed: AnyEvent = ReplicaLoadFailed(
            node=replica.node, replica=replica.id, detail=draw.one(STRANGE), exit=exit_
        )
        return [failed, *_end(draw.fleet, replica, "load_failed", draw.one(STRANGE))]
    crashed = ReplicaCrashed(node=replica.node, replica=replica.id, exit=exit_)
    return [crashed, *_end(draw.fleet, replica, "crashed", draw.one(STRANGE))]


def _adopt(draw: Historian) -> list[AnyEvent]:
    replica = draw.replica(Loading, Ready, Draining)
    if replica is None:
        return []
    adopted = ReplicaAdopted(
        node=replica.node,
        replica=replica.id,
        incarnation=incarnation_of(replica.node),
        process=some_process(draw.id("p")),
        address=draw.one((None, "127.0.0.1:10")),
    )
    return [adopted]


def _hold(draw: Historian) -> list[AnyEvent]:
    node = draw.node()
    if node is None:
        return []
    held: list[ReservationState] = [draw.fleet.reservations[ReservationId(one)] for one in node.reservations]
    operators = [one for one in held if isinstance(one.holder, OperatorHolder)]
    if operators and draw.happens():
        return [ReservationReleased(node=node.name, reservations=tuple(one.id for one in operators))]
    if held and draw.happens():
        return [ReservationResized(node=node.name, reservation=draw.one(held).id, vram={0: draw.one((1, 2 * GIB))})]
    holder = OperatorHolder("anna", draw.one(STRANGE), draw.one((None, 60.0)))
    return [ReservationGranted(node=node.name, reservation=ReservationId(draw.id("v-o")), holder=holder, vram={0: 5})]


def _change_fleet(draw: Historian) -> list[AnyEvent]:
    tokens, registration = list(draw.fleet.tokens), list(draw.fleet.registration_tokens)
    events: list[AnyEvent] = [
        FleetSettingsChanged(settings=Settings(mass_loss_share=draw.one((0.3, 0.5))), changed=("mass_loss_share",)),
        FleetMassLossDeclared(nodes=("n1", "n2"), fleet_size=4),
        FleetMassLossCleared(cause="operator"),
        FleetTokenCreated(name=draw.id("t"), role=draw.one(("viewer", "admin")), digest="a" * 64),
        FleetRegistrationTokenCreated(name=draw.id("t"), digest="b" * 64),
    ]
    if tokens:
        events.append(FleetTokenRevoked(name=draw.one(tokens)))
    if registration:
        events.append(FleetRegistrationTokenRevoked(name=draw.one(registration)))
    return [draw.one(events)]


def _end(fleet: Fleet, replica: ReplicaState, reason: EndReason, detail: str = "") -> list[AnyEvent]:
    ended = (ReplicaId(replica.id),)
    return [
        ReplicaUnloaded(node=replica.node, replicas=ended, reason=reason, detail=detail),
        ReservationReleased(node=replica.node, reservations=(fleet.replicas[replica.id].reservation,)),
        ModelReplicaEnded(model=replica.model, replicas=ended, reason=reason, detail=detail),
    ]


# The first can always happen: it is what a failing history shrinks to.
_OPERATIONS: Sequence[Callable[[Historian], list[AnyEvent]]] = (
    _register,
    _change_model,
    *(_place,) * 2,
    *(_advance,) * 3,
    _fail,
    _adopt,
    _hold,
    _change_node,
    _schedule,
    _change_fleet,
    _remove_node,
)
