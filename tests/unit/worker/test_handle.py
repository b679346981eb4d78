"""A process is held by identity, never by a bare pid (rule W4)."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from modelyard_services.worker.processes import handle, keeper
from modelyard_services.worker.processes.handle import Handle, KeeperError, open_identity
from modelyard_services.worker.processes.kept import keeper_file
from modelyard_services.worker.processes.state import Identity, KeeperFile, lock_file


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


async def test_a_keeper_that_ends_while_it_is_looked_for_is_none(tmp_path: Path) -> None:
    """W4, X26: its worker was killed, so it may end at any moment; the next worker must not fail over that."""
    gone = Identity(os.getpid(), keeper.start_ticks(os.getpid()) - 1)
    left = KeeperFile(keeper=gone, process=gone, started_at=0, problem=None)
    (tmp_path / "keeper.json").write_bytes(msgspec.json.encode(left))
    lock = lock_file(tmp_path / "lock")
    assert lock is not None
    looking = asyncio.create_task(Handle.find(tmp_path))
    await asyncio.wait({looking}, timeout=0.2)
    os.close(lock)
    assert await looking is None


@pytest.mark.parametrize("left", ["nothing", "half a word", "another process"])
async def test_a_keeper_that_lives_and_cannot_be_identified_is_never_taken_for_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    """X20, W4: its backend runs, so its port and memory are taken, whoever it is."""
    monkeypatch.setattr(handle, "SETTLE_SECONDS", 0.2)
    gone = Identity(os.getpid(), keeper.start_ticks(os.getpid()) - 1)
    another = msgspec.json.encode(KeeperFile(keeper=gone, process=gone, started_at=0, problem=None))
    if left != "nothing":
        (tmp_path / "keeper.json").write_bytes(another if left == "another process" else another[:9])
    lock = lock_file(tmp_path / "lock")
    assert lock is not None
    problem = "but not by process" if left == "another process" else "doesn't say who it is"
    try:
        with pytest.raises(KeeperError, match=problem):
            await Handle.find(tmp_path)
    finally:
        os.close(lock)
    assert await Handle.find(tmp_path) is None


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


def test_a_keeper_that_failed_is_told_by_its_last_line(tmp_path: Path) -> None:
    """Whoever is told of the failed load can't always look into the worker's directory."""
    with pytest.raises(KeeperError, match="the keeper ended at once: it wrote nothing to"):
        keeper_file(tmp_path)
    (tmp_path / "keeper.err").write_text("Traceback (most recent call last):\n  …\nKeyError: 'port'\n")
    with pytest.raises(KeeperError, match="the keeper ended at once: KeyError: 'port'"):
        keeper_file(tmp_path)


def test_an_order_of_the_version_before_names_nobody_to_die_with() -> None:
    """W4: an upgrade replaces the keeper's file before it replaces the worker that starts keepers."""
    assert keeper.guardian_of({}) is None


async def test_a_stop_that_comes_after_the_end_changes_nothing() -> None:
    """W5: a backend may end by itself while everything is being stopped."""
    process = await asyncio.create_subprocess_exec("sleep", "60")
    handle = Handle(process.pid, os.pidfd_open(process.pid))
    process.kill()
    await handle.ended()
    handle.ask_to_stop()
    handle.let_go()
    handle.ask_to_stop()
    await process.wait()
