"""The node agent with real processes, a real registrar and a real NATS server."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import msgspec
import nats
import psutil
import pytest
from structlog.testing import capture_logs

from modelyard_events.fleet import FleetSettingsChanged, Settings
from modelyard_events.ids import LabelKey, ReplicaId
from modelyard_events.model import ModelReplicaEnded, ModelReplicaReady
from modelyard_events.node import (
    NodeApproved,
    NodeDeparted,
    NodeDrainStarted,
    NodeIncarnationStarted,
    NodeLabelsChanged,
    NodeLost,
    NodeMaxReplicasOverridden,
)
from modelyard_events.replica import (
    ReplicaAdopted,
    ReplicaCrashed,
    ReplicaDrainStarted,
    ReplicaLoaded,
    ReplicaLoadStarted,
    ReplicaPlaced,
    ReplicaStopRequested,
    ReplicaUnloaded,
)
from modelyard_events.requests import USED
from modelyard_events.spec import SecretRef
from modelyard_events.subjects import node_subject, worker_subject
from modelyard_projections.fleet import Alive, Departed, Fleet, Loading, Lost, NodeDraining, Ready
from modelyard_services.errors import NameTakenError
from modelyard_services.policy.ending import end
from modelyard_services.policy.intent import remove
from modelyard_services.settings import WorkerFigures
from modelyard_services.worker.agent.agent import GOODBYE_SECONDS
from tests.support.agents import N1, UNTIL_SECONDS, Yard, a_yard
from tests.support.backends import SERVE, alive, echo, marked, script


@pytest.fixture
async def yard(tmp_path: Path) -> AsyncIterator[Yard]:
    async with a_yard(tmp_path) as yard:
        yield yard


async def up(yard: Yard) -> None:
    """A worker that has registered."""
    yard.worker()
    await yard.until(lambda fleet: N1 in fleet.nodes)


def pid_of(yard: Yard, replica: str = "r-1") -> int:
    process = yard.fleet.replicas[ReplicaId(replica)].process
    assert process is not None
    return process.pid


async def answers(address: str) -> bool:
    try:
        async with aiohttp.ClientSession() as client, client.get(f"http://{address}/health") as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False


async def test_a_placed_replica_runs_and_its_story_hangs_together(yard: Yard) -> None:
    """W1, H1: each event names the one that led to it, and the command that began it."""
    await up(yard)
    await yard.place()
    assert await answers(await yard.address())
    await yard.unload("r-1")
    await yard.ended()
    story = {type(entry.event): entry.envelope for entry in await yard.entries()}
    assert story[ReplicaLoadStarted].correlation == story[ReplicaLoaded].correlation == "place-r-1"
    assert story[ReplicaLoadStarted].causation == story[ReplicaPlaced].event_id(0)
    assert story[ReplicaLoaded].causation == story[ReplicaLoadStarted].event_id(0)
    assert story[ModelReplicaReady].causation == story[ReplicaLoadStarted].event_id(0)
    assert story[ReplicaUnloaded].causation == story[ReplicaStopRequested].event_id(0)
    assert story[ModelReplicaEnded].correlation == story[ReplicaStopRequested].correlation
    assert story[ReplicaLoaded].actor.kind == "worker"
    happened = [story[kind].occurred_at for kind in (ReplicaLoadStarted, ReplicaLoaded, ReplicaUnloaded)]
    assert None not in happened
    assert happened == sorted(happened)  # type: ignore[type-var]  # None is none of them
    assert story[ReplicaPlaced].occurred_at is None


async def test_an_end_is_told_after_the_process_is_gone_and_its_port_rests(yard: Yard) -> None:
    """X22, X3, R8: a process that takes its time to end, and the second one of its model that stays."""
    slow = script("import signal, time\nsignal.signal(15, lambda *_: (time.sleep(1), sys.exit(0)))\n" + SERVE)
    await up(yard)
    await yard.place("r-1", slow)
    await yard.place("r-2", index=1)
    await yard.ready("r-2")
    first = (await yard.ready("r-1")).process
    assert first is not None
    await yard.unload("r-1")
    ended = False
    while ReplicaId("r-1") in yard.fleet.replicas:
        ended = not alive(first.pid)
        await asyncio.sleep(0.005)
    assert ended
    assert alive(pid_of(yard, "r-2"))
    await yard.place("r-3")
    third = (await yard.ready("r-3")).process
    assert third is not None
    assert third.port != first.port


async def test_a_worker_that_is_restarted_for_an_upgrade_loses_nothing(yard: Yard) -> None:
    """W4, N2, X2: the process is adopted; labels, drain and overrides are the operator's and stay."""
    worker = yard.worker(at_end="keep")
    await yard.until(lambda fleet: N1 in fleet.nodes)
    await yard.place()
    await yard.ready()
    pid, before = pid_of(yard), yard.fleet.nodes[N1].incarnation
    key = LabelKey("tier")
    await yard.decide(
        NodeLabelsChanged(node=N1, changed={key: "gold"}),
        NodeMaxReplicasOverridden(node=N1, max_replicas_per_model=7),
        NodeDrainStarted(node=N1, deadline_seconds=600),
    )
    await worker.terminate()
    assert alive(pid)
    yard.worker(at_end="end")
    await yard.until(lambda fleet: fleet.nodes[N1].incarnation != before)
    node = yard.fleet.nodes[N1]
    assert (node.operator_labels, node.max_replicas_per_model) == ({key: "gold"}, 7)
    assert isinstance(node.intent, NodeDraining)
    assert isinstance(node.liveness, Alive)
    assert (pid_of(yard), alive(pid)) == (pid, True)
    tags = await yard.tags()
    assert tags.count(ReplicaAdopted.__name__) == 1
    assert NodeDeparted.__name__ not in tags


