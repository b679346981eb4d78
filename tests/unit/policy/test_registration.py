"""Who gets a node's name, and what a new life inherits (rules N2, N3, N4, N13)."""

import msgspec
import pytest

from modelyard_events.envelope import AnyEvent
from modelyard_events.errors import InvalidValueError
from modelyard_events.fleet import FleetRegistrationTokenCreated, FleetRegistrationTokenRevoked
from modelyard_events.ids import IncarnationId, LabelKey, NodeName, ReplicaId, ReservationId
from modelyard_events.model import ModelReplicaEnded
from modelyard_events.node import (
    Gpu,
    NodeApproved,
    NodeCordoned,
    NodeDeparted,
    NodeDrainStarted,
    NodeFacts,
    NodeIncarnationStarted,
    NodeLabelsChanged,
    NodeLost,
    NodeMaxReplicasOverridden,
    NodeRecovered,
    NodeRegistered,
    NodeRemoved,
    NodeType,
    NodeVramBudgetOverridden,
    NodeWatchdogOverridden,
    WatchdogOverrides,
)
from modelyard_events.replica import ReplicaAdopted, ReplicaLoadStarted, ReplicaUnloaded
from modelyard_events.requests import Register
from modelyard_events.reservation import ReservationReleased
from modelyard_events.sizes import Fraction
from modelyard_events.spec import revision_of
from modelyard_events.telemetry import ReplicaActivity, ReplicaReading
from modelyard_projections.fleet import Draining, NodeDraining
from modelyard_services.errors import ConflictError, NameTakenError, StaleFactError, UnauthorizedError
from modelyard_services.policy.registration import challenged, register
from modelyard_services.policy.tokens import digest_of
from tests.support.given import (
    Decide,
    a_drain,
    a_loading_replica,
    a_model,
    a_placed_replica,
    a_ready_replica,
    a_stop,
    given,
    incarnation_of,
    some_facts,
    some_process,
    some_spec,
)

TOKEN, WRONG_TOKEN = "join me", "guess"
SECRET, RIVALS_SECRET = "state directory", "another state directory"
JOIN = FleetRegistrationTokenCreated(name="default", digest=digest_of(TOKEN))
FIRST_LIFE, SECOND_LIFE = incarnation_of("n1"), IncarnationId("n1-life-2")
STARTED = NodeIncarnationStarted(
    node="n1", incarnation=FIRST_LIFE, facts=some_facts(slots=4), secret_digest=digest_of(SECRET)
)
PENDING: list[AnyEvent] = [JOIN, NodeRegistered(node="n1", node_type="backend"), STARTED]
APPROVED: list[AnyEvent] = [*PENDING, NodeApproved(node="n1")]
LOST = NodeLost(node="n1", incarnation=FIRST_LIFE, silent_seconds=60, grace_seconds=600)
DEPARTED = NodeDeparted(node="n1", incarnation=FIRST_LIFE)
RESTARTED = msgspec.structs.replace(STARTED, incarnation=SECOND_LIFE)
FIRST = Register(
    node=NodeName("n1"),
    node_type="backend",
    incarnation=FIRST_LIFE,
    facts=some_facts(slots=4),
    secret=SECRET,
    token=TOKEN,
)
SECOND = msgspec.structs.replace(FIRST, incarnation=SECOND_LIFE)
RIVAL = msgspec.structs.replace(SECOND, secret=RIVALS_SECRET)


def registering(request: Register, *, auto_approve: bool = False, silent: IncarnationId | None = None) -> Decide:
    return lambda fleet: register(fleet, request, auto_approve=auto_approve, silent=silent)


def reading(
    replica: str = "r-1", *, key: str = "m#0", activity: ReplicaActivity = "ready", revision: str | None = None
) -> ReplicaReading:
    return ReplicaReading(
        replica=ReplicaId(replica),
        key=key,
        revision=revision or revision_of(some_spec()),
        activity=activity,
        process=some_process(replica),
        address="127.0.0.1:9",
    )


def restarting(*found: ReplicaReading) -> Decide:
    return registering(msgspec.structs.replace(SECOND, inventory=found))


def missing(replica: str = "r-1", reservation: str = "v-1") -> list[AnyEvent]:
    """The end of a replica whose process the new incarnation didn't find."""
    detail = f"not among the processes that incarnation {SECOND_LIFE} found"
    ids = (ReplicaId(replica),)
    return [
        ReplicaUnloaded(node="n1", replicas=ids, reason="reported_missing", detail=detail),
        ReservationReleased(node="n1", reservations=(ReservationId(reservation),)),
        ModelReplicaEnded(model="m", replicas=ids, reason="reported_missing", detail=detail),
    ]


