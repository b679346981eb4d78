"""What a story may say must hold: replicas and their phases, nodes, labels, the last refusal.

Invariant: an expectation looks and changes nothing; one that fails says what was found instead.
"""

from collections.abc import Callable, Mapping
from typing import Final, get_args

from modelyard_events.spec import ScheduleSource
from modelyard_projections.fleet import NodeState
from modelyard_services.simulation.traffic import where
from modelyard_services.simulation.words import Words
from modelyard_services.simulation.world import Act, World

PHASES: Final = ("placed", "loading", "ready", "draining")
STATES: Final = ("serving", "pending", "rejected", "cordoned", "draining", "lost", "departed", "gone")


def expect(words: Words) -> Act:
    """Read one `expect …`.

    ```
    expect 2 whisper [ready] [on gpu-1]       so many replicas, in that phase, there
    expect whisper ready on gpu-1             one at least
    expect no whisper [on gpu-1]
    expect 3 requests whisper on gpu-1        so many run there
    expect node gpu-1 lost
    expect breaker whisper open               or shut
    expect schedule whisper file              it is there, and who set it; `no` where it has none
    expect label gpu-1 tier=gold
    expect refused no free slot               the last refusal says that
    expect answered a#0 is pinned             what the last request was told that had waited in vain
    expect accepted                           the last command was not refused
    ```
    """
    about = next((name for name in _ABOUT if words.next_is(name)), None)
    return _replicas(words) if about is None else _ABOUT[about](words)


def _refused(words: Words) -> Act:
    said = words.rest()

    def act(world: World) -> str | None:
        if not world.refused:
            return "the last command was accepted"
        return None if said in world.refused else f"the refusal says: {world.refused}"

    return act


def _answered(words: Words) -> Act:
    said = words.rest()
    return lambda world: None if said in world.answered else f"the last answer says: {world.answered or 'nothing'}"


def _node(words: Words) -> Act:
    name, wanted = words.node(), words.one_of(*STATES)

    def act(world: World) -> str | None:
        found = next((_state(node) for node in world.fleet.nodes.values() if node.name == name), "gone")
        return None if found == wanted else f"node {name} is {found}"

    return act


def _label(words: Words) -> Act:
    name, (key, value) = words.node(), words.pair()

    def act(world: World) -> str | None:
        found = world.fleet.nodes[name].labels.get(key) if name in world.fleet.nodes else None
        return None if found == value else f"label {key} of {name} is {found!r}"

    return act


def _breaker(words: Words) -> Act:
    name, wanted = words.model(), words.one_of("open", "shut")

    def act(world: World) -> str | None:
        model = world.fleet.models.get(name)
        found = "shut" if model is None or model.breaker is None else "open"
        return None if found == wanted else f"the breaker of {name} is {found}"

    return act


def _schedule(words: Words) -> Act:
    name, wanted = words.model(), words.one_of("no", *get_args(ScheduleSource))

    def act(world: World) -> str | None:
        model = world.fleet.models.get(name)
        found = "no" if model is None or model.schedule is None else model.schedule.source
        return None if found == wanted else f"the schedule of {name} is from {found}"

    return act


def _replicas(words: Words) -> Act:
    wanted = words.count() if words.next_is_number() else 0 if words.next_is("no") else None
    if wanted is not None and words.next_is("requests"):
        return _requests(words, wanted)
    model = words.model()
    phase = _phase(words, optional=wanted is not None)
    node = words.node() if words.left and words.one_of("on") else None

    def act(world: World) -> str | None:
        found = world.replicas(model, node)
        counted = [state for state in found if phase in {None, state.phase_name}]
        holds = bool(counted) if wanted is None else len(counted) == wanted
        return None if holds else f"found {_listed(world, model)}"

    return act


def _requests(words: Words, wanted: int) -> Act:
    model, node = where(words)

    def act(world: World) -> str | None:
        found = sum(world.requests_on(state.id) for state in world.replicas(model, node))
        return None if found == wanted else f"{found} run there"

    return act


def _phase(words: Words, *, optional: bool) -> str | None:
    for phase in PHASES:
        if words.next_is(phase):
            return phase
    return None if optional else words.one_of(*PHASES)


def _listed(world: World, model: str) -> str:
    found = [f"{one.phase_name} on {one.node}" for one in world.replicas(model)]
    return f"{model} {', '.join(found)}" if found else f"no {model}"


def _state(node: NodeState) -> str:
    if node.liveness_name != "alive":
        return node.liveness_name
    if node.admission != "approved":
        return node.admission
    return "serving" if node.intent_name == "schedulable" else node.intent_name


_ABOUT: Final[Mapping[str, Callable[[Words], Act]]] = {
    "refused": _refused,
    "answered": _answered,
    "accepted": lambda _words: lambda world: world.refused or None,
    "node": _node,
    "label": _label,
    "breaker": _breaker,
    "schedule": _schedule,
}
"""Everything that can be expected but replicas and requests."""
