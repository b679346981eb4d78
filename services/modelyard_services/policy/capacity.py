"""How much of a node may be used: operators' overrides, and memory they reserve for themselves (rules N11, R3).

Invariant: an override holds until an operator clears it, and ends nothing unless it is told to; an operator's
reservation is granted only within the budget that is left.
"""

from collections.abc import Mapping
from typing import Final, assert_never

from modelyard_events.envelope import AnyEvent
from modelyard_events.errors import InvalidValueError
from modelyard_events.ids import NAME_LENGTH_MAX, CommandId, NodeName, ReservationId
from modelyard_events.node import (
    HOST_MEMORY,
    NodeMaxReplicasOverridden,
    NodeOverrideCleared,
    NodeVramBudgetOverridden,
    Overridable,
)
from modelyard_events.reservation import OperatorHolder, ReplicaHolder, ReservationGranted, ReservationReleased
from modelyard_events.sizes import SIZE_MAX, Bytes, VramBudget, format_size, resolve_budget
from modelyard_projections.fleet import Draining, Fleet, NodeState, ReplicaState
from modelyard_services.errors import ConflictError, NoCapacityError, NotFoundError, UnsatisfiableError
from modelyard_services.policy.ending import begin_drain
from modelyard_services.policy.identity import reservation_id
from modelyard_services.policy.intent import REASON_LENGTH_MAX
from modelyard_services.policy.known import known_node, known_reservation

MAX_REPLICAS_PER_MODEL_MAX: Final = 900
"""The most replicas a node may have (rule R2), so that all of them end in one append."""

RESERVE_SECONDS_MAX: Final = 366 * 86_400.0
"""A year: longer than any training job, and what has no end at all is said by leaving it out."""


def override_max_replicas(fleet: Fleet, *, node: NodeName, value: int) -> list[AnyEvent]:
    """An operator's `max_replicas_per_model` is in force from here on; ends nothing (N11)."""
    check_max_replicas(value)
    state = known_node(fleet, node)
    if state.max_replicas_override == value:
        return []
    return [NodeMaxReplicasOverridden(node=node, max_replicas_per_model=value)]


def enforce_max_replicas(fleet: Fleet, *, node: NodeName, value: int) -> list[AnyEvent]:
    """As `override_max_replicas`, and what is above the cap drains, highest index first (N11)."""
    overridden = override_max_replicas(fleet, node=node, value=value)
    above = [state.id for state in replicas_above(fleet, node=node, cap=value)]
    drain_seconds = fleet.settings.drain_deadline_seconds
    return overridden + begin_drain(fleet, above, reason="requested", deadline_seconds=drain_seconds)


def replicas_above(fleet: Fleet, *, node: NodeName, cap: int | None = None) -> list[ReplicaState]:
    """Replicas in slots that `cap` (the one in force by default) doesn't have, highest index first."""
    slots = known_node(fleet, node).max_replicas_per_model if cap is None else cap
    above = [
        state
        for state in fleet.replicas_on(node)
        if state.replica_index >= slots and not isinstance(state.phase, Draining)
    ]
    return sorted(above, key=lambda state: (-state.replica_index, state.model))


def override_vram_budget(fleet: Fleet, *, node: NodeName, budget: VramBudget | None) -> list[AnyEvent]:
    """An operator's budget is in force from here on, None for no cap at all; ends nothing (N11)."""
    state = known_node(fleet, node)
    if state.budget_overridden and state.budget_override == budget:
        return []
    return [NodeVramBudgetOverridden(node=node, vram_budget=budget)]


def budget_warnings(fleet: Fleet, *, node: NodeName, budget: VramBudget | None) -> list[str]:
    """What an operator may not expect of that budget: it ends nothing, and makes no memory (N11, N12)."""
    state = known_node(fleet, node)
    if state.vram_total == 0:
        return [f"{node} offers no memory to take a share of: start its worker with --vram, or on a machine with GPUs"]
    found, size = [], resolve_budget(budget, total=state.vram_total)
    if isinstance(budget, Bytes) and budget.value > state.vram_total:
        found.append(f"{node} has {format_size(state.vram_total)} in all: more than that is never used")
    if state.vram_reserved > size:
        over = format_size(state.vram_reserved - size)
        found.append(f"what is on {node} already holds {over} more: nothing ends by itself, and nothing new goes there")
    return found