def test_a_first_registration_is_pending() -> None:
    """N2, N4."""
    given(JOIN).when(registering(FIRST)).then(NodeRegistered(node="n1", node_type="backend"), STARTED)


def test_policy_approves_a_first_registration_by_its_own_command() -> None:
    """N4, I6."""
    given(JOIN).when(registering(FIRST, auto_approve=True)).then(
        NodeRegistered(node="n1", node_type="backend"), STARTED, NodeApproved(node="n1", automatic=True)
    )


def test_an_unknown_or_revoked_token_registers_nothing() -> None:
    """N4."""
    given().when(registering(FIRST)).then_raises(UnauthorizedError)
    wrong = msgspec.structs.replace(FIRST, token=WRONG_TOKEN)
    given(JOIN).when(registering(wrong)).then_raises(UnauthorizedError)
    revoked = FleetRegistrationTokenRevoked(name="default")
    given(JOIN, revoked).when(registering(FIRST)).then_raises(UnauthorizedError, "revoked")


def test_the_same_incarnation_registers_again_and_nothing_changes() -> None:
    """N2."""
    given(*APPROVED, *a_model(), *a_ready_replica()).when(registering(FIRST)).then_nothing()


def test_a_lost_incarnation_that_registers_again_has_recovered_with_all_it_has() -> None:
    """N9."""
    history = given(*APPROVED, *a_model(), *a_ready_replica(), LOST)
    history.when(registering(FIRST)).then(NodeRecovered(node="n1", incarnation=FIRST_LIFE))
    assert ReplicaId("r-1") in history.fleet.replicas


@pytest.mark.parametrize("request_", [FIRST, SECOND])
def test_a_pending_node_is_approved_by_no_recovery_and_no_restart(request_: Register) -> None:
    """N4, X9: not even where policy approves first registrations."""
    history = given(*PENDING, LOST)
    assert history.when(registering(request_, auto_approve=True)).events
    assert history.fleet.nodes[NodeName("n1")].admission == "pending"


def test_a_departed_incarnation_never_comes_back() -> None:
    """X10."""
    given(*APPROVED, DEPARTED).when(registering(FIRST)).then_raises(StaleFactError, "departed")


def test_a_restart_takes_over_with_its_state_directorys_secret() -> None:
    """N3: at once, though the old one was never heard to end."""
    history = given(*APPROVED)
    assert challenged(history.fleet, SECOND) is None
    history.when(registering(SECOND)).then(RESTARTED)


def test_a_rival_of_a_living_worker_is_refused_by_name_and_address() -> None:
    """N3."""
    history = given(*APPROVED)
    assert challenged(history.fleet, RIVAL) == FIRST_LIFE
    history.when(registering(RIVAL)).then_raises(NameTakenError, FIRST_LIFE, "127.0.0.1:8001")


def test_a_rival_that_copies_the_incarnation_is_refused_too() -> None:
    """N3."""
    copied = msgspec.structs.replace(RIVAL, incarnation=FIRST_LIFE)
    given(*APPROVED).when(registering(copied)).then_raises(NameTakenError)


@pytest.mark.parametrize("history", [[*APPROVED, LOST], [*APPROVED, DEPARTED]])
def test_a_lost_or_departed_incarnation_yields_to_anybody(history: list[AnyEvent]) -> None:
    """N3."""
    started = msgspec.structs.replace(RESTARTED, secret_digest=digest_of(RIVALS_SECRET))
    assert challenged(given(*history).fleet, RIVAL) is None
    given(*history).when(registering(RIVAL)).then(started)


def test_an_incarnation_that_answers_no_ping_yields() -> None:
    """N3."""
    started = msgspec.structs.replace(RESTARTED, secret_digest=digest_of(RIVALS_SECRET))
    given(*APPROVED).when(registering(RIVAL, silent=FIRST_LIFE)).then(started)


def test_the_silence_of_an_incarnation_before_counts_against_nobody_else() -> None:
    """N3: another one took over between the ping and the decision."""
    given(*APPROVED).when(registering(RIVAL, silent=IncarnationId("n1-life-0"))).then_raises(NameTakenError)


def test_a_new_incarnation_adopts_the_processes_that_live() -> None:
    """N2, X2, X26."""
    history = given(*APPROVED, *a_model(), *a_ready_replica(), *a_loading_replica("r-2", index=1))
    history.when(restarting(reading(), reading("r-2", key="m#1", activity="starting"))).then(
        RESTARTED,
        ReplicaAdopted(
            node="n1",
            replica=ReplicaId("r-1"),
            incarnation=SECOND_LIFE,
            process=some_process("r-1"),
            address="127.0.0.1:9",
        ),
        ReplicaAdopted(
            node="n1",
            replica=ReplicaId("r-2"),
            incarnation=SECOND_LIFE,
            process=some_process("r-2"),
            address="127.0.0.1:9",
        ),
    )


