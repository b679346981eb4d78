"""How far a load has come, told by the memory it has taken (rules C7, N8). Pure.

Invariant: in whole percents, so that what a process that hangs allocates by the way counts as no progress (X25).
"""

from typing import Final

from modelyard_events.telemetry import ReplicaReading
from modelyard_projections.fleet import Fleet

PERCENT_MAX: Final = 99
"""Only its health check says that a load is done."""


def progress(reading: ReplicaReading, footprint: int | None) -> float | None:
    """The share of `footprint` (bytes reserved) that a starting process holds, 0 to 0.99; None if that is unknown."""
    if reading.activity != "starting" or not footprint or not reading.memory:
        return None
    return min(PERCENT_MAX, 100 * sum(reading.memory.values()) // footprint) / 100


def progress_in(fleet: Fleet, reading: ReplicaReading) -> float | None:
    """The same by what the node's own events reserve for it."""
    state = fleet.replicas.get(reading.replica)
    held = None if state is None else fleet.reservations.get(state.reservation)
    return None if held is None else progress(reading, sum(held.vram.values()))
