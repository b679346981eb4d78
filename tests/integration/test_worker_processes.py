"""The supervisor of real processes: start, ready, stop, crash, adoption, logs (rules W2-W5, W7; traps X3, X15, X22)."""

import asyncio
import json
import os
import re
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from textwrap import dedent

import httpx
import msgspec
import psutil
import pytest

from modelyard_events.ids import ReplicaId
from modelyard_events.replica import ProcessExit
from modelyard_events.requests import Crashed, Loaded, LoadFailed, LoadStarted, ProbeFailed, Stopped
from modelyard_events.spec import Health, LaunchSpec, SecretRef
from modelyard_services.effects.health import Healthy, Refused, TimedOut, Unhealthy
from modelyard_services.errors import ConflictError
from modelyard_services.settings import WorkerFigures
from modelyard_services.worker.processes import PortRange
from modelyard_services.worker.processes.keeper import TERMINATE_SECONDS
from modelyard_services.worker.processes.state import Record, StateDirectory
from tests.support.backends import SERVE, Told, alive, echo, free_range, marked, request, script, supervised

R1, R2, R3 = ReplicaId("r1"), ReplicaId("r2"), ReplicaId("r3")


async def identity(address: str) -> tuple[str, int, int]:
    """Which model, pid and port answer at `address`."""
    async with httpx.AsyncClient() as client:
        headers = (await client.get(f"http://{address}/v1/models")).headers
    return headers["X-Backend-Model"], int(headers["X-Backend-Pid"]), int(headers["X-Backend-Port"])


async def test_a_started_process_becomes_ready_and_answers_as_itself(tmp_path: Path) -> None:
    """W3: placeholders are filled, and the facts name the process that answers."""
    told = Told()
    async with supervised(tmp_path, told) as processes:
        running = await processes.start(request("r1", echo()))
        assert running is not None
        loaded = await told.wait(Loaded)
        assert await identity(loaded.address) == ("echo", running.process.pid, running.process.port)
        assert told.of(LoadStarted)[0].process == running.process
        assert loaded.memory is not None
        assert loaded.memory[-1] > 2**20
        (now,) = processes.running()
        assert (now.activity, now.address, now.key) == ("ready", loaded.address, "echo#0")


async def test_a_slow_start_is_not_ready_before_its_health_says_so(tmp_path: Path) -> None:
    told = Told()
    async with supervised(tmp_path, told) as processes:
        await processes.start(request("r1", echo("--startup-seconds", "1.5")))
        started = time.monotonic()
        await told.wait(Loaded)
        assert time.monotonic() - started > 1.0


async def test_starting_what_runs_changes_nothing(tmp_path: Path) -> None:
    told = Told()
    async with supervised(tmp_path, told) as processes:
        first, second = await asyncio.gather(
            processes.start(request("r1", echo())), processes.start(request("r1", echo()))
        )
        assert first is not None
        assert second is not None
        assert first.process == second.process
        assert len(told.of(LoadStarted)) == 1


async def test_a_key_in_use_is_not_given_to_another_replica(tmp_path: Path) -> None:
    told = Told()
    async with supervised(tmp_path, told) as processes:
        await processes.start(request("r1", echo()))
        assert await processes.start(request("r2", echo())) is None
        assert "echo#0 still runs" in told.of(LoadFailed, "r2")[0].detail


async def test_a_stop_is_acknowledged_only_after_the_process_exited(tmp_path: Path) -> None:
    """W5, X22: asked at once, and given its grace: longer than those get who are terminated."""
    told = Told()
    slow = "import signal, time\ndef end(*_): time.sleep(3); sys.exit(0)\nsignal.signal(signal.SIGTERM, end)\n" + SERVE
    async with supervised(tmp_path, told) as processes:
        running = await processes.start(request("r1", script(slow, grace=30)))
        assert running is not None
        await told.wait(Loaded)
        asked = time.monotonic()
        await processes.stop(R1)
        assert TERMINATE_SECONDS < time.monotonic() - asked < 30
        assert not alive(running.process.pid)
        assert told.facts[-1] == Stopped(replica=R1, exit=ProcessExit(exit_code=0))
        assert processes.running() == ()


