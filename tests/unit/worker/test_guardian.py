"""Whom a backend dies with: a process by pid and start, so that nobody who has its pid later keeps orphans alive."""

import os
import select
import subprocess
import sys
from collections.abc import Iterator

import pytest

from modelyard_services.worker.processes.keeper import guardian_of, lines_of, start_ticks


@pytest.fixture
def parent() -> Iterator[subprocess.Popen[bytes]]:
    """A real process that lives until it is killed."""
    with subprocess.Popen((sys.executable, "-c", "input()"), stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def has_ended(guardian: int) -> bool:
    """As the keeper looks: readable at once, or not at all for as long as it lives."""
    ready, _, _ = select.select([guardian], [], [], 0)
    os.close(guardian)
    return bool(ready)


def watched(pid: int, ticks: int) -> int:
    guardian = guardian_of({"dies_with": {"pid": pid, "start_ticks": ticks}})
    assert guardian is not None
    return guardian


def test_a_worker_of_an_earlier_version_is_understood() -> None:
    """W4: an upgrade replaces the keeper's file first; what a worker starts until its own turn must start."""
    earlier = {"executable": "/bin/true", "stop_grace_seconds": 1.0, "lifeline": False}
    assert lines_of(earlier) == 1_000
    assert guardian_of(earlier) is None
    assert lines_of(earlier | {"log_lines": 7}) == 7


def test_without_a_guardian_nobody_is_watched() -> None:
    """W4: what is kept for the next worker outlives all."""
    assert guardian_of({"dies_with": None}) is None


def test_a_guardian_is_watched_until_it_ends(parent: subprocess.Popen[bytes]) -> None:
    """W4: also when it is killed, and can say nothing."""
    ticks = start_ticks(parent.pid)
    assert not has_ended(watched(parent.pid, ticks))
    guardian = watched(parent.pid, ticks)
    parent.kill()
    parent.wait()
    assert has_ended(guardian)


def test_a_guardian_that_ended_before_it_was_watched_has_ended(parent: subprocess.Popen[bytes]) -> None:
    """W4: a worker killed in mid start leaves no orphan."""
    ticks = start_ticks(parent.pid)
    parent.kill()
    parent.wait()
    assert has_ended(watched(parent.pid, ticks))


def test_whoever_has_the_guardians_pid_now_is_not_the_guardian() -> None:
    """W4: a pid alone names nobody."""
    assert has_ended(watched(os.getpid(), start_ticks(os.getpid()) - 1))
