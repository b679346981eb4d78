"""To which model and node every replica belongs, and whose each reservation is, also once they have ended. Pure.

Events of a replica name its id and nothing more; who tells events on without a fold at the right moment (a resumed
stream, a watcher) asks here. Invariant: an answer about a sequence is the same whether asked then or later.
"""

from collections import deque
from typing import Final

import msgspec

from modelyard_events.envelope import Recorded
from modelyard_events.ids import ModelName, NodeName, ReplicaId, ReservationId
from modelyard_events.model import ModelReplicaDraining, ModelReplicaReady
from modelyard_events.replica import ReplicaPlaced, ReplicaUnloaded
from modelyard_events.reservation import ReplicaHolder, ReservationGranted, ReservationReleased

ENDED_MAX: Final = 50_000
"""Replicas remembered after their end: 20 MB, a week of a fleet that ends one every ten seconds."""


class Home(msgspec.Struct):
    """One replica: where it belongs, and the sequences at which it changed."""

    node: NodeName
    model: ModelName
    placed: int
    ready: int | None = None
    draining: int | None = None
    ended: int | None = None

    def lives_before(self, sequence: int) -> bool:
        """Whether it was there for the event at `sequence` to change."""
        return self.placed < sequence and (self.ended is None or sequence <= self.ended)


class _Holding(msgspec.Struct):
    replica: ReplicaId
    granted: int
    released: int | None = None


class Homes:
    """Every replica of a log folded up to somewhere; the newest `ended_max` of those that ended."""

    def __init__(self, *, ended_max: int = ENDED_MAX) -> None:
        self.replicas: dict[ReplicaId, Home] = {}
        self.complete_since = 0
        """Questions about events before this sequence may find nothing."""
        self._holdings: dict[ReservationId, _Holding] = {}
        self._ended: deque[ReplicaId] = deque()
        self._held: dict[ReplicaId, ReservationId] = {}
        self._ended_max = ended_max

    def apply(self, recorded: Recorded) -> None:
        """Take note of one event, in log order."""
        event, sequence = recorded.event, recorded.sequence
        match event:
            case ReplicaPlaced(replica=replica, node=node, model=model):
                self.replicas[replica] = Home(NodeName(node), ModelName(model), placed=sequence)
            case ModelReplicaReady(replica=replica) if (home := self.replicas.get(replica)) is not None:
                home.ready = sequence
            case ModelReplicaDraining(replicas=replicas):
                for home in self._homes(replicas):
                    home.draining = sequence
            case ReplicaUnloaded(replicas=replicas):
                self._end(replicas, sequence)
            case ReservationGranted(reservation=reservation, holder=ReplicaHolder(replica=replica)):
                self._holdings[reservation] = _Holding(replica, sequence)
                self._held[replica] = reservation
            case ReservationReleased(reservations=reservations):
                for reservation in reservations:
                    if (holding := self._holdings.get(reservation)) is not None:
                        holding.released = sequence
            case _:
                pass  # changes nobody's home

    def model_of(self, replica: ReplicaId, *, before: int) -> ModelName | None:
        """The model of a replica that lived before the event at that sequence."""
        home = self.replicas.get(replica)
        return home.model if home is not None and home.lives_before(before) else None

    def holder_of(self, reservation: ReservationId, *, before: int) -> ReplicaId | None:
        """The replica whose memory it was before the event at that sequence; None also for an operator's."""
        holding = self._holdings.get(reservation)
        if holding is None or before <= holding.granted or (holding.released or before) < before:
            return None
        return holding.replica

    def on_node(self, node: str, *, before: int) -> list[tuple[ReplicaId, Home]]:
        """The replicas that lived on `node` before the event at that sequence."""
        return [(id_, home) for id_, home in self.replicas.items() if home.node == node and home.lives_before(before)]

    def _homes(self, replicas: tuple[ReplicaId, ...]) -> list[Home]:
        return [home for replica in replicas if (home := self.replicas.get(replica)) is not None]

    def _end(self, replicas: tuple[ReplicaId, ...], sequence: int) -> None:
        # Before the new ones join: their reservations are released only by the events that follow.
        while len(self._ended) > self._ended_max:
            self._forget(self._ended.popleft())
        for home in self._homes(replicas):
            home.ended = sequence
        self._ended.extend(replicas)

    def _forget(self, replica: ReplicaId) -> None:
        home = self.replicas.pop(replica, None)
        reservation = self._held.pop(replica, None)
        holding = None if reservation is None else self._holdings.pop(reservation, None)
        last = (home and home.ended, holding and holding.released)
        self.complete_since = max(self.complete_since, *(sequence or 0 for sequence in last))
