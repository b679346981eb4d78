"""A worker's own events, up to one that it can't read (W1, X20)."""

from collections.abc import Callable

import pytest

from modelyard_events.codec import encode, subject_of
from modelyard_events.envelope import Actor, AnyEvent, Envelope
from modelyard_events.ids import CommandId, NodeName, ReplicaId
from modelyard_events.node import NodeRemoved
from modelyard_services.effects.log.contract import Stored
from modelyard_services.worker.agent.own_fold import OwnFold
from modelyard_services.worker.agent.steps import Start, steps
from tests.support.given import a_placed_replica, an_approved_node

N1 = NodeName("n1")
TO_COME = b'{"event":{"type":"node.to_come.v9","node":"n1"}}'


def stored(sequence: int, event: AnyEvent) -> Stored:
    envelope = Envelope(Actor("system", "test"), CommandId(f"c-{sequence}"), "test")
    return Stored(sequence, sequence, subject_of(event), envelope.event_id(0), encode(event, envelope), batch_end=True)


def unreadable(sequence: int) -> Stored:
    return Stored(sequence, sequence, "modelyard.log.node.n1", f"e-{sequence}", TO_COME, batch_end=True)


def impossible(sequence: int) -> Stored:
    """Readable, and about a node that was never there."""
    return stored(sequence, NodeRemoved(node="nobody"))


def a_life() -> OwnFold:
    """One that has folded its own registration, and whose next event has sequence 4."""
    own = OwnFold()
    own.registered_at = 3
    for sequence, event in enumerate(an_approved_node(), start=1):
        assert not own.caught_up
        assert own.take([stored(sequence, event)])
    assert own.caught_up
    return own


def test_what_can_be_read_is_acted_on() -> None:
    """W1."""
    own = a_life()
    placed, *_ = a_placed_replica()
    assert own.take([stored(4, placed)])
    assert own.caught_up
    assert [type(step) for step in steps(own.fleet, N1, running=())] == [Start]


@pytest.mark.parametrize("strange", [unreadable, impossible])
def test_an_event_that_cannot_be_read_is_the_last_that_is_acted_by(strange: Callable[[int], Stored]) -> None:
    """X20: neither it nor what came before is a ground to start, stop or tell anything, nor is what comes after."""
    own = a_life()
    placed, *_ = a_placed_replica()
    assert not own.take([strange(4), stored(5, placed)])
    assert not own.caught_up
    assert not own.take([stored(6, placed)])
    assert own.fleet.sequence == 3
    assert ReplicaId("r-1") not in own.fleet.replicas
    assert not own.caught_up