async def test_a_stop_ends_every_descendant_also_one_in_a_session_of_its_own(tmp_path: Path) -> None:
    """W4, W5: no orphan, not even a daemonized one."""
    told = Told()
    family = """
        import os, time
        for _ in range(2):
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    time.sleep(600)
                os._exit(0)
        os.wait(); os.wait()
    """
    async with supervised(tmp_path, told) as processes:
        await processes.start(request("r1", script(dedent(family) + SERVE)))
        await told.wait(Loaded)
        assert len(marked(tmp_path)) == 3
        await processes.stop(R1)
        assert marked(tmp_path) == []


async def test_a_process_that_ignores_sigterm_is_killed_after_its_grace(tmp_path: Path) -> None:
    """W5: ask, wait, terminate all of it, kill, each with its limit."""
    told = Told()
    deaf = """
        import os, signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, lambda *_: (print("helper was terminated", flush=True), os._exit(9)))
            while True: time.sleep(600)
    """
    async with supervised(tmp_path, told) as processes:
        await processes.start(request("r1", script(dedent(deaf) + SERVE, grace=0.5)))
        await told.wait(Loaded)
        started = time.monotonic()
        await processes.stop(R1)
        assert 2.0 < time.monotonic() - started < 6.0
        assert told.of(Stopped)[0].exit.signal == "SIGKILL"
        assert [line.text for line in await processes.logs("echo#0")] == ["helper was terminated"]


async def test_the_main_process_is_asked_first_so_that_it_can_end_its_children_in_order(tmp_path: Path) -> None:
    """W5: ask comes before terminate."""
    told = Told()
    orderly = """
        import os, signal
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGTERM, lambda *_: (print("child was terminated"), os._exit(9)))
            while True: signal.pause()
        def end(*_):
            print("saving"); os.kill(child, signal.SIGKILL); os.wait(); print("done"); os._exit(0)
        signal.signal(signal.SIGTERM, end)
    """
    async with supervised(tmp_path, told) as processes:
        await processes.start(request("r1", script(dedent(orderly) + SERVE)))
        await told.wait(Loaded)
        await processes.stop(R1)
        assert [line.text for line in await processes.logs("echo#0")] == ["saving", "done"]


async def test_stopping_what_is_not_there_changes_nothing(tmp_path: Path) -> None:
    told = Told()
    async with supervised(tmp_path, told) as processes:
        await processes.stop(R1)
        assert told.facts == []


async def test_a_stop_during_the_load_ends_as_stopped_and_nothing_is_published(tmp_path: Path) -> None:
    """R6: a load that nobody wants any more is never told as loaded."""
    told = Told()
    async with supervised(tmp_path, told) as processes:
        await processes.start(request("r1", echo("--startup-seconds", "30")))
        await processes.stop(R1)
        assert [type(fact) for fact in told.facts] == [LoadStarted, Stopped]


async def test_a_crash_tells_the_exit_code_and_the_last_lines_of_stderr(tmp_path: Path) -> None:
    """W5: twenty lines, no restart."""
    told = Told()
    crashing = """
        import os, threading, time
        def crash():
            time.sleep(1)
            print("on stdout")
            for number in range(30): print("line", number, file=sys.stderr)
            os._exit(70)
        threading.Thread(target=crash).start()
    """
    async with supervised(tmp_path, told) as processes:
        await processes.start(request("r1", script(dedent(crashing) + SERVE)))
        crashed = await told.wait(Crashed)
        assert crashed.exit.exit_code == 70
        assert crashed.exit.stderr_tail == tuple(f"line {number}" for number in range(10, 30))
        await asyncio.sleep(0.5)
        assert processes.running() == ()
        assert told.facts[-1] is crashed


async def test_a_worker_keeps_and_tells_as_many_lines_as_it_is_told(tmp_path: Path) -> None:
    """W5, W7, S1: by the rule it would be 20 and 1,000."""
    told = Told()
    loud = """
        for number in range(30): print("line", number, file=sys.stderr)
        raise SystemExit(1)
    """
    async with supervised(tmp_path, told, figures=WorkerFigures(log_lines=4, stderr_lines=3)) as processes:
        await processes.start(request("r1", script(dedent(loud))))
        failed = await told.wait(LoadFailed)
        assert failed.exit is not None
        assert failed.exit.stderr_tail == ("line 27", "line 28", "line 29")
        assert [line.text for line in await processes.logs("r1")] == [f"line {number}" for number in range(26, 30)]


