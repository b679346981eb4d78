"""A process is held by identity, never by a bare pid (rule W4)."""

import os
import subprocess
import sys

from modelyard_services.worker.processes import keeper
from modelyard_services.worker.processes.handle import open_identity
from modelyard_services.worker.processes.state import Identity


def test_a_living_process_is_held() -> None:
    pidfd = open_identity(Identity(os.getpid(), keeper.start_ticks(os.getpid())))
    assert pidfd is not None
    os.close(pidfd)


def test_a_recycled_pid_is_not_held() -> None:
    assert open_identity(Identity(os.getpid(), keeper.start_ticks(os.getpid()) - 1)) is None


def test_a_process_that_ended_is_not_held() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    identity = Identity(ended.pid, keeper.start_ticks(ended.pid))
    ended.wait()
    assert open_identity(identity) is None


def test_a_name_with_blanks_and_brackets_does_not_shift_the_fields() -> None:
    """/proc/PID/stat holds the name between brackets, whatever it is."""
    name = "a) R (b c"
    with open(f"/proc/{os.getpid()}/comm", "w") as comm:  # noqa: PTH123 - comm can't be created
        comm.write(name)
    try:
        assert int(keeper.stat_fields(os.getpid())[1]) == os.getppid()
    finally:
        with open(f"/proc/{os.getpid()}/comm", "w") as comm:  # noqa: PTH123
            comm.write("python")
