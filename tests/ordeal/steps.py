"""Everything that can be asked of a fleet, or happen to it, drawn at random.

Invariant: a step draws only from its own dice and from what the ordeal came to, so any other step may be left out.
"""

from collections.abc import Callable, Sequence
from functools import partial
from random import Random

import msgspec

from modelyard_events.envelope import Actor, AnyEvent
from modelyard_events.errors import InvalidValueError
from modelyard_events.ids import ModelName, NodeName
from modelyard_events.node import Gpu
from modelyard_events.replica import Process, ProcessExit
from modelyard_events.requests import (
    CapacityChanged,
    Crashed,
    Departing,
    Fact,
    Loaded,
    LoadFailed,
    LoadStarted,
    Measured,
    ProbeFailed,
    Stopped,
)
from modelyard_events.telemetry import Heartbeat
from modelyard_projections.fleet import Fleet, ReplicaState
from modelyard_services.policy import intent, models, settings
from modelyard_services.policy.actions import Action
from modelyard_services.policy.facts import report
from modelyard_services.policy.placement import Request, load_on_demand, place
from modelyard_services.policy.readings import read
from modelyard_services.policy.registration import register
from modelyard_services.simulation.machine import PORT, Machine, fact_of, report_of, request_of
from modelyard_services.simulation.world import CONNECTED_NS
from tests.ordeal.operators import GIB, SELECTORS, operator_command, some_facts, some_spec
from tests.ordeal.ordeal import MODELS, NODES, OPERATOR, Asked, JudgedRouter, Ordeal

SYSTEM = Actor("system", "reconciler")
Step = Callable[[Ordeal, Random], str]


def take(ordeal: Ordeal, rng: Random) -> str:
    """One step of any kind; what it was."""
    step = rng.choices(list(STEPS), weights=list(STEPS.values()))[0]
    if not ordeal.world.fleet.nodes:
        step = worker_starts
    return f"{step.__name__}: {step(ordeal, rng)}"


def begin(ordeal: Ordeal, rng: Random) -> None:
    """A fleet with something in it: an ordeal that starts from nothing spends its steps on being refused."""
    for name in NODES[:3]:
        machine = ordeal.world.machines[NodeName(name)] = Machine(NodeName(name), some_facts(rng))
        machine.life, machine.state = 1, "up"
        decide = partial(register, request=request_of(machine, ()), auto_approve=True)
        ordeal.ask(Asked(Actor("worker", name), ordeal.command(), decide))
        ordeal.world.hear(NodeName(name))
    residency = {"min_residency_seconds": rng.choice((0.0, 0.0, 5.0, 60.0))}
    ordeal.ask(Asked(OPERATOR, ordeal.command(), partial(settings.patch_settings, patch=residency)))
    for model in MODELS[:3]:
        ordeal.ask(
            Asked(OPERATOR, ordeal.command(), partial(models.define, model=ModelName(model), spec=some_spec(rng)))
        )


# Workers.


def worker_starts(ordeal: Ordeal, rng: Random) -> str:
    """A worker's next life, with all, some or none of its processes; or a second one under its name."""
    world, name = ordeal.world, NodeName(rng.choice(NODES))
    machine = world.machines.setdefault(name, Machine(name, some_facts(rng)))
    if rng.random() < 0.3:
        machine.facts = some_facts(rng)
    inventory = world.readings_on(name) if rng.random() < 0.6 else ()
    inventory = tuple(reading for reading in inventory if rng.random() < 0.9)
    claim = msgspec.structs.replace(machine, life=machine.life + 1)
    request = request_of(claim, inventory)
    if rng.random() < 0.1:
        request = msgspec.structs.replace(request, secret="another", incarnation=f"rival-{ordeal.made}")  # noqa: S106
    if rng.random() < 0.05:
        request = msgspec.structs.replace(request, token="guessed")  # noqa: S106
    state = world.fleet.nodes.get(name)
    silent = state.incarnation if state is not None and machine.state != "up" else None
    decide = partial(register, request=request, auto_approve=rng.random() < 0.9, silent=silent)
    if rng.random() < 0.1:
        request = msgspec.structs.replace(request, incarnation=machine.incarnation)
    ordeal.ask(Asked(Actor("worker", name), ordeal.command(), decide))
    state = world.fleet.nodes.get(name)
    if state is not None and state.incarnation == claim.incarnation:
        machine.life, machine.state = claim.life, "up"
        ordeal.require_again_nothing(Asked(OPERATOR, ordeal.command(), decide))
        world.hear(name)
    return f"{name} as {request.incarnation}"