async def test_a_crash_by_signal_names_it_and_ends_the_helpers(tmp_path: Path) -> None:
    """W5."""
    told = Told()
    helper = "import os, time\nif os.fork() == 0:\n    time.sleep(600)\n" + SERVE
    async with supervised(tmp_path, told) as processes:
        running = await processes.start(request("r1", script(helper)))
        assert running is not None
        await told.wait(Loaded)
        os.kill(running.process.pid, signal.SIGSEGV)
        crashed = await told.wait(Crashed)
        assert (crashed.exit.exit_code, crashed.exit.signal) == (None, "SIGSEGV")
        assert marked(tmp_path) == []


async def test_a_process_that_ends_before_it_is_ready_fails_to_load(tmp_path: Path) -> None:
    told = Told()
    async with supervised(tmp_path, told) as processes:
        await processes.start(request("r1", echo("--fail-start")))
        failed = await told.wait(LoadFailed)
        assert failed.detail == "exited before it was ready"
        assert failed.exit == ProcessExit(exit_code=3, stderr_tail=("can't start, as told",))


async def test_a_process_that_is_not_ready_in_time_is_ended_and_fails_to_load(tmp_path: Path) -> None:
    """R1: each transitional state has a deadline; the reason says what was seen last."""
    told = Told()
    async with supervised(tmp_path, told) as processes:
        await processes.start(request("r1", script("import time; time.sleep(600)", ready_timeout=0.5)))
        failed = await told.wait(LoadFailed)
        # On a busy machine even a refusal takes longer than the last probe has.
        assert failed.detail.removeprefix("not ready within 0.5 s: ") in {"connection refused", "no answer in time"}
        assert marked(tmp_path) == []


@pytest.mark.parametrize(
    ("launch", "detail"),
    [
        (LaunchSpec(command=("no-such-command",)), "the command 'no-such-command' isn't on this node"),
        (LaunchSpec(command=("/etc",)), "the command '/etc' isn't on this node, or isn't executable"),
        (LaunchSpec(command=("true",), working_directory="/no/such"), "the working directory '/no/such' isn't on"),
        (LaunchSpec(command=("true",), files=("/no/weights.gguf",)), "the file '/no/weights.gguf' isn't on this node"),
        (
            LaunchSpec(command=("true",), environment={"T": SecretRef(from_env="NO_SUCH")}),
            "'NO_SUCH' isn't set on this",
        ),
        (
            LaunchSpec(command=("true",), environment={"T": SecretRef(from_file="/no/t")}),
            "'/no/t' can't be read: No such",
        ),
        (LaunchSpec(command=("true",), environment={"T": SecretRef(from_env="MODELYARD_TOKEN")}), "worker's own"),
    ],
)
async def test_what_a_node_lacks_fails_the_load_and_says_what(tmp_path: Path, launch: LaunchSpec, detail: str) -> None:
    """W3."""
    told = Told()
    async with supervised(tmp_path, told) as processes:
        assert await processes.start(request("r1", launch)) is None
        assert detail in told.of(LoadFailed)[0].detail
        assert processes.running() == ()


async def test_a_file_that_cannot_be_executed_fails_the_load_with_the_kernels_reason(tmp_path: Path) -> None:
    told = Told()
    broken = tmp_path / "server"
    broken.write_text("#!/no/such/interpreter\n")
    broken.chmod(0o755)
    async with supervised(tmp_path, told) as processes:
        assert await processes.start(request("r1", LaunchSpec(command=(str(broken),)))) is None
        (failed,) = told.facts
        assert isinstance(failed, LoadFailed)
        assert failed.detail == f"'{broken}' can't be executed: No such file or directory"