def test_a_new_incarnation_ends_the_replicas_it_does_not_find() -> None:
    """N2, I7: in the same append."""
    history = [*APPROVED, *a_model(), *a_ready_replica(), *a_ready_replica("r-2", index=1)]
    given(*history).when(restarting(reading("r-2", key="m#1"))).then(
        RESTARTED,
        ReplicaAdopted(
            node="n1",
            replica=ReplicaId("r-2"),
            incarnation=SECOND_LIFE,
            process=some_process("r-2"),
            address="127.0.0.1:9",
        ),
        *missing(),
    )


@pytest.mark.parametrize(
    "found",
    [
        reading(key="m#1"),
        reading(revision="000000000000"),
        reading(activity="stopping"),
        msgspec.structs.replace(reading(), process=some_process("r-9")),
    ],
    ids=["another key", "another revision", "dying", "a recycled pid"],
)
def test_a_process_that_is_not_the_very_one_is_not_adopted(found: ReplicaReading) -> None:
    """N2, W4."""
    given(*APPROVED, *a_model(), *a_ready_replica()).when(restarting(found)).then(RESTARTED, *missing())


def test_a_placed_replica_whose_start_was_never_told_is_loading_after_a_restart() -> None:
    """N2: killed between the start of the process and its report."""
    given(*APPROVED, *a_model(), *a_placed_replica()).when(restarting(reading(activity="starting"))).then(
        RESTARTED,
        ReplicaLoadStarted(node="n1", replica=ReplicaId("r-1"), incarnation=SECOND_LIFE, process=some_process("r-1")),
    )


def test_a_placed_replica_without_a_process_is_placed_anew_elsewhere() -> None:
    """N2: the new life may have another capacity than the claim was decided on."""
    given(*APPROVED, *a_model(), *a_placed_replica()).when(restarting()).then(RESTARTED, *missing())


def test_a_newcomer_may_not_run_before_its_victims_have_ended() -> None:
    """P3: found running, it is not adopted."""
    newcomer = a_placed_replica("r-2", index=1, waits_for=(ReplicaId("r-1"),))
    history = [*APPROVED, *a_model(), *a_ready_replica(), *newcomer]
    given(*history).when(restarting(reading(), reading("r-2", key="m#1"))).then(
        RESTARTED,
        ReplicaAdopted(
            node="n1",
            replica=ReplicaId("r-1"),
            incarnation=SECOND_LIFE,
            process=some_process("r-1"),
            address="127.0.0.1:9",
        ),
        *missing("r-2", "v-2"),
    )


def test_a_draining_replica_that_is_gone_ends_for_the_reason_it_drained() -> None:
    """R7."""
    ids = (ReplicaId("r-1"),)
    detail = f"not among the processes that incarnation {SECOND_LIFE} found"
    given(*APPROVED, *a_model(), *a_ready_replica(), *a_drain(reason="idle"), *a_stop()).when(restarting()).then(
        RESTARTED,
        ReplicaUnloaded(node="n1", replicas=ids, reason="idle", detail=detail),
        ReservationReleased(node="n1", reservations=(ReservationId("v-1"),)),
        ModelReplicaEnded(model="m", replicas=ids, reason="idle", detail=detail),
    )


def test_a_draining_replica_that_still_stops_is_adopted_to_its_end() -> None:
    """R8."""
    history = given(*APPROVED, *a_model(), *a_ready_replica(), *a_drain(), *a_stop())
    events = history.when(restarting(reading(activity="stopping"))).events
    assert [type(event) for event in events] == [NodeIncarnationStarted, ReplicaAdopted]


def test_operators_decisions_survive_a_restart() -> None:
    """X2, I8: labels, drain, overrides and admission."""
    operators: list[AnyEvent] = [
        NodeLabelsChanged(node="n1", changed={LabelKey("tier"): "gold"}),
        NodeMaxReplicasOverridden(node="n1", max_replicas_per_model=2),
        NodeVramBudgetOverridden(node="n1", vram_budget=Fraction(0.5)),
        NodeWatchdogOverridden(node="n1", overrides=WatchdogOverrides(max_loaded_models=1), changed=()),
        NodeDrainStarted(node="n1", deadline_seconds=60),
    ]
    history = given(*APPROVED, *operators)
    before = history.fleet.nodes[NodeName("n1")].intent
    history.when(restarting()).then(RESTARTED)
    node = history.fleet.nodes[NodeName("n1")]
    assert node.admission == "approved"
    assert node.labels["tier"] == "gold"
    assert (node.max_replicas_per_model, node.vram_budget) == (2, Fraction(0.5))
    assert node.watchdog == WatchdogOverrides(max_loaded_models=1)
    assert isinstance(node.intent, NodeDraining)
    assert node.intent == before


