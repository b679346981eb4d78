"""Overrides that stick, caps that end nothing unasked, and operators' own reservations (rules N11, N12, R3)."""

import msgspec
import pytest

from modelyard_events.envelope import AnyEvent
from modelyard_events.errors import InvalidValueError
from modelyard_events.ids import CommandId, NodeName, ReplicaId, ReservationId
from modelyard_events.model import ModelReplicaDraining, ModelReplicaEnded
from modelyard_events.node import (
    NodeIncarnationStarted,
    NodeMaxReplicasOverridden,
    NodeOverrideCleared,
    NodeVramBudgetOverridden,
)
from modelyard_events.replica import ReplicaDrainStarted, ReplicaUnloaded
from modelyard_events.reservation import OperatorHolder, ReservationGranted, ReservationReleased
from modelyard_events.sizes import Bytes, Fraction, VramBudget
from modelyard_projections.fleet import Fleet
from modelyard_services.errors import ConflictError, NoCapacityError, NotFoundError, UnsatisfiableError
from modelyard_services.policy.capacity import (
    budget_warnings,
    clear_override,
    enforce_max_replicas,
    override_max_replicas,
    override_vram_budget,
    release,
    replicas_above,
    reserve,
)
from modelyard_services.policy.identity import reservation_id
from modelyard_services.policy.tokens import digest_of
from tests.support.given import (
    GIB,
    Decide,
    a_drain,
    a_model,
    a_placed_replica,
    a_ready_replica,
    an_approved_node,
    given,
    incarnation_of,
    record,
    some_facts,
)

N1 = NodeName("n1")
TRAINING = OperatorHolder("ml-team", "fine-tuning", 3_600.0)
COMMAND = CommandId("reserve-1")
THREE_REPLICAS = [
    *an_approved_node(slots=4),
    *a_model(),
    *a_ready_replica("r-0", index=0),
    *a_ready_replica("r-1", index=1),
    *a_ready_replica("r-2", index=2),
]


def reserving(vram: dict[int, int], holder: OperatorHolder = TRAINING) -> Decide:
    return lambda fleet: reserve(fleet, node=N1, vram=vram, holder=holder, command=COMMAND)


def cap_of_one(fleet: Fleet) -> list[AnyEvent]:
    return override_max_replicas(fleet, node=N1, value=1)


def test_shrinking_the_cap_ends_nothing_and_the_replicas_above_it_are_listed() -> None:
    """N11."""
    history = given(*THREE_REPLICAS)
    history.when(cap_of_one).then(NodeMaxReplicasOverridden(node="n1", max_replicas_per_model=1))
    assert [state.id for state in replicas_above(history.fleet, node=N1)] == ["r-2", "r-1"]


def test_enforcing_the_cap_drains_what_is_above_it_highest_index_first() -> None:
    """N11."""
    drained = (ReplicaId("r-2"), ReplicaId("r-1"))
    given(*THREE_REPLICAS).when(lambda fleet: enforce_max_replicas(fleet, node=N1, value=1)).then(
        NodeMaxReplicasOverridden(node="n1", max_replicas_per_model=1),
        ReplicaDrainStarted(node="n1", replicas=drained, reason="requested", deadline_seconds=600.0),
        ModelReplicaDraining(model="m", replicas=drained, reason="requested"),
    )


def test_a_cap_in_force_can_be_enforced_later() -> None:
    """N11: and a replica that drains already isn't drained again."""
    capped = NodeMaxReplicasOverridden(node="n1", max_replicas_per_model=1)
    given(*THREE_REPLICAS, capped, *a_drain("r-2")).when(
        lambda fleet: enforce_max_replicas(fleet, node=N1, value=1)
    ).then(
        ReplicaDrainStarted(node="n1", replicas=(ReplicaId("r-1"),), reason="requested", deadline_seconds=600.0),
        ModelReplicaDraining(model="m", replicas=(ReplicaId("r-1"),), reason="requested"),
    )


