"""Ids made from the command that made the thing, so that a decision decided again gives the same ones.

Invariant: the same command and position give the same id everywhere; two commands never share one.
"""

import base64
import hashlib
from typing import Final

from modelyard_events.ids import CommandId, ReplicaId, ReservationId

_DIGEST_BYTES: Final = 10
"""80 bits are 16 base32 characters without padding: a million replicas collide with a chance of 4 in 10^13."""


def replica_id(command: CommandId, position: int) -> ReplicaId:
    """The id of the replica that `command` places at `position` (0-based)."""
    return ReplicaId("r-" + _digest("replica", command, position))


def reservation_id(command: CommandId, position: int) -> ReservationId:
    """The id of the reservation that `command` grants at `position` (0-based)."""
    return ReservationId("v-" + _digest("reservation", command, position))


def _digest(kind: str, command: CommandId, position: int) -> str:
    data = f"{kind}\0{position}\0{command}".encode()
    digest = hashlib.blake2b(data, digest_size=_DIGEST_BYTES).digest()
    return base64.b32encode(digest).decode().lower()
