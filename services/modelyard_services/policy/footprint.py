"""How much memory a replica of a model will take, and how long its load may last (rules R4, C7).

Invariant: every figure names the rule it came from; what nobody knows stays None, never zero.
"""

from collections.abc import Iterable

import msgspec

from modelyard_events.fleet import Settings
from modelyard_events.replica import FootprintRule
from modelyard_events.spec import ModelSpec


class Footprint(msgspec.Struct, frozen=True):
    """Bytes over all devices of one replica; None where there is nothing to go on."""

    size: int | None
    rule: FootprintRule


def footprint(spec: ModelSpec, settings: Settings, *, measured: Iterable[int] = ()) -> Footprint:
    """The footprint of `spec`; `measured` are those of its living replicas at the same revision.

    An operator's own figure wins; a measurement beats what the files' headers tell, and that a guess from their size.
    """
    if spec.vram is not None:
        return Footprint(spec.vram, "spec")
    largest = max(measured, default=None)
    if largest is not None:
        return Footprint(largest, "measured")
    if spec.estimate is not None and (spec.estimate.rule != "file_size" or spec.file_size is None):
        return Footprint(spec.estimate.size_with(settings.file_size_factor), spec.estimate.rule)
    if spec.file_size is not None:
        return Footprint(round(spec.file_size * settings.file_size_factor), "file_size")
    return Footprint(None, "unknown")


def load_seconds(spec: ModelSpec, settings: Settings, size: int | None) -> float:
    """How long a load may take before its progress must speak for it; never below the spec's own timeout."""
    seen = size if spec.estimate is None else spec.estimate.weights
    read = spec.file_size if spec.file_size is not None else seen or 0
    estimate = settings.load_deadline_seconds + settings.load_deadline_seconds_per_gib * read / 2**30
    return max(estimate, spec.ready_timeout_seconds or 0.0)