def test_enforcing_ends_a_replica_at_once_that_has_no_process_yet() -> None:
    """R8."""
    history = [*an_approved_node(slots=2), *a_model(), *a_placed_replica("r-1", index=1)]
    ended = (ReplicaId("r-1"),)
    given(*history).when(lambda fleet: enforce_max_replicas(fleet, node=N1, value=1)).then(
        NodeMaxReplicasOverridden(node="n1", max_replicas_per_model=1),
        ReplicaUnloaded(node="n1", replicas=ended, reason="requested"),
        ReservationReleased(node="n1", reservations=(ReservationId("v-1"),)),
        ModelReplicaEnded(model="m", replicas=ended, reason="requested"),
    )


def test_a_cap_set_again_changes_nothing() -> None:
    """I11."""
    capped = NodeMaxReplicasOverridden(node="n1", max_replicas_per_model=1)
    given(*THREE_REPLICAS, capped).when(cap_of_one).then_nothing()


@pytest.mark.parametrize("value", [0, -1, 901])
def test_a_cap_out_of_range_is_refused(value: int) -> None:
    """N11: at least one; R2: at most 900 replicas a node."""
    given(*THREE_REPLICAS).when(lambda fleet: override_max_replicas(fleet, node=N1, value=value)).then_raises(
        InvalidValueError, "max_replicas_per_model"
    )


def test_overrides_survive_a_new_incarnation_and_yield_when_cleared() -> None:
    """N11, X2."""
    facts = msgspec.structs.replace(some_facts(slots=3), vram_budget=Fraction(0.75))
    restarted = NodeIncarnationStarted(
        node="n1", incarnation=incarnation_of("second"), facts=facts, secret_digest=digest_of("s")
    )
    capped = NodeMaxReplicasOverridden(node="n1", max_replicas_per_model=2)
    budget = NodeVramBudgetOverridden(node="n1", vram_budget=Fraction(0.5))
    history = given(*an_approved_node(), capped, budget, restarted)
    assert history.fleet.nodes[N1].max_replicas_per_model == 2
    assert history.fleet.nodes[N1].budget == 12 * GIB
    history.when(lambda fleet: clear_override(fleet, node=N1, override="max_replicas_per_model")).then(
        NodeOverrideCleared(node="n1", override="max_replicas_per_model")
    )
    history.when(lambda fleet: clear_override(fleet, node=N1, override="vram_budget")).then(
        NodeOverrideCleared(node="n1", override="vram_budget")
    )
    assert history.fleet.nodes[N1].max_replicas_per_model == 3
    assert history.fleet.nodes[N1].budget == 18 * GIB


def test_clearing_an_override_that_is_not_there_says_so() -> None:
    """X28."""
    given(*an_approved_node()).when(lambda fleet: clear_override(fleet, node=N1, override="vram_budget")).then_raises(
        NotFoundError, "vram_budget"
    )


def test_a_budget_is_overridden_once_even_by_none() -> None:
    """N11: no cap at all is an override too."""
    history = given(*an_approved_node())
    history.when(lambda fleet: override_vram_budget(fleet, node=N1, budget=None)).then(
        NodeVramBudgetOverridden(node="n1", vram_budget=None)
    )
    history.when(lambda fleet: override_vram_budget(fleet, node=N1, budget=None)).then_nothing()


def test_an_operator_reserves_memory_with_holder_reason_and_end() -> None:
    """R3."""
    history = given(*an_approved_node())
    granted = history.when(reserving({0: 8 * GIB})).events
    assert granted == [
        ReservationGranted(node="n1", reservation=reservation_id(COMMAND, 0), holder=TRAINING, vram={0: 8 * GIB})
    ]
    assert history.fleet.nodes[N1].vram_free == 16 * GIB
    history.when(reserving({0: 8 * GIB})).then_nothing()