def worker_works(ordeal: Ordeal, rng: Random) -> str:
    """Some of the workers get on with what their events tell them."""
    world, told = ordeal.world, 0
    for state in list(world.fleet.replicas.values()):
        machine = world.machines[state.node]
        if machine.state != "up" or rng.random() < 0.2 or state.id not in world.fleet.replicas:
            continue
        fact = fact_of(state, loading=rng.choices(("work", "hang", "fail"), (20, 3, 1))[0])
        if isinstance(fact, Loaded) and rng.random() < 0.3:
            fact = msgspec.structs.replace(fact, memory=_memory(ordeal, rng, state))
        if fact is not None:
            told += _tell(ordeal, state.node, fact)
    return f"{told} facts"


def worker_says(ordeal: Ordeal, rng: Random) -> str:
    """Any fact, also one that comes too late or for the second time."""
    world = ordeal.world
    if ordeal.facts and rng.random() < 0.3:
        node, fact = rng.choice(ordeal.facts)
    else:
        waiting = [state for state in world.fleet.replicas.values() if state.waits_for]
        state = rng.choice(waiting) if waiting and rng.random() < 0.5 else _some_replica(ordeal, rng)
        if state is None:
            return "nothing"
        node = state.node
        size = rng.randint(0, 30) * GIB
        one: tuple[Fact, ...] = (
            LoadStarted(state.id, Process(state.sequence, float(state.sequence), PORT)),
            LoadStarted(state.id, Process(state.sequence, float(state.sequence), PORT)),
            Loaded(state.id, f"{node}:{PORT}"),
            Crashed(state.id, ProcessExit(exit_code=1)),
            LoadFailed(state.id, "out of memory"),
            Stopped(state.id),
            ProbeFailed(state.id, "no answer"),
            Measured(state.id, _memory(ordeal, rng, state)),
            Measured(state.id, _memory(ordeal, rng, state)),
            CapacityChanged(some_cards(rng, size), None) if size else CapacityChanged((), size),
        )
        fact = rng.choice(one)
    if node in world.machines and world.machines[node].state == "up":
        _tell(ordeal, node, fact)
    return f"{node} {fact}"


def some_cards(rng: Random, size: int) -> tuple[Gpu, ...]:
    """Those of up to three GPUs that are left."""
    left = [index for index in range(3) if rng.random() < 0.7] or [0]
    return tuple(Gpu(index, "nvidia", "Simulated GPU", size) for index in left)


def worker_leaves(ordeal: Ordeal, rng: Random) -> str:
    """A worker says goodbye, falls silent, is cut off, or is heard again."""
    name = NodeName(rng.choice(NODES))
    machine = ordeal.world.machines.get(name)
    if machine is None:
        return "nobody"
    how = rng.choice(("departs", "silent", "silent", "back", "back", "back"))
    if how == "departs" and machine.state == "up":
        _tell(ordeal, name, Departing())
        machine.state = "off"
    elif how == "silent" and machine.state == "up":
        machine.state = "silent"
    elif how == "back" and machine.state == "silent":
        machine.state = "up"
    return f"{name} {how}"


# Operators.


def operator_asks(ordeal: Ordeal, rng: Random) -> str:
    """One command of an operator; asked again at once, it changes nothing."""
    name, asked = operator_command(ordeal, rng)
    if ordeal.ask(asked) and asked.again:
        ordeal.require_again_nothing(asked)
    return name


def operator_mends(ordeal: Ordeal, _rng: Random) -> str:
    """Every node is to serve again: a fleet on which nothing can be placed teaches nothing."""
    for name in list(ordeal.world.fleet.nodes):
        for decide in (intent.approve, intent.uncordon, intent.resume):
            ordeal.ask(Asked(OPERATOR, ordeal.command(), partial(decide, node=name)))
    return "all nodes"


