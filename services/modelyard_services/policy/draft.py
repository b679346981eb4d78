"""A decision of several steps, each decided on what the steps before it come to.

Invariant: the fleet it starts from stays as it is; the draft folds into a copy, of one node's part or of all.
"""

import copy
from collections.abc import Iterable
from typing import Final, Self

from modelyard_events.envelope import Actor, AnyEvent, Envelope, Recorded
from modelyard_events.ids import CommandId, NodeName
from modelyard_projections.fleet import Fleet, ModelState

_ENVELOPE: Final = Envelope(Actor("system", "draft"), CommandId("draft"), "draft")


class Draft:
    """Events decided so far, and `fleet` as it will be with them: `node`, what is on it, and those models."""

    def __init__(self, fleet: Fleet, node: NodeName) -> None:
        self.events: list[AnyEvent] = []
        self.fleet = _part_of(fleet, node)

    @classmethod
    def of_all(cls, fleet: Fleet, *, time_ns: int) -> Self:
        """A draft that may decide about everything in `fleet`, as of `time_ns`."""
        draft = cls.__new__(cls)
        draft.events, draft.fleet = [], _all_of(fleet, time_ns)
        return draft

    def add(self, events: Iterable[AnyEvent]) -> None:
        """Decide `events`."""
        for event in events:
            sequence = self.fleet.sequence + 1
            identity = _ENVELOPE.event_id(sequence)
            self.fleet.apply(Recorded(sequence, self.fleet.time_ns, identity, event, _ENVELOPE))
            self.events.append(event)


def _part_of(fleet: Fleet, node: NodeName) -> Fleet:
    state, replicas = fleet.nodes[node], fleet.replicas_on(node)
    models = {replica.model for replica in replicas}
    return Fleet(
        sequence=fleet.sequence,
        time_ns=fleet.time_ns,
        settings=fleet.settings,
        nodes={node: copy.deepcopy(state)},
        # Folding replaces the fields of replicas and reservations and never reaches into them: flat copies do.
        replicas={replica.id: copy.copy(replica) for replica in replicas},
        reservations={identity: copy.copy(fleet.reservations[identity]) for identity in state.reservations},
        models={model: _copy_of(fleet.models[model]) for model in models},
    )


def _all_of(fleet: Fleet, time_ns: int) -> Fleet:
    return Fleet(
        sequence=fleet.sequence,
        time_ns=time_ns,
        settings=fleet.settings,
        mass_loss=fleet.mass_loss,
        subjects=dict(fleet.subjects),
        aliases=dict(fleet.aliases),
        nodes=copy.deepcopy(fleet.nodes),
        replicas={identity: copy.copy(replica) for identity, replica in fleet.replicas.items()},
        reservations={identity: copy.copy(held) for identity, held in fleet.reservations.items()},
        models={name: _copy_of(model) for name, model in fleet.models.items()},
    )


def _copy_of(model: ModelState) -> ModelState:
    copied = copy.copy(model)
    copied.replicas = dict(model.replicas)
    return copied
