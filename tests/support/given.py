"""Deciders tested as sentences: given these events, when this is decided, then these events.

Invariant: `given` folds real events with the real fold, so a history that can't happen fails there.
"""

from collections.abc import Callable, Sequence

import pytest

from modelyard_events.decision import Decision
from modelyard_events.envelope import Actor, AnyEvent, Envelope, Recorded
from modelyard_events.ids import CommandId, IncarnationId, ModelName, NodeName, ReplicaId, ReservationId
from modelyard_events.model import ModelDefined, ModelReplicaAdded, ModelReplicaDraining, ModelReplicaReady
from modelyard_events.node import (
    HOST_MEMORY,
    Gpu,
    NodeApproved,
    NodeFacts,
    NodeIncarnationStarted,
    NodeRegistered,
)
from modelyard_events.replica import (
    EndReason,
    Process,
    ReplicaDrainStarted,
    ReplicaLoaded,
    ReplicaLoadStarted,
    ReplicaPlaced,
    ReplicaStopRequested,
)
from modelyard_events.reservation import ReplicaHolder, ReservationGranted
from modelyard_events.spec import LaunchSpec, ModelSpec, revision_of
from modelyard_projections.fleet import Fleet

GIB = 2**30
SECOND_NS = 1_000_000_000
START_NS = 1_750_000_000 * SECOND_NS
"""The stored time of sequence 0; each event is a second later than the one before."""

Decide = Callable[[Fleet], Sequence[AnyEvent]]


class Then:
    """What a decision came to; each `then` fails the test when it came to something else."""

    def __init__(self, fleet: Fleet, decide: Decide) -> None:
        self._fleet = fleet
        self._decide = decide

    @property
    def events(self) -> list[AnyEvent]:
        """What was decided, proven to fold."""
        events = list(self._decide(self._fleet))
        record(self._fleet, *events)
        return events

    def then(self, *expected: AnyEvent) -> None:
        assert self.events == list(expected)

    def then_nothing(self) -> None:
        assert self.events == []

    def then_raises(self, error: type[Exception], *saying: str) -> None:
        """Fails unless the decision raises `error` with every text of `saying` in its message."""
        with pytest.raises(error) as raised:
            self._decide(self._fleet)
        missing = [text for text in saying if text not in str(raised.value)]
        assert not missing, f"{raised.value} doesn't say {missing}"