async def test_a_state_directory_that_cannot_be_written_fails_the_load_and_costs_no_port(tmp_path: Path) -> None:
    """W4: no record, no process; a full disk must not wear the port range down."""
    told = Told()
    one = free_range()
    async with supervised(tmp_path, told, ports=PortRange(one.first, one.first)) as processes:
        (tmp_path / "replicas" / "r-r1").write_text("in the way")
        assert await processes.start(request("r1", echo())) is None
        assert "exists" in told.of(LoadFailed)[0].detail
        assert await processes.start(request("r2", echo())) is not None
        (tmp_path / "replicas" / "r-r1").unlink()


async def test_a_secret_reaches_the_process_and_no_file(tmp_path: Path) -> None:
    """W3: resolved on the node, passed through a pipe; `ps` shows it to nobody."""
    told = Told()
    (tmp_path / "token").write_text("hunter2\n")
    state = tmp_path / "state"
    shows = script("import os\nprint(len(os.environ['TOKEN']), os.environ['WHERE'])\n" + SERVE)
    environment = {"TOKEN": SecretRef(from_file=str(tmp_path / "token")), "WHERE": "{model}:{gpu}:{other}"}
    async with supervised(state, told) as processes:
        await processes.start(request("r1", msgspec.structs.replace(shows, environment=environment)))
        await told.wait(Loaded)
        assert [line.text for line in await processes.logs("echo")] == ["7 echo::{other}"]
        files = files_below(state, "*")
        assert files
        assert not [path for path in files if b"hunter2" in path.read_bytes()]
        assert not [path for path in files if path.stat().st_mode & 0o077]
        assert not [process for process in psutil.process_iter(["cmdline"]) if "hunter2" in str(process.info)]


async def test_a_worker_runs_only_the_commands_it_may(tmp_path: Path) -> None:
    """W3: --allow-command."""
    told = Told()
    async with supervised(tmp_path, told, allow_commands=("llama-server", "true")) as processes:
        await processes.start(request("r1", echo()))
        assert "no --allow-command of 'llama-server', 'true' matches" in told.of(LoadFailed, "r1")[0].detail
        await processes.start(request("r2", LaunchSpec(command=("true",))))
        await told.wait(LoadStarted, "r2")


async def test_a_port_is_not_used_again_before_its_quarantine_is_over(tmp_path: Path) -> None:
    """W4, X22: a late request can't reach the next model."""
    told = Told()
    one = free_range()
    ports, figures = PortRange(one.first, one.first), WorkerFigures(port_quarantine_seconds=1.0)
    async with supervised(tmp_path, told, ports=ports, figures=figures) as processes:
        await processes.start(request("r1", echo()))
        assert await processes.start(request("r2", echo(), model="other")) is None
        await processes.stop(R1)
        assert await processes.start(request("r3", echo(), model="other")) is None
        assert "no port is free" in told.of(LoadFailed, "r3")[0].detail
        await asyncio.sleep(1.1)
        assert await processes.start(request("r3", echo(), model="other")) is not None


async def test_a_port_where_a_stranger_listens_is_passed_over(tmp_path: Path) -> None:
    told = Told()
    two = free_range()
    stranger = await asyncio.start_server(lambda *_: None, "127.0.0.1", two.first)
    async with stranger, supervised(tmp_path, told, ports=two) as processes:
        running = await processes.start(request("r1", echo()))
        assert running is not None
        assert running.process.port == two.first + 1


async def test_a_bare_name_reaches_every_replica_and_a_key_is_exact(tmp_path: Path) -> None:
    """W2, X3: and a name that begins like another does not reach it."""
    told = Told()
    async with supervised(tmp_path, told) as processes:
        await processes.start(request("r1", echo(), model="a/b", replica_index=0))
        await processes.start(request("r2", echo(), model="a/b", replica_index=1))
        await processes.start(request("r3", echo(), model="a/b2", replica_index=0))
        reached = {asked: {running.replica for running in processes.running(asked)} for asked in ASKED}
        assert reached == {"a/b": {R1, R2}, "a/b#1": {R2}, "a/b2": {R3}, "a": set(), "r1": {R1}, "a/b#": set()}


ASKED = ("a/b", "a/b#1", "a/b2", "a", "r1", "a/b#")


