"""Silence, return, grace, and the brake on losing many at once (rule N9)."""

from modelyard_events.envelope import AnyEvent
from modelyard_events.fleet import FleetMassLossCleared, FleetMassLossDeclared
from modelyard_events.ids import IncarnationId, NodeName, ReplicaId
from modelyard_events.node import NodeDeparted, NodeIncarnationStarted, NodeLost, NodeRecovered
from modelyard_events.replica import ReplicaUnloaded
from modelyard_events.telemetry import Heartbeat
from modelyard_projections.fleet import Departed
from modelyard_services.policy.liveness import clear_mass_loss, judge
from modelyard_services.policy.tokens import digest_of
from tests.support.given import a_model, a_ready_replica, an_approved_node, incarnation_of, some_facts
from tests.support.world import World


def nodes(count: int) -> list[AnyEvent]:
    return [event for number in range(count) for event in an_approved_node(f"n{number}")]


def lost(world: World) -> list[str]:
    return [event.node for event in world.of(NodeLost) if isinstance(event, NodeLost)]


def test_a_node_is_lost_after_a_minute_of_silence() -> None:
    world = World(*nodes(5))
    world.beat()
    world.after(59).beat("n0", "n1", "n2", "n3")
    assert world.settle() == []
    world.after(2).settle()
    assert lost(world) == ["n4"]


def test_silence_counts_only_while_the_observer_hears() -> None:
    """N9: a reconciler that was cut off waits a full timeout after it came back, and judges nothing before."""
    world = World(*nodes(5))
    world.beat()
    world.after(300).connected_seconds = None
    assert world.settle() == []
    world.connected_seconds = world.seconds
    assert world.after(59).settle() == []
    world.beat("n0", "n1", "n2", "n3")
    world.after(2).settle()
    assert lost(world) == ["n4"]


def test_a_node_that_was_never_heard_has_a_full_timeout_from_its_registration() -> None:
    world = World(*nodes(4))
    world.after(1_000).beat()
    world.append(*an_approved_node("new"))
    assert world.after(30).settle() == []


def test_the_same_life_comes_back_with_all_its_replicas() -> None:
    world = World(*nodes(5), *a_model(), *a_ready_replica("r-1", node="n4"))
    world.after(61).beat("n0", "n1", "n2", "n3")
    world.settle()
    world.after(30).beat()
    world.settle()
    assert len(world.of(NodeRecovered)) == 1
    assert world.replicas() == [("n4", "ready")]


def test_a_former_lifes_heartbeat_brings_nobody_back() -> None:
    world = World(*nodes(5))
    world.after(61).beat()
    world.append(
        NodeIncarnationStarted(
            node="n4",
            incarnation=IncarnationId("second"),
            facts=some_facts(),
            secret_digest="digest",  # noqa: S106 - a digest is no secret
        )
    )
    world.after(61).beat("n0", "n1", "n2", "n3")
    world.settle()
    assert lost(world) == ["n4"]


def test_a_node_that_this_observer_never_heard_has_a_full_timeout_from_its_connection() -> None:
    """N9: however long the log says that it is there."""
    world = World(*nodes(5))
    world.after(1_000)
    world.connected_seconds = world.seconds
    assert world.after(59).settle() == []
    world.after(2).settle()
    assert len(lost(world)) == 5


def test_a_former_lifes_late_heartbeats_keep_nobody_alive() -> None:
    """N9, N2: silence is the present life's."""
    world = World(*nodes(5))
    world.after(100).append(
        NodeIncarnationStarted(
            node="n4", incarnation=IncarnationId("second"), facts=some_facts(), secret_digest=digest_of("directory")
        )
    )
    world.after(59)
    former = Heartbeat(NodeName("n4"), incarnation_of("n4"), world.fleet.sequence)
    world.demand.hear_node(former, now_ns=world.now_ns)
    world.after(2).beat("n0", "n1", "n2", "n3")
    world.settle()
    assert lost(world) == ["n4"]


def test_an_observer_that_is_cut_off_ends_no_grace() -> None:
    """N9: silence counts only while it could hear, and so does its end."""
    world = World(*nodes(5), *a_model(), *a_ready_replica("r-1", node="n4"))
    world.after(61).beat("n0", "n1", "n2", "n3")
    world.settle()
    world.after(3_600).connected_seconds = None
    assert judge(world.view()) == []
    world.connected_seconds = world.seconds
    world.beat("n0", "n1", "n2", "n3")
    assert {action.key.split("/")[0] for action in judge(world.view())} == {"grace"}


