"""What operators and workers may bring: commands, machines, models, schedules, settings, drawn at random.

Invariant: what can't be is drawn too, now and then; it is refused, and a refusal changes nothing.
"""

from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import Any

from modelyard_events.fleet import Settings
from modelyard_events.ids import LabelKey, ModelName, NodeName
from modelyard_events.node import Gpu, NodeFacts
from modelyard_events.reservation import OperatorHolder
from modelyard_events.selectors import Selector, parse_selector
from modelyard_events.sizes import Bytes, Fraction
from modelyard_events.spec import Autoscale, ModelSpec, Schedule, SpreadAll
from modelyard_services.policy import capacity, intent, labels, liveness, models, node_watchdog, schedules, settings
from modelyard_services.policy.apply import apply
from modelyard_services.policy.breaker import clear_breaker
from modelyard_services.policy.configuration import Configuration, ScheduleEntry
from modelyard_services.policy.ending import begin_drain
from modelyard_services.policy.restart import restart
from modelyard_services.simulation.world import Decide
from tests.ordeal.ordeal import MODELS, NODES, OPERATOR, Asked, Ordeal

GIB = 2**30
SELECTORS: Sequence[Selector] = tuple(
    parse_selector(text) for text in ("", "", "zone=x", "zone!=x", "zone in (x,y)", "!zone", "gpu.vram", "node.name=n1")
)


def operator_command(ordeal: Ordeal, rng: Random) -> tuple[str, Asked]:
    node, model = NodeName(rng.choice(NODES)), ModelName(rng.choice(MODELS))
    name = rng.choice(list(_OPERATORS))
    decide = _OPERATORS[name](ordeal, rng, node, model)
    again = name not in {"reserve", "unload", "restart"}
    return f"{name} {node} {model}", Asked(OPERATOR, ordeal.command(), decide, again)


def _label(_ordeal: Ordeal, rng: Random, node: NodeName, _model: ModelName) -> Decide:
    changes = {"zone": rng.choice(("x", "y", None)), "tier": rng.choice(("gold", None))}
    return partial(labels.patch_labels, node=node, changes=changes)


def _slots(_ordeal: Ordeal, rng: Random, node: NodeName, _model: ModelName) -> Decide:
    if rng.random() < 0.25:
        return partial(capacity.clear_override, node=node, override="max_replicas_per_model")
    how = rng.choice((capacity.override_max_replicas, capacity.enforce_max_replicas))
    return partial(how, node=node, value=rng.randint(1, 3))


def _budget(_ordeal: Ordeal, rng: Random, node: NodeName, _model: ModelName) -> Decide:
    if rng.random() < 0.25:
        return partial(capacity.clear_override, node=node, override="vram_budget")
    budget = rng.choice((None, Bytes(rng.randint(0, 48) * GIB), Fraction(rng.randint(1, 10) / 10)))
    return partial(capacity.override_vram_budget, node=node, budget=budget)


def _watchdog(_ordeal: Ordeal, rng: Random, node: NodeName, _model: ModelName) -> Decide:
    if rng.random() < 0.25:
        return partial(node_watchdog.clear_watchdog, node=node)
    drawn = {field: rng.choice((None, *_SETTINGS[field])) for field in rng.sample(node_watchdog.FIELDS, 2)}
    if rng.random() < 0.5:
        return partial(node_watchdog.replace_watchdog, node=node, overrides=drawn)
    return partial(node_watchdog.patch_watchdog, node=node, patch=drawn)


def _reserve(ordeal: Ordeal, rng: Random, node: NodeName, _model: ModelName) -> Decide:
    held = [one for one in ordeal.world.fleet.reservations.values() if isinstance(one.holder, OperatorHolder)]
    if held and rng.random() < 0.5:
        return partial(capacity.release, reservation=rng.choice(held).id)
    holder = OperatorHolder("job", seconds=rng.choice((None, 60.0)))
    state = ordeal.world.fleet.nodes.get(node)
    device = rng.choice(sorted(state.devices)) if state is not None and state.devices else 0
    vram = {device: rng.randint(1, 20) * GIB}
    return partial(capacity.reserve, node=node, vram=vram, holder=holder, command=ordeal.command())


def _intent(decide: Any) -> Callable[..., Decide]:
    return lambda _ordeal, _rng, node, _model: partial(decide, node=node)


def _drain(_ordeal: Ordeal, rng: Random, node: NodeName, _model: ModelName) -> Decide:
    return partial(intent.drain, node=node, deadline_seconds=rng.choice((None, 0.0, 30.0)))


def _define(_ordeal: Ordeal, rng: Random, _node: NodeName, model: ModelName) -> Decide:
    return partial(models.define, model=model, spec=some_spec(rng))


def _schedule(_ordeal: Ordeal, rng: Random, _node: NodeName, model: ModelName) -> Decide:
    source = rng.choice(("api", "api", "file"))
    return partial(schedules.set_schedule, model=model, schedule=some_scheduled(rng), source=source)  # type: ignore[arg-type]  # one of its words


def _settings(_ordeal: Ordeal, rng: Random, _node: NodeName, _model: ModelName) -> Decide:
    patch = dict(rng.sample(list(_SETTINGS.items()), 2))
    known = set(Settings.__struct_fields__)
    drawn = {field: rng.choice(values) for field, values in patch.items() if field in known}
    return partial(settings.patch_settings, patch=drawn)