def clear_override(fleet: Fleet, *, node: NodeName, override: Overridable) -> list[AnyEvent]:
    """The worker's value is in force again at once (N11).

    Raises:
        NotFoundError: nothing is overridden there (X28).
    """
    if not _is_overridden(known_node(fleet, node), override):
        raise NotFoundError(f"{override} of node {node!r} isn't overridden", field=override)
    return [NodeOverrideCleared(node=node, override=override)]


def reserve(
    fleet: Fleet, *, node: NodeName, vram: Mapping[int, int], holder: OperatorHolder, command: CommandId
) -> list[AnyEvent]:
    """Hold `vram` bytes per device for an operator's own use (R3).

    Raises:
        NoCapacityError: it fits once something is freed.
        UnsatisfiableError: it is more than the device's or the node's whole budget.
    """
    _check_holder(holder)
    state = known_node(fleet, node)
    reservation = reservation_id(command, 0)
    if reservation in fleet.reservations:
        return []
    _check_request(state, vram)
    _check_fit(state, vram)
    return [ReservationGranted(node=node, reservation=reservation, holder=holder, vram=dict(vram))]


def release(fleet: Fleet, *, reservation: ReservationId) -> list[AnyEvent]:
    """End an operator's reservation.

    Raises:
        ConflictError: a replica holds it; only the replica's end frees that memory (I7).
    """
    state = known_reservation(fleet, reservation)
    match state.holder:
        case OperatorHolder():
            return [ReservationReleased(node=state.node, reservations=(reservation,))]
        case ReplicaHolder(replica):
            detail = f"reservation {reservation} is held by replica {replica}; unload the replica instead"
            raise ConflictError(detail, field="reservation", value=reservation)
        case _:
            assert_never(state.holder)


def check_max_replicas(value: int) -> None:
    """Refuse a cap that no node may have.

    Raises:
        InvalidValueError: it is out of range.
    """
    if not 1 <= value <= MAX_REPLICAS_PER_MODEL_MAX:
        raise InvalidValueError(
            "max_replicas_per_model", value, f"is out of range; give 1 … {MAX_REPLICAS_PER_MODEL_MAX}"
        )


def _is_overridden(state: NodeState, override: Overridable) -> bool:
    match override:
        case "max_replicas_per_model":
            return state.max_replicas_override is not None
        case "vram_budget":
            return state.budget_overridden
        case _:
            assert_never(override)


def _check_holder(holder: OperatorHolder) -> None:
    if not holder.holder.strip() or len(holder.holder) > NAME_LENGTH_MAX:
        raise InvalidValueError("holder", holder.holder[:20], f"is empty or longer than {NAME_LENGTH_MAX} characters")
    if len(holder.reason) > REASON_LENGTH_MAX:
        raise InvalidValueError("reason", f"{holder.reason[:20]}…", f"is longer than {REASON_LENGTH_MAX} characters")
    if holder.seconds is not None and not 0 < holder.seconds <= RESERVE_SECONDS_MAX:
        raise InvalidValueError("seconds", holder.seconds, f"is out of range; give 0 … {RESERVE_SECONDS_MAX:.0f}")


def _check_request(state: NodeState, vram: Mapping[int, int]) -> None:
    if not vram:
        raise InvalidValueError("vram", {}, "names no device")
    for device, size in vram.items():
        if device not in state.devices:
            gpus = ", ".join(str(known) for known in sorted(state.devices) if known != HOST_MEMORY)
            raise InvalidValueError("gpu", device, f"is no GPU of {state.name}; it has {gpus or 'none'}")
        if not 0 < size <= SIZE_MAX:
            raise InvalidValueError("vram", size, "is out of range; give a size above 0")


def _check_fit(state: NodeState, vram: Mapping[int, int]) -> None:
    for device, size in vram.items():
        _check_room(f"device {device} of {state.name}", size, state.free_on(device), state.devices[device])
    _check_room(f"the budget of {state.name}", sum(vram.values()), state.vram_free, state.budget)


def _check_room(where: str, wanted: int, free: int, whole: int) -> None:
    if wanted > whole:
        raise UnsatisfiableError(f"{format_size(wanted)} is more than {where} ever has ({format_size(whole)})")
    if wanted > free:
        raise NoCapacityError(f"{where} is short by {format_size(wanted - free)}: {format_size(max(free, 0))} is free")
