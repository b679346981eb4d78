"""Ports: held until exit, then quarantined (rule W4)."""

from pathlib import Path

import pytest

from modelyard_services.effects.clock import Clock
from modelyard_services.effects.port_claims import ABANDONED_SECONDS, Claims
from modelyard_services.worker.processes.launch import LaunchRefusedError
from modelyard_services.worker.processes.ports import PortRange, Ports
from tests.support.backends import free_range


class Machine(Clock):
    """The claims of one machine, and its clock."""

    def __init__(self, directory: Path) -> None:
        self.uptime = 1_000.0
        self.first = free_range().first
        self._directory = directory

    def monotonic_ns(self) -> int:
        return round(self.uptime * 1e9)

    def ports(self, count: int) -> Ports:
        """Those of one of its workers, of so many."""
        claims = Claims(self._directory, clock=self)
        last = self.first + count - 1
        return Ports(PortRange(self.first, last), host="127.0.0.1", quarantine_seconds=15.0, claims=claims)

    def three_taken(self) -> tuple[Ports, list[int]]:
        """All three of a range."""
        ports = self.ports(3)
        return ports, [ports.take() for _ in range(3)]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_port_has_one_holder(machine: Machine) -> None:
    ports, taken = machine.three_taken()
    assert len(set(taken)) == 3
    with pytest.raises(LaunchRefusedError, match="--port-range"):
        ports.take()


def test_a_released_port_is_quarantined_for_fifteen_seconds(machine: Machine) -> None:
    ports, taken = machine.three_taken()
    ports.release(taken[1])
    machine.uptime += 14.9
    with pytest.raises(LaunchRefusedError):
        ports.take()
    machine.uptime += 0.2
    assert ports.take() == taken[1]


def test_quarantine_counts_from_the_exit_also_after_a_restart(machine: Machine) -> None:
    ports, taken = machine.three_taken()
    ports.release(taken[0], exited_seconds_ago=10.0)
    machine.uptime += 5.0
    assert ports.take() == taken[0]


def test_the_port_used_last_comes_last(machine: Machine) -> None:
    ports, taken = machine.three_taken()
    for port in taken:
        ports.release(port)
    machine.uptime += 15.0
    first = ports.take()
    ports.release(first)
    machine.uptime += 30.0
    assert ports.take() != first


def test_a_held_port_is_not_given_out(machine: Machine) -> None:
    """W4: an adopted process listens on it."""
    ports, taken = machine.three_taken()
    ports.release(taken[0])
    ports.hold(taken[0])
    machine.uptime += 15.0
    with pytest.raises(LaunchRefusedError):
        ports.take()


def test_a_port_that_was_never_used_needs_no_quarantine(machine: Machine) -> None:
    ports, taken = machine.three_taken()
    ports.put_back(taken[2])
    assert ports.take() == taken[2]


def test_two_workers_on_one_machine_never_get_one_port_though_nothing_listens_there_yet(machine: Machine) -> None:
    """X22: a backend binds its port long after it was given it."""
    here, there = machine.ports(4), machine.ports(4)
    taken = [here.take(), there.take(), here.take(), there.take()]
    assert len(set(taken)) == 4
    here.put_back(taken[0])
    assert there.take() == taken[0]


def test_quarantine_holds_for_every_worker_of_the_machine_and_outlives_the_one_who_knew(machine: Machine) -> None:
    """X22: routers of another model know nothing of whose port it was."""
    ports, taken = machine.three_taken()
    ports.release(taken[0])
    ports.close()
    machine.uptime += 14.9
    with pytest.raises(LaunchRefusedError):
        machine.ports(1).take()
    machine.uptime += 0.2
    assert machine.ports(1).take() == taken[0]


def test_what_a_dead_worker_held_goes_to_nobody_but_the_one_who_adopts_it(machine: Machine) -> None:
    """W4, X22."""
    ports, taken = machine.three_taken()
    ports.close()
    with pytest.raises(LaunchRefusedError):
        machine.ports(3).take()
    machine.uptime += ABANDONED_SECONDS / 2
    adopting = machine.ports(3)
    adopting.hold(taken[0])
    machine.uptime += ABANDONED_SECONDS
    others = machine.ports(3)
    assert {others.take(), others.take()} == set(taken[1:])
    with pytest.raises(LaunchRefusedError):
        others.take()
