"""Events of VRAM reservations, on their node's subject.

Invariant: every reservation is released exactly once, by whatever ends its holder (I7).
"""

import msgspec

from modelyard_events.base import NodeEvent
from modelyard_events.ids import ReplicaId, ReservationId


class ReplicaHolder(msgspec.Struct, frozen=True, tag="replica"):
    replica: ReplicaId


class OperatorHolder(msgspec.Struct, frozen=True, tag="operator", omit_defaults=True):
    """An operator's own use of the memory, a training job say; ends after `seconds` if given."""

    holder: str
    reason: str = ""
    seconds: float | None = None


Holder = ReplicaHolder | OperatorHolder


class ReservationGranted(NodeEvent, frozen=True, kw_only=True, tag="reservation.granted.v1"):
    """`vram` bytes per device index are held."""

    reservation: ReservationId
    holder: Holder
    vram: dict[int, int]


class ReservationResized(NodeEvent, frozen=True, kw_only=True, tag="reservation.resized.v1"):
    """The measured footprint replaced the estimate (rule R3)."""

    reservation: ReservationId
    vram: dict[int, int]


class ReservationReleased(NodeEvent, frozen=True, kw_only=True, tag="reservation.released.v1"):
    reservations: tuple[ReservationId, ...]


ReservationEvent = ReservationGranted | ReservationResized | ReservationReleased