async def test_a_new_supervisor_adopts_what_the_last_one_left(tmp_path: Path) -> None:
    """W4, W8: same process, still watched and stoppable, its port held; that it is ready is told again, for nobody
    knows whether it was heard.
    """
    told = Told()
    async with supervised(tmp_path, told, at_worker_end="keep") as processes:
        before = await processes.start(request("r1", echo()))
        await told.wait(Loaded)
    assert before is not None
    assert alive(before.process.pid)
    again = Told()
    async with supervised(tmp_path, again) as processes:
        (adopted,) = processes.running()
        assert (adopted.process, adopted.key, adopted.activity) == (before.process, "echo#0", "ready")
        assert await processes.probe(R1) == Healthy()
        await processes.stop(R1)
    assert [type(fact) for fact in again.facts] == [Loaded, Stopped]
    assert again.of(Loaded)[0].address == told.of(Loaded)[0].address
    assert not alive(before.process.pid)


@pytest.mark.parametrize("written", ['{"replica":"r1","of_a_version":"to come"}', ""])
async def test_what_runs_under_a_record_that_cannot_be_read_is_ended_and_not_forgotten(
    tmp_path: Path, written: str
) -> None:
    """W4, X20, X26: a failed read is no proof that nothing runs."""
    async with supervised(tmp_path, Told(), at_worker_end="keep") as processes:
        running = await processes.start(request("r1", echo()))
    assert running is not None
    (tmp_path / "replicas" / "r-r1" / "record.json").write_text(written)
    told = Told()
    async with supervised(tmp_path, told) as processes:
        assert not alive(running.process.pid)
        assert processes.running() == ()
        assert marked(tmp_path) == []
    assert told.facts == []


async def test_an_adopted_process_that_was_loading_still_becomes_ready(tmp_path: Path) -> None:
    async with supervised(tmp_path, Told(), at_worker_end="keep") as processes:
        await processes.start(request("r1", echo("--startup-seconds", "1.5")))
    told = Told()
    async with supervised(tmp_path, told) as processes:
        assert processes.running()[0].activity == "starting"
        await told.wait(Loaded)


async def test_what_ended_while_no_worker_watched_is_told_with_its_exit_code(tmp_path: Path) -> None:
    """W4, W5, H1: the keeper saw it, and when; nothing is guessed."""
    told = Told()
    async with supervised(tmp_path, told, at_worker_end="keep") as processes:
        running = await processes.start(request("r1", echo("--crash-after", "2")))
        await told.wait(Loaded)
    assert running is not None
    await _gone(running.process.pid)
    gone_ns = time.time_ns()
    again = Told()
    async with supervised(tmp_path, again) as processes:
        crashed = await again.wait(Crashed)  # at once, or as soon as the keeper has buried it
        # By the keeper's clock (H1): it may be burying still when the process is seen to be gone.
        assert again.occurred_ns[-1] < gone_ns + 1_000_000_000
        assert again.occurred_ns[-1] < time.time_ns()
        assert again.facts[-1] == crashed
        assert len(again.of(Crashed)) == 1
        assert crashed.exit.exit_code == 70
        assert crashed.exit.stderr_tail[-1] == "crashing, as told"
        assert (await processes.logs("echo"))[-1].text == "crashing, as told"


WORKER = """
import asyncio, os, signal, sys
from pathlib import Path
from tests.support.backends import Told, echo, request, supervised
async def main() -> None:
    told = Told()
    async with supervised(Path(sys.argv[1]), told, at_worker_end=sys.argv[2]) as processes:
        running = await processes.start(request("r1", echo()))
        await told.wait(__import__("modelyard_events.requests").requests.Loaded)
        print(running.process.pid, flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""


async def _killed_worker(state: Path, at_worker_end: str) -> int:
    """Kill -9 a worker process; the pid of the backend it had started."""
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WORKER, str(state), at_worker_end, stdout=asyncio.subprocess.PIPE
    )
    assert worker.stdout is not None
    pid = int(await worker.stdout.readline())
    worker.kill()
    await worker.wait()
    return pid


async def test_a_worker_that_was_killed_is_followed_by_one_that_adopts(tmp_path: Path) -> None:
    """W4: kill -9 of the worker costs no request and no log line."""
    pid = await _killed_worker(tmp_path, "keep")
    assert alive(pid)
    told = Told()
    async with supervised(tmp_path, told) as processes:
        (adopted,) = processes.running()
        assert adopted.process.pid == pid
        assert adopted.address is not None
        assert (await identity(adopted.address))[1] == pid
        await processes.stop(R1)
    assert not alive(pid)


async def test_a_worker_that_was_killed_takes_its_processes_along_if_so_told(tmp_path: Path) -> None:
    """W4: what is to end with its worker ends also when that can't say so any more."""
    pid = await _killed_worker(tmp_path, "end")
    await _gone(pid)
    assert marked(tmp_path) == []


