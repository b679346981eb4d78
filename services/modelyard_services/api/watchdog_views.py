"""The watchdog's figures as the API shows them: what is in force, and who set it (rules C8, N11).

Invariant: a figure never stands without its source, so that nobody has to know which goes first.
"""

from typing import Literal

import msgspec

from modelyard_events.fleet import Settings
from modelyard_events.node import WatchdogOverrides
from modelyard_projections.fleet import Fleet, ReplicaState
from modelyard_services.policy.limits import Setter, Timeout, busy_timeout, idle_timeout

Source = Literal["node", "fleet"]


class TimeoutView(msgspec.Struct, frozen=True):
    """Seconds in force, 0 for off; `source` says whose they are, `fleet_value` what the fleet's settings say."""

    value: float
    source: Source
    fleet_value: float


class LoadedLimitView(msgspec.Struct, frozen=True):
    """As `TimeoutView`, in models; 0 is no limit."""

    value: int
    source: Source
    fleet_value: int


class ReclaimView(msgspec.Struct, frozen=True):
    """As `TimeoutView`, on or off."""

    value: bool
    source: Source
    fleet_value: bool


class WatchdogView(msgspec.Struct, frozen=True):
    """The watchdog as it holds on a node; a model's own timeouts go before these, as its replicas show."""

    idle_timeout_seconds: TimeoutView
    busy_timeout_seconds: TimeoutView
    max_loaded_models: LoadedLimitView
    reclaim_memory: ReclaimView


class ReplicaTimeoutView(msgspec.Struct, frozen=True):
    """Seconds in force for one replica, 0 for off, and whose they are."""

    value: float
    source: Setter


class ReplicaWatchdogView(msgspec.Struct, frozen=True):
    """The timeouts of one replica; a pinned one is exempt from the idle timeout."""

    idle_timeout_seconds: ReplicaTimeoutView
    busy_timeout_seconds: ReplicaTimeoutView


def watchdog_view(own: WatchdogOverrides, fleets: Settings) -> WatchdogView:
    """What holds on a node with these figures of its own."""
    limit, reclaim = own.max_loaded_models, own.reclaim_memory
    return WatchdogView(
        idle_timeout_seconds=_timeout(own.idle_timeout_seconds, fleets.idle_timeout_seconds),
        busy_timeout_seconds=_timeout(own.busy_timeout_seconds, fleets.busy_timeout_seconds),
        max_loaded_models=LoadedLimitView(
            fleets.max_loaded_models if limit is None else limit, _source(limit), fleets.max_loaded_models
        ),
        reclaim_memory=ReclaimView(
            fleets.reclaim_memory if reclaim is None else reclaim, _source(reclaim), fleets.reclaim_memory
        ),
    )


def replica_watchdog_view(fleet: Fleet, replica: ReplicaState) -> ReplicaWatchdogView:
    """What holds for a replica, by its model's schedule, its node or the fleet."""
    return ReplicaWatchdogView(_of(idle_timeout(fleet, replica)), _of(busy_timeout(fleet, replica)))


def _timeout(own: float | None, fleets: float) -> TimeoutView:
    return TimeoutView(fleets if own is None else own, _source(own), fleets)


def _source(own: object | None) -> Source:
    return "fleet" if own is None else "node"


def _of(timeout: Timeout) -> ReplicaTimeoutView:
    return ReplicaTimeoutView(timeout.seconds, timeout.setter)