async def test_replicas_serve_on_while_nats_is_away_and_what_happened_is_told_once(yard: Yard) -> None:
    """W8, X26: a process that ends in the meantime is in the books as ended, the other one stays."""
    await up(yard)
    await yard.place("r-1")
    await yard.place("r-2", index=1)
    address, dead = await yard.address("r-1"), (await yard.ready("r-2")).process
    assert dead is not None
    await yard.nats.end()
    os.kill(dead.pid, signal.SIGKILL)
    for _ in range(4):
        assert await answers(address)
        await asyncio.sleep(0.5)
    await yard.nats.begin()
    await yard.ended("r-2")
    await yard.runtime.wait_ready(timeout_seconds=20)
    assert await answers(address)
    assert ReplicaId("r-1") in yard.fleet.replicas
    tags = await yard.tags()
    assert [tags.count(kind.__name__) for kind in (ReplicaCrashed, ReplicaUnloaded, NodeIncarnationStarted)] == [1] * 3


async def test_a_second_worker_of_a_living_name_is_refused(yard: Yard) -> None:
    """N3: it says by whom, and nothing flaps."""
    await up(yard)
    await yard.place()
    await yard.ready()
    first, sequence = yard.fleet.nodes[N1].incarnation, yard.fleet.sequence
    rival = yard.worker(state="elsewhere")
    with pytest.raises(NameTakenError, match=first):
        await asyncio.wait_for(rival.task, 20)
    assert yard.fleet.sequence == sequence
    assert alive(pid_of(yard))


async def test_a_removed_node_stops_its_processes_and_comes_back_as_new(yard: Yard) -> None:
    """N13, X10: no zombie serves on, and nothing of the old one is kept."""
    await up(yard)
    await yard.decide(NodeLabelsChanged(node=N1, changed={LabelKey("tier"): "gold"}))
    await yard.place()
    await yard.ready()
    pid, first = pid_of(yard), yard.fleet.nodes[N1].incarnation
    await yard.commit(lambda fleet: remove(fleet, node=N1))
    await yard.until(lambda fleet: N1 in fleet.nodes and fleet.nodes[N1].incarnation != first)
    assert not alive(pid)
    assert yard.fleet.nodes[N1].operator_labels == {}


async def test_a_pending_node_is_approved_by_nothing_that_its_worker_does(tmp_path: Path) -> None:
    """X9, N4: neither by a restart nor by being lost and heard again."""
    async with a_yard(tmp_path, auto_approve=False) as yard:
        worker = yard.worker()
        await yard.until(lambda fleet: N1 in fleet.nodes)
        incarnation = yard.fleet.nodes[N1].incarnation
        await yard.decide(NodeLost(node=N1, incarnation=incarnation, silent_seconds=60, grace_seconds=600))
        await worker.terminate()
        assert isinstance(yard.fleet.nodes[N1].liveness, Lost | Departed)
        yard.worker()
        await yard.until(lambda fleet: isinstance(fleet.nodes[N1].liveness, Alive))
        assert yard.fleet.nodes[N1].admission == "pending"
        assert not yard.fleet.nodes[N1].takes_replicas
        assert NodeApproved.__name__ not in await yard.tags()


