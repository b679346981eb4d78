"""The judge: reads every append as the log holds it, and says which invariant it breaks (I1-I8, I10-I13).

Invariant: it knows the events and their envelopes, what routers said and hold, and nothing that the fold or the
policy came to; so of a defect in either, the other doesn't persuade it.
"""

import base64
import zlib
from collections.abc import Sequence
from typing import Final, assert_never

import msgspec

from modelyard_events.decision import Decision
from modelyard_events.envelope import Actor, Recorded
from modelyard_events.fleet import (
    FleetMassLossCleared,
    FleetMassLossDeclared,
    FleetOwnEvent,
    FleetSettingsChanged,
)
from modelyard_events.model import (
    ModelAliasClaimed,
    ModelDeclaredSatisfiable,
    ModelDeclaredUnsatisfiable,
    ModelDefined,
    ModelOwnEvent,
    ModelPlacementRefused,
    ModelRedefined,
    ModelRemoved,
    ModelReplicaAdded,
    ModelReplicaDraining,
    ModelReplicaEnded,
    ModelReplicaReady,
    ModelRestartRequested,
    ModelScaled,
    ModelScheduleCleared,
    ModelScheduleSet,
)
from modelyard_events.node import NodeOwnEvent
from modelyard_events.replica import (
    ReplicaDrainStarted,
    ReplicaEvent,
)
from modelyard_events.reservation import (
    ReservationEvent,
)
from tests.ordeal.leases import Leases
from tests.ordeal.ledger import Ledger, require, subject
from tests.ordeal.memory import hear_reservation
from tests.ordeal.nodes import OPERATORS_ONLY, hear_node
from tests.ordeal.replicas import EVICTIONS, hear_replica

NANOSECONDS: Final = 1_000_000_000
DECISION_BYTES_MAX: Final = 16 * 1024
BATCH_EVENTS_MAX: Final = 1_000


