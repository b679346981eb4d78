"""Claims on ports of a machine: what is left of one, by whatever way its holder went."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from modelyard_events.fleet import Settings
from modelyard_services.effects.clock import Clock
from modelyard_services.effects.port_claims import ABANDONED_SECONDS, Claims
from modelyard_services.worker.agent.agent import ROUTERS_HEAR_SECONDS

PORT = 20_000
HOLDER = """
import sys, time
from pathlib import Path
from modelyard_services.effects.port_claims import Claims
print(Claims(Path(sys.argv[1])).claim(int(sys.argv[2])), flush=True)
time.sleep(600)
"""


class Ahead(Clock):
    """The machine's clock, and ahead of it by the seconds that a test says have passed."""

    ahead = 0.0

    def monotonic_ns(self) -> int:
        return super().monotonic_ns() + round(self.ahead * 1e9)


@pytest.fixture
def clock() -> Ahead:
    return Ahead()


@pytest.fixture
def somebody(tmp_path: Path, clock: Ahead) -> Callable[[], Claims]:
    """Another process of this machine, as far as claims are concerned."""
    return lambda: Claims(tmp_path, clock=clock)


@pytest.fixture
def killed(tmp_path: Path) -> None:
    """A real process claimed the port and was killed."""
    command = (sys.executable, "-c", HOLDER, str(tmp_path), str(PORT))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:  # noqa: S603 - our own code
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        assert not Claims(tmp_path).claim(PORT)
        holder.kill()


def test_a_port_has_one_holder_and_is_anybodys_once_given_back_unused(somebody: Callable[[], Claims]) -> None:
    first, second = somebody(), somebody()
    assert first.claim(PORT)
    assert first.claim(PORT)
    assert not second.claim(PORT)
    assert not second.take_over(PORT)
    first.give_back(PORT)
    assert second.claim(PORT)


def test_a_port_rests_for_everybody_after_its_process_exited(clock: Ahead, somebody: Callable[[], Claims]) -> None:
    """W4."""
    first = somebody()
    first.claim(PORT)
    first.rest(PORT, seconds=15.0)
    clock.ahead = 14.5
    assert not somebody().claim(PORT)
    assert not first.claim(PORT)
    clock.ahead = 15.1
    assert somebody().claim(PORT)


@pytest.mark.usefixtures("killed")
def test_a_killed_holders_port_rests_from_the_moment_that_somebody_sees_it(
    clock: Ahead, somebody: Callable[[], Claims]
) -> None:
    """W4, X22: routers believe in a dead worker's replicas until its node is lost."""
    clock.ahead = 3_600.0
    assert not somebody().claim(PORT)
    clock.ahead += ABANDONED_SECONDS - 1.0
    assert not somebody().claim(PORT)
    clock.ahead += 1.1
    assert somebody().claim(PORT)


def test_a_killed_holders_port_rests_longer_than_anybody_believes_in_what_it_ran() -> None:
    """W4, N9, X22: a node is lost after its silence, at the next look at it, and then routers have to hear of that."""
    assert Settings().lost_after_seconds + Settings().liveness_pass_seconds + ROUTERS_HEAR_SECONDS < ABANDONED_SECONDS


@pytest.mark.usefixtures("killed")
def test_what_listened_on_a_killed_holders_port_has_it_again_at_once(somebody: Callable[[], Claims]) -> None:
    """W4: an adopted process, or a server that its users find at its address."""
    again = somebody()
    assert again.take_over(PORT)
    assert not somebody().claim(PORT)


@pytest.mark.usefixtures("killed")
def test_a_worker_that_follows_a_killed_one_knows_when_its_processes_exited(
    clock: Ahead, somebody: Callable[[], Claims]
) -> None:
    """W4: 15 s from the exit, and no longer because a worker was killed."""
    clock.ahead = 10.0
    somebody().rest(PORT, seconds=15.0, exited_seconds_ago=0.0)
    clock.ahead += 14.0
    assert not somebody().claim(PORT)
    clock.ahead += 1.1
    assert somebody().claim(PORT)


def test_an_exit_of_long_ago_takes_nothing_from_who_had_the_port_since(
    clock: Ahead, somebody: Callable[[], Claims]
) -> None:
    """W4: a worker that was away for an hour speaks of its own time only."""
    since = somebody()
    since.claim(PORT)
    somebody().rest(PORT, seconds=15.0, exited_seconds_ago=3_600.0)
    assert not somebody().claim(PORT)
    since.rest(PORT, seconds=15.0)
    somebody().rest(PORT, seconds=15.0, exited_seconds_ago=3_600.0)
    clock.ahead = 14.5
    assert not somebody().claim(PORT)


def test_a_claim_that_was_tidied_away_rests_all_the_same(
    tmp_path: Path, clock: Ahead, somebody: Callable[[], Claims]
) -> None:
    """W4: temporary files of ten days ago are removed on many machines; replicas live longer."""
    held = somebody()
    held.claim(PORT)
    (tmp_path / str(PORT)).unlink()
    held.rest(PORT, seconds=15.0)
    assert not somebody().claim(PORT)
    (tmp_path / str(PORT)).unlink()
    somebody().rest(PORT, seconds=15.0, exited_seconds_ago=5.0)
    clock.ahead = 9.5
    assert not somebody().claim(PORT)
    clock.ahead = 10.1
    assert somebody().claim(PORT)


@pytest.mark.parametrize("content", [b"torn", b"-1", b"9" * 19, b"\xff" * 40])
def test_what_another_boot_or_a_torn_write_left_rests_once_and_not_for_ever(
    tmp_path: Path, clock: Ahead, somebody: Callable[[], Claims], content: bytes
) -> None:
    (tmp_path / str(PORT)).write_bytes(content)
    assert not somebody().claim(PORT)
    clock.ahead = ABANDONED_SECONDS + 0.1
    assert somebody().claim(PORT)


def test_who_ends_without_a_word_leaves_claims_as_a_dead_one_does(somebody: Callable[[], Claims]) -> None:
    ended = somebody()
    ended.claim(PORT)
    ended.close()
    assert not somebody().claim(PORT)
    assert somebody().take_over(PORT)