def test_a_worker_that_reports_an_operators_key_touches_only_its_own_value() -> None:
    """N5: the operator's value wins over a worker that begins to report the key, and stays when it stops."""
    key = LabelKey("tier")
    history = given(*PENDING, NodeLabelsChanged(node="n1", changed={key: "gold"}))
    for life, reported in (("n1-life-2", {"tier": "iron"}), ("n1-life-3", {})):
        facts = some_facts(labels=reported)
        asking = msgspec.structs.replace(SECOND, incarnation=IncarnationId(life), facts=facts)
        assert history.when(registering(asking)).events
        assert history.fleet.nodes[NodeName("n1")].labels["tier"] == "gold"


def test_a_workers_labels_come_and_go_with_its_registration() -> None:
    """N5: one no longer reported is gone, an operator's stays, and wins where both set it."""
    reported = msgspec.structs.replace(FIRST, facts=some_facts(labels={"zone": "a", "rack": "1"}))
    history = given(JOIN)
    assert history.when(registering(reported)).events
    operators = NodeLabelsChanged(node="n1", changed={LabelKey("zone"): "b", LabelKey("tier"): "gold"})
    assert history.when(lambda _fleet: [operators]).events
    assert history.when(registering(SECOND)).events
    labels = history.fleet.nodes[NodeName("n1")].labels
    assert (labels["zone"], labels["tier"]) == ("b", "gold")
    assert "rack" not in labels


def test_a_worker_cannot_set_the_systems_labels() -> None:
    """N5."""
    bad = msgspec.structs.replace(FIRST, facts=some_facts(labels={"gpu.vram": "80GB+"}))
    given(JOIN).when(registering(bad)).then_raises(InvalidValueError, "gpu.vram", "derived by the system")


def test_a_removed_node_registers_afresh_as_new() -> None:
    """N13, X10: pending again, whatever it was."""
    history = [*APPROVED, NodeCordoned(node="n1"), NodeRemoved(node="n1")]
    given(*history).when(registering(SECOND)).then(NodeRegistered(node="n1", node_type="backend"), RESTARTED)


def test_an_agent_registers_and_never_hosts() -> None:
    """N2, N4."""
    agent = msgspec.structs.replace(FIRST, node_type="agent")
    history = given(JOIN)
    assert history.when(registering(agent, auto_approve=True)).events
    assert not history.fleet.nodes[NodeName("n1")].takes_replicas


@pytest.mark.parametrize("node_type", ["agent"])
def test_a_node_does_not_change_its_type_in_a_restart(node_type: NodeType) -> None:
    changed = msgspec.structs.replace(SECOND, node_type=node_type)
    given(*APPROVED).when(registering(changed)).then_raises(ConflictError, "backend")


TWICE = (Gpu(0, "nvidia", "A", 1), Gpu(0, "nvidia", "B", 1))


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("node", msgspec.structs.replace(FIRST, node=NodeName("a b"))),
        ("incarnation", msgspec.structs.replace(FIRST, incarnation=IncarnationId("a.b"))),
        ("secret", msgspec.structs.replace(FIRST, secret="")),
        ("address", msgspec.structs.replace(FIRST, facts=NodeFacts(address=""))),
        ("max_replicas", msgspec.structs.replace(FIRST, facts=NodeFacts(address="a:1", max_replicas_per_model=0))),
        ("gpus", msgspec.structs.replace(FIRST, facts=NodeFacts(address="a:1", gpus=TWICE))),
        ("facts", msgspec.structs.replace(FIRST, facts=NodeFacts(address="a:1", ram_total=-1))),
        ("facts", msgspec.structs.replace(FIRST, facts=NodeFacts(address="a:1", worker_version="v" * 60_000))),
    ],
)
def test_a_request_that_cannot_be_names_its_field(field: str, bad: Register) -> None:
    given(JOIN).when(registering(bad)).then_raises(InvalidValueError, field)


def test_a_draining_replica_whose_address_the_new_life_forgot_still_serves_until_its_requests_end() -> None:
    """R8, X11: a forgotten address isn't a word on the requests that run there."""
    history = given(*APPROVED, *a_model(), *a_ready_replica(), *a_drain())
    before = history.fleet.replicas[ReplicaId("r-1")].phase
    forgotten = msgspec.structs.replace(reading(), address=None)
    history.when(restarting(forgotten)).events  # noqa: B018 - folds what it decides
    after = history.fleet.replicas[ReplicaId("r-1")].phase
    assert isinstance(before, Draining)
    assert isinstance(after, Draining)
    assert after.address == before.address
