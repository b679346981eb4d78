"""Whatever is killed, and in whatever order: what lives is somebody's, or ends (rule W4, trap X20)."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import psutil

from modelyard_events.ids import ReplicaId
from modelyard_events.requests import Loaded
from modelyard_services.effects.port_claims import Claims, claims_directory
from modelyard_services.worker.processes import Running
from tests.support.backends import SERVE, Told, echo, marked, request, script, supervised

WITH_A_DAEMON = "import os, time\nif os.fork() == 0:\n    os.setsid(); time.sleep(600)\n" + SERVE
"""A backend that leaves a helper behind which no signal to its group reaches."""

KILL_SECONDS = 30.0


@contextlib.asynccontextmanager
async def left_behind(state: Path, backend: str | None = None) -> AsyncIterator[Running]:
    """A ready replica whose worker is gone; its keeper lives."""
    told = Told()
    async with supervised(state, told, at_worker_end="keep") as processes:
        running = await processes.start(request("r1", echo() if backend is None else script(backend)))
        await told.wait(Loaded)
    assert running is not None
    try:
        yield running
    finally:
        for pid in marked(state):
            psutil.Process(pid).kill()


def kill_keeper(running: Running) -> None:
    keeper = psutil.Process(running.process.pid).parent()
    assert keeper is not None
    keeper.kill()


async def gone(pid: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        await asyncio.to_thread(psutil.Process(pid).wait, KILL_SECONDS)


async def test_a_backend_dies_with_its_keeper_though_no_worker_is_there_to_see(tmp_path: Path) -> None:
    """W4: nobody would know of it before the next worker starts, which may be never."""
    async with left_behind(tmp_path) as running:
        kill_keeper(running)
        await gone(running.process.pid)
        assert marked(tmp_path) == []


async def test_helpers_of_what_no_record_names_are_ended_though_their_keeper_is_gone(tmp_path: Path) -> None:
    """W4, X20: by the mark in their environment, for nothing else says whose they are."""
    async with left_behind(tmp_path, WITH_A_DAEMON) as running:
        kill_keeper(running)
        await gone(running.process.pid)
        assert len(marked(tmp_path)) == 1
        (tmp_path / "replicas" / "r-r1" / "record.json").write_text("{")
        async with supervised(tmp_path, Told()) as processes:
            assert processes.running() == ()
            assert marked(tmp_path) == []


async def test_an_adopted_process_has_its_port_claimed_by_its_new_worker(tmp_path: Path) -> None:
    """W4, X22: from the first moment, whatever its old worker's claim has come to."""
    async with left_behind(tmp_path) as running:
        stranger = Claims(claims_directory())
        async with supervised(tmp_path, Told()) as processes:
            assert [adopted.replica for adopted in processes.running()] == [ReplicaId("r1")]
            assert not stranger.take_over(running.process.port)
        assert stranger.take_over(running.process.port)
        stranger.give_back(running.process.port)
