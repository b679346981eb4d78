"""Children are started in order, kept up, stopped in reverse, and never left behind: real processes throughout."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from modelyard_services.effects.embedded.children import CRASHES_MAX, ChildState, ProcessTree
from modelyard_services.effects.embedded.errors import ChildFailedError, DataDirectoryInUseError
from modelyard_services.effects.embedded.lives import Life, Lives, began
from modelyard_services.effects.embedded.process import Child, StopStep

WAIT_SECONDS_MAX = 20

TELLS_ITS_END = """
import signal, sys, time
def end(number, frame):
    with open(sys.argv[2], "a") as file:
        file.write(f"{sys.argv[1]} {signal.Signals(number).name}\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGINT, end)
open(f"{sys.argv[2]}.{sys.argv[1]}", "w").close()
time.sleep(60)
"""

STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
grandchild = subprocess.Popen(["/bin/sleep", "60"])
with open(sys.argv[1] + ".new", "w") as file:
    file.write(str(grandchild.pid))
import os; os.rename(sys.argv[1] + ".new", sys.argv[1])
time.sleep(60)
"""

PARENT = """
import asyncio, signal, sys
from pathlib import Path
from modelyard_services.effects.embedded.children import ProcessTree
from modelyard_services.effects.embedded.nats import embedded_nats
from modelyard_services.effects.embedded.postgres import embedded_postgres
from modelyard_services.effects.embedded.process import Child

async def always() -> bool:
    return True

async def main(directory: Path) -> None:
    done = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, done.set)
    async with ProcessTree(directory / "run") as tree:
        await tree.start(embedded_nats(directory).child)
        await tree.start(embedded_postgres(directory).child)
        await tree.start(Child(name="sleep", argv=("sleep", "60"), ready=always, log_file=directory / "sleep.log"))
        print(*(report.pid for report in tree.report()), flush=True)
        await done.wait()
    print("stopped in order", flush=True)

asyncio.run(main(Path(sys.argv[1])))
"""


async def test_children_stop_in_reverse_order(tmp_path: Path) -> None:
    ends = tmp_path / "ends"
    async with ProcessTree(tmp_path / "run") as tree:
        for name in ("first", "second", "third"):
            await tree.start(_python(tmp_path, name, TELLS_ITS_END, name, str(ends), ready=tmp_path / f"ends.{name}"))
        assert [report.state for report in tree.report()] == [ChildState.RUNNING] * 3
    assert ends.read_text() == "third SIGTERM\nsecond SIGTERM\nfirst SIGTERM\n"
    assert [report.state for report in tree.report()] == [ChildState.STOPPED] * 3


async def test_a_killed_child_comes_back(tmp_path: Path) -> None:
    async with ProcessTree(tmp_path / "run") as tree:
        await tree.start(_shell(tmp_path, "sleep 60"))
        before = _pid(tree)
        os.kill(before, signal.SIGKILL)
        await _until(lambda: tree.report()[0].restarts == 1 and tree.report()[0].state is ChildState.RUNNING)
        assert _pid(tree) != before


async def test_a_child_that_can_not_stay_up_fails_the_tree_with_the_end_of_its_log(tmp_path: Path) -> None:
    async with ProcessTree(tmp_path / "run") as tree:
        await tree.start(_shell(tmp_path, "echo my disk is gone; exit 3"))
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            failure = await tree.failure()
        report = tree.report()[0]
    assert failure.extra["exit_code"] == 3
    assert "my disk is gone" in failure.detail
    assert (report.state, report.restarts) == (ChildState.FAILED, CRASHES_MAX)


async def test_a_child_that_ends_before_it_is_ready_fails_its_start(tmp_path: Path) -> None:
    async with ProcessTree(tmp_path / "run") as tree:
        with pytest.raises(ChildFailedError, match="ended with 4 before it was ready"):
            await tree.start(_shell(tmp_path, "exit 4", ready=tmp_path / "never"))


async def test_a_child_that_never_gets_ready_is_ended(tmp_path: Path) -> None:
    async with ProcessTree(tmp_path / "run") as tree:
        with pytest.raises(ChildFailedError, match=r"not ready within 0\.3 s"):
            await tree.start(_shell(tmp_path, "sleep 60", ready=tmp_path / "never", start_seconds_max=0.3))
        assert tree.report()[0].pid is None


async def test_a_program_that_is_not_there_fails_its_start(tmp_path: Path) -> None:
    async with ProcessTree(tmp_path / "run") as tree:
        child = Child(
            name="absent", argv=("/no/such/program",), ready=_exists(tmp_path / "never"), log_file=tmp_path / "log"
        )
        with pytest.raises(ChildFailedError, match="No such file"):
            await tree.start(child)


async def test_a_start_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    async with ProcessTree(tmp_path / "run") as tree:
        start = asyncio.create_task(tree.start(_shell(tmp_path, "sleep 60", ready=tmp_path / "never")))
        await _until(lambda: bool(tree.report()) and tree.report()[0].pid is not None)
        pid = _pid(tree)
        start.cancel()
        await asyncio.wait([start])
        assert began(pid) is None


async def test_a_child_that_will_not_stop_is_killed_with_its_own_children(tmp_path: Path) -> None:
    noted = tmp_path / "grandchild"
    async with ProcessTree(tmp_path / "run") as tree:
        await tree.start(_python(tmp_path, "stubborn", STUBBORN, str(noted), ready=noted))
        pids = (_pid(tree), int(noted.read_text()))
    await _until(lambda: [began(pid) for pid in pids] == [None, None])


def test_a_parent_killed_without_a_word_leaves_no_server(tmp_path: Path) -> None:
    parent, pids = _parent(tmp_path)
    parent.kill()
    parent.communicate()
    asyncio.run(_until(lambda: [began(pid) for pid in pids] == [None] * 3))


def test_ctrl_c_at_the_terminal_reaches_the_parent_alone_which_stops_in_order(tmp_path: Path) -> None:
    parent, _ = _parent(tmp_path)
    os.killpg(parent.pid, signal.SIGINT)
    output, _ = parent.communicate(timeout=WAIT_SECONDS_MAX)
    assert output == "stopped in order\n"
    assert 'Trapped "terminated" signal' in (tmp_path / "nats" / "server.log").read_text()
    assert "received fast shutdown request" in (tmp_path / "postgres" / "server.log").read_text()
    assert not list((tmp_path / "run").glob("*.json"))


def test_a_start_after_a_killed_parent_finds_the_same_data(tmp_path: Path) -> None:
    parent, _ = _parent(tmp_path)
    parent.kill()
    parent.communicate()
    parent, _ = _parent(tmp_path)
    parent.send_signal(signal.SIGINT)
    assert parent.communicate(timeout=WAIT_SECONDS_MAX)[0] == "stopped in order\n"


def test_the_next_start_ends_what_was_left_over(tmp_path: Path) -> None:
    """Where the kernel doesn't do it: outside Linux, and for a life that began just before its parent died."""
    leftover = subprocess.Popen(["/bin/sleep", "60"])
    _record(tmp_path, leftover.pid, began(leftover.pid))
    _start_over(tmp_path)
    assert leftover.wait(timeout=WAIT_SECONDS_MAX) == -signal.SIGTERM


def test_a_left_over_that_will_not_obey_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelyard_services.effects.embedded.lives.LEFTOVER_SECONDS_MAX", 0.2)
    leftover = subprocess.Popen(
        ["/bin/sh", "-c", "trap '' TERM; echo; while :; do sleep 60; done"], stdout=subprocess.PIPE
    )
    assert leftover.stdout is not None
    leftover.stdout.readline()
    _record(tmp_path, leftover.pid, began(leftover.pid))
    _start_over(tmp_path)
    assert leftover.wait(timeout=WAIT_SECONDS_MAX) == -signal.SIGKILL
    leftover.stdout.close()


def test_a_stranger_with_a_recorded_pid_is_left_alone(tmp_path: Path) -> None:
    with subprocess.Popen(["/bin/sleep", "60"]) as stranger:
        _record(tmp_path, stranger.pid, "another boot:1234")
        _start_over(tmp_path)
        assert stranger.poll() is None
        stranger.kill()


def test_a_data_directory_has_one_owner(tmp_path: Path) -> None:
    owner = ProcessTree(tmp_path / "run")
    owner.hold()
    with pytest.raises(DataDirectoryInUseError, match="in use by another modelyard"):
        ProcessTree(tmp_path / "run").hold()
    asyncio.run(owner.stop())
    _start_over(tmp_path)


def _parent(directory: Path) -> tuple[subprocess.Popen[str], list[int]]:
    """A process that runs a tree, as `modelyard up` does, and its children's pids."""
    parent = subprocess.Popen(  # noqa: S603 - our own program
        [sys.executable, "-c", PARENT, str(directory)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 3
    return parent, pids


def _start_over(directory: Path) -> None:
    Lives(directory / "run").hold().release()


def _record(directory: Path, pid: int, began_at: str | None) -> None:
    assert began_at is not None
    lives = Lives(directory / "run").hold()
    lives.record(Life(name="left", pid=pid, began=began_at, death_signal=signal.SIGTERM))
    lives.release()


def _python(directory: Path, name: str, program: str, *arguments: str, ready: Path) -> Child:
    argv = (sys.executable, "-I", "-S", "-c", textwrap.dedent(program), *arguments)
    stop = (StopStep(signal.SIGTERM, 0.5),)
    return Child(name=name, argv=argv, ready=_exists(ready), log_file=directory / f"{name}.log", stop=stop)


def _shell(directory: Path, script: str, *, ready: Path | None = None, start_seconds_max: float = 20.0) -> Child:
    return Child(
        name="shell",
        argv=("sh", "-c", script),
        ready=_exists(directory if ready is None else ready),
        log_file=directory / "shell.log",
        start_seconds_max=start_seconds_max,
    )


def _exists(path: Path) -> Callable[[], Awaitable[bool]]:
    async def ready() -> bool:
        return path.exists()  # noqa: ASYNC240 - a look at a local file

    return ready


def _pid(tree: ProcessTree) -> int:
    pid = tree.report()[0].pid
    assert pid is not None
    return pid


async def _until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        while not done():  # noqa: ASYNC110 - processes have no event to wait for
            await asyncio.sleep(0.02)
