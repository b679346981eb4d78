"""What is measured and told often, outside the log: heartbeats and the routers' leases.

Invariant: nothing here is history; a lost message costs accuracy until the next one, never truth. None is unknown.
"""

from typing import Literal

import msgspec

from modelyard_events.ids import IncarnationId, NodeName, ReplicaId
from modelyard_events.replica import Process

ReplicaActivity = Literal["starting", "ready", "stopping"]


class ReplicaReading(msgspec.Struct, frozen=True, omit_defaults=True):
    """One process as its worker sees it. `memory` is measured bytes per device, `last_used_ns` the last request."""

    replica: ReplicaId
    key: str
    revision: str
    activity: ReplicaActivity
    process: Process
    address: str | None = None
    memory: dict[int, int] | None = None
    last_used_ns: int | None = None
    progress: float | None = None


class Heartbeat(msgspec.Struct, frozen=True, omit_defaults=True):
    """A worker is alive, and what it measures now (rule N8)."""

    node: NodeName
    incarnation: IncarnationId
    folded_sequence: int
    vram_free: dict[int, int | None] = {}
    ram_free: int | None = None
    disk_free: int | None = None
    replicas: tuple[ReplicaReading, ...] = ()


class RouterReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """A router's leases (rule T2): in flight per replica, queue per model, last use, and how far it has folded.

    `oldest_ns` is when the oldest lease of a replica began (busy timeout); `leaving` is a router's last word.
    `tokens_used_ns` is when its process last let somebody in, by the name of the token.
    """

    router: str
    folded_sequence: int
    in_flight: dict[ReplicaId, int] = {}
    last_used_ns: dict[ReplicaId, int] = {}
    oldest_ns: dict[ReplicaId, int] = {}
    queued: dict[str, int] = {}
    leaving: bool = False
    tokens_used_ns: dict[str, int] = {}