async def test_processes_that_end_with_the_workers_parent_outlive_the_worker_alone(tmp_path: Path) -> None:
    """W4: the parent starts the next worker, which adopts them; when the parent dies as well, nobody would."""
    parent = await asyncio.create_subprocess_exec(
        *("sh", "-c", '"$@" & wait; read forever', "sh", sys.executable, "-c", WORKER, str(tmp_path)),
        *("end_with_parent",), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    (worker,) = psutil.Process(parent.pid).children()
    worker.kill()
    await asyncio.to_thread(worker.wait)
    async with supervised(tmp_path, Told(), at_worker_end="keep") as processes:
        assert [adopted.process.pid for adopted in processes.running()] == [pid]
    assert alive(pid)
    parent.kill()
    await parent.wait()
    await _gone(pid)
    assert marked(tmp_path) == []


async def test_a_killed_workers_port_is_nobodys_until_routers_know_better(tmp_path: Path) -> None:
    """W4, X22: another worker of the machine would serve another model there, and routers would send to it."""
    here, there = tmp_path / "here", tmp_path / "there"
    await _gone(await _killed_worker(here, "end"))
    port = msgspec.json.decode((here / "replicas" / "r-r1" / "record.json").read_bytes(), type=Record).port
    told = Told()
    async with supervised(there, told, ports=PortRange(port, port)) as other:
        assert await other.start(request("r2", echo(), model="other")) is None
        async with supervised(here, Told()):
            assert await other.start(request("r3", echo(), model="other")) is None
    assert ["no port is free" in failed.detail for failed in told.of(LoadFailed)] == [True, True]


async def test_a_pid_that_was_recycled_is_neither_adopted_nor_killed(tmp_path: Path) -> None:
    """W4: a state file from before a power failure names a pid that is somebody else's now."""
    async with supervised(tmp_path, Told(), at_worker_end="keep") as processes:
        running = await processes.start(request("r1", echo()))
        assert running is not None
        (keeper,) = (parent for parent in psutil.Process(running.process.pid).parents()[:1])
    directory = tmp_path / "replicas" / "r-r1"
    keeper.kill()
    await _gone(running.process.pid)
    stranger = await asyncio.create_subprocess_exec("sleep", "60")
    said = json.loads((directory / "keeper.json").read_text())
    for who in ("keeper", "process"):
        said[who]["pid"] = stranger.pid
    (directory / "keeper.json").write_text(json.dumps(said))
    told = Told()
    async with supervised(tmp_path, told) as processes:
        assert processes.running() == ()
        assert isinstance(told.facts[0], LoadFailed)
    assert alive(stranger.pid)
    stranger.kill()
    await stranger.wait()


async def test_a_keeper_that_was_killed_leaves_nothing_alive(tmp_path: Path) -> None:
    """W4: the kernel ends the main process, the mark in the environment finds the rest."""
    told = Told()
    daemon = "import os, time\nif os.fork() == 0:\n    os.setsid(); time.sleep(600)\n" + SERVE
    async with supervised(tmp_path, told) as processes:
        running = await processes.start(request("r1", script(daemon)))
        assert running is not None
        await told.wait(Loaded)
        assert len(marked(tmp_path)) == 2
        psutil.Process(running.process.pid).parent().kill()  # type: ignore[union-attr]
        crashed = await told.wait(Crashed)
        assert crashed.exit.exit_code is None
        assert marked(tmp_path) == []


async def test_a_state_directory_serves_one_worker_at_a_time(tmp_path: Path) -> None:
    async with supervised(tmp_path, Told()):
        with pytest.raises(ConflictError, match="--state-dir"):
            StateDirectory(tmp_path)


async def test_the_state_secret_is_made_once_and_readable_by_its_owner_alone(tmp_path: Path) -> None:
    """N3."""
    async with supervised(tmp_path, Told()) as processes:
        secret = processes.state_secret()
    async with supervised(tmp_path, Told()) as processes:
        assert processes.state_secret() == secret
    assert re.fullmatch("[0-9a-f]{64}", secret)
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600


async def test_logs_of_a_model_are_merged_in_time_order(tmp_path: Path) -> None:
    """W7."""
    told = Told()
    beat = "import threading, time\ndef beat():\n    for n in range(5): print(n); time.sleep(0.1)\n"
    beat += "threading.Thread(target=beat).start()\n"
    async with supervised(tmp_path, told) as processes:
        for index, replica in enumerate(("r1", "r2")):
            await processes.start(request(replica, script(beat + SERVE), replica_index=index))
        await asyncio.gather(told.wait(Loaded, "r1"), told.wait(Loaded, "r2"))
        await asyncio.sleep(0.7)
        lines = await processes.logs("echo")
        assert [line.time_ns for line in lines] == sorted(line.time_ns for line in lines)
        assert sorted(line.text for line in lines) == sorted("01234" * 2)
        assert {line.key for line in lines} == {"echo#0", "echo#1"}
        assert [line.text for line in await processes.logs("echo#1")] == list("01234")


async def test_a_follower_sees_old_and_new_lines_and_the_end(tmp_path: Path) -> None:
    """W7: also a last word without a line end."""
    told = Told()
    talk = """
        import signal
        signal.signal(signal.SIGTERM, lambda *_: (print("bye", end=""), sys.exit(0)))
        print("hello")
    """
    seen: list[str] = []
    async with supervised(tmp_path, told) as processes:
        await processes.start(request("r1", script(dedent(talk) + SERVE)))
        await told.wait(Loaded)

        async def follow() -> None:
            async for lines in processes.follow("echo"):
                seen.extend(line.text for line in lines)

        following = asyncio.create_task(follow())
        await asyncio.sleep(0.6)
        await processes.stop(R1)
        async with asyncio.timeout(5):
            await following
        assert seen == ["hello", "bye"]


async def test_a_chatty_process_keeps_its_last_thousand_lines_in_bounded_space(tmp_path: Path) -> None:
    """W7: 30 MB of output leave at most two files of 5 MiB and one write."""
    told = Told()
    chatty = "line = 'x' * 2990\nfor n in range(10_000): print(n, line)\nprint('end')\n"
    async with supervised(tmp_path, told) as processes:
        await processes.start(request("r1", script(chatty + SERVE)))
        await told.wait(Loaded)
        lines = await processes.logs("echo")
        assert len(lines) == 1_000
        assert lines[-1].text == "end"
        assert lines[0].text.startswith("9001 ")
        assert sum(path.stat().st_size for path in files_below(tmp_path, "log*")) < 11 * 2**20


async def test_a_health_check_tells_busy_from_gone_and_from_unwell(tmp_path: Path) -> None:
    """T4: busy is not dead."""
    told = Told()
    async with supervised(tmp_path, told, figures=WorkerFigures(probe_seconds=0.5)) as processes:
        await processes.start(request("r1", echo("--serial", "--token-seconds", "3")))
        await processes.start(request("r2", echo("--startup-seconds", "60"), replica_index=1))
        address = (await told.wait(Loaded, "r1")).address
        async with httpx.AsyncClient() as client:
            body = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}
            asking = asyncio.create_task(client.post(f"http://{address}/v1/chat/completions", json=body))
            await asyncio.sleep(0.3)
            assert await processes.probe(R1) == TimedOut()
            assert (await asking).json()["choices"][0]["message"]["content"] == "hi"
        assert await processes.probe(R1) == Healthy()
        await eventually(lambda: processes.probe(R2), Unhealthy("HTTP 503"))
        assert await processes.probe(R2) == Unhealthy("HTTP 503")
        assert await processes.probe(R3) == Refused()


