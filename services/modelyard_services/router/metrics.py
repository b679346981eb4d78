"""The router's figures for Prometheus.

Invariant: a series exists only while its model has requests waiting, so models that are gone leave none behind.
"""

from collections.abc import Mapping

from prometheus_client import Gauge

_QUEUED = Gauge("modelyard_router_queued", "Requests that wait for a replica, by model.", ["model"])

_told: set[str] = set()


def queued(lengths: Mapping[str, int]) -> None:
    """How many wait for each model now."""
    for model in _told - lengths.keys():
        _QUEUED.remove(model)
    for model, length in lengths.items():
        _QUEUED.labels(model).set(length)
    _told.clear()
    _told.update(lengths)
