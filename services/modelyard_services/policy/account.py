"""A decision's own record: what was found, on which basis, within its size (rules H2, I12).

Invariant: it encodes to at most 16 KiB whatever the fleet's size and however long its names are.
"""

from typing import Final

import msgspec

from modelyard_events.decision import DECISION_BYTES_MAX, Asked, Decision, DecisionKind, ScoredNode
from modelyard_projections.fleet import Fleet
from modelyard_services.policy.readings import LEFT_OUT, Readings
from modelyard_services.policy.survey import Survey

POLICY: Final = "placement/3"
"""The version of filters and scores: a decision is recomputed by the policy that it names."""

TEXT_MAX: Final = 256
"""Characters of one text in a decision: a sentence with one long name in it. 256 of 4 bytes each are 1 KiB."""


def account(
    fleet: Fleet, readings: Readings, found: Survey, *, kind: DecisionKind, outcome: str, asked: Asked
) -> Decision:
    """The record of what `found` led to, decided on `fleet` as it is."""
    return bounded(
        Decision(
            kind=kind,
            outcome=outcome,
            policy=POLICY,
            basis=fleet.sequence,
            considered=found.considered,
            runners_up=runners_up(found),
            filters=found.filters,
            telemetry=readings.column,
            asked=asked,
        )
    )


def runners_up(found: Survey) -> tuple[ScoredNode, ...]:
    """The next best nodes with their scores."""
    return tuple(ScoredNode(each.node, each.scores()) for each in found.best[1:])


def bounded(decision: Decision) -> Decision:
    """`decision` within its limit: long names cost examples first, then the column, then the runners-up."""
    decision = msgspec.structs.replace(decision, outcome=clipped(decision.outcome))
    spare = DECISION_BYTES_MAX - _RESERVED_BYTES
    if _size(decision) <= spare:
        return decision
    bare = tuple(msgspec.structs.replace(count, examples=()) for count in decision.filters)
    decision = msgspec.structs.replace(decision, filters=bare)
    if _size(decision) > spare:
        decision = msgspec.structs.replace(decision, telemetry=LEFT_OUT)
    return decision if _size(decision) <= spare else msgspec.structs.replace(decision, runners_up=())


def clipped(text: str) -> str:
    """`text`, cut to what a decision holds."""
    return text if len(text) <= TEXT_MAX else text[: TEXT_MAX - 1] + "…"


_ENCODER: Final = msgspec.json.Encoder()

_RESERVED_BYTES: Final = 3 * 1024
"""For what is added afterwards: figures, and a clipped `unblock` whose every character may take 4 bytes."""


def _size(decision: Decision) -> int:
    """Bytes as JSON; the column, most of them, is text that JSON writes as it is."""
    column = decision.telemetry or ""
    return len(_ENCODER.encode(msgspec.structs.replace(decision, telemetry=""))) + len(column.encode())