async def test_a_process_that_nobody_believes_in_is_stopped(yard: Yard, tmp_path: Path) -> None:
    """C6, X26: left by a life that the log has closed."""
    worker = yard.worker(at_end="keep")
    await yard.until(lambda fleet: N1 in fleet.nodes)
    await yard.place()
    await yard.ready()
    pid = pid_of(yard)
    await worker.terminate()
    await yard.commit(lambda fleet: remove(fleet, node=N1))
    assert alive(pid)
    yard.worker()
    await yard.until(lambda fleet: N1 in fleet.nodes and not alive(pid))
    assert not marked(tmp_path / "state")


async def test_a_replica_that_routers_use_is_not_dead_for_its_silence_and_an_idle_one_is(yard: Yard) -> None:
    """X15, T4: what routers tell the worker of their use is what its own probes go by."""
    yard.worker(figures=WorkerFigures(probe_interval_seconds=0.1, probe_seconds=0.09))
    await yard.until(lambda fleet: N1 in fleet.nodes)
    await yard.place()
    await yard.ready()
    subject, bus = worker_subject(N1, USED), yard.runtime.bus
    await bus.publish(subject, msgspec.json.encode({"r-1": time.time_ns()}))
    os.kill(pid_of(yard), signal.SIGSTOP)
    silent_until = time.monotonic() + 3
    while time.monotonic() < silent_until:
        await bus.publish(subject, msgspec.json.encode({"r-1": time.time_ns()}))
        await asyncio.sleep(0.05)
    assert ReplicaId("r-1") in yard.fleet.replicas
    assert isinstance(yard.fleet.replicas[ReplicaId("r-1")].phase, Ready)
    await yard.until(lambda fleet: not isinstance(fleet.replicas[ReplicaId("r-1")].phase, Ready))
    os.kill(pid_of(yard), signal.SIGCONT)
    (drained,) = [entry.event for entry in await yard.entries() if isinstance(entry.event, ReplicaDrainStarted)]
    assert drained.reason == "probe_failed"


async def test_events_that_cannot_be_read_end_nothing_that_serves(yard: Yard) -> None:
    """W1, I11: what comes after them is unknown, so nothing is started or stopped; and the worker says so."""
    worker = yard.worker()
    await yard.until(lambda fleet: N1 in fleet.nodes)
    await yard.place()
    address, pid = await yard.address(), pid_of(yard)
    client = await nats.connect(yard.server.control_url, inbox_prefix="_INBOX_control")
    with capture_logs() as said:
        await client.jetstream().publish(node_subject(N1), b'{"event": {"type": "replica.stop_req')
        async with asyncio.timeout(30):
            while not any("can't be read" in entry["event"] for entry in said):  # noqa: ASYNC110 - a log line is no event
                await asyncio.sleep(0.02)
    await client.close()
    assert alive(pid)
    assert await answers(address)
    assert not worker.task.done()


async def test_a_crash_is_told_with_its_last_words_and_not_started_again(yard: Yard) -> None:
    """W5: the reconciler decides; here is none."""
    dying = script("import threading, os\n"
                   "def die():\n    print('out of cheese', file=sys.stderr); os._exit(7)\n"
                   "threading.Timer(1.5, die).start()\n" + SERVE)  # fmt: skip
    await up(yard)
    await yard.place("r-1", dying)
    await yard.ready()
    await yard.ended()
    await asyncio.sleep(1)
    [crashed] = [e.event for e in await yard.entries() if isinstance(e.event, ReplicaCrashed)]
    assert crashed.exit.exit_code == 7
    assert crashed.exit.stderr_tail[-1] == "out of cheese"
    assert (await yard.tags()).count(ReplicaLoadStarted.__name__) == 1


async def test_how_far_a_load_has_come_is_in_the_heartbeats(yard: Yard) -> None:
    """C7, N8: by the memory it has taken of what is reserved for it."""
    await up(yard)
    await yard.place("r-1", script("import os, time; weights = bytearray(os.urandom(2**20)) * 300; time.sleep(600)"))

    def told() -> list[float]:
        heartbeat = yard.runtime.demand.heartbeat(N1)
        readings = heartbeat.replicas if heartbeat is not None else ()
        return [one.progress for one in readings if one.progress is not None]

    await yard.until(lambda _fleet: any(share >= 0.25 for share in told()))
    assert max(told()) < 0.5, "of 1 GiB"


