"""The projector process is killed at random moments under load: nothing twice, nothing lost, on the real servers."""

import asyncio
import contextlib
import random
import socket
from collections.abc import Callable

import httpx
import pytest

from modelyard_services.effects.log.endpoint import connect
from modelyard_services.effects.log.jetstream import open_log
from modelyard_services.effects.log.streams import Layout, declare_streams
from tests.support.nats_servers import Servers
from tests.support.postgres import Database as EmptyDatabase
from tests.support.projections import ProjectorProcess, Writer, opened, projected, projector_process, verify
from tests.support.public_streams import published, verify_public

KILLS = 6


@pytest.mark.timeout(180)
@pytest.mark.parametrize("processes", [1, 2])
async def test_kill_9_at_any_moment_repeats_nothing_and_loses_nothing(
    processes: int, nats_alone: Servers, database: EmptyDatabase
) -> None:
    """I9, I10: rows, history and public stream are exact after every crash, also with a rival at work."""
    client = await connect(nats_alone.endpoint)
    await declare_streams(client, Layout())
    await client.close()
    chance = random.Random(processes)  # noqa: S311 - a moment, not a secret
    async with open_log(nats_alone.endpoint) as log, opened(database) as read_model:
        writer = Writer(log, processes, nodes=30)
        done = asyncio.Event()
        load = asyncio.create_task(_load(writer, done))
        with projector_process(nats_alone, database) as victim:
            await _torment(processes - 1, nats_alone, database, victim, chance)
            done.set()
            last = await load
            await projected(read_model, last)
            await verify(read_model, log)
            await published(nats_alone, last)
            await verify_public(nats_alone, log)
            assert victim.stop() == 0


async def test_a_process_that_cant_read_an_event_stays_and_says_which_and_why(
    nats_alone: Servers, database: EmptyDatabase
) -> None:
    """Readiness names sequence and reason; both duties stop, neither skips."""
    client = await connect(nats_alone.endpoint)
    await declare_streams(client, Layout())
    await client.close()
    port = _free_port()
    async with open_log(nats_alone.endpoint) as log, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
        writer = Writer(log, 9)
        last = await writer.append(20)
        with projector_process(nats_alone, database, status_port=port) as process:
            await _readiness(http, lambda problems: problems == [])
            assert "modelyard_projector_sequence" in (await http.get("/metrics")).text
            await writer.append_raw(b'{"event":{"type":"node.teleported.v1"}}')
            problems = await _readiness(http, lambda problems: len(problems) == 2)
            for duty, told in zip(("projection", "relay"), problems, strict=True):
                assert told.startswith(f"{duty}: stopped: stopped before log sequence {last + 1}: unknown tag")
            assert (await http.get("/healthz")).status_code == 200
            assert process.stop() == 0


async def _readiness(http: httpx.AsyncClient, wanted: Callable[[list[str]], bool]) -> list[str]:
    """The problems that `/readyz` names, once they are as wanted."""
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(httpx.TransportError):  # not listening yet
                answer = await http.get("/readyz")
                problems: list[str] = answer.json()["problems"]
                if wanted(problems):
                    assert answer.status_code == (503 if problems else 200)
                    return problems
            await asyncio.sleep(0.05)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def _load(writer: Writer, done: asyncio.Event) -> int:
    """Append until told to end."""
    last = 0
    while not done.is_set():
        last = await writer.append(5)
        await asyncio.sleep(0.002)
    return last


async def _torment(
    rivals: int, servers: Servers, database: EmptyDatabase, victim: ProjectorProcess, chance: random.Random
) -> None:
    with contextlib.ExitStack() as stack:
        killed = [victim, *(stack.enter_context(projector_process(servers, database)) for _ in range(rivals))]
        await asyncio.sleep(3)
        for turn in range(KILLS):
            one = killed[turn % len(killed)]
            one.kill()
            one.start()
            await asyncio.sleep(1.5 + chance.random())
