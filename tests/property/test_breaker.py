"""The breaker through random stories: it closes on what the rule names, on all of that, and on nothing else (C5, X17).

Judged by other code: a book that is kept from the story's events and the nodes' labels, and never looks at marks.
"""

from collections.abc import Callable, Mapping

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from modelyard_events.envelope import AnyEvent
from modelyard_events.fleet import Settings
from modelyard_events.ids import CommandId, ModelName, NodeName, ReservationId
from modelyard_events.model import ModelScheduleSet
from modelyard_events.node import (
    NodeApproved,
    NodeCordoned,
    NodeIncarnationStarted,
    NodeLabelsChanged,
    NodeLost,
    NodeMaxReplicasOverridden,
    NodeRecovered,
    NodeResumed,
    NodeVramBudgetOverridden,
)
from modelyard_events.reservation import OperatorHolder, ReservationGranted, ReservationReleased
from modelyard_events.selectors import parse_selector
from modelyard_events.sizes import Bytes
from modelyard_events.spec import Autoscale, Schedule
from modelyard_projections.fleet import Alive, Breaker, Cordoned, Lost, NodeState, Ready
from modelyard_services.policy.breaker import PASSES_APART_SECONDS, clear_breaker
from modelyard_services.policy.ending import end
from modelyard_services.policy.models import define
from modelyard_services.policy.placement import Request, place
from modelyard_services.policy.reconcile import reconcile
from modelyard_services.policy.schedules import set_schedule
from tests.support.given import GIB, a_model, an_approved_node, incarnation_of, some_spec
from tests.support.world import PASSES_MAX, World

M, OTHER = ModelName("m"), ModelName("other")
NODES = 4
LIMIT = Settings().breaker_failed_passes
NOWHERE = 400
"""GiB that no node has: then the book knows of every pass that it fails."""

RELIEVING = (
    NodeIncarnationStarted,
    NodeApproved,
    NodeRecovered,
    NodeResumed,
    NodeLabelsChanged,
    NodeVramBudgetOverridden,
    NodeMaxReplicasOverridden,
    ReservationReleased,
)
"""As the rule lists them: joined, approved, recovered, resumed, labels, capacity, memory freed."""

SCALE_UP = ("floor/", "grow/", "spread/")
"""How the actions begin that place more of a model."""

Labels = dict[NodeName, Mapping[str, str]]


class Story:
    """A world in which passes follow each step until nothing is left to do, and the book on model m's breaker."""

    def __init__(self, gib: int) -> None:
        self.nowhere = gib == NOWHERE
        self.seen = 0
        self.count = 0
        self.counted_at: float | None = None
        self.labels: Labels = {}
        self.budgets: dict[int, Bytes] = {}
        self.world = World()
        for number in range(NODES):
            tier = {"tier": "gpu" if number % 2 else "cpu"}
            self.world.append(*an_approved_node(f"n{number}", slots=2, labels=tier))
        self.world.append(*a_model(OTHER), *a_model(spec=some_spec(vram=gib * GIB)), _wanting(2), _wanting(1, OTHER))
        self.step("waiting", 0, 0)

    @property
    def breaker(self) -> Breaker | None:
        return self.world.fleet.models[M].breaker

    def node(self, number: int) -> NodeState:
        return self.world.fleet.nodes[NodeName(f"n{number}")]

    def step(self, verb: str, number: int, amount: int) -> None:
        """One step of the story, and passes until nothing is left to do; every worker that lives is heard."""
        changed, world = VERBS[verb](self, number, amount), self.world
        world.beat(*(node.name for node in world.fleet.nodes.values() if isinstance(node.liveness, Alive)))
        world.route()
        for _ in range(PASSES_MAX):
            if not self.one_pass(changed=changed, why=f"{verb} of n{number}"):
                break
            changed = False
        else:
            raise AssertionError("passes run in circles")
        if self.breaker is not None:
            self.holds_back_scale_up_only()

    def one_pass(self, *, changed: bool, why: str) -> list[AnyEvent]:
        """A pass, and what the book says of it; what it appended."""
        world, before = self.world, self.breaker
        happened, self.seen = world.told[self.seen :], len(world.told)
        labels: Labels = {node.name: dict(node.labels) for node in world.fleet.nodes.values()}
        relieved = any(self.concerns(event, labels) for event in happened)
        self.labels = labels
        told = world.one_pass()
        if before is not None:
            self.count, self.counted_at = 0, None
            if relieved or world.now_ns >= before.until_ns:
                assert self.breaker is None, f"{why} clears it not"
            else:
                assert self.breaker == before, f"{why} clears it, or changes what it says"
            return told
        if relieved or changed:
            self.count, self.counted_at = 0, None
        if self.counted_at is None or world.seconds - self.counted_at >= PASSES_APART_SECONDS:
            self.count, self.counted_at = self.count + 1, world.seconds
        if self.breaker is not None:
            assert self.count >= LIMIT, f"{why} opens it after {self.count} passes"
            assert self.breaker.failed_passes == LIMIT
        assert not (self.nowhere and self.count >= LIMIT and self.breaker is None), f"{self.count} passes failed"
        return told

    def concerns(self, event: AnyEvent, labels: Labels) -> bool:
        """Whether it may make room for m: of a node that m selects before or after it."""
        if not isinstance(event, RELIEVING):
            return False
        return any(_is_gpu(each.get(NodeName(event.node), {})) for each in (self.labels, labels))

    def holds_back_scale_up_only(self) -> None:
        """The same pass without the breaker does nothing that this one leaves out, but for more of m."""
        model, view = self.world.fleet.models[M], self.world.view()
        held, breaker = reconcile(view), model.breaker
        model.breaker = None
        try:
            free = reconcile(view)
        finally:
            model.breaker = breaker
        keys = {action.key for action in held}
        assert not [key for key in keys if key.startswith(tuple(f"{way}{M}/" for way in SCALE_UP))]
        left_out = [action.key for action in free if action.key not in keys]
        assert all(key.startswith(tuple(f"{way}{M}/" for way in SCALE_UP)) for key in left_out), left_out