def load(ordeal: Ordeal, rng: Random) -> str:
    """A request that finds no replica, or an operator who asks for one more, somewhere or there."""
    name, asked = _load(ordeal, rng)
    ordeal.ask(asked)
    return name


def _load(ordeal: Ordeal, rng: Random) -> tuple[str, Asked]:
    model, command = ModelName(rng.choice(MODELS)), ordeal.command()
    where = NodeName(rng.choice(NODES)) if rng.random() < 0.2 else None
    selector = rng.choice(SELECTORS) if rng.random() < 0.2 else ()
    how = load_on_demand if rng.random() < 0.5 else place
    now_ns, demand = ordeal.world.now_ns, ordeal.world.demand

    def decide(fleet: Fleet) -> Sequence[AnyEvent]:
        readings = read(fleet, demand, heard_ns=now_ns, connected_ns=CONNECTED_NS)
        request = Request(model=model, command=command, now_ns=now_ns, node=where, selector=selector)
        return how(fleet, readings, request).events

    return f"{model} {where or ''}", Asked(Actor("client", "ordeal"), command, decide)


# Reconcilers and routers.


def reconciler_passes(ordeal: Ordeal, rng: Random) -> str:
    """A pass; a part of it is done now, a part late, and some of it twice."""
    due = ordeal.world.due()
    if rng.random() < 0.7:
        ordeal.world.carry_out(due)
    else:
        ordeal.world.carry_out([action for action in due if rng.random() < 0.5])
        ordeal.late += due
    return f"{len(due)} due"


def reconciler_is_late(ordeal: Ordeal, rng: Random) -> str:
    """Another one does what was due a while ago."""
    done = [ordeal.late.pop(rng.randrange(len(ordeal.late))) for _ in range(min(3, len(ordeal.late)))]
    ordeal.world.carry_out(done)
    return f"{[action.key for action in done]}"


def routers_serve(ordeal: Ordeal, rng: Random) -> str:
    """Requests come and go at routers that are heard."""
    world = ordeal.world
    router = _router(ordeal, rng)
    if rng.random() < 0.5:
        for held in list(router.leases)[: rng.randint(1, 4)]:
            router.release(held, now_ns=world.now_ns)
        return f"{router.name} ends some"
    model = ModelName(rng.choice(MODELS))
    if world.now_ns - router.told_ns >= 2_000_000_000:
        return f"{router.name} is heard by nobody"
    sent = 0
    for _ in range(rng.randint(1, 4)):
        lease, _shut = router.route(model, world.answer_of, now_ns=world.now_ns)
        sent += lease is not None
    return f"{router.name} sends {sent} to {model}"


def router_changes(ordeal: Ordeal, rng: Random) -> str:
    """A router is slow, catches up, is cut off, reports, or dies with all it holds."""
    router, how = _router(ordeal, rng), rng.choice(("slow", "quick", "quick", "cut off", "heard", "heard", "dies"))
    match how:
        case "slow":
            router.slow = True
        case "quick":
            router.slow = False
            router.catch_up()
        case "cut off":
            router.cut_off = True
        case "heard":
            router.cut_off = False
            ordeal.world.tell_routers()
        case _:
            del ordeal.world.routers[router.name]
            ordeal.judge.leases.died(router.name)
    return f"{router.name} {how}"


def _router(ordeal: Ordeal, rng: Random) -> JudgedRouter:
    known = [one for one in ordeal.world.routers.values() if isinstance(one, JudgedRouter)]
    return rng.choice(known) if len(known) > 1 or (known and rng.random() < 0.8) else ordeal.router()


def processes_answer(ordeal: Ordeal, rng: Random) -> str:
    """What a process says to the next probes."""
    state = _some_replica(ordeal, rng)
    if state is None:
        return "nobody"
    ordeal.world.answers[state.id] = rng.choice(("healthy", "silent", "wrong"))
    return f"{state.id} {ordeal.world.answers[state.id]}"


# Time, and what comes at once or twice.


