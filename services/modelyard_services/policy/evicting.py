"""An eviction's events, and what people are told of it: who made room, or who is in the way (rules P3-P5, H2).

Invariant: victims end as all replicas do, by draining; each reason's drain carries its own account of who and why.
"""

from itertools import groupby
from typing import Final, assert_never

from modelyard_events.decision import Decision, Figure
from modelyard_events.envelope import AnyEvent
from modelyard_events.ids import ModelName
from modelyard_events.sizes import format_size
from modelyard_projections.fleet import Fleet
from modelyard_services.policy.account import POLICY, bounded
from modelyard_services.policy.ending import begin_drain
from modelyard_services.policy.eviction import Blocked, Plan, Victim
from modelyard_services.policy.filters import Wish, lacking
from modelyard_services.policy.victims import OBSTACLES, Obstacle, Resident

VICTIMS_TOLD_MAX: Final = 16
"""Victims whose figures one decision holds; the event names all of them."""

HOLDERS_TOLD_MAX: Final = 3
"""Replicas named in one sentence."""


def evict(fleet: Fleet, plan: Plan, *, newcomer: ModelName) -> list[AnyEvent]:
    """The victims drain, reason by reason."""
    events: list[AnyEvent] = []
    for reason, group in groupby(sorted(plan.victims, key=lambda each: each.reason), key=lambda each: each.reason):
        victims = list(group)
        events += begin_drain(
            fleet,
            [each.state.id for each in victims],
            reason=reason,
            deadline_seconds=fleet.settings.drain_deadline_seconds,
            decision=_decision(fleet, plan, victims, newcomer),
        )
    return events


def in_place_of(plan: Plan) -> str:
    """`in place of a#0, b#0`."""
    return f"in place of {_listed([each.resident for each in plan.victims]) or 'replicas that are leaving'}"


def in_the_way(blocked: Blocked) -> str:
    """`on gpu-3, whisper#0 is pinned`: the nearest node, and who holds what is needed there."""
    reasons = [f"{each.name} {_against(each)}" for each in _named(blocked)]
    more = len(_holders(blocked)) - len(reasons)
    return f"on {blocked.node.name}, {', '.join(reasons)}{f' and {more} more' if more > 0 else ''}"


def unlock(blocked: Blocked, wish: Wish) -> str | None:
    """The smallest change that would let it in: memory, or one replica that goes."""
    ways = []
    if blocked.short is not None:
        ways.append(f"free {format_size(blocked.short)} of VRAM on {lacking(wish, blocked.node)}")
    if blocked.keys:
        key = min(blocked.keys, key=lambda each: (_EASE.index(_obstacle(each)), each.used_ns))
        ways.append(_way_out(key))
    return ", or ".join(ways) or None


_EASE: Final[tuple[Obstacle, ...]] = (
    "frozen",
    "young",
    "unknown",
    "draining",
    "busy",
    "loading",
    "pinned",
    "at_min",
    "sibling",
)
"""Obstacles from those that pass of themselves to those that an operator must lift."""


def _way_out(key: Resident) -> str:
    match _obstacle(key):
        case "frozen":
            return "thaw evictions"
        case "young" | "unknown" | "draining" | "busy" | "loading":
            return f"wait for {key.name}, which {_against(key)}"
        case "pinned":
            return f"unpin {key.state.model}"
        case "at_min":
            return f"lower min_replicas of {key.state.model}"
        case "sibling":
            return f"unload {key.name}"
        case never:
            assert_never(never)


def _decision(fleet: Fleet, plan: Plan, victims: list[Victim], newcomer: ModelName) -> Decision:
    figures: dict[str, Figure] = {"newcomer": newcomer, "victims": len(victims)}
    for each in victims[:VICTIMS_TOLD_MAX]:
        held = sum(fleet.reservations[each.state.reservation].vram.values())
        figures |= {f"{each.resident.name}.vram": held, f"{each.resident.name}.last_used_ns": each.resident.used_ns}
    outcome = f"{_listed([each.resident for each in victims])} on {plan.node.name} made room for {newcomer}"
    return bounded(Decision(kind="eviction", outcome=outcome, policy=POLICY, basis=fleet.sequence, figures=figures))


def _listed(replicas: list[Resident]) -> str:
    names = ", ".join(each.name for each in replicas[:HOLDERS_TOLD_MAX])
    more = len(replicas) - HOLDERS_TOLD_MAX
    return f"{names} and {more} more" if more > 0 else names


def _holders(blocked: Blocked) -> list[Resident]:
    """Those that alone would do first; they are the ones to look at."""
    keys = {each.state.id for each in blocked.keys}
    return sorted(blocked.holders, key=lambda each: each.state.id not in keys)


def _named(blocked: Blocked) -> list[Resident]:
    return _holders(blocked)[:HOLDERS_TOLD_MAX]


def _against(each: Resident) -> str:
    return OBSTACLES[_obstacle(each)]


def _obstacle(each: Resident) -> Obstacle:
    if each.obstacle is None:
        raise AssertionError("whoever is free to go is in nobody's way")
    return each.obstacle
