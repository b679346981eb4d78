"""Who has a lease when, by clocks that the test holds: nobody's expires early, and no two have it at once (rule C1)."""

import asyncio

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard_services.effects.lease.cell import Cell, Kept, MemoryCell
from modelyard_services.effects.lease.claim import FREE, Claim
from modelyard_services.effects.lease.lease import MARGIN, RENEWALS, Lease
from modelyard_services.errors import UnavailableError
from tests.support.held_clock import HeldClock

SECONDS = 5.0
FENCE = SECONDS * (1 - MARGIN)
ALL = 1_000_000


class Link(Cell):
    """The way to a cell: whole, or cut before the question (`asks`), or after `answers` more answers."""

    def __init__(self, cell: Cell) -> None:
        self._cell = cell
        self.asks = True
        self.answers = ALL

    async def read(self, *, timeout_seconds: float) -> Kept | None:
        self._ask()
        found = await self._cell.read(timeout_seconds=timeout_seconds)
        self._answer()
        return found

    async def replace(self, body: bytes, *, revision: int, timeout_seconds: float) -> int | None:
        self._ask()
        written = await self._cell.replace(body, revision=revision, timeout_seconds=timeout_seconds)
        self._answer()
        return written

    def _ask(self) -> None:
        if not self.asks:
            raise UnavailableError("NATS is away")

    def _answer(self) -> None:
        if not self.answers:
            raise UnavailableError("NATS is away")
        self.answers -= 1


class Party:
    """One process: its clock, its way to the cell, its lease."""

    def __init__(self, name: str, cell: Cell, *, seconds: float = SECONDS) -> None:
        self.clock = HeldClock()
        self.link = Link(cell)
        self.lease = Lease(lambda: self.link, holder=name, seconds=seconds, clock=self.clock)

    def acts(self) -> bool:
        return self.lease.term is not None


@pytest.fixture
def cell() -> MemoryCell:
    return MemoryCell()


@pytest.fixture
def parties(cell: MemoryCell) -> tuple[Party, Party]:
    return Party("a", cell), Party("b", cell)


def later(seconds: float, *parties: Party) -> None:
    for party in parties:
        party.clock.move(seconds)


async def test_the_first_to_come_acts_and_the_other_stands_by(parties: tuple[Party, Party]) -> None:
    a, b = parties
    await a.lease.turn()
    await b.lease.turn()
    assert (a.acts(), b.acts()) == (True, False)
    assert (a.lease.active, b.lease.active) == ("a", "a")


async def test_a_lease_that_is_renewed_is_never_taken(parties: tuple[Party, Party]) -> None:
    a, b = parties
    for _ in range(5 * RENEWALS):
        await a.lease.turn()
        await b.lease.turn()
        later(SECONDS / RENEWALS, a, b)
    assert (a.acts(), b.acts()) == (True, False)
    assert (a.lease.terms, b.lease.terms) == (1, 0)


async def test_the_other_acts_once_the_first_was_silent_for_its_time_and_not_before(
    parties: tuple[Party, Party],
) -> None:
    a, b = parties
    await a.lease.turn()
    await b.lease.turn()
    later(SECONDS - 0.001, b)
    await b.lease.turn()
    assert not b.acts()
    later(0.001, b)
    await b.lease.turn()
    assert b.acts()


async def test_a_holder_that_cannot_renew_stops_before_anybody_may_take_over(parties: tuple[Party, Party]) -> None:
    """The fence: a margin before its time is over, whatever it still hears."""
    a, b = parties
    await a.lease.turn()
    await b.lease.turn()
    a.link.asks = False
    later(FENCE - 0.001, a, b)
    await a.lease.turn()
    assert a.acts()
    later(0.001, a, b)
    assert not a.acts()
    await b.lease.turn()
    assert not b.acts()
    assert a.lease.problem == "NATS is away"


async def test_who_wakes_from_a_freeze_does_not_act_and_yields(parties: tuple[Party, Party]) -> None:
    a, b = parties
    await a.lease.turn()
    await b.lease.turn()
    later(SECONDS, a, b)
    await b.lease.turn()
    assert not a.acts(), "its clock went on while it stood still"
    await a.lease.turn()
    assert (a.acts(), b.acts()) == (False, True)
    assert a.lease.active == "b"


async def test_who_lapsed_and_was_not_replaced_goes_on_in_a_new_term(parties: tuple[Party, Party]) -> None:
    a, _ = parties
    await a.lease.turn()
    terms = [a.lease.term]
    later(10 * SECONDS, a)
    terms += [a.lease.term]
    await a.lease.turn()
    assert [*terms, a.lease.term] == [1, None, 2]


async def test_a_released_lease_is_taken_at_once(parties: tuple[Party, Party]) -> None:
    a, b = parties
    await a.lease.turn()
    await b.lease.turn()
    await a.lease.release()
    await b.lease.turn()
    assert (a.acts(), b.acts()) == (False, True)


