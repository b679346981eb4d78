"""Placements that were refused, counted: the log hears only of those that differ from a model's last (rule P5).

Invariant: one series a kind, so that no name that people give becomes a series.
"""

from collections.abc import Sequence
from typing import Final

from prometheus_client import Counter

from modelyard_events.envelope import AnyEvent
from modelyard_events.ids import ModelName
from modelyard_events.model import ModelPlacementRefused, RefusalKind
from modelyard_projections.fleet import Fleet

_REFUSED: Final = Counter("modelyard_placements_refused", "Placements refused by kind, repeated ones too.", ["kind"])


def count_refusal(kind: RefusalKind) -> None:
    """A placement was refused."""
    _REFUSED.labels(kind).inc()


def count_outcome(fleet: Fleet, model: ModelName, events: Sequence[AnyEvent]) -> None:
    """Count a try to place `model`, of which only its events are known, where it was refused.

    Without any it came to what the model was told last: a placement that worked would have cleared that.
    """
    state = fleet.models.get(model)
    told = next((event.kind for event in events if isinstance(event, ModelPlacementRefused)), None)
    repeated = state.refusal.kind if not events and state is not None and state.refusal is not None else None
    kind = told or repeated
    if kind is not None:
        count_refusal(kind)