# Steps: what happens, and whether it is a change of the model, or a command, that closes the breaker.


def _waits(story: Story, _number: int, amount: int) -> bool:
    story.world.after((0.02, 1, 6, 15, 15, 15, 301, 301)[amount])
    return False


def _works(story: Story, _number: int, _amount: int) -> bool:
    story.world.work()
    return False


def _gets_a_label(story: Story, number: int, amount: int) -> bool:
    value = {"note": str(amount)}
    if story.node(number).labels.get("note") != str(amount):
        story.world.append(NodeLabelsChanged(node=f"n{number}", changed=value))  # type: ignore[arg-type]
    return False


def _changes_tier(story: Story, number: int, _amount: int) -> bool:
    value = {"tier": "cpu" if _is_gpu(story.node(number).labels) else "gpu"}
    story.world.append(NodeLabelsChanged(node=f"n{number}", changed=value))  # type: ignore[arg-type]
    return False


def _is_cordoned_or_resumed(story: Story, number: int, _amount: int) -> bool:
    kind = NodeResumed if isinstance(story.node(number).intent, Cordoned) else NodeCordoned
    story.world.append(kind(node=f"n{number}"))
    return False


def _is_lost_or_recovers(story: Story, number: int, _amount: int) -> bool:
    node, name = story.node(number), f"n{number}"
    if isinstance(node.liveness, Alive):
        story.world.append(NodeLost(node=name, incarnation=incarnation_of(name), silent_seconds=61, grace_seconds=9e9))
    elif isinstance(node.liveness, Lost):
        story.world.append(NodeRecovered(node=name, incarnation=incarnation_of(name)))
    return False


def _is_reserved_or_freed(story: Story, number: int, _amount: int) -> bool:
    held = ReservationId(f"v-own-{number}")
    if held in story.node(number).reservations:
        story.world.append(ReservationReleased(node=f"n{number}", reservations=(held,)))
    elif story.node(number).vram_reserved <= 2 * GIB:
        story.world.append(
            ReservationGranted(node=f"n{number}", reservation=held, holder=OperatorHolder("x"), vram={0: 12 * GIB})
        )
    return False


def _gets_a_budget(story: Story, number: int, amount: int) -> bool:
    budget, before = Bytes((16 + amount) * GIB), story.budgets.get(number)
    if budget != before:
        story.budgets[number] = budget
        story.world.append(NodeVramBudgetOverridden(node=f"n{number}", vram_budget=budget))
    return False