def test_a_reservation_that_does_not_fit_now_says_by_how_much() -> None:
    """R3, P5: exhausted, it fits when something frees."""
    history = [*an_approved_node(), *a_model(), *a_ready_replica(vram={0: 20 * GIB})]
    given(*history).when(reserving({0: 8 * GIB})).then_raises(NoCapacityError, "short by 4.0 GiB", "4.0 GiB is free")


def test_a_reservation_that_can_never_fit_is_unsatisfiable() -> None:
    """P5."""
    given(*an_approved_node()).when(reserving({0: 30 * GIB})).then_raises(UnsatisfiableError, "24.0 GiB")


@pytest.mark.parametrize(
    ("budget", "says"),
    [
        (Bytes(40 * GIB), ["n1 has 24.0 GiB in all"]),
        (Bytes(3 * GIB), ["already holds 1.0 GiB more"]),
        (Fraction(0.125), ["already holds 1.0 GiB more"]),
        (Bytes(4 * GIB), []),
        (None, []),
    ],
)
def test_a_budget_that_does_less_than_it_says_is_answered_with_a_warning(
    budget: VramBudget | None, says: list[str]
) -> None:
    """N11, N12: it ends nothing, and makes no memory."""
    history = given(*an_approved_node(vram=24 * GIB))
    record(history.fleet, *reserving({0: 4 * GIB})(history.fleet))
    found = budget_warnings(history.fleet, node=N1, budget=budget)
    assert len(found) == len(says)
    assert all(part in warning for part, warning in zip(says, found, strict=True))


def test_a_budget_of_nothing_is_answered_with_what_is_missing() -> None:
    """N12, W6."""
    history = given(*an_approved_node(gpus=0, vram=0))
    (warning,) = budget_warnings(history.fleet, node=N1, budget=Bytes(GIB))
    assert "--vram" in warning


def test_the_budget_caps_the_sum_over_devices() -> None:
    """N12: the budget caps use."""
    capped = NodeVramBudgetOverridden(node="n1", vram_budget=Bytes(30 * GIB))
    history = [*an_approved_node(gpus=2), capped, *a_model(), *a_ready_replica(vram={0: 20 * GIB})]
    given(*history).when(reserving({1: 12 * GIB})).then_raises(NoCapacityError, "budget", "short by 2.0 GiB")


@pytest.mark.parametrize(
    ("vram", "says"),
    [
        ({}, "vram"),
        ({1: GIB}, "gpu: 1 is no GPU of n1; it has 0"),
        ({-1: GIB}, "gpu: -1 is no GPU of n1"),
        ({0: 0}, "vram"),
        ({0: -GIB}, "vram"),
    ],
)
def test_a_reservation_names_devices_the_node_has_and_sizes_above_zero(vram: dict[int, int], says: str) -> None:
    given(*an_approved_node()).when(reserving(vram)).then_raises(InvalidValueError, says)


@pytest.mark.parametrize(
    "holder", [OperatorHolder(" "), OperatorHolder("a", "b" * 1_001), OperatorHolder("a", "b", 0.0)]
)
def test_a_reservation_has_a_holder_and_a_sane_end(holder: OperatorHolder) -> None:
    given(*an_approved_node()).when(reserving({0: GIB}, holder)).then_raises(InvalidValueError)


def test_an_operator_releases_what_operators_hold() -> None:
    """I7."""
    history = given(*an_approved_node())
    (granted,) = history.when(reserving({0: GIB})).events
    assert isinstance(granted, ReservationGranted)
    identity = granted.reservation
    history.when(lambda fleet: release(fleet, reservation=identity)).then(
        ReservationReleased(node="n1", reservations=(identity,))
    )
    history.when(lambda fleet: release(fleet, reservation=identity)).then_raises(NotFoundError, identity)


def test_a_replicas_memory_is_freed_by_its_end_alone() -> None:
    """I7."""
    history = [*an_approved_node(), *a_model(), *a_ready_replica()]
    given(*history).when(lambda fleet: release(fleet, reservation=ReservationId("v-1"))).then_raises(
        ConflictError, "unload"
    )
