"""Telemetry folded: what was heard last from each worker and router.

Invariant: it decides nothing by itself and is never hashed; a reading that is missing is None, never zero (N9).
Times are the observer's own, in nanoseconds; callers pass `now_ns`.
"""

import msgspec

from modelyard_events.fleet import Settings
from modelyard_events.ids import NodeName, ReplicaId
from modelyard_events.telemetry import Heartbeat, RouterReport


class HeardNode(msgspec.Struct, frozen=True):
    heartbeat: Heartbeat
    heard_ns: int


class HeardRouter(msgspec.Struct, frozen=True):
    report: RouterReport
    heard_ns: int


class Demand(msgspec.Struct):
    """Heartbeats by node, reports by router incarnation.

    `garbled_ns` is when a router last spoke and nobody here understood it.
    """

    nodes: dict[NodeName, HeardNode] = {}
    routers: dict[str, HeardRouter] = {}
    last_used_ns: dict[ReplicaId, int] = {}
    tokens_used_ns: dict[str, int] = {}
    garbled_ns: int | None = None

    def copy(self) -> "Demand":
        """One that hears for itself from here on."""
        return Demand(
            dict(self.nodes),
            dict(self.routers),
            dict(self.last_used_ns),
            dict(self.tokens_used_ns),
            self.garbled_ns,
        )

    def hear_node(self, heartbeat: Heartbeat, *, now_ns: int) -> None:
        """Take note of a heartbeat."""
        self.nodes[heartbeat.node] = HeardNode(heartbeat, now_ns)
        for reading in heartbeat.replicas:
            if reading.last_used_ns is not None:
                self._use(reading.replica, reading.last_used_ns)

    def hear_router(self, report: RouterReport, *, now_ns: int) -> None:
        """Take note of a router's report; one that leaves is forgotten with its leases."""
        if report.leaving:
            self.routers.pop(report.router, None)
        else:
            self.routers[report.router] = HeardRouter(report, now_ns)
        for replica, used_ns in report.last_used_ns.items():
            self._use(replica, used_ns)
        for token, used_ns in report.tokens_used_ns.items():
            self.use_token(token, used_ns)

    def hear_garbled_router(self, *, now_ns: int) -> None:
        """Take note that a router said something that can't be read: one of a newer version, say."""
        self.garbled_ns = now_ns

    def understands_routers(self, settings: Settings, *, now_ns: int) -> bool:
        """Whether every living router's leases are known: one that can't be read may hold any (trap X20)."""
        return self.garbled_ns is None or now_ns - self.garbled_ns >= gone_after_ns(settings)

    def use_token(self, name: str, used_ns: int) -> None:
        """Take note of a use of the token `name`; a name that isn't known any more is dropped by who lists them."""
        self.tokens_used_ns[name] = max(used_ns, self.tokens_used_ns.get(name, 0))

    def forget(self, replica: ReplicaId) -> None:
        """Drop what is known of an ended replica."""
        self.last_used_ns.pop(replica, None)

    def live_routers(self, settings: Settings, *, now_ns: int, without: str | None = None) -> list[RouterReport]:
        """The last report of each router that isn't gone, `without` the one that asks."""
        heard_after_ns = now_ns - gone_after_ns(settings)
        return [
            heard.report
            for router, heard in self.routers.items()
            if heard.heard_ns > heard_after_ns and router != without
        ]

    def in_flight(self, settings: Settings, replica: ReplicaId, *, now_ns: int) -> int:
        """Leases on `replica` over all live routers."""
        return sum(report.in_flight.get(replica, 0) for report in self.live_routers(settings, now_ns=now_ns))

    def is_empty(self, settings: Settings, replica: ReplicaId, *, drained_at: int, now_ns: int) -> bool:
        """Whether every live router has folded `drained_at` and holds no lease on the replica (rule R8)."""
        return all(
            report.folded_sequence >= drained_at and not report.in_flight.get(replica)
            for report in self.live_routers(settings, now_ns=now_ns)
        )

    def heartbeat(self, node: NodeName) -> Heartbeat | None:
        """The last heartbeat of `node`, None when none was heard."""
        heard = self.nodes.get(node)
        return heard.heartbeat if heard else None

    def _use(self, replica: ReplicaId, used_ns: int) -> None:
        if used_ns > self.last_used_ns.get(replica, 0):
            self.last_used_ns[replica] = used_ns


def gone_after_ns(settings: Settings) -> int:
    """How long a router is silent before it is gone and its leases with it (rule T2)."""
    return round(settings.router_silence_seconds * 1e9)
