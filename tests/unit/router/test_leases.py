"""T2, I13: a lease ends once, and a count is the leases that are held."""

from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard_events.ids import ModelName, NodeName, ReplicaId, Revision
from modelyard_events.replica import Process
from modelyard_services.policy.routing import Candidate
from modelyard_services.router.leases import Lease, LeaseBook

SECOND_NS = 1_000_000_000


def a_candidate(replica: str = "r-1") -> Candidate:
    return Candidate(
        replica=ReplicaId(replica),
        node=NodeName("n1"),
        model=ModelName("m"),
        replica_index=0,
        address="127.0.0.1:1",
        revision=Revision("a"),
        process=Process(pid=1, started_at=1.0, port=1),
        vram_free=0,
    )


def test_a_lease_names_its_router_and_ends_once() -> None:
    book = LeaseBook("router-1")
    lease = book.grant(a_candidate(), now_ns=5, seconds=None)
    assert lease.lease.startswith("router-1.")
    assert list(book.held()) == [("r-1", 1, 5)]
    assert book.end(lease.lease) == lease
    assert book.end(lease.lease) is None
    assert book.count(ReplicaId("r-1")) == 0


def test_a_lease_in_foreign_hands_expires_unless_it_is_renewed() -> None:
    book = LeaseBook("router-1")
    left, kept = (book.grant(a_candidate(), now_ns=0, seconds=60) for _ in range(2))
    assert book.renew(kept.lease, now_ns=30 * SECOND_NS, seconds=60) is not None
    assert book.expired(now_ns=61 * SECOND_NS) == [left.lease]
    assert book.expired(now_ns=91 * SECOND_NS) == [left.lease, kept.lease]


def test_a_lease_that_follows_its_connection_never_expires() -> None:
    book = LeaseBook("router-1")
    lease = book.grant(a_candidate(), now_ns=0, seconds=None)
    assert book.renew(lease.lease, now_ns=1, seconds=60) == lease
    assert book.expired(now_ns=10**18) == []


def test_the_lease_of_another_router_is_not_ours_to_end() -> None:
    book, other = LeaseBook("router-1"), LeaseBook("router-2")
    lease = other.grant(a_candidate(), now_ns=0, seconds=None)
    assert book.end(lease.lease) is None
    assert other.count(ReplicaId("r-1")) == 1


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["grant", "end", "end again"]), st.integers(0, 5))))
def test_counts_are_the_leases_held_whatever_is_ended_how_often(steps: list[tuple[str, int]]) -> None:
    """X16."""
    book, held, ended = LeaseBook("router-1"), list[Lease](), list[Lease]()
    for step, number in steps:
        if step == "grant":
            held.append(book.grant(a_candidate(f"r-{number}"), now_ns=0, seconds=None))
        elif step == "end" and held:
            ended.append(held.pop(number % len(held)))
            assert book.end(ended[-1].lease)
        elif ended:
            assert book.end(ended[number % len(ended)].lease) is None
        counts = {replica: count for replica, count, _began in book.held()}
        assert sum(counts.values()) == len(held) == len(book)
        assert all(book.count(lease.replica) == counts[lease.replica] for lease in held)
