"""Where a replica goes: slot, memory and count claimed in one decision, or a refusal with its account (R2, R3, P5).

Invariant: what is placed fits by the fleet it was decided on, and the append guards every aggregate that this
relied on: the node (slots, memory, groups) and the model (its count), so of two deciders one loses (X21).
"""

import msgspec

from modelyard_events.decision import Asked, Decision, Figure
from modelyard_events.envelope import AnyEvent
from modelyard_events.fleet import Settings
from modelyard_events.ids import CommandId, ModelName, NodeName, ReplicaId, Revision
from modelyard_events.model import ModelDeclaredSatisfiable, ModelPlacementRefused, ModelReplicaAdded, RefusalKind
from modelyard_events.node import HOST_MEMORY
from modelyard_events.replica import ReplicaPlaced
from modelyard_events.reservation import ReplicaHolder, ReservationGranted
from modelyard_events.selectors import Selector, format_selector
from modelyard_events.spec import ModelSpec, SpreadAll
from modelyard_projections.fleet import Fleet, ModelState, NodeState
from modelyard_services.errors import ModelUnknownError, NotFoundError, StaleRevisionError
from modelyard_services.policy.account import account, clipped
from modelyard_services.policy.evicting import evict, in_place_of, in_the_way, unlock
from modelyard_services.policy.eviction import Blocked, Plan, Search
from modelyard_services.policy.explain import by_gpu, message, unblock
from modelyard_services.policy.filters import Scene, Wish
from modelyard_services.policy.footprint import Footprint, footprint, load_seconds
from modelyard_services.policy.identity import replica_id, reservation_id
from modelyard_services.policy.memory import choose_devices
from modelyard_services.policy.readings import Readings
from modelyard_services.policy.searcher import PLAIN, Searcher
from modelyard_services.policy.survey import Survey
from modelyard_services.policy.victims import PASSING


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks for a replica of what, and when on the log's clock.

    `node` and `selector` narrow the schedule's own selector; `replaces` names the replica of an older revision
    that ends once this one is ready (R6); `may_evict` whether others may be ended to make room (P3); `revision` is the
    one that is meant, where only that will do (T8).
    """

    model: ModelName
    command: CommandId
    now_ns: int
    node: NodeName | None = None
    selector: Selector = ()
    replaces: ReplicaId | None = None
    may_evict: bool = True
    revision: Revision | None = None


class Refused(msgspec.Struct, frozen=True):
    """A refusal to answer with, whether or not it was news to the log.

    `held_up` when it is replicas that stand in the way: asking again soon may help (P4); `passing` when time alone
    moves one of them.
    """

    kind: RefusalKind
    message: str
    unblock: str | None
    held_up: bool = False
    passing: bool = False


def told(refused: Refused) -> dict[str, object]:
    """What programs are told beside the message: the change that would help, and whether asking again soon may."""
    unblock: dict[str, object] = {} if refused.unblock is None else {"unblock": refused.unblock}
    return unblock | ({"held_up": True} if refused.held_up else {})


class Outcome(msgspec.Struct, frozen=True):
    """The events to append, and what to answer: the replica, or why there is none."""

    events: tuple[AnyEvent, ...] = ()
    replica: ReplicaId | None = None
    refused: Refused | None = None


def place(fleet: Fleet, readings: Readings, request: Request, *, search: Searcher = PLAIN) -> Outcome:
    """One more replica of the model where it fits best.

    Raises:
        ModelUnknownError: the model isn't defined.
        NotFoundError: the node asked for doesn't exist.
        StaleRevisionError: the model was redefined since.
    """
    wanted = _wanted(fleet, request)
    wish = wanted.wish
    found = search.survey(fleet, readings, wish)
    if not found.best:
        return _evict_or_refuse(fleet, readings, wanted, found, search)
    best = found.best[0]
    held = choose_devices(best.free, gpus=wish.gpus, per_gpu=wish.per_gpu, binpack=wish.binpack)
    decision = account(
        fleet, readings, found, kind="placement", outcome=f"placed on {best.node}", asked=asked_by(request)
    )
    decision = msgspec.structs.replace(decision, figures=_figures(wanted, held))
    return _claim(wanted, Place(fleet.nodes[best.node], held), decision=decision)


def load_on_demand(fleet: Fleet, readings: Readings, request: Request, *, search: Searcher = PLAIN) -> Outcome:
    """A replica for a request that found none: the one already on its way, else a new one (rule T5)."""
    model, _ = _defined(fleet, request)
    serving = next((identity for identity, each in model.replicas.items() if each.phase != "draining"), None)
    if serving is not None:
        return Outcome(replica=serving)
    return place(fleet, readings, request, search=search)


def wish_of(fleet: Fleet, request: Request) -> Wish:
    """What the request asks of a node, with the model's schedule applied.

    Raises:
        ModelUnknownError: the model isn't defined.
        NotFoundError: the node asked for doesn't exist.
    """
    return _wanted(fleet, request).wish


class _Wanted(msgspec.Struct, frozen=True):
    """A request with all that the fleet says of its model: looked up once, for a model may have a thousand replicas."""

    request: Request
    model: ModelState
    spec: ModelSpec
    size: Footprint
    wish: Wish
    settings: Settings


def _wanted(fleet: Fleet, request: Request) -> _Wanted:
    model, spec = _defined(fleet, request)
    size = _footprint_of(fleet, model, spec)
    return _Wanted(request, model, spec, size, _wish(request, model, spec, size.size), fleet.settings)


def _wish(request: Request, model: ModelState, spec: ModelSpec, size: int | None) -> Wish:
    options = model.options
    return Wish(
        model=model.name,
        now_ns=request.now_ns,
        selector=(*options.node_selector, *request.selector),
        node=request.node,
        groups=spec.concurrency_groups,
        gpus=options.gpus,
        per_gpu=None if size is None else -(-size // options.gpus),
        disk=spec.disk,
        max_per_node=1 if isinstance(options.mode, SpreadAll) else options.max_per_node,
        binpack=options.placement == "binpack",
    )


def asked_by(request: Request) -> Asked:
    """What a decision notes of the request, so that it can be recomputed (rule H2)."""
    return Asked(request.now_ns, request.node, format_selector(request.selector))


def _footprint_of(fleet: Fleet, model: ModelState, spec: ModelSpec) -> Footprint:
    """The footprint, by what is known of the spec and of its living replicas."""
    if spec.vram is not None:
        # The usual case, and a model may have a thousand replicas to ask.
        return footprint(spec, fleet.settings)
    measured = (
        sum(fleet.reservations[replica.reservation].vram.values())
        for replica in fleet.replicas_of(model.name)
        if replica.footprint_rule == "measured" and replica.revision == model.revision
    )
    return footprint(spec, fleet.settings, measured=measured)


class Place(msgspec.Struct, frozen=True):
    """Where exactly: node and bytes by device; the victims whose place it takes over, and then their slot."""

    node: NodeState
    held: dict[int, int]
    waits_for: tuple[ReplicaId, ...] = ()
    index: int | None = None


def claim(fleet: Fleet, request: Request, where: Place, *, decision: Decision) -> Outcome:
    """Slot, memory and the model's count, in one append.

    Raises:
        ModelUnknownError: the model isn't defined.
    """
    return _claim(_wanted(fleet, request), where, decision=decision)


def _claim(wanted: _Wanted, where: Place, *, decision: Decision) -> Outcome:
    request, model, spec, size, settings = wanted.request, wanted.model, wanted.spec, wanted.size, wanted.settings
    replica, reservation = replica_id(request.command, 0), reservation_id(request.command, 0)
    node = where.node
    slot = lowest_free_index(node, model.name) if where.index is None else where.index
    placed = ReplicaPlaced(
        node=node.name,
        replica=replica,
        model=model.name,
        replica_index=slot,
        revision=_revision(model),
        launch=spec.launch(),
        reservation=reservation,
        vram=where.held,
        footprint_rule=size.rule,
        gpus=tuple(sorted(device for device in where.held if device != HOST_MEMORY)),
        groups=spec.concurrency_groups,
        pinned=spec.pinned,
        max_concurrency=spec.max_concurrency,
        exclusive=size.size is None,
        waits_for=where.waits_for,
        replaces=request.replaces,
        accept_seconds=settings.accept_deadline_seconds,
        load_seconds=load_seconds(spec, settings, size.size),
        decision=decision,
    )
    granted = ReservationGranted(
        node=node.name, reservation=reservation, holder=ReplicaHolder(replica), vram=placed.vram
    )
    added = ModelReplicaAdded(
        model=model.name, replica=replica, node=node.name, replica_index=slot, revision=placed.revision
    )
    events: tuple[AnyEvent, ...] = (placed, granted, added)
    if model.breaker is not None:
        # Whoever asked for it: there is room after all (C5).
        events = (*events, ModelDeclaredSatisfiable(model=model.name, cause=f"placed on {node.name}"))
    return Outcome(events, replica)


def lowest_free_index(node: NodeState, model: ModelName) -> int:
    """The slot a newcomer takes (rule R2)."""
    taken = node.slots.get(model, {})
    return next(index for index in range(len(taken) + 1) if index not in taken)


def _evict_or_refuse(fleet: Fleet, readings: Readings, wanted: _Wanted, found: Survey, search: Searcher) -> Outcome:
    """Nothing fits as it is: others make room, or the refusal says who is in the way (rules P3-P5)."""
    made = Search()
    # Where no node could hold it even when empty, there is nothing to look for.
    if found.freeable and wanted.request.may_evict:
        made = search.make_room(fleet, readings, wanted.wish)
    if made.plan is None:
        return _refuse(fleet, readings, wanted, found, made.blocked)
    return _evict(fleet, readings, wanted, found, made.plan)


def _evict(fleet: Fleet, readings: Readings, wanted: _Wanted, found: Survey, plan: Plan) -> Outcome:
    """Victims drain and the newcomer waits for them, in one append (rule P3)."""
    outcome = f"placed on {plan.node.name}, {in_place_of(plan)}"
    decision = account(fleet, readings, found, kind="placement", outcome=outcome, asked=asked_by(wanted.request))
    figures = _figures(wanted, plan.held) | {"waits_for": len(plan.waits_for)}
    decision = msgspec.structs.replace(decision, figures=figures)
    where = Place(plan.node, plan.held, waits_for=plan.waits_for, index=plan.index)
    claimed = _claim(wanted, where, decision=decision)
    return msgspec.structs.replace(claimed, events=(*evict(fleet, plan, newcomer=wanted.model.name), *claimed.events))


def _refuse(fleet: Fleet, readings: Readings, wanted: _Wanted, found: Survey, blocked: Blocked | None) -> Outcome:
    """A refusal, told to the log only where it differs from the model's last one (rule P5)."""
    model, wish = wanted.model, wanted.wish
    advice = unblock(fleet, readings, wish, found) if blocked is None else unlock(blocked, wish)
    told = _told(Scene(fleet, readings, wish), found, blocked)
    passing = blocked is not None and any(holder.obstacle in PASSING for holder in blocked.holders)
    advised = None if advice is None else clipped(advice)
    refused = Refused(found.kind, clipped(told), advised, blocked is not None, passing)
    filters = tuple(count.filter for count in found.filters)
    last = model.refusal
    if last is not None and (last.kind, last.filters, last.revision) == (refused.kind, filters, model.revision):
        return Outcome(refused=refused)
    decision = account(fleet, readings, found, kind="refusal", outcome=refused.message, asked=asked_by(wanted.request))
    event = ModelPlacementRefused(
        model=model.name,
        kind=refused.kind,
        revision=_revision(model),
        decision=msgspec.structs.replace(decision, figures=_figures(wanted, {}), unblock=refused.unblock),
    )
    return Outcome((event,), refused=refused)


