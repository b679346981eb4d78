"""Ids made from the command that made the thing, so that a decision decided again gives the same ones.

Invariant: the same command and position give the same id everywhere; two commands never share one.
"""

import hashlib
from typing import Final

from modelyard_events.ids import CommandId, ReplicaId, ReservationId

_DIGEST_BYTES: Final = 10
"""80 bits are 16 base32 characters without padding: a million replicas collide with a chance of 4 in 10^13."""

_ALPHABET: Final = "abcdefghijklmnopqrstuvwxyz234567"
_PAIRS: Final = [first + second for first in _ALPHABET for second in _ALPHABET]
_SHIFTS: Final = range(8 * _DIGEST_BYTES - 10, -1, -10)
"""Ten bits are two base32 characters. The library's own base32 takes a tenth of a whole placement."""


def replica_id(command: CommandId, position: int) -> ReplicaId:
    """The id of the replica that `command` places at `position` (0-based)."""
    return ReplicaId("r-" + _digest("replica", command, position))


def reservation_id(command: CommandId, position: int) -> ReservationId:
    """The id of the reservation that `command` grants at `position` (0-based)."""
    return ReservationId("v-" + _digest("reservation", command, position))


def _digest(kind: str, command: CommandId, position: int) -> str:
    data = f"{kind}\0{position}\0{command}".encode()
    digest = int.from_bytes(hashlib.blake2b(data, digest_size=_DIGEST_BYTES).digest(), "big")
    return "".join([_PAIRS[digest >> shift & 1023] for shift in _SHIFTS])