class Given:
    """A history, ready to be decided on; `fleet` is its fold."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet

    def when(self, decide: Decide) -> Then:
        return Then(self.fleet, decide)


def given(*events: AnyEvent) -> Given:
    """The fleet after `events`, each its own append, one a second."""
    fleet = Fleet()
    record(fleet, *events)
    return Given(fleet)


def record(fleet: Fleet, *events: AnyEvent) -> None:
    """Fold `events` after what `fleet` holds."""
    for event in events:
        sequence = fleet.sequence + 1
        envelope = Envelope(Actor("operator", "test"), CommandId(f"given-{sequence}"), "given")
        time_ns = START_NS + sequence * SECOND_NS
        fleet.apply(Recorded(sequence, time_ns, envelope.event_id(0), event, envelope))


def incarnation_of(node: str) -> IncarnationId:
    """The incarnation that the builders below give a node."""
    return IncarnationId(f"{node}-life-1")


def some_facts(
    *, gpus: int = 1, vram: int = 24 * GIB, slots: int = 1, labels: dict[str, str] | None = None
) -> NodeFacts:
    """A machine with `gpus` GPUs of `vram` bytes; without any, `vram` bytes of RAM."""
    return NodeFacts(
        address="127.0.0.1:8001",
        gpus=tuple(Gpu(index, "nvidia", "Test GPU", vram) for index in range(gpus)),
        vram_total=None if gpus else vram,
        max_replicas_per_model=slots,
        labels={} if labels is None else labels,  # type: ignore[arg-type]  # LabelKey in tests is plain text
    )


def a_pending_node(node: str = "n1", facts: NodeFacts | None = None) -> list[AnyEvent]:
    return [
        NodeRegistered(node=node, node_type="backend"),
        NodeIncarnationStarted(
            node=node, incarnation=incarnation_of(node), facts=facts or some_facts(), secret_digest=f"digest-{node}"
        ),
    ]


def an_approved_node(
    node: str = "n1", *, gpus: int = 1, vram: int = 24 * GIB, slots: int = 1, labels: dict[str, str] | None = None
) -> list[AnyEvent]:
    facts = some_facts(gpus=gpus, vram=vram, slots=slots, labels=labels)
    return [*a_pending_node(node, facts), NodeApproved(node=node)]


def some_spec(*, vram: int | None = GIB, groups: tuple[str, ...] = (), pinned: bool = False) -> ModelSpec:
    return ModelSpec(command=("serve", "{port}"), vram=vram, concurrency_groups=groups, pinned=pinned)


def a_model(model: str = "m", spec: ModelSpec | None = None) -> list[AnyEvent]:
    spec = spec or some_spec()
    return [ModelDefined(model=model, spec=spec, revision=revision_of(spec))]


def a_placed_replica(
    replica: str = "r-1",
    *,
    node: str = "n1",
    model: str = "m",
    index: int = 0,
    vram: dict[int, int] | None = None,
    **also: object,
) -> list[AnyEvent]:
    """Placed with its reservation `v-…`; `vram` by device, 1 GiB on GPU 0 by default; `also`: fields of `placed`."""
    held = {0: GIB} if vram is None else vram
    reservation = ReservationId(replica.replace("r-", "v-", 1))
    revision = revision_of(some_spec())
    placed: dict[str, object] = {
        "node": node,
        "replica": replica,
        "model": model,
        "replica_index": index,
        "revision": revision,
        "launch": LaunchSpec(command=("serve", "{port}")),
        "reservation": reservation,
        "vram": held,
        "footprint_rule": "spec",
        "gpus": tuple(device for device in held if device != HOST_MEMORY),
        "decision": Decision(kind="placement", outcome="placed", policy="test", basis=0),
    }
    event = ReplicaPlaced(**{**placed, **also})  # type: ignore[arg-type]  # checked by the fold
    return [
        event,
        ReservationGranted(
            node=node, reservation=reservation, holder=ReplicaHolder(ReplicaId(replica)), vram=event.vram
        ),
        ModelReplicaAdded(
            model=model, replica=ReplicaId(replica), node=NodeName(node), replica_index=index, revision=event.revision
        ),
    ]


def some_process(replica: str = "r-1") -> Process:
    """The process that the builders give a replica."""
    number = sum(replica.encode())
    return Process(pid=10_000 + number, started_at=1_000.0 + number, port=20_000 + number)


def a_loading_replica(
    replica: str = "r-1",
    *,
    node: str = "n1",
    model: str = "m",
    index: int = 0,
    vram: dict[int, int] | None = None,
    **also: object,
) -> list[AnyEvent]:
    started = ReplicaLoadStarted(
        node=node, replica=ReplicaId(replica), incarnation=incarnation_of(node), process=some_process(replica)
    )
    return [*a_placed_replica(replica, node=node, model=model, index=index, vram=vram, **also), started]


def a_ready_replica(
    replica: str = "r-1",
    *,
    node: str = "n1",
    model: str = "m",
    index: int = 0,
    vram: dict[int, int] | None = None,
    **also: object,
) -> list[AnyEvent]:
    address = f"127.0.0.1:{some_process(replica).port}"
    return [
        *a_loading_replica(replica, node=node, model=model, index=index, vram=vram, **also),
        ReplicaLoaded(node=node, replica=ReplicaId(replica), incarnation=incarnation_of(node), address=address),
        ModelReplicaReady(model=ModelName(model), replica=ReplicaId(replica)),
    ]


def a_drain(
    replica: str = "r-1", *, node: str = "n1", model: str = "m", reason: EndReason = "requested", seconds: float = 600.0
) -> list[AnyEvent]:
    """The drain of a replica placed before."""
    replicas = (ReplicaId(replica),)
    return [
        ReplicaDrainStarted(node=node, replicas=replicas, reason=reason, deadline_seconds=seconds),
        ModelReplicaDraining(model=model, replicas=replicas, reason=reason),
    ]


def a_stop(replica: str = "r-1", *, node: str = "n1") -> list[AnyEvent]:
    """The worker is asked to stop a draining replica."""
    return [ReplicaStopRequested(node=node, replicas=(ReplicaId(replica),))]
