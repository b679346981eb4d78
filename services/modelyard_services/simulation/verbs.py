"""What a story may say happens: machines, operators, time; traffic is in a module of its own.

Invariant: a line is read wholly before the story begins; what it does goes through the deciders that the product
uses, so a refusal in a story is the refusal that a user reads.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import msgspec

from modelyard_events.envelope import Actor
from modelyard_events.fleet import Settings
from modelyard_events.ids import LabelKey
from modelyard_events.node import Gpu, NodeFacts
from modelyard_events.requests import Departing
from modelyard_events.sizes import Bytes
from modelyard_services.policy import capacity, intent, labels, liveness, models, node_watchdog, schedules, settings
from modelyard_services.policy.apply import apply
from modelyard_services.policy.configuration import Configuration, ScheduleEntry
from modelyard_services.policy.ending import begin_drain
from modelyard_services.simulation.entries import read_model, read_schedule
from modelyard_services.simulation.machine import Machine
from modelyard_services.simulation.traffic import TRAFFIC, where
from modelyard_services.simulation.words import Words
from modelyard_services.simulation.world import Act, Decide, World

OPERATOR: Final = Actor("operator", "operator")
CONFIGURATION: Final = Actor("system", "configuration")

GPUS_MAX: Final = 64
"""Of one machine: as many as a registration may name."""

SECONDS_MAX: Final = 86_400
"""A day in one line: everybody acts each second, and a mistyped figure should not run for hours."""


def _node(words: Words) -> Act:
    """`node gpu-1 [vram 24GiB] [gpus 2] [slots 2] [labels tier=gpu,zone=a]`: a machine; its worker joins later."""
    name, vram, gpus, slots, own = words.node(), 24 * 2**30, 1, 1, dict[str, str]()
    while words.left:
        match words.one_of("vram", "gpus", "slots", "labels"):
            case "vram":
                vram = words.size()
            case "gpus":
                gpus = words.count(most=GPUS_MAX)
            case "slots":
                slots = words.count()
            case _:
                own = words.pairs()
    cards = tuple(Gpu(index, "nvidia", "Simulated GPU", vram) for index in range(gpus))
    given = {LabelKey(key): value for key, value in own.items()}
    facts = NodeFacts(f"{name}:8001", cards, None if gpus else vram, max_replicas_per_model=slots, labels=given)

    def act(world: World) -> None:
        known = world.machines.get(name)
        if known is None:
            world.machines[name] = Machine(name, facts)
        else:
            known.facts = facts

    return act


def _worker(words: Words) -> Act:
    """`worker gpu-1 joins [unapproved] | restarts [keeping] | departs | falls-silent | returns`."""
    name = words.node()
    unknown = words.wrong("a node that a line above describes", name)
    what = words.one_of("joins", "restarts", "departs", "falls-silent", "returns")
    keeping = what == "restarts" and words.next_is("keeping")
    approved = not (what == "joins" and words.next_is("unapproved"))

    def act(world: World) -> None:
        if name not in world.machines:
            raise unknown
        match what:
            case "joins" | "restarts":
                world.register(name, keeping=keeping, auto_approve=approved)
            case "departs":
                world.tell(name, Departing())
                world.machines[name].state = "off"
            case "falls-silent":
                world.machines[name].state = "silent"
            case _:
                world.machines[name].state = "up"
                world.hear(name)

    return act


def _model(words: Words) -> Act:
    """`model whisper …` defines it, or defines it anew."""
    name, spec = read_model(words)
    return _operator(partial(models.define, model=name, spec=spec))


def _schedule(words: Words) -> Act:
    """`schedule whisper …` over the API."""
    name, schedule = read_schedule(words)
    return _operator(partial(schedules.set_schedule, model=name, schedule=schedule, source="api"))


def _file(words: Words) -> Act:
    """`file model …` or `file schedule …`: an entry of the configuration file; `file empty` begins it anew."""
    match words.one_of("model", "schedule", "empty"):
        case "model":
            name, spec = read_model(words)
            return lambda world: world.written.models.update({name: spec})
        case "schedule":
            name, schedule = read_schedule(words)
            return lambda world: world.written.schedules.update({name: ScheduleEntry(schedule, "file")})
        case _:
            return _forget_file


def _forget_file(world: World) -> None:
    world.written = Configuration()


def _start(_words: Words) -> Act:
    """`start`: the reconciler's process begins and applies the file before its first pass (rule S3)."""

    def act(world: World) -> None:
        for model, spec in world.written.models.items():
            world.ask(CONFIGURATION, partial(models.define, model=model, spec=spec))
        for model, entry in world.written.schedules.items():
            decide = partial(schedules.set_schedule, model=model, schedule=entry.schedule, source=entry.source)
            world.ask(CONFIGURATION, decide)

    return act


def _apply(words: Words) -> Act:
    """`apply [prune]`: the file over the API."""
    prune = words.next_is("prune")

    def act(world: World) -> None:
        sections = frozenset({"models"} if world.written.models else ()) | {"schedules"}
        written = msgspec.structs.replace(world.written, sections=sections)
        world.ask(OPERATOR, lambda fleet: apply(fleet, written, prune=prune))

    return act


