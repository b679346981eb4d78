"""The router's figures for Prometheus.

Invariant: a series exists only while its model has requests waiting, so models that are gone leave none behind.
"""

from collections.abc import Mapping
from typing import Final, Literal

from prometheus_client import Counter, Gauge

_QUEUED = Gauge("modelyard_router_queued", "Requests that wait for a replica, by model.", ["model"])

_CHOSEN = Counter("modelyard_router_affinity", "Requests that belong somewhere, by the rule that chose.", ["rule"])
_BY_RULE: Final = {rule: _CHOSEN.labels(rule) for rule in ("session", "prefix", "least_busy")}

_told: set[str] = set()


def queued(lengths: Mapping[str, int]) -> None:
    """How many wait for each model now."""
    for model in _told - lengths.keys():
        _QUEUED.remove(model)
    for model, length in lengths.items():
        _QUEUED.labels(model).set(length)
    _told.clear()
    _told.update(lengths)


def chosen(rule: Literal["session", "prefix", "least_busy"]) -> None:
    """A request of a session, or with a prompt, goes where that rule says."""
    _BY_RULE[rule].inc()