def _told(scene: Scene, found: Survey, blocked: Blocked | None) -> str:
    """The account in one line: filters, what each GPU of the closest node has free, and who is in the way there."""
    short = blocked is None or blocked.short is not None
    gpus = by_gpu(scene, found, blocked.node if blocked else None) if short else ""
    parts = (message(found), gpus, in_the_way(blocked) if blocked else "")
    return "; ".join(part for part in parts if part)


def _figures(wanted: _Wanted, held: dict[int, int]) -> dict[str, Figure]:
    """The figures of the outcome itself: what was needed, by which rule, and where it went."""
    return {
        "footprint": wanted.size.size,
        "footprint_rule": wanted.size.rule,
        "gpus": wanted.wish.gpus,
        "reserved": sum(held.values()),
        "devices": ",".join(str(device) for device in sorted(held)) or None,
    }


def _defined(fleet: Fleet, request: Request) -> tuple[ModelState, ModelSpec]:
    model = fleet.models.get(request.model)
    if model is None or model.spec is None:
        raise ModelUnknownError(f"no model is named {request.model!r}; define it first", field="model")
    if request.node is not None and request.node not in fleet.nodes:
        raise NotFoundError(f"no node is named {request.node!r}", field="node", value=request.node)
    if request.revision is not None and request.revision != model.revision:
        detail = f"model {request.model!r} is at revision {model.revision} by now; nothing was placed"
        raise StaleRevisionError(detail, field="revision", value=request.revision)
    return model, model.spec


def _revision(model: ModelState) -> Revision:
    if model.revision is None:
        raise AssertionError("a defined model has a revision")
    return model.revision
