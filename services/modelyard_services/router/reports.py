"""What a router tells: its leases to everyone, the last use of replicas to their workers (rule T2).

Invariant: a router counts as heard only while its own reports come back to it, which proves the way to all the
others; one that isn't heard must not grant what nobody would see (DESIGN 4).
"""

import contextlib
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from modelyard_events.fleet import Settings
from modelyard_events.ids import NodeName, ReplicaId
from modelyard_events.requests import USED
from modelyard_events.subjects import router_telemetry_subject, worker_subject
from modelyard_events.telemetry import RouterReport
from modelyard_projections.demand import gone_after_ns
from modelyard_projections.fleet import Fleet
from modelyard_services.effects.runtime import Runtime
from modelyard_services.errors import UnavailableError
from modelyard_services.policy.readings import Readings, read

UNHEARD_SHARE: Final = 0.4
"""Unheard for this share of the silence after which the others forget its leases, a router takes no new requests."""

USE_TOLD_HEARTBEATS: Final = 3
"""How long reports repeat a last use; heartbeats carry it from then on."""

TELL_SECONDS: Final = 0.05
"""How soon others hear of a lease: they know within a quarter of a second, with time to spare for a busy machine."""

_ENCODER: Final = msgspec.json.Encoder()


class Reporter:
    """Publishes in the name of one router incarnation."""

    def __init__(self, runtime: Runtime, incarnation: str) -> None:
        self._runtime = runtime
        self._incarnation = incarnation
        self._subject = router_telemetry_subject(incarnation)
        self._heard_ns: int | None = None
        self._used_told_ns: dict[ReplicaId, int] = {}
        runtime.on_report(self._hear)

    def is_heard(self) -> bool:
        """Whether the router's own voice came back lately."""
        heard_ns, unheard_ns = self._heard_ns, UNHEARD_SHARE * gone_after_ns(self._runtime.fleet.settings)
        return heard_ns is not None and self._runtime.clock.monotonic_ns() - heard_ns < unheard_ns

    async def publish(self, report: RouterReport) -> None:
        """Tell everyone.

        Raises:
            UnavailableError: NATS is away.
        """
        await self._runtime.bus.publish(self._subject, _ENCODER.encode(report))

    async def keep_telling(self, report: Callable[[], RouterReport], changes: Callable[[], int]) -> None:
        """Tell everyone soon after `changes()` or the fold moved on, and in any case often enough to be heard."""
        runtime, told, told_ns = self._runtime, (-1, -1), 0
        while True:
            news, now_ns = (changes(), runtime.fleet.sequence), runtime.clock.monotonic_ns()
            # On a busy machine the next look may be late.
            apart_ns = (runtime.fleet.settings.router_report_seconds - 2 * TELL_SECONDS) * 1e9
            if news != told or now_ns - told_ns > apart_ns:
                told, told_ns = news, now_ns
                with contextlib.suppress(UnavailableError):  # whoever isn't heard refuses requests, and says so
                    await self.publish(report())
            await runtime.clock.sleep(TELL_SECONDS)

    async def tell_workers(self, used_ns: Mapping[ReplicaId, int]) -> None:
        """Tell each worker of the uses it hasn't been told of.

        Raises:
            UnavailableError: NATS is away.
        """
        by_node: dict[NodeName, dict[ReplicaId, int]] = {}
        for replica, at_ns in used_ns.items():
            state = self._runtime.fleet.replicas.get(replica)
            if state is not None and self._used_told_ns.get(replica) != at_ns:
                by_node.setdefault(state.node, {})[replica] = at_ns
        for node, uses in by_node.items():
            await self._runtime.bus.publish(worker_subject(node, USED), _ENCODER.encode(uses))
        self._used_told_ns = dict(used_ns)

    def _hear(self, report: RouterReport) -> None:
        if report.router == self._incarnation:
            self._heard_ns = self._runtime.clock.monotonic_ns()


def readings_with(own: RouterReport, *, runtime: Runtime, fleet: Fleet) -> Readings:
    """What telemetry says, with a router's `own` leases and uses as they are by now instead of as they came back."""
    heard, now_ns = runtime.demand, runtime.clock.monotonic_ns()
    demand = heard.copy()
    demand.hear_router(own, now_ns=now_ns)
    return read(fleet, demand, heard_ns=now_ns, connected_ns=runtime.connected_since_ns)


def use_told_ns(settings: Settings) -> int:
    """How old a last use may be that reports still tell."""
    return round(USE_TOLD_HEARTBEATS * settings.heartbeat_seconds * 1e9)


def tokens_used(runtime: Runtime, since_ns: int) -> dict[str, int]:
    """Uses worth telling; of tokens that are gone nothing is kept."""
    demand, known = runtime.demand, runtime.fleet.tokens
    for name in demand.tokens_used_ns.keys() - known.keys():
        del demand.tokens_used_ns[name]
    return {name: at_ns for name, at_ns in demand.tokens_used_ns.items() if at_ns > since_ns}