def _label(words: Words) -> Act:
    """`label gpu-1 tier=gold [by ui]`; `tier=` removes."""
    node, (key, value) = words.node(), words.pair()
    actor = Actor("operator", words.take("a name")) if words.next_is("by") else OPERATOR
    changes: Mapping[str, str | None] = {key: value or None}
    return _operator(partial(labels.patch_labels, node=node, changes=changes), actor)


def _slots(words: Words) -> Act:
    """`slots gpu-1 2 [enforce]`: an operator's limit of replicas per model; `slots gpu-1 default` clears it."""
    node = words.node()
    if words.next_is("default"):
        return _operator(partial(capacity.clear_override, node=node, override="max_replicas_per_model"))
    value = words.count()
    enforced = words.next_is("enforce")
    decide = capacity.enforce_max_replicas if enforced else capacity.override_max_replicas
    return _operator(partial(decide, node=node, value=value))


def _budget(words: Words) -> Act:
    """`budget gpu-1 12GiB`: an operator's cap of the memory that models may use; `default` clears it."""
    node = words.node()
    if words.next_is("default"):
        return _operator(partial(capacity.clear_override, node=node, override="vram_budget"))
    return _operator(partial(capacity.override_vram_budget, node=node, budget=Bytes(words.size())))


def _set(words: Words) -> Act:
    """`set drain_deadline_seconds 30`: a setting of the fleet; `default` puts it back."""
    field, value = _setting(words, Settings.__struct_fields__)
    return _operator(partial(settings.patch_settings, patch={field: value}))


def _watchdog(words: Words) -> Act:
    """`watchdog gpu-1 max_loaded_models 1`: the node's own figure; `default` gives it back to the fleet."""
    node, (field, value) = words.node(), _setting(words, node_watchdog.FIELDS)
    return _operator(partial(node_watchdog.patch_watchdog, node=node, patch={field: value}))


def _setting(words: Words, known: tuple[str, ...]) -> tuple[str, object]:
    """The next two words as a setting, one of `known`, and its value; None for `default`."""
    field, text = words.one_of(*known), words.take("a value")
    if text in {"true", "false", "default"}:
        return field, {"true": True, "false": False, "default": None}[text]
    if not (text.isascii() and text.replace(".", "0", 1).isdecimal()):
        raise words.wrong("a number, true, false or default", text)
    return field, float(text) if "." in text else type(getattr(Settings(), field))(int(text))


def _unload(words: Words) -> Act:
    """`unload whisper on gpu-1`: an operator ends its replicas there."""
    model, node = where(words)

    def act(world: World) -> None:
        ids = [state.id for state in world.replicas(model, node)]
        seconds = world.fleet.settings.drain_deadline_seconds
        world.ask(OPERATOR, lambda fleet: begin_drain(fleet, ids, reason="requested", deadline_seconds=seconds))

    return act


def _after(words: Words) -> Act:
    """`after 30 s`: everybody acts, second by second."""
    seconds = words.count(most=SECONDS_MAX)
    words.one_of("s")
    return lambda world: world.pass_time(seconds)


def _reconcile(_words: Words) -> Act:
    """`reconcile`: one pass; the workers do nothing yet."""

    def act(world: World) -> None:
        world.carry_out(world.due())

    return act


def _settle(_words: Words) -> Act:
    """`settle`: reconciler and workers go on until both rest; no time passes."""
    return World.settle


def _of_node(words: Words, decide: Callable[..., object]) -> Act:
    return _operator(partial(decide, node=words.node()))  # type: ignore[arg-type]  # a decider of one node


def _of_model(words: Words, decide: Callable[..., object]) -> Act:
    return _operator(partial(decide, model=words.model()))  # type: ignore[arg-type]  # a decider of one model


def _operator(decide: Decide, actor: Actor = OPERATOR) -> Act:
    def act(world: World) -> None:
        world.ask(actor, decide)

    return act


VERBS: Final[Mapping[str, Callable[[Words], Act]]] = {
    "node": _node,
    "worker": _worker,
    "model": _model,
    "schedule": _schedule,
    "unschedule": partial(_of_model, decide=partial(schedules.clear_schedule, source="api")),
    "file": _file,
    "start": _start,
    "apply": _apply,
    "remove-model": partial(_of_model, decide=models.remove),
    "remove-node": partial(_of_node, decide=intent.remove),
    "approve": partial(_of_node, decide=intent.approve),
    "reject": partial(_of_node, decide=intent.reject),
    "cordon": partial(_of_node, decide=intent.cordon),
    "uncordon": partial(_of_node, decide=intent.uncordon),
    "drain": partial(_of_node, decide=intent.drain),
    "resume": partial(_of_node, decide=intent.resume),
    "clear-mass-loss": lambda _words: _operator(liveness.clear_mass_loss),
    "label": _label,
    "slots": _slots,
    "budget": _budget,
    "watchdog": _watchdog,
    "set": _set,
    "unload": _unload,
    **TRAFFIC,
    "after": _after,
    "reconcile": _reconcile,
    "settle": _settle,
}
"""The first word of a line, and who reads the rest."""
