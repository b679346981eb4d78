"""The fleet's state as data: every entity, and which of them changed.

Invariant: only `Fleet.apply` and what it calls change it.
"""

from typing import Literal

import msgspec

from modelyard_events.codec import subject_of
from modelyard_events.envelope import AnyEvent
from modelyard_events.fleet import Settings
from modelyard_events.ids import CommandId, ModelName, NodeName, ReplicaId, ReservationId
from modelyard_events.subjects import FLEET_SUBJECT, model_subject, node_subject
from modelyard_projections.fleet.state import (
    ModelState,
    NodeState,
    RegistrationToken,
    ReplicaState,
    ReservationState,
    RevokedToken,
    Token,
)

EntityKind = Literal["node", "replica", "reservation", "model", "settings", "token", "registration_token"]
Touched = tuple[EntityKind, str]


class CommandRecord(msgspec.Struct, frozen=True):
    """What the log holds of a command: where it ended, and the digest of its request."""

    sequence: int
    request_digest: str | None


class FleetState(msgspec.Struct):
    """The state of everything at `sequence`, and what changed since somebody last took note."""

    sequence: int = 0
    time_ns: int = 0
    nodes: dict[NodeName, NodeState] = {}
    replicas: dict[ReplicaId, ReplicaState] = {}
    reservations: dict[ReservationId, ReservationState] = {}
    models: dict[ModelName, ModelState] = {}
    aliases: dict[str, tuple[ModelName, ...]] = {}
    settings: Settings = Settings()
    mass_loss: tuple[str, ...] = ()
    tokens: dict[str, Token] = {}
    registration_tokens: dict[str, RegistrationToken] = {}
    revoked_tokens: dict[str, RevokedToken] = {}
    subjects: dict[str, int] = {}
    commands: dict[CommandId, CommandRecord] = {}
    idempotent: dict[CommandId, CommandRecord] = {}
    touched: dict[Touched, None] = {}

    def guard_of(self, event: AnyEvent) -> int:
        """The last sequence of the event's aggregate: what an append of it must expect."""
        return self.subjects.get(subject_of(event), 0)

    def node_sequence(self, node: NodeName) -> int:
        """The last sequence of a node's aggregate: its ETag."""
        return self.subjects.get(node_subject(node), 0)

    def model_sequence(self, model: ModelName) -> int:
        """The last sequence of a model's aggregate: its ETag."""
        return self.subjects.get(model_subject(model), 0)

    @property
    def settings_sequence(self) -> int:
        """The last sequence of the fleet's own aggregate: the settings' ETag."""
        return self.subjects.get(FLEET_SUBJECT, 0)

    def recorded_command(self, command: CommandId) -> CommandRecord | None:
        """What the log holds of `command`, None when it holds nothing or has forgotten."""
        return self.commands.get(command) or self.idempotent.get(command)

    def take_touched(self) -> list[Touched]:
        """The entities changed since the last call, in the order of their first change."""
        taken = list(self.touched)
        self.touched.clear()
        return taken

    def touch(self, kind: EntityKind, key: str) -> None:
        """Note that an entity changed."""
        self.touched[kind, key] = None

    def model_named(self, name: str) -> ModelName:
        """The model that who says `name` means: the one of that name, else the one that had the alias first."""
        holders = self.aliases.get(name)
        if holders is None:
            return ModelName(name)
        state = self.models.get(ModelName(name))
        return holders[0] if state is None or state.spec is None else state.name

    def replicas_of(self, model: ModelName) -> list[ReplicaState]:
        """The living replicas of `model`, in the order of their placement."""
        state = self.models.get(model)
        if state is None:
            return []
        return [self.replicas[replica] for replica in state.replicas if replica in self.replicas]

    def replicas_on(self, node: NodeName) -> list[ReplicaState]:
        """The living replicas on `node`, in the order of their placement."""
        return [self.replicas[replica] for replica in self.nodes[node].replicas]
