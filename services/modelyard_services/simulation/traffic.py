"""What a story may say of requests and of the processes that serve them.

Invariant: a request goes where the product's ranking sends it; only `busy` and `idle` choose the replica.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, get_args

from modelyard_events.ids import ModelName, NodeName
from modelyard_projections.fleet import Ready
from modelyard_services.policy.probing import Answer
from modelyard_services.simulation.machine import LoadsAs, crash_of
from modelyard_services.simulation.words import Words
from modelyard_services.simulation.world import Act, World

ROUTER: Final = "router-1"
"""Whose requests they are where the story doesn't say."""

REQUESTS_MAX: Final = 10_000
"""In one line: more show nothing that these don't."""


def where(words: Words) -> tuple[ModelName, NodeName]:
    """`whisper on gpu-1`."""
    model = words.model()
    words.one_of("on")
    return model, words.node()


def _loads(words: Words) -> Act:
    """`loads whisper work|fail|hang`: what becomes of its loads from here on."""
    name = words.model()
    how: LoadsAs = words.one_of(*get_args(LoadsAs))  # type: ignore[assignment]  # one of its own words
    return lambda world: world.loading.update({name: how})


def _load(words: Words) -> Act:
    """`load whisper`: an operator or a request asks for a replica where none is; nobody waits for it."""
    model = words.model()

    def act(world: World) -> None:
        world.load(model)

    return act


def _request(words: Words) -> Act:
    """`request whisper [4] [by router-2]`: so many requests, one after the other."""
    model = words.model()
    count = words.count(most=REQUESTS_MAX) if words.next_is_number() else 1
    router = words.take("a router's name") if words.next_is("by") else ROUTER

    def act(world: World) -> None:
        for _ in range(count):
            world.request(model, router)

    return act


def _finish(words: Words) -> Act:
    """`finish whisper on gpu-1 [2]`: its oldest requests there end, one or so many."""
    model, node = where(words)
    count = words.count(most=REQUESTS_MAX) if words.left else 1

    def act(world: World) -> None:
        leases = [(one, lease) for one in world.routers.values() for lease in one.leases.values()]
        there = [(one, lease) for one, lease in leases if (lease.model, lease.node) == (model, node)]
        for router, lease in there[:count]:
            router.release(lease.lease, now_ns=world.now_ns)
        world.tell_routers()

    return act


def _busy(words: Words) -> Act:
    """`busy whisper on gpu-1 [3]`: so many requests run on each of its replicas there until `idle`."""
    model, node = where(words)
    count = words.count(most=REQUESTS_MAX) if words.left else 1
    return partial(_serve, model=model, node=node, count=count)


def _idle(words: Words) -> Act:
    """`idle whisper on gpu-1`: its requests have ended."""
    model, node = where(words)
    return partial(_serve, model=model, node=node, count=0)


def _answers(words: Words) -> Act:
    """`answers whisper on gpu-1 healthy|silent|wrong`: what its processes say to probes from here on."""
    model, node = where(words)
    answer: Answer = words.one_of(*get_args(Answer))  # type: ignore[assignment]  # one of its own words

    def act(world: World) -> None:
        for state in world.replicas(model, node):
            world.answers[state.id] = answer

    return act


def _crash(words: Words) -> Act:
    """`crash whisper on gpu-1`: its processes there are killed."""
    model, node = where(words)

    def act(world: World) -> None:
        ready = [state for state in world.replicas(model, node) if isinstance(state.phase, Ready)]
        if ready:
            world.tell(node, *[crash_of(state) for state in ready])

    return act


def _serve(world: World, *, model: ModelName, node: NodeName, count: int) -> str | None:
    states = world.replicas(model, node)
    router = world.router(ROUTER)
    # On what drains no new lease begins; those that are there go on until they end.
    served = [router.serve(state.id, count=count, now_ns=world.now_ns) for state in states]
    world.tell_routers()
    return None if served and all(served) else f"nothing can be sent to {model} on {node}"


TRAFFIC: Final[Mapping[str, Callable[[Words], Act]]] = {
    "loads": _loads,
    "load": _load,
    "request": _request,
    "finish": _finish,
    "busy": _busy,
    "idle": _idle,
    "answers": _answers,
    "crash": _crash,
}
"""The first word of a line about requests, and who reads the rest."""