def test_the_brake_holds_in_the_pass_and_again_where_the_end_is_decided() -> None:
    """N9: an alarm that comes between the two ends nothing either."""
    world = World(*nodes(5), *a_model(), *a_ready_replica("r-1", node="n4"))
    world.after(61).beat("n0", "n1", "n2", "n3")
    world.settle()
    world.after(3_600).beat("n0", "n1", "n2", "n3")
    (due,) = judge(world.view())
    assert due.decide(world.fleet, due.command)
    world.append(FleetMassLossDeclared(nodes=("n4",), fleet_size=5))
    assert list(due.decide(world.fleet, due.command)) == []
    assert [action.key for action in judge(world.view()) if action.key.startswith("grace/")] == []


def test_heartbeats_of_another_life_recover_nobody() -> None:
    """N9: the same incarnation comes back, and no other."""
    world = World(*nodes(5))
    world.after(61).beat("n0", "n1", "n2", "n3")
    world.settle()
    assert lost(world) == ["n4"]
    world.demand.hear_node(
        Heartbeat(NodeName("n4"), IncarnationId("another"), world.fleet.sequence), now_ns=world.view().moment.heard_ns
    )
    world.beat("n0", "n1", "n2", "n3")
    assert world.settle() == []


def test_a_departed_node_stays_departed_though_its_last_heartbeats_still_arrive() -> None:
    """X10: only a new incarnation brings it back."""
    world = World(*nodes(5))
    world.append(NodeDeparted(node="n4", incarnation=world.fleet.nodes[NodeName("n4")].incarnation))
    world.beat("n0", "n1", "n2", "n3", "n4")
    assert world.settle() == []
    world.after(61).beat("n0", "n1", "n2", "n3")
    assert world.settle() == [], "nor is it lost: it said goodbye"
    assert isinstance(world.fleet.nodes[NodeName("n4")].liveness, Departed)


def test_a_lost_nodes_replicas_end_with_its_grace_and_not_before() -> None:
    """N9, R7: `node_lost`."""
    world = World(*nodes(5), *a_model(), *a_ready_replica("r-1", node="n4"))
    world.after(61).beat("n0", "n1", "n2", "n3")
    world.settle()
    world.after(599).beat("n0", "n1", "n2", "n3")
    assert world.settle() == []
    world.after(1).settle()
    ended = [event for event in world.of(ReplicaUnloaded) if isinstance(event, ReplicaUnloaded)]
    assert [(event.reason, event.replicas) for event in ended] == [("node_lost", (ReplicaId("r-1"),))]
    assert not world.fleet.reservations


def test_losing_many_at_once_raises_the_alarm_and_ends_nothing() -> None:
    """N9: above 30 % of the fleet in one pass, whatever the grace says."""
    world = World(*nodes(10), *a_model(), *a_ready_replica("r-1", node="n9"))
    world.after(61).beat(*(f"n{number}" for number in range(6)))
    world.settle()
    declared = world.of(FleetMassLossDeclared)
    assert declared == [FleetMassLossDeclared(nodes=("n6", "n7", "n8", "n9"), fleet_size=10)]
    assert lost(world) == ["n6", "n7", "n8", "n9"]
    world.after(3_600).beat(*(f"n{number}" for number in range(6)))
    assert world.settle() == []
    assert world.replicas() == [("n9", "ready")]


def test_a_third_of_the_fleet_or_less_is_no_mass_nor_is_one_node() -> None:
    world = World(*nodes(10))
    world.after(61).beat(*(f"n{number}" for number in range(7)))
    world.settle()
    assert (len(lost(world)), world.fleet.mass_loss) == (3, ())
    alone = World(*nodes(2))
    alone.after(61).beat("n0")
    alone.settle()
    assert (lost(alone), alone.fleet.mass_loss) == (["n1"], ())


def test_the_brake_clears_when_the_heartbeats_are_back() -> None:
    world = World(*nodes(10), *a_model(), *a_ready_replica("r-1", node="n9"))
    world.after(61).beat(*(f"n{number}" for number in range(6)))
    world.settle()
    world.after(700).beat(*(f"n{number}" for number in range(9)))
    world.settle()
    assert world.of(FleetMassLossCleared) == [FleetMassLossCleared(cause="heartbeats")]
    assert world.replicas() == [], "the one that stayed away ends: its grace is over"


def test_an_operator_may_say_that_the_loss_is_real() -> None:
    world = World(*nodes(10), *a_model(), *a_ready_replica("r-1", node="n9"))
    world.after(61).beat(*(f"n{number}" for number in range(6)))
    world.settle()
    assert clear_mass_loss(world.fleet) == [FleetMassLossCleared(cause="operator")]
    world.append(*clear_mass_loss(world.fleet))
    assert clear_mass_loss(world.fleet) == []
    world.after(700).beat(*(f"n{number}" for number in range(6)))
    world.settle()
    assert world.replicas() == []