async def test_the_grpc_health_service_makes_a_process_ready(tmp_path: Path) -> None:
    """W3."""
    told = Told()
    async with supervised(tmp_path, told) as processes:
        spec = echo("--grpc-health", "--startup-seconds", "1", health=Health(grpc=""))
        await processes.start(request("r1", spec))
        await told.wait(Loaded)
        assert await processes.probe(R1) == Healthy()


async def test_three_missed_probes_while_idle_fail_that_replica_alone(tmp_path: Path) -> None:
    """T4, X15."""
    told = Told()
    figures = WorkerFigures(probe_interval_seconds=0.2, probe_seconds=0.2)
    async with supervised(tmp_path, told, figures=figures) as processes:
        hung = await processes.start(request("r1", echo()))
        await processes.start(request("r2", echo(), replica_index=1))
        await asyncio.gather(told.wait(Loaded, "r1"), told.wait(Loaded, "r2"))
        assert hung is not None
        os.kill(hung.process.pid, signal.SIGSTOP)
        failed = await told.wait(ProbeFailed)
        os.kill(hung.process.pid, signal.SIGCONT)
        assert failed == ProbeFailed(replica=R1, detail="no answer in time")
        assert len(told.of(ProbeFailed)) == 1


@pytest.mark.parametrize("misses", [1, 4])
async def test_an_idle_replica_fails_after_as_many_missed_probes_as_the_worker_is_told(
    tmp_path: Path, misses: int
) -> None:
    """T4, S1: a pause of half a second before each question, and a tenth for its answer."""
    told = Told()
    figures = WorkerFigures(probe_interval_seconds=0.5, probe_seconds=0.1, probe_misses=misses)
    async with supervised(tmp_path, told, figures=figures) as processes:
        hung = await processes.start(request("r1", echo()))
        await told.wait(Loaded)
        assert hung is not None
        began = time.monotonic()
        os.kill(hung.process.pid, signal.SIGSTOP)
        await told.wait(ProbeFailed)
        os.kill(hung.process.pid, signal.SIGCONT)
        # The first question may fall anywhere in its interval.
        assert time.monotonic() - began >= (misses - 1) * 0.6
        if misses == 1:
            assert time.monotonic() - began < 1.5


