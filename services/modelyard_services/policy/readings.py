"""What telemetry says that placement needs, taken at one moment from `Demand`.

Invariant: a figure nobody reported is absent, and absence never counts as empty or as full (rule N9).
"""

import base64
import zlib
from itertools import islice
from typing import Final

import msgspec

from modelyard_events.ids import NodeName, ReplicaId
from modelyard_events.telemetry import Heartbeat
from modelyard_projections.demand import Demand, gone_after_ns
from modelyard_projections.fleet import Fleet

LEFT_OUT: Final = "…"
"""In the place of a column that doesn't fit: what was measured then isn't known any more."""

COLUMN_BYTES_MAX: Final = 6 * 1024
"""The telemetry in one decision: leaves 10 of its 16 KiB for what people read."""

COLUMN_NODES_FIRST: Final = 64
"""Nodes packed to see whether all may fit: with twenty replicas each, they alone don't."""

FRESH_HEARTBEATS: Final = 3
"""Figures that are older are unknown, though the node counts as alive for another while."""


class NodeReading(msgspec.Struct, frozen=True, array_like=True):
    """One node's measurements.

    `visible` tells how much of each replica the measured free memory already shows: bytes per device, or None
    for a replica that is up but whose share nobody can measure, which counts as shown wholly. `folded` is the
    sequence that the node's worker knew when it began to measure.
    """

    vram_free: dict[int, int] = {}
    visible: dict[ReplicaId, dict[int, int] | None] = {}
    disk_free: int | None = None
    folded: int = 0


UNKNOWN: Final = NodeReading()


class Readings(msgspec.Struct):
    """Measurements by node, leases and last uses by replica. Nothing but the cached column changes after `read`.

    `knows_routers` tells whether every living router has had the time to be heard, and was understood: without it, a
    replica without leases isn't known to be idle. `unserved` are those that no router can know of: they exist in a
    rehearsal alone.
    """

    nodes: dict[NodeName, NodeReading] = {}
    in_flight: dict[ReplicaId, int] = {}
    last_used_ns: dict[ReplicaId, int] = {}
    knows_routers: bool = False
    unserved: set[ReplicaId] = set()
    cached_column: str | None = None

    def knows_leases_of(self, replica: ReplicaId) -> bool:
        """Whether `in_flight` has all requests that `replica` serves."""
        return self.knows_routers or replica in self.unserved

    def of(self, node: NodeName) -> NodeReading:
        return self.nodes.get(node, UNKNOWN)

    @property
    def column(self) -> str:
        """All of it as one compressed text for a decision; `…` where it doesn't fit (rule H2)."""
        if self.cached_column is None:
            self.cached_column = _compress(self)
        return self.cached_column


class _Column(msgspec.Struct, frozen=True, array_like=True):
    """What filters and scores of nodes read: measurements by node, and requests by replica."""

    nodes: dict[NodeName, NodeReading]
    in_flight: dict[ReplicaId, int]


_DECODER: Final = msgspec.msgpack.Decoder(_Column)


def expand(column: str) -> Readings | None:
    """The readings that a decision's column holds, without last uses; None where they didn't fit into it.

    Raises:
        ValueError: it isn't a column of this version.
    """
    if column == LEFT_OUT:
        return None
    try:
        found = _DECODER.decode(zlib.decompress(base64.b85decode(column)))
    except (ValueError, zlib.error, msgspec.MsgspecError) as error:
        raise ValueError(f"the decision's telemetry can't be read: {error}") from error
    return Readings(found.nodes, found.in_flight)


def read(fleet: Fleet, demand: Demand, *, heard_ns: int, connected_ns: int | None = None) -> Readings:
    """The readings at `heard_ns` on the clock that `demand` was told with; connected since then, or not at all."""
    settings, nodes = fleet.settings, {}
    fresh_ns = FRESH_HEARTBEATS * settings.heartbeat_seconds * 1e9
    for name, heard in demand.nodes.items():
        node = fleet.nodes.get(name)
        fresh = heard_ns - heard.heard_ns <= fresh_ns
        if fresh and node is not None and heard.heartbeat.incarnation == node.incarnation:
            nodes[name] = _reading(heard.heartbeat)
    in_flight: dict[ReplicaId, int] = {}
    for report in demand.live_routers(settings, now_ns=heard_ns):
        for replica, leases in report.in_flight.items():
            in_flight[replica] = in_flight.get(replica, 0) + leases
    could_hear = connected_ns is not None and heard_ns - connected_ns >= gone_after_ns(settings)
    knows_routers = could_hear and demand.understands_routers(settings, now_ns=heard_ns)
    return Readings(nodes, in_flight, dict(demand.last_used_ns), knows_routers)


def _reading(heartbeat: Heartbeat) -> NodeReading:
    visible = {
        reading.replica: reading.memory
        for reading in heartbeat.replicas
        if reading.memory is not None or reading.activity != "starting"
    }
    measured = {device: free for device, free in heartbeat.vram_free.items() if free is not None}
    return NodeReading(measured, visible, heartbeat.disk_free, heartbeat.folded_sequence)


def _compress(readings: Readings) -> str:
    """The column; of a large fleet parts are packed first, for where one doesn't fit, all of it doesn't either."""
    count = COLUMN_NODES_FIRST
    while count < len(readings.nodes):
        if _packed(dict(islice(readings.nodes.items(), count)), {}) is None:
            return LEFT_OUT
        count *= 4
    busy = {replica: leases for replica, leases in readings.in_flight.items() if leases}
    packed = _packed(readings.nodes, busy)
    return LEFT_OUT if packed is None else base64.b85encode(packed).decode()


def _packed(nodes: dict[NodeName, NodeReading], busy: dict[ReplicaId, int]) -> bytes | None:
    """Both compressed, or None where that is too much for a decision."""
    packed = zlib.compress(msgspec.msgpack.encode(_Column(nodes, busy)), 1)
    return packed if len(packed) * 5 <= COLUMN_BYTES_MAX * 4 else None