@pytest.mark.parametrize("answers", [0, 1], ids=["none of its answers", "the look's answer alone"])
@pytest.mark.parametrize("had", [False, True])
async def test_a_release_gives_back_what_a_lost_answer_took_or_renewed(
    parties: tuple[Party, Party], answers: int, *, had: bool
) -> None:
    """A stop comes at any moment, also between a write and its answer."""
    a, b = parties
    if had:
        await a.lease.turn()
    a.link.answers = answers
    await a.lease.turn()
    a.link.answers = ALL
    await a.lease.release()
    await b.lease.turn()
    assert b.acts()


async def test_a_renewal_whose_answer_got_lost_keeps_the_lease_and_prolongs_nothing(
    parties: tuple[Party, Party],
) -> None:
    a, _ = parties
    await a.lease.turn()
    later(FENCE / 2, a)
    a.link.answers = 0
    await a.lease.turn()
    a.link.answers = ALL
    later(FENCE / 2 - 0.001, a)
    assert a.acts()
    later(0.001, a)
    assert not a.acts(), "the last answered renewal counts"
    await a.lease.turn()
    await a.lease.turn()
    assert a.acts()


async def test_a_claim_whose_answer_got_lost_is_no_lease_until_it_is_renewed(parties: tuple[Party, Party]) -> None:
    a, _ = parties
    a.link.answers = 1
    acts = []
    for _ in range(3):
        await a.lease.turn()
        acts.append(a.acts())
        a.link.answers = ALL
    assert acts == [False, False, True], "claimed unheard, then seen to be its own, then renewed"


async def test_the_time_of_a_lease_is_its_holders_to_say(cell: MemoryCell) -> None:
    """Two configurations of one installation: nobody takes a long lease after a short one's time."""
    a, b = Party("a", cell, seconds=20), Party("b", cell, seconds=2)
    await a.lease.turn()
    await b.lease.turn()
    later(19.9, b)
    await b.lease.turn()
    assert not b.acts()
    later(0.1, b)
    await b.lease.turn()
    assert b.acts()


@pytest.mark.parametrize("body", [b"", b"nonsense", b'{"holder":"x","seconds":1e9}', b'{"holder":3}'])
async def test_a_claim_that_cannot_be_read_is_waited_for_and_then_replaced(cell: MemoryCell, body: bytes) -> None:
    await cell.replace(body, revision=0, timeout_seconds=1)
    b = Party("b", cell)
    await b.lease.turn()
    later(59, b)
    await b.lease.turn()
    assert not b.acts()
    later(1, b)
    await b.lease.turn()
    assert b.acts()


async def test_who_hears_of_a_release_looks_at_once_and_a_renewal_wakes_nobody(cell: MemoryCell) -> None:
    """Else it would be the next look, which here is twelve seconds away."""
    a, b = Party("a", cell, seconds=60), Party("b", cell, seconds=60)
    await a.lease.turn()
    taken = asyncio.Event()
    b.lease.on_taken(taken.set)
    keeping = asyncio.create_task(b.lease.keep())
    async with asyncio.timeout(5):
        while b.lease.active != "a":  # noqa: ASYNC110 - no event says it
            await asyncio.sleep(0)
        b.lease.hear(msgspec.json.encode(Claim("a")))
        await a.lease.release()
        await asyncio.sleep(0.1)
        assert not b.acts()
        b.lease.hear(msgspec.json.encode(FREE))
        await taken.wait()
    keeping.cancel()


Step = tuple[str, int, float]


def steps() -> st.SearchStrategy[list[Step]]:
    does = st.sampled_from(["turn", "turn", "turn", "cut", "deaf", "mend", "release", "time"])
    return st.lists(st.tuples(does, st.integers(0, 2), st.floats(0.01, 6)), max_size=80)


@settings(max_examples=300, deadline=None)
@given(steps())
async def test_whatever_gets_lost_no_two_act_at_once(story: list[Step]) -> None:
    """I10's first line of defence: three processes, answers and questions lost, freezes, releases; one clock pace."""
    cell = MemoryCell()
    parties = [Party(name, cell) for name in "abc"]
    for does, number, seconds in story:
        party = parties[number]
        match does:
            case "turn":
                await party.lease.turn()
            case "cut":
                party.link.asks = False
            case "deaf":
                party.link.answers = 0
            case "mend":
                party.link.asks, party.link.answers = True, ALL
            case "release":
                await party.lease.release()
            case _:
                later(seconds, *parties)
        assert sum(each.acts() for each in parties) <= 1
    party = parties[0]
    for each in parties:
        each.link.asks, each.link.answers = True, ALL
    later(2 * SECONDS, *parties)
    for _ in range(3):
        await party.lease.turn()
        later(SECONDS, party)
        await party.lease.turn()
    assert party.acts(), "somebody who goes on asking gets it"
