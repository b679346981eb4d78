"""Commands on nodes: admission, intent, labels, capacity, reservations, removal."""

from typing import Any

import msgspec
from litestar import Controller, delete, patch, post, put
from litestar.params import FromPath, FromQuery, JSONBody

from modelyard_events.ids import CommandId, NodeName, ReservationId
from modelyard_events.node import HOST_MEMORY
from modelyard_events.reservation import OperatorHolder
from modelyard_events.sizes import parse_size, parse_vram_budget
from modelyard_projections.fleet import Fleet
from modelyard_services.api.access import requires
from modelyard_services.api.service import ApiRequest, CommandView, SequenceOf, answer, service_of
from modelyard_services.errors import NotFoundError
from modelyard_services.policy import capacity, intent, labels, node_watchdog
from modelyard_services.policy.identity import reservation_id

Name = FromPath[str]


class Nothing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A body without fields."""


class RejectBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    reason: str = ""


class DrainBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`deadline_seconds` None takes the settings' figure."""

    deadline_seconds: float | None = None


class LabelBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    value: str


class SlotsBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    value: int


class BudgetBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`80%`, a fraction in (0,1], `12GB`, `12GiB`, bytes; empty or `0` for no cap."""

    value: str | float | int | None


class WatchdogBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The node's own figures; what isn't named, or null, is the fleet's. 0 and false turn it off on this node."""

    idle_timeout_seconds: float | None = None
    busy_timeout_seconds: float | None = None
    max_loaded_models: int | None = None
    reclaim_memory: bool | None = None


class ReservationBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`vram` on `gpu` (None: the node's only device) for `holder`, until released or for `seconds`."""

    vram: str | int
    holder: str
    reason: str = ""
    gpu: int | None = None
    seconds: float | None = None


class SlotsAnswer(msgspec.Struct, frozen=True):
    """`above` lists the replicas beyond the new cap; with `enforce` they are ending."""

    sequence: int
    above: list[str]
    changed: bool = True


class ReservedAnswer(msgspec.Struct, frozen=True):
    sequence: int
    reservation: str


class NodeCommands(Controller):
    """What operators do to nodes."""

    guards = [requires("operator")]  # noqa: RUF012 - the framework reads it as a class attribute
    tags = ["nodes"]  # noqa: RUF012 - as above
    path = "/nodes/{node:str}"

    @post("/approve", status_code=200, summary="Approve a node")
    async def approve(self, request: ApiRequest, node: Name, data: JSONBody[Nothing | None] = None) -> CommandView:
        """Admit the node: from now on it may take replicas (N4)."""
        del data
        name = NodeName(node)
        return await _commit(request, name, lambda fleet: intent.approve(fleet, node=name))

    @post("/reject", status_code=200, summary="Reject a node")
    async def reject(self, request: ApiRequest, node: Name, data: JSONBody[RejectBody | None] = None) -> CommandView:
        """Refuse the node; what it runs drains."""
        name, reason = NodeName(node), data.reason if data else ""
        return await _commit(request, name, lambda fleet: intent.reject(fleet, node=name, reason=reason))

    @post("/cordon", status_code=200, summary="Cordon a node")
    async def cordon(self, request: ApiRequest, node: Name, data: JSONBody[Nothing | None] = None) -> CommandView:
        """Nothing new; what runs keeps serving (N10)."""
        del data
        name = NodeName(node)
        return await _commit(request, name, lambda fleet: intent.cordon(fleet, node=name))

    @post("/uncordon", status_code=200, summary="Uncordon a node")
    async def uncordon(self, request: ApiRequest, node: Name, data: JSONBody[Nothing | None] = None) -> CommandView:
        """Undo a cordon."""
        del data
        name = NodeName(node)
        return await _commit(request, name, lambda fleet: intent.uncordon(fleet, node=name))

    @post("/drain", status_code=202, summary="Drain a node")
    async def drain(self, request: ApiRequest, node: Name, data: JSONBody[DrainBody | None] = None) -> CommandView:
        """Empty the node by a deadline, replacements first (N10)."""
        name, seconds = NodeName(node), data.deadline_seconds if data else None
        return await _commit(request, name, lambda fleet: intent.drain(fleet, node=name, deadline_seconds=seconds))

    @post("/resume", status_code=200, summary="Resume a node")
    async def resume(self, request: ApiRequest, node: Name, data: JSONBody[Nothing | None] = None) -> CommandView:
        """Undo a drain or a cordon; approves nobody (N10)."""
        del data
        name = NodeName(node)
        return await _commit(request, name, lambda fleet: intent.resume(fleet, node=name))

    @delete("/", status_code=200, summary="Remove a node")
    async def remove(self, request: ApiRequest, node: Name) -> CommandView:
        """End the node with its labels, replicas and reservations, at once (N13)."""
        name = NodeName(node)
        return await _commit(request, name, lambda fleet: intent.remove(fleet, node=name))

    @put("/labels/{key:str}", status_code=200, summary="Set a label")
    async def set_label(self, request: ApiRequest, node: Name, key: Name, data: JSONBody[LabelBody]) -> CommandView:
        """Set one label of the operator's (N5)."""
        name, changes = NodeName(node), {key: data.value}
        return await _commit(request, name, lambda fleet: labels.patch_labels(fleet, node=name, changes=changes))

    @delete("/labels/{key:str}", status_code=200, summary="Remove a label")
    async def remove_label(self, request: ApiRequest, node: Name, key: Name) -> CommandView:
        """Remove one label of the operator's; a worker's own value shows again."""
        name = NodeName(node)
        return await _commit(request, name, lambda fleet: labels.remove_label(fleet, node=name, key=key))

    @patch("/labels", status_code=200, summary="Change labels")
    async def patch_labels(self, request: ApiRequest, node: Name, data: JSONBody[dict[str, str | None]]) -> CommandView:
        """Set many labels and remove those that are null, all or none."""
        name = NodeName(node)
        return await _commit(request, name, lambda fleet: labels.patch_labels(fleet, node=name, changes=data))

    @put("/labels", status_code=200, summary="Replace the labels")
    async def replace_labels(self, request: ApiRequest, node: Name, data: JSONBody[dict[str, str]]) -> CommandView:
        """Make these the operator's labels, all or none."""
        name = NodeName(node)
        return await _commit(request, name, lambda fleet: labels.replace_labels(fleet, node=name, labels=data))

    @put("/max-replicas-per-model", status_code=200, summary="Override the slots")
    async def set_slots(
        self,
        request: ApiRequest,
        node: Name,
        data: JSONBody[SlotsBody],
        *,
        enforce: FromQuery[bool] = False,
    ) -> SlotsAnswer:
        """Override how many replicas of one model the node takes (N11)."""
        service, name = service_of(request), NodeName(node)
        service.node(name)
        override = capacity.enforce_max_replicas if enforce else capacity.override_max_replicas
        above = [state.id for state in capacity.replicas_above(service.fleet, node=name, cap=data.value)]
        done = await service.commit(
            request, lambda fleet: override(fleet, node=name, value=data.value), matches=_at(name)
        )
        return SlotsAnswer(done.sequence, [str(replica) for replica in above], bool(done.events) or done.repeated)

    @delete("/max-replicas-per-model", status_code=200, summary="Reset the slots")
    async def clear_slots(self, request: ApiRequest, node: Name) -> CommandView:
        """The worker's figure holds again at once (N11)."""
        name = NodeName(node)
        return await _commit(
            request, name, lambda fleet: capacity.clear_override(fleet, node=name, override="max_replicas_per_model")
        )

    @put("/vram-budget", status_code=200, summary="Override the VRAM budget")
    async def set_budget(self, request: ApiRequest, node: Name, data: JSONBody[BudgetBody]) -> CommandView:
        """Override what models may use of the node's VRAM (N11, N12)."""
        name, budget = NodeName(node), parse_vram_budget(data.value, field="value")
        service = service_of(request)
        service.node(name)
        done = await service.commit(
            request, lambda fleet: capacity.override_vram_budget(fleet, node=name, budget=budget), matches=_at(name)
        )
        return answer(done, *capacity.budget_warnings(service.fleet, node=name, budget=budget))

    @delete("/vram-budget", status_code=200, summary="Reset the VRAM budget")
    async def clear_budget(self, request: ApiRequest, node: Name) -> CommandView:
        """The worker's budget holds again at once (N11)."""
        name = NodeName(node)
        return await _commit(
            request, name, lambda fleet: capacity.clear_override(fleet, node=name, override="vram_budget")
        )

    @put("/watchdog", status_code=200, summary="Override the watchdog")
    async def set_watchdog(self, request: ApiRequest, node: Name, data: JSONBody[WatchdogBody]) -> CommandView:
        """Make these the node's own figures of the watchdog, and the fleet's all others (C8, N11)."""
        name, overrides = NodeName(node), msgspec.structs.asdict(data)
        return await _commit(
            request, name, lambda fleet: node_watchdog.replace_watchdog(fleet, node=name, overrides=overrides)
        )

    @patch("/watchdog", status_code=200, summary="Change the watchdog")
    async def patch_watchdog(
        self, request: ApiRequest, node: Name, data: JSONBody[dict[str, bool | int | float | None]]
    ) -> CommandView:
        """Change the node's own figures that are given; null gives one back to the fleet (C8)."""
        name = NodeName(node)
        return await _commit(request, name, lambda fleet: node_watchdog.patch_watchdog(fleet, node=name, patch=data))

    @delete("/watchdog", status_code=200, summary="Reset the watchdog")
    async def clear_watchdog(self, request: ApiRequest, node: Name) -> CommandView:
        """The fleet's figures hold again at once (C8)."""
        name = NodeName(node)
        return await _commit(request, name, lambda fleet: node_watchdog.clear_watchdog(fleet, node=name))

    @post("/reservations", status_code=201, summary="Reserve VRAM")
    async def reserve(self, request: ApiRequest, node: Name, data: JSONBody[ReservationBody]) -> ReservedAnswer:
        """Hold VRAM for something else than a model (R3)."""
        service, name = service_of(request), NodeName(node)
        command = CommandId(service.command_id(request))
        held = {_device(service.fleet, name, data.gpu): parse_size(data.vram, field="vram")}
        holder = OperatorHolder(data.holder, data.reason, data.seconds)
        done = await service.commit(
            request,
            lambda fleet: capacity.reserve(fleet, node=name, vram=held, holder=holder, command=command),
            matches=_at(name),
            command=command,
        )
        return ReservedAnswer(done.sequence, reservation_id(command, 0))

    @delete("/reservations/{reservation:str}", status_code=200, summary="Release VRAM")
    async def release(self, request: ApiRequest, node: Name, reservation: Name) -> CommandView:
        """Release an operator's reservation."""
        name, held = NodeName(node), ReservationId(reservation)
        state = service_of(request).fleet.reservations.get(held)
        if state is None or state.node != name:
            raise NotFoundError(f"node {node!r} has no reservation {reservation!r}", field="reservation")
        return await _commit(request, name, lambda fleet: capacity.release(fleet, reservation=held))


async def _commit(request: ApiRequest, node: NodeName, decide: Any) -> CommandView:
    return answer(await service_of(request).commit(request, decide, matches=_at(node)))


def _at(node: NodeName) -> SequenceOf:
    return lambda fleet: fleet.node_sequence(node)


def _device(fleet: Fleet, node: NodeName, gpu: int | None) -> int:
    state = fleet.nodes.get(node)
    if gpu is not None or state is None:
        return HOST_MEMORY if gpu is None else gpu
    return min(state.devices, default=HOST_MEMORY)