class Judge:
    """`hear` takes appends in order; `ledger` is as of the last one."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.sequence = 0
        self._commands: dict[str, int] = {}
        self.leases = Leases(self.ledger)

    # What the log says.

    def hear(self, batch: Sequence[Recorded]) -> None:
        """One append.

        Raises:
            BrokenError: with the invariant that it breaks.
        """
        self._check_form(batch)
        for recorded in batch:
            self._hear_one(recorded, batch)
            self.ledger.subjects[subject(recorded.event)] = recorded.sequence
        self.check_whole()
        self._check_lives(batch)
        self._check_evictions(batch)

    def check_whole(self) -> None:
        """I7 and the two sides of every replica, as they are between appends."""
        held = {claim.replica for claim in self.ledger.claims.values() if claim.replica is not None}
        require("I7", held == set(self.ledger.lives), f"held {held}, living {set(self.ledger.lives)}")
        for life in self.ledger.lives.values():
            told = {"placed": "added", "loading": "added", "ready": "ready"}.get(life.stage, "draining")
            require("I7", life.told == told, f"{life} on its node, {life.told} by its model")
            claim = self.ledger.claims.get(life.reservation)
            require("I7", claim is not None and claim.replica == life.id, f"{life} holds {claim}")
            require("N13", life.node in self.ledger.places, f"{life} on a node that is gone")

    def _check_form(self, batch: Sequence[Recorded]) -> None:
        """I10, I11, I12 of the log's form."""
        require("I10", 0 < len(batch) <= BATCH_EVENTS_MAX, f"{len(batch)} events in one append")
        command = batch[0].envelope.command
        require("I11", command not in self._commands, f"command {command} was appended before")
        self._commands[command] = batch[0].sequence
        for position, recorded in enumerate(batch):
            self.sequence += 1
            require("I10", recorded.sequence == self.sequence, f"{recorded.sequence} after {self.sequence - 1}")
            require("I10", recorded.event_id == f"{command}.{position}", f"{recorded.event_id} at {position}")
            require("I10", recorded.batch_end == (position == len(batch) - 1), f"the end of {command}")
            decision = getattr(recorded.event, "decision", None)
            if decision is not None:
                self._check_decision(decision, before=batch[0].sequence)

    def _check_decision(self, decision: Decision, *, before: int) -> None:
        """I12, H2."""
        require("I12", decision.outcome and decision.policy, decision)
        require("I12", 0 <= decision.basis < before, f"basis {decision.basis} of an append at {before}")
        size = len(msgspec.json.encode(decision))
        require("I12", size <= DECISION_BYTES_MAX, f"a decision of {size} bytes")

    def _hear_one(self, recorded: Recorded, batch: Sequence[Recorded]) -> None:
        event = recorded.event
        actor = recorded.envelope.actor
        if isinstance(event, OPERATORS_ONLY):
            require("I8", actor.kind == "operator", f"{actor} appended {event}")
        if isinstance(event, NodeOwnEvent):
            hear_node(self.ledger, event, recorded, batch)
        elif isinstance(event, ReplicaEvent):
            hear_replica(self.ledger, self.leases, event, recorded)
        elif isinstance(event, ReservationEvent):
            hear_reservation(self.ledger, event)
        elif isinstance(event, ModelOwnEvent):
            self._hear_model(event, recorded)
        elif isinstance(event, FleetOwnEvent):
            self._hear_fleet(event, actor)
        else:
            assert_never(event)

    def _hear_fleet(self, event: FleetOwnEvent, actor: Actor) -> None:
        if isinstance(event, FleetSettingsChanged):
            require("I8", actor.kind == "operator", f"{actor} changed settings")
            self.ledger.settings.append((self.sequence, event.settings))
        if isinstance(event, FleetMassLossDeclared | FleetMassLossCleared):
            self.ledger.alarm = isinstance(event, FleetMassLossDeclared)

    # Models.

    def _hear_model(self, event: ModelOwnEvent, recorded: Recorded) -> None:  # noqa: C901, PLR0912 - one arm per event
        book = self.ledger.book(event.model)
        match event:
            case ModelDefined() | ModelRedefined():
                book.spec, book.revision = event.spec, event.revision
            case ModelRemoved():
                book.spec, book.revision = None, None
            case ModelAliasClaimed():
                pass  # its holder's spec is in the same append
            case ModelScheduleSet():
                book.schedule = event.schedule
            case ModelScheduleCleared():
                book.schedule = None
            case ModelRestartRequested():
                require("I8", recorded.envelope.actor.kind == "operator", f"{recorded.envelope.actor} restarts")
            case ModelReplicaAdded():
                self._told(event.replica, event.model, "", "added")
            case ModelReplicaReady():
                self._told(event.replica, event.model, "added", "ready")
            case ModelReplicaDraining():
                for replica in event.replicas:
                    self._told(replica, event.model, "added ready", "draining")
            case ModelReplicaEnded():
                for replica in event.replicas:
                    life = self.ledger.ended_lives.get(replica)
                    require("I7", life is not None and life.model == event.model, f"{replica} ended by its model only")
            case ModelPlacementRefused() | ModelScaled():
                require("I12", event.decision is not None, event)
            case ModelDeclaredUnsatisfiable():
                require("C5", book.unsatisfiable_until_ns is None, f"{event.model} trips a breaker that is open")
                seconds = event.cool_down_seconds
                book.unsatisfiable_until_ns = recorded.time_ns + round(seconds * NANOSECONDS)
            case ModelDeclaredSatisfiable():
                require("C5", book.unsatisfiable_until_ns is not None, f"{event.model} clears a breaker that is shut")
                book.unsatisfiable_until_ns = None
            case _:
                assert_never(event)

    def _told(self, replica: str, model: str, before: str, after: str) -> None:
        life = self.ledger.lives.get(replica)
        require("I7", life is not None and life.model == model, f"{model} speaks of {replica}")
        if life is not None:
            require("I7", life.told in before.split(" "), f"{life} becomes {after}")
            life.told = after  # type: ignore[assignment]  # one of its own words

    # Whole appends.

    def _check_lives(self, batch: Sequence[Recorded]) -> None:
        """N2, N13: a new life of a worker has what it adopted, one that left has nothing."""
        for name, place in self.ledger.places.items():
            lives = self.ledger.on(name)
            strangers = [life for life in lives if life.stage != "placed" and life.incarnation != place.incarnation]
            require("N2", not strangers, f"{strangers} run on {place.incarnation}")
            require("N10", place.liveness != "departed" or not lives, f"{lives} on {name}, which left")
            require("N10", place.intent != "drained" or not lives, f"{lives} on {name}, which is empty")
        removed = {one.event.model for one in batch if isinstance(one.event, ModelRemoved)}
        staying = [life for life in self.ledger.lives.values() if life.model in removed and life.told != "draining"]
        require("R1", not staying, f"{staying} outlive their model")

    def _check_evictions(self, batch: Sequence[Recorded]) -> None:
        """I5, by the readings that the decision itself holds."""
        evicted: dict[str, int] = {}
        serving = in_flight_of(batch)
        for recorded in batch:
            event = recorded.event
            if isinstance(event, ReplicaDrainStarted) and event.reason in EVICTIONS:
                for replica in event.replicas:
                    life = self.ledger.lives[replica]
                    require("I5", life.ready_at is not None, f"{life} is evicted in mid-load")
                    book = self.ledger.book(life.model)
                    require("I5", book.spec is None or not book.spec.pinned, f"{life} is pinned, and evicted")
                    require("I5", not serving.get(replica), f"{life} is evicted while it serves: {serving}")
                    evicted[life.model] = evicted.get(life.model, 0) + 1
        for model, count in evicted.items():
            book = self.ledger.book(model)
            left = sum(self.ledger.serves(life) for life in self.ledger.of(model))
            require(
                "I5", book.spec is None or left >= book.floor, f"{count} of {model} evicted, {left} of {book.floor}"
            )
            everywhere = book.schedule is not None and "Spread" in type(book.schedule.mode).__name__
            require("I5", book.spec is None or not everywhere, f"{model} wants every node, and is evicted")


def in_flight_of(batch: Sequence[Recorded]) -> dict[str, int]:
    """Requests by replica in the telemetry that the append's decisions hold: what was known when it was decided."""
    texts = [getattr(getattr(one.event, "decision", None), "telemetry", None) for one in batch]
    found: dict[str, int] = {}
    for text in texts:
        if text is not None and text != "…":
            found |= msgspec.msgpack.decode(zlib.decompress(base64.b85decode(text)))[1]
    return found
