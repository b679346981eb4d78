"""The gateway's figures for Prometheus.

Invariant: a label's values are bounded: models are those the fleet knows, outcomes are statuses.
"""

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

UNKNOWN_MODEL: Final = "(unknown)"
"""Names that clients make up don't become series."""

DISCONNECTED: Final = "disconnected"
BROKEN: Final = "broken"

_REQUESTS = Counter("modelyard_gateway_requests", "Requests under /v1 by model and outcome.", ["model", "outcome"])
_IN_FLIGHT = Gauge("modelyard_gateway_in_flight", "Requests under /v1 that aren't over yet.")
_OVERHEAD = Histogram(
    "modelyard_gateway_overhead_seconds",
    "Time a request spent here before its answer began, waits for a replica included, the replica's own time not.",
    buckets=(0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.05, 0.25, 1, 5, 15, 60),
)

_children: dict[tuple[str, str], Counter] = {}


def begun() -> None:
    """A request came."""
    _IN_FLIGHT.inc()


def ended(model: str, outcome: str) -> None:
    """It is over."""
    _IN_FLIGHT.dec()
    child = _children.get((model, outcome))
    if child is None:
        # Looking a child up by its labels costs more than counting.
        child = _children[model, outcome] = _REQUESTS.labels(model, outcome)
    child.inc()


def added(seconds: float) -> None:
    """What a request had spent here when its answer began."""
    _OVERHEAD.observe(seconds)
