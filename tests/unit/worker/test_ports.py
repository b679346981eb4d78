"""Ports: held until exit, then quarantined (rule W4)."""

from pathlib import Path

import pytest

from modelyard_services.worker.processes.launch import LaunchRefusedError
from modelyard_services.worker.processes.ports import PortRange, Ports
from tests.support.backends import free_range


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def three_ports(clock: Clock) -> tuple[Ports, list[int]]:
    """All three of a range, taken."""
    first = free_range().first
    ports = Ports(PortRange(first, first + 2), host="127.0.0.1", now=clock, quarantine_seconds=15.0)
    return ports, [ports.take() for _ in range(3)]


def test_a_port_has_one_holder() -> None:
    ports, taken = three_ports(Clock())
    assert len(set(taken)) == 3
    with pytest.raises(LaunchRefusedError, match="--port-range"):
        ports.take()


def test_a_released_port_is_quarantined_for_fifteen_seconds() -> None:
    clock = Clock()
    ports, taken = three_ports(clock)
    ports.release(taken[1])
    clock.now = 14.9
    with pytest.raises(LaunchRefusedError):
        ports.take()
    clock.now = 15.0
    assert ports.take() == taken[1]


def test_quarantine_counts_from_the_exit_also_after_a_restart() -> None:
    clock = Clock()
    ports, taken = three_ports(clock)
    ports.release(taken[0], exited_seconds_ago=10.0)
    clock.now = 5.0
    assert ports.take() == taken[0]


def test_the_port_used_last_comes_last() -> None:
    clock = Clock()
    ports, taken = three_ports(clock)
    for port in taken:
        ports.release(port)
    clock.now = 15.0
    first = ports.take()
    ports.release(first)
    clock.now = 30.0
    assert ports.take() != first


def test_a_held_port_is_not_given_out() -> None:
    """W4: an adopted process listens on it."""
    clock = Clock()
    ports, taken = three_ports(clock)
    ports.release(taken[0])
    ports.hold(taken[0])
    clock.now = 15.0
    with pytest.raises(LaunchRefusedError):
        ports.take()


def test_a_port_that_was_never_used_needs_no_quarantine() -> None:
    ports, taken = three_ports(Clock())
    ports.put_back(taken[2])
    assert ports.take() == taken[2]


def test_two_workers_on_one_machine_never_get_one_port_though_nothing_listens_there_yet(tmp_path: Path) -> None:
    """X22: a backend binds its port long after it was given it."""
    first = free_range().first
    here, there = (
        Ports(PortRange(first, first + 3), host="127.0.0.1", now=lambda: 0.0, quarantine_seconds=15.0, claims=tmp_path)
        for _ in range(2)
    )
    taken = [here.take(), there.take(), here.take(), there.take()]
    assert len(set(taken)) == 4
    here.put_back(taken[0])
    assert there.take() == taken[0]