async def test_a_worker_tells_that_it_lives_as_often_as_the_settings_say(yard: Yard) -> None:
    """N8, S1: from the change on; by the rule the next time would come after ten seconds."""
    await up(yard)
    await yard.until(lambda _fleet: N1 in yard.runtime.demand.nodes)
    heard: set[int] = set()

    def often(_fleet: Fleet) -> bool:
        heard.add(yard.runtime.demand.nodes[N1].heard_ns)
        return len(heard) >= 12

    started = time.monotonic()
    await yard.decide(FleetSettingsChanged(settings=Settings(heartbeat_seconds=0.1), changed=("heartbeat_seconds",)))
    await yard.until(often)
    assert time.monotonic() - started < 9


async def test_no_secret_is_in_the_log_or_said_by_the_worker(
    yard: Yard, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """W3: a launch spec names where it is, and only the process gets it."""
    secret = "hunter2-of-this-test"  # noqa: S105 - looked for below
    (tmp_path / "secret").write_text(secret)
    await up(yard)
    await yard.place("r-1", echo(environment={"KEY": SecretRef(from_file=str(tmp_path / "secret"))}))
    await yard.ready()
    assert secret in psutil.Process(pid_of(yard)).environ().values()
    assert all(secret not in repr(entry) for entry in await yard.entries())
    said = capfd.readouterr()
    assert secret not in said.out + said.err


async def test_a_stop_says_goodbye_first_and_ends_what_runs(yard: Yard, tmp_path: Path) -> None:
    """N9, X22: routers hear of it while the process still answers; no process outlives the worker."""
    worker = yard.worker()
    await yard.until(lambda fleet: N1 in fleet.nodes)
    await yard.place()
    address = await yard.address()
    worker.stop.set()
    await yard.until(lambda fleet: isinstance(fleet.nodes[N1].liveness, Departed))
    assert await answers(address)
    await worker.terminate()
    assert marked(tmp_path / "state") == []
    assert yard.fleet.nodes[N1].vram_reserved == 0
    assert ReplicaDrainStarted.__name__ not in await yard.tags()


async def test_a_stop_while_nats_is_away_ends_what_runs_within_its_limits(yard: Yard, tmp_path: Path) -> None:
    """W8, X26: nobody hears the goodbye, and no process outlives the worker for that."""
    worker = yard.worker()
    await yard.until(lambda fleet: N1 in fleet.nodes)
    await yard.place()
    await yard.ready()
    await yard.nats.end()
    await worker.terminate(seconds=GOODBYE_SECONDS + 10)
    assert marked(tmp_path / "state") == []
    await yard.nats.begin()
    await yard.runtime.wait_ready(timeout_seconds=20)
    assert isinstance(yard.fleet.nodes[N1].liveness, Alive), "nobody told it; its silence will"
    yard.worker()
    await yard.ended()
    assert (await yard.tags()).count(ReplicaUnloaded.__name__) == 1


async def test_what_died_while_no_worker_watched_is_told_once(yard: Yard) -> None:
    """W4, W8, X26: the worker is killed, then one of its backends; the next worker tells that and adopts the other."""
    async with yard.killable_worker() as worker:
        await yard.until(lambda fleet: N1 in fleet.nodes)
        await yard.place("r-1")
        await yard.place("r-2", index=1)
        await yard.ready("r-1")
        await yard.ready("r-2")
        worker.kill()
        await worker.wait()
    stays, dies = pid_of(yard, "r-1"), pid_of(yard, "r-2")
    keeper = psutil.Process(dies).ppid()
    os.kill(dies, signal.SIGKILL)
    await yard.until(lambda _: not alive(keeper))  # it has buried its backend; nobody else saw it
    yard.worker()
    await yard.ended("r-2")
    await yard.until(lambda fleet: fleet.replicas[ReplicaId("r-1")].process is not None)
    assert (pid_of(yard, "r-1"), alive(stays)) == (stays, True)
    entries = [entry.event for entry in await yard.entries()]
    ended = [event for event in entries if isinstance(event, ReplicaUnloaded)]
    assert [event.replicas for event in ended] == [("r-2",)]
    assert sum(isinstance(event, ReplicaAdopted) for event in entries) == 1


@pytest.mark.parametrize("moment", ["lock", "record.json", "keeper.json", "log"])
async def test_a_worker_that_is_killed_in_mid_start_leaves_nothing_untracked(
    yard: Yard, tmp_path: Path, moment: str
) -> None:
    """X26, W4: whatever of the start had happened; the next worker has the process, or there is none."""
    async with yard.killable_worker() as worker:
        await yard.until(lambda fleet: N1 in fleet.nodes)
        placing = asyncio.create_task(yard.place())
        written = tmp_path / "state" / "replicas" / "r-r-1" / moment
        async with asyncio.timeout(UNTIL_SECONDS):
            while not written.exists():  # noqa: ASYNC110 - a file tells nobody, and the moment is short
                await asyncio.sleep(0)
        worker.kill()
        await worker.wait()
    await placing
    yard.worker()
    await yard.until(lambda fleet: _is_settled(fleet, marked(tmp_path / "state")))


def _is_settled(fleet: Fleet, running: list[int]) -> bool:
    """Ready with its one process, or ended without any."""
    state = fleet.replicas.get(ReplicaId("r-1"))
    if state is None:
        return running == []
    return isinstance(state.phase, Ready) and running == [state.phase.process.pid]


async def test_what_ended_while_a_worker_was_cut_off_is_stopped_once_it_is_back(yard: Yard) -> None:
    """X26, N9: the same life comes back; the end is in the log, and no later event of its node says so again."""
    async with yard.killable_worker() as worker:
        await yard.until(lambda fleet: N1 in fleet.nodes)
        await yard.place()
        await yard.ready()
        pid = pid_of(yard)
        worker.send_signal(signal.SIGSTOP)
        await yard.nats.end()
        await yard.nats.begin()
        await yard.runtime.wait_ready(timeout_seconds=20)
        await yard.commit(lambda fleet: end(fleet, [ReplicaId("r-1")], reason="node_lost"))
        worker.send_signal(signal.SIGCONT)
        await yard.until(lambda _: not alive(pid))


async def test_a_replica_that_got_ready_unheard_is_published_by_the_next_worker(yard: Yard, tmp_path: Path) -> None:
    """W4, W8: it is ready on disk and loading in the log; left at that it would serve nobody until its deadline."""
    worker = yard.worker(at_end="keep")
    await yard.until(lambda fleet: N1 in fleet.nodes)
    await yard.place("r-1", echo("--startup-seconds", "2"))
    await yard.until(lambda fleet: isinstance(fleet.replicas[ReplicaId("r-1")].phase, Loading))
    await yard.nats.end()
    record = tmp_path / "state" / "replicas" / "r-r-1" / "record.json"
    async with asyncio.timeout(20):
        while b'"ready":true' not in record.read_bytes():  # noqa: ASYNC110 - a file tells nobody
            await asyncio.sleep(0.05)
    await worker.terminate()
    await yard.nats.begin()
    await yard.runtime.wait_ready(timeout_seconds=20)
    assert isinstance(yard.fleet.replicas[ReplicaId("r-1")].phase, Loading)
    yard.worker()
    assert await answers(await yard.address())
    assert (await yard.tags()).count(ModelReplicaReady.__name__) == 1


async def test_a_worker_whose_name_was_taken_in_mid_life_ends_in_order(yard: Yard, tmp_path: Path) -> None:
    """N3, X26: it was lost, another one has the name; its processes end, though it was to keep them."""
    first = yard.worker(at_end="keep")
    await yard.until(lambda fleet: N1 in fleet.nodes)
    await yard.place()
    await yard.ready()
    pid, incarnation = pid_of(yard), yard.fleet.nodes[N1].incarnation
    await yard.decide(NodeLost(node=N1, incarnation=incarnation, silent_seconds=60, grace_seconds=600))
    yard.worker(state="elsewhere")
    await yard.until(lambda fleet: fleet.nodes[N1].incarnation != incarnation)
    await yard.nats.end()
    await yard.nats.begin()
    with pytest.raises(NameTakenError):
        await asyncio.wait_for(first.task, 40)
    assert not alive(pid)
    assert marked(tmp_path / "state") == []