def _gets_slots(story: Story, number: int, amount: int) -> bool:
    if story.node(number).max_replicas_per_model != amount + 2:
        story.world.append(NodeMaxReplicasOverridden(node=f"n{number}", max_replicas_per_model=amount + 2))
    return False


def _joins(story: Story, number: int, _amount: int) -> bool:
    name = f"n{len(story.world.fleet.nodes)}"
    if len(story.world.fleet.nodes) < 2 * NODES:
        story.world.append(*an_approved_node(name, labels={"tier": "gpu" if number % 2 else "cpu"}))
    return False


def _loses_a_replica(story: Story, number: int, _amount: int) -> bool:
    for state in story.world.fleet.replicas_on(NodeName(f"n{number}")):
        if isinstance(state.phase, Ready):
            story.world.append(*end(story.world.fleet, [state.id], reason="crashed"))
            break
    return False


def _is_cleared(story: Story, _number: int, _amount: int) -> bool:
    events = clear_breaker(story.world.fleet, model=M)
    story.world.append(*events)
    return bool(events)


def _is_redefined(story: Story, _number: int, amount: int) -> bool:
    vram = story.world.fleet.models[M].spec.vram  # type: ignore[union-attr]
    spec = msgspec.structs.replace(some_spec(vram=vram), environment={"V": str(amount)})
    events = define(story.world.fleet, model=M, spec=spec)
    story.world.append(*events)
    return bool(events)


def _is_rescheduled(story: Story, _number: int, amount: int) -> bool:
    schedule = _wanting(1 + amount % 3).schedule
    events = set_schedule(story.world.fleet, model=M, schedule=schedule, source="api")
    story.world.append(*events)
    return bool(events)


def _is_loaded(story: Story, number: int, amount: int) -> bool:
    """An operator asks for one; an open breaker makes no difference to the answer."""
    world, command = story.world, CommandId(f"load-{len(story.world.told)}-{amount}")
    request = Request(model=M, command=command, now_ns=world.now_ns, node=NodeName(f"n{number}"))
    model, breaker = world.fleet.models[M], story.breaker
    outcome = place(world.fleet, world.readings(), request)
    model.breaker = None
    free = place(world.fleet, world.readings(), request)
    model.breaker = breaker
    assert outcome.replica == free.replica
    world.append(*outcome.events, command=command)
    return False


VERBS: dict[str, Callable[[Story, int, int], bool]] = {
    "waiting": _waits,
    "work": _works,
    "label": _gets_a_label,
    "tier": _changes_tier,
    "cordon or resume": _is_cordoned_or_resumed,
    "loss or recovery": _is_lost_or_recovers,
    "reservation or release": _is_reserved_or_freed,
    "budget": _gets_a_budget,
    "slots": _gets_slots,
    "join": _joins,
    "crash": _loses_a_replica,
    "clearing": _is_cleared,
    "redefinition": _is_redefined,
    "schedule": _is_rescheduled,
    "load": _is_loaded,
}
verbs = st.one_of(st.just("waiting"), st.sampled_from(sorted(VERBS)))
steps = st.lists(st.tuples(verbs, st.integers(0, NODES - 1), st.integers(0, 7)), max_size=60)


OPENS = [("waiting", 0, 3)] * 3
ENDS = [("waiting", 0, 7)]


@example(gib=NOWHERE, told=[*OPENS, *ENDS, *OPENS, *ENDS, *OPENS]).via("trap X27")
@example(gib=NOWHERE, told=[*OPENS, ("label", 0, 1), ("tier", 0, 0), ("tier", 0, 0), *OPENS]).via("trap X17")
@settings(max_examples=300)
@given(st.sampled_from([NOWHERE, 20, 20]), steps)
def test_it_closes_on_what_the_rule_names_on_all_of_it_and_on_nothing_else(
    gib: int, told: list[tuple[str, int, int]]
) -> None:
    """C5, X17, X27: after three failed passes it opens, holds back scale-up alone, and counts anew after each end."""
    story = Story(gib)
    for verb, number, amount in told:
        story.step(verb, number, amount)


def _wanting(least: int, model: ModelName = M) -> ModelScheduleSet:
    selector = parse_selector("tier=gpu" if model == M else "")
    return ModelScheduleSet(model=model, schedule=Schedule(mode=Autoscale(least), node_selector=selector), source="api")


def _is_gpu(labels: Mapping[str, str]) -> bool:
    return labels.get("tier") == "gpu"
