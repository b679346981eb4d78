"""How much memory a replica of a model will take, and how long its load may last (rules R4, C7).

Invariant: every figure names the rule it came from; what nobody knows stays None, never zero.
"""

from collections.abc import Iterable
from typing import Final

import msgspec

from modelyard_events.replica import FootprintRule
from modelyard_events.spec import FACTOR, ModelSpec

LOAD_SECONDS_BASE: Final = 300.0
LOAD_SECONDS_PER_GIB: Final = 20.0
"""A loading deadline of 5 min and 20 s a GiB: slow network disks read about 50 MB/s (C7)."""


class Footprint(msgspec.Struct, frozen=True):
    """Bytes over all devices of one replica; None where there is nothing to go on."""

    size: int | None
    rule: FootprintRule


def footprint(spec: ModelSpec, *, measured: Iterable[int] = ()) -> Footprint:
    """The footprint of `spec`; `measured` are those of its living replicas at the same revision.

    An operator's own figure wins; a measurement beats what the files' headers tell, and that a guess from their size.
    """
    if spec.vram is not None:
        return Footprint(spec.vram, "spec")
    largest = max(measured, default=None)
    if largest is not None:
        return Footprint(largest, "measured")
    if spec.estimate is not None and (spec.estimate.rule != "file_size" or spec.file_size is None):
        return Footprint(spec.estimate.size, spec.estimate.rule)
    if spec.file_size is not None:
        return Footprint(round(spec.file_size * FACTOR), "file_size")
    return Footprint(None, "unknown")


def load_seconds(spec: ModelSpec, size: int | None) -> float:
    """How long a load may take before its progress must speak for it; never below the spec's own timeout."""
    seen = size if spec.estimate is None else spec.estimate.weights
    read = spec.file_size if spec.file_size is not None else seen or 0
    estimate = LOAD_SECONDS_BASE + LOAD_SECONDS_PER_GIB * read / 2**30
    return max(estimate, spec.ready_timeout_seconds or 0.0)