def time_passes(ordeal: Ordeal, rng: Random) -> str:
    """Seconds, now and then minutes; most workers and routers are heard meanwhile."""
    world = ordeal.world
    seconds = rng.choices((1, 2, 5, 15, 70, 400), (30, 20, 20, 10, 5, 2))[0]
    world.seconds += seconds
    world.hear(*[name for name in world.machines if rng.random() < 0.9])
    if rng.random() < 0.1:
        _forget_some(ordeal, rng)
    if rng.random() < 0.9:
        world.tell_routers()
    return f"{seconds} s"


def two_at_once(ordeal: Ordeal, rng: Random) -> str:
    """Two decide on the same fleet (X21)."""
    first, second = _anything(ordeal, rng), _anything(ordeal, rng)
    return f"{first[0]} and {second[0]}: {ordeal.race(first[1], second[1])}"


def same_again(ordeal: Ordeal, rng: Random) -> str:
    """I11: a command that was appended is appended no more, whatever it says now."""
    if not ordeal.commands:
        return "nothing"
    command = rng.choice(ordeal.commands[-200:])
    if ordeal.world.fleet.recorded_command(command) is None:
        return "it had come to nothing"
    name, asked = _anything(ordeal, rng)
    before = len(ordeal.log)
    ordeal.ask(msgspec.structs.replace(asked, command=command))
    if len(ordeal.log) != before:
        raise AssertionError(f"I11: {command} was appended twice")
    return name


def _anything(ordeal: Ordeal, rng: Random) -> tuple[str, Asked]:
    kind = rng.random()
    if kind < 0.35:
        return _load(ordeal, rng)
    due = ordeal.world.due() if kind < 0.7 else []
    if due:
        return _action(rng.choice(due))
    return operator_command(ordeal, rng)


def _action(action: Action) -> tuple[str, Asked]:
    return action.key, Asked(SYSTEM, action.command, lambda fleet: action.decide(fleet, action.command))


# What is drawn.


def _memory(ordeal: Ordeal, rng: Random, state: ReplicaState) -> dict[int, int]:
    held = ordeal.world.fleet.reservations[state.reservation].vram
    return {device: max(1, round(size * rng.choice((0.5, 0.9, 1.0, 1.3)))) for device, size in held.items()}


def _some_replica(ordeal: Ordeal, rng: Random) -> ReplicaState | None:
    known = sorted(ordeal.world.fleet.replicas)
    return ordeal.world.fleet.replicas[rng.choice(known)] if known else None


def _tell(ordeal: Ordeal, node: NodeName, fact: Fact) -> bool:
    ordeal.facts = [*ordeal.facts[-30:], (node, fact)]
    told = report_of(ordeal.world.machines[node], fact)
    try:
        asked = Asked(Actor("worker", node), ordeal.command(), lambda fleet: report(fleet, told).events)
        done = ordeal.ask(asked)
    except InvalidValueError:
        return False
    if done and not isinstance(fact, Measured | CapacityChanged):
        ordeal.require_again_nothing(asked)
    return done


def _forget_some(ordeal: Ordeal, rng: Random) -> None:
    """A worker is heard without one of its processes: it is gone (C6)."""
    state = _some_replica(ordeal, rng)
    if state is None:
        return
    machine = ordeal.world.machines[state.node]
    readings = tuple(one for one in ordeal.world.readings_on(state.node) if one.replica != state.id)
    beat = Heartbeat(state.node, machine.incarnation, ordeal.world.fleet.sequence, replicas=readings)
    if machine.state == "up":
        ordeal.world.demand.hear_node(beat, now_ns=ordeal.world.now_ns)
        ordeal.world.due()


STEPS: dict[Step, int] = {
    worker_starts: 3,
    worker_works: 24,
    worker_says: 2,
    worker_leaves: 2,
    operator_asks: 9,
    operator_mends: 3,
    load: 20,
    reconciler_passes: 16,
    reconciler_is_late: 3,
    routers_serve: 8,
    router_changes: 3,
    processes_answer: 1,
    time_passes: 14,
    two_at_once: 8,
    same_again: 1,
}
"""What can happen, and how often."""