async def test_missed_probes_while_requests_are_in_flight_fail_nobody(tmp_path: Path) -> None:
    """T4: busy is not dead."""
    told = Told()
    settings = {"figures": WorkerFigures(probe_interval_seconds=0.1, probe_seconds=0.1)}
    async with supervised(tmp_path, told, is_idle=lambda _: False, **settings) as processes:
        running = await processes.start(request("r1", echo()))
        await told.wait(Loaded)
        assert running is not None
        os.kill(running.process.pid, signal.SIGSTOP)
        await asyncio.sleep(1.5)
        os.kill(running.process.pid, signal.SIGCONT)
        assert told.of(ProbeFailed) == []


async def test_readings_tell_what_runs_with_its_memory(tmp_path: Path) -> None:
    """N2, N8."""
    told = Told()
    async with supervised(tmp_path, told) as processes:
        running = await processes.start(request("r1", echo()))
        await told.wait(Loaded)
        (reading,) = await processes.readings()
        assert running is not None
        assert (reading.replica, reading.key, reading.revision) == ("r1", "echo#0", "r1")
        assert (reading.process, reading.activity) == (running.process, "ready")
        assert reading.memory is not None


async def _gone(pid: int) -> None:
    async def lives() -> bool:
        return alive(pid)

    await eventually(lives, False)


async def eventually(read: Callable[[], Awaitable[object]], wanted: object) -> None:
    """Until `read` gives `wanted`."""
    async with asyncio.timeout(15):
        while await read() != wanted:  # noqa: ASYNC110 - a process has no event to wait for
            await asyncio.sleep(0.05)


def files_below(directory: Path, pattern: str) -> list[Path]:
    return [path for path in directory.rglob(pattern) if path.is_file()]