def _unload(ordeal: Ordeal, rng: Random, node: NodeName, model: ModelName) -> Decide:
    ids = [state.id for state in ordeal.world.replicas(model, node if rng.random() < 0.7 else None)]
    return partial(begin_drain, replicas=ids, reason="requested", deadline_seconds=rng.choice((0.0, 30.0, 600.0)))


def _restart(ordeal: Ordeal, _rng: Random, _node: NodeName, model: ModelName) -> Decide:
    return partial(restart, replicas=[state.id for state in ordeal.world.replicas(model)])


def _apply(_ordeal: Ordeal, rng: Random, _node: NodeName, _model: ModelName) -> Decide:
    names = [ModelName(name) for name in MODELS if rng.random() < 0.5]
    written = Configuration(
        {name: some_spec(rng) for name in names},
        {name: ScheduleEntry(some_scheduled(rng), "file") for name in names if rng.random() < 0.7},
        sections=frozenset({"models", "schedules"}),
    )
    return partial(apply, configuration=written, prune=rng.random() < 0.3)


_OPERATORS: dict[str, Callable[[Ordeal, Random, NodeName, ModelName], Decide]] = {
    "approve": _intent(intent.approve),
    "reject": _intent(intent.reject),
    "cordon": _intent(intent.cordon),
    "uncordon": _intent(intent.uncordon),
    "resume": _intent(intent.resume),
    "drain": _drain,
    "remove node": _intent(intent.remove),
    "label": _label,
    "label anew": _label,
    "slots": _slots,
    "budget": _budget,
    "watchdog": _watchdog,
    "reserve": _reserve,
    "define": _define,
    "define anew": _define,
    "define again": _define,
    "remove model": lambda _ordeal, _rng, _node, model: partial(models.remove, model=model),
    "schedule": _schedule,
    "schedule anew": _schedule,
    "schedule again": _schedule,
    "unschedule": lambda _ordeal, _rng, _node, model: partial(schedules.clear_schedule, model=model, source="api"),
    "settings": _settings,
    "clear mass loss": lambda _ordeal, _rng, _node, _model: liveness.clear_mass_loss,
    "unload": _unload,
    "apply": _apply,
    "restart": _restart,
    "clear breaker": lambda _ordeal, _rng, _node, model: partial(clear_breaker, model=model),
}

_SETTINGS: dict[str, Sequence[object]] = {
    "drain_deadline_seconds": (0.0, 30.0, None),
    "lost_after_seconds": (20.0, None),
    "lost_grace_seconds": (0.0, 60.0, None),
    "mass_loss_share": (0.3, 1.0),
    "idle_scale_down_seconds": (5.0, None),
    "breaker_failed_passes": (1, 3),
    "breaker_cool_down_seconds": (20.0, None),
    "reconciler_frozen": (False, False, True),
    "evictions_frozen": (False, False, False, True),
    "min_residency_seconds": (0.0, 5.0, 60.0),
    "eviction_order": ("lru", "size"),
    "max_loaded_models": (0, 0, 0, 1, 2, 3),
    "idle_timeout_seconds": (0.0, 0.0, 20.0),
    "busy_timeout_seconds": (0.0, 0.0, 20.0),
    "reclaim_memory": (False, True),
}
"""Those that a build doesn't have are left out."""


def some_facts(rng: Random) -> NodeFacts:
    gpus = rng.choice((0, 1, 1, 2, 3))
    size = rng.choice((8, 16, 24, 40)) * GIB
    cards = tuple(Gpu(index, "nvidia", "Simulated GPU", size) for index in range(gpus))
    zone = rng.choice(("x", "y", None))
    return NodeFacts(
        "127.0.0.1:8001",
        cards,
        None if gpus else rng.choice((None, size)),
        max_replicas_per_model=rng.choice((1, 1, 2, 3)),
        vram_budget=rng.choice((None, None, Fraction(0.8), Bytes(12 * GIB))),
        labels={LabelKey("zone"): zone} if zone else {},
    )


def some_spec(rng: Random) -> ModelSpec:
    sizes = (None, 0, GIB, 3 * GIB, 4 * GIB, 4 * GIB, 6 * GIB, 8 * GIB, 12 * GIB, 30 * GIB)
    return ModelSpec(
        command=("serve", *(("--new",) if rng.random() < 0.3 else ())),
        vram=rng.choice(sizes),
        file_size=rng.choice((None, GIB)),
        concurrency_groups=rng.choice(((), (), (), (), ("g",), ("g", "h"), ("h",))),
        pinned=rng.random() < 0.15,
        max_concurrency=rng.choice((None, 2)),
    )


def some_scheduled(rng: Random) -> Schedule:
    modes = (Autoscale(), Autoscale(1), Autoscale(1, 2), Autoscale(2, 3), Autoscale(0, 2), SpreadAll())
    return Schedule(
        mode=rng.choice(modes),
        node_selector=rng.choice(SELECTORS),
        placement=rng.choice(("spread", "binpack")),
        max_per_node=rng.choice((None, None, 1, 2)),
        gpus=rng.choice((1, 1, 1, 2, 3)),
        idle_timeout_seconds=rng.choice((None, None, 20.0)),
        target_in_flight=rng.choice((None, None, 1.5)),
        rollout=rng.choice(("surge", "replace")),
    )
