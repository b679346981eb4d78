"""A decision as its events hold it: the outcome with the figures that led to it (rules H2, I12).

Invariant: a decision encodes to at most 16 KiB whatever the fleet's size; the full account is recomputed
from the log at `basis` by the policy version named.
"""

from typing import Final, Literal

import msgspec

RUNNERS_UP_MAX: Final = 8
EXAMPLES_MAX: Final = 5
DECISION_BYTES_MAX: Final = 16 * 1024

DecisionKind = Literal["placement", "refusal", "eviction", "scaling", "breaker", "end"]
Figure = int | float | str | None


class ScoredNode(msgspec.Struct, frozen=True):
    """A node that passed every filter, with its scores in the order they are compared."""

    node: str
    scores: dict[str, Figure]


class FilterCount(msgspec.Struct, frozen=True, omit_defaults=True):
    """How many nodes a filter rejected, the range of its figure, and a few of them by name."""

    filter: str
    nodes: int
    low: Figure = None
    high: Figure = None
    unit: str | None = None
    examples: tuple[str, ...] = ()


class Asked(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was asked beyond what the log says of the model: when, by the log's clock in nanoseconds, and how narrowly.

    `node` and `selector` narrow the schedule's own selector.
    """

    at_ns: int
    node: str | None = None
    selector: str = ""


class Decision(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why: once per batch, with what it was decided on.

    `basis` is the last sequence of the fold decided on; `telemetry` the readings used, as one compressed column.
    `asked` is there where nodes were judged: with it the full account is recomputed.
    """

    kind: DecisionKind
    outcome: str
    policy: str
    basis: int
    figures: dict[str, Figure] = {}
    considered: int = 0
    runners_up: tuple[ScoredNode, ...] = ()
    filters: tuple[FilterCount, ...] = ()
    unblock: str | None = None
    telemetry: str | None = None
    asked: Asked | None = None
