"""The gateway on a real NATS server before real processes: streams, disconnects, deaths, drains, spread."""

import asyncio
import itertools
import json
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping

import aiohttp
import msgspec
import pytest

from modelyard_events.envelope import Actor
from modelyard_events.fleet import FleetTokenCreated
from modelyard_events.ids import ModelName, ReplicaId
from modelyard_events.model import ModelRedefined, ModelScheduleSet
from modelyard_events.spec import Schedule, revision_of
from modelyard_projections.fleet import Placed
from modelyard_services.effects.upstream import Pool
from modelyard_services.errors import UnauthorizedError
from modelyard_services.gateway.app import Gateway
from modelyard_services.gateway.main import Front
from modelyard_services.policy.access import Access
from modelyard_services.policy.tokens import digest_of
from tests.support.given import a_drain, some_spec
from tests.support.nats_servers import Servers
from tests.support.yard import Yard, a_gateway, a_router, a_yard, eventually, leases_on, served

WORDS = "one two three four five six seven eight"
CHAT = {"model": "m", "stream": True, "messages": [{"role": "user", "content": WORDS}]}
EMBED = {"model": "m", "input": "hello"}


@pytest.fixture
async def yard(nats_r1: Servers) -> AsyncIterator[Yard]:
    await nats_r1.forget()
    async with a_yard(nats_r1.url) as yard:
        yield yard


async def test_an_answer_comes_from_the_replica_that_the_headers_name(yard: Yard) -> None:
    """DESIGN 5: node, replica, lease and overhead; names with odd characters work."""
    await yard.model("org/m:q4 x", nodes=["n1"])
    await yard.ready("r-1", node="n1", model="org/m:q4 x")
    async with a_router(yard.url) as router, a_gateway(router) as client:
        answer = await client.post("/v1/embeddings", json=EMBED | {"model": "org/m:q4 x"})
        body = await answer.json()
        assert answer.status == 200, body
        assert body["model"] == "org/m:q4 x"
        assert answer.headers["x-modelyard-node"] == "n1"
        assert answer.headers["x-modelyard-replica"] == "r-1"
        assert answer.headers["x-modelyard-lease"].startswith(router.incarnation)
        assert float(answer.headers["x-modelyard-overhead-ms"]) > 0
        assert leases_on(router, "r-1") == 0
        listed = await (await client.get("/v1/models")).json()
        assert [model["id"] for model in listed["data"]] == ["org/m:q4 x"]
        one = await client.get("/v1/models/org%2Fm%3Aq4%20x")
        assert (await one.json())["id"] == "org/m:q4 x"
        assert abs(listed["data"][0]["created"] - time.time()) < 60


async def test_beyond_loopback_health_is_told_to_all_and_figures_to_whoever_has_a_token(yard: Yard) -> None:
    """N4, T8: on loopback all three are open."""
    await yard.commit(FleetTokenCreated(name="eve", role="viewer", digest=digest_of("secret")))
    paths = ("/healthz", "/readyz", "/metrics")
    async with a_router(yard.url) as router, Pool() as pool:
        for beyond, statuses in ((False, [200, 200, 200]), (True, [200, 401, 401])):
            access = Access(router.runtime.fleet, open_on_loopback=not beyond)
            app = Front(Gateway(router, pool, authenticate=access.client), router, access)
            async with served(app) as url, aiohttp.ClientSession(url) as client:
                assert [await _status(client, path) for path in paths] == statuses
                bearer = {"authorization": "Bearer secret"}
                assert [await _status(client, path, **bearer) for path in paths] == [200, 200, 200]


async def _status(client: aiohttp.ClientSession, path: str, **headers: str) -> int:
    async with client.get(path, headers=headers) as answer:
        return answer.status


async def test_a_model_answers_to_its_aliases_and_its_replica_to_its_own_name(yard: Yard) -> None:
    """Over `/v1/*`; the model list has both, and an alias that is gone is unknown."""
    await yard.model(nodes=["n1"])
    aliased = msgspec.structs.replace(some_spec(), aliases=("gpt-4", "org/chat"))
    redefined = ModelRedefined(
        model="m", spec=aliased, revision=revision_of(aliased), previous=revision_of(some_spec())
    )
    await yard.commit(redefined)
    await yard.ready("r-1", node="n1")
    async with a_router(yard.url) as router, a_gateway(router) as client:
        for name in ("gpt-4", "org/chat", "m"):
            answer = await client.post("/v1/embeddings", json=EMBED | {"model": name, "input": "h\u00e9 \U0001f600"})
            assert (answer.status, (await answer.json())["model"]) == (200, "m")
            assert answer.headers["x-modelyard-replica"] == "r-1"
        listed = await (await client.get("/v1/models")).json()
        assert {model["id"]: model["root"] for model in listed["data"]} == {"gpt-4": "m", "m": "m", "org/chat": "m"}
        one = await (await client.get("/v1/models/org%2Fchat")).json()
        assert (one["id"], one["root"]) == ("org/chat", "m")
        await yard.commit(*[msgspec.structs.replace(redefined, spec=some_spec())])
        await eventually(lambda: not router.runtime.fleet.aliases)
        async with client.post("/v1/embeddings", json=EMBED | {"model": "gpt-4"}) as unknown:
            assert unknown.status == 404


async def test_a_stream_is_passed_through_as_it_arrives(yard: Yard) -> None:
    """Each token reaches the client while the process still makes the next."""
    await yard.model(nodes=["n1"])
    await yard.ready("r-1", "--token-seconds", "0.1", node="n1")
    async with a_router(yard.url) as router, a_gateway(router) as client:
        arrived: list[float] = []
        async with client.post("/v1/chat/completions", json=CHAT) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            async for line in answer.content:
                if line.startswith(b"data: {"):
                    assert arrived or leases_on(router, "r-1") == 1
                    arrived.append(time.monotonic())
        gaps = [later - sooner for sooner, later in itertools.pairwise(arrived)]
        assert len(arrived) == len(WORDS.split()) + 1
        assert min(gaps) > 0.03, "chunks were held back"
        await eventually(lambda: leases_on(router, "r-1") == 0)


async def test_a_client_that_hangs_up_releases_its_lease_and_stops_the_work(yard: Yard) -> None:
    """X16: mid-stream, and while it waits for the first byte."""
    await yard.model(nodes=["n1"])
    await yard.ready("r-1", "--token-seconds", "0.3", node="n1")
    async with a_router(yard.url) as router, a_gateway(router) as client:
        for stream in (True, False):
            asking = asyncio.create_task(_read(client, CHAT | {"stream": stream}))
            await eventually(lambda: leases_on(router, "r-1") == 1)
            await asyncio.sleep(0.2)
            asking.cancel()
            await asyncio.wait([asking])
            await eventually(lambda: leases_on(router, "r-1") == 0, seconds=1)


async def test_a_client_that_hangs_up_while_the_model_loads_leaves_the_queue(yard: Yard) -> None:
    """T7."""
    await yard.model(nodes=["n1"])
    async with a_router(yard.url) as router, a_gateway(router) as client:
        asking = asyncio.create_task(client.post("/v1/embeddings", json=EMBED))
        await eventually(lambda: ModelName("m") in router._queues)
        asking.cancel()
        await asyncio.wait([asking])
        await eventually(lambda: ModelName("m") not in router._queues)


async def test_traffic_is_spread_evenly_over_two_replicas(yard: Yard) -> None:
    """X24: 32 at a time, and one at a time."""
    await yard.model(nodes=["n1", "n2"])
    await yard.ready("r-1", node="n1")
    await yard.ready("r-2", node="n2")
    async with a_router(yard.url) as router, a_gateway(router) as client:
        for at_once in (32, 1):
            used: Counter[str] = Counter()

            async def ask_often(used: Counter[str], times: int) -> None:
                for _ in range(times):
                    answer = await client.post("/v1/embeddings", json=EMBED)
                    await answer.read()
                    assert answer.status == 200
                    used[answer.headers["x-modelyard-replica"]] += 1

            await asyncio.gather(*[ask_often(used, 320 // at_once) for _ in range(at_once)])
            assert max(used.values()) / (used.total() / 2) <= 1.1, used


async def test_a_session_stays_with_its_replica_where_the_schedule_asks_for_it(yard: Yard) -> None:
    """T3, X13: by header or by the body's own field, over two routers; other sessions go elsewhere."""
    await yard.model(nodes=["n1", "n2"])
    await yard.commit(ModelScheduleSet(model="m", schedule=Schedule(affinity="session"), source="api"))
    for number, node in enumerate(("n1", "n1", "n2")):
        await yard.ready(f"r-{number}", node=node, index=number % 2)
    async with (
        a_router(yard.url) as one,
        a_router(yard.url) as other,
        a_gateway(one) as first,
        a_gateway(other) as second,
    ):
        homes: dict[str, set[str]] = {}
        for client in (first, second, first):
            for name in map(str, range(12)):
                answer = await client.post("/v1/embeddings", json=EMBED, headers={"x-modelyard-session": name})
                await answer.read()
                homes.setdefault(name, set()).add(answer.headers["x-modelyard-replica"])
                assert answer.headers["x-modelyard-choice"] == "session"
        assert all(len(replicas) == 1 for replicas in homes.values())
        assert set.union(*homes.values()) == {"r-0", "r-1", "r-2"}
        told = await first.post("/v1/embeddings", json=EMBED | {"user": "7"})
        await told.read()
        assert {told.headers["x-modelyard-replica"]} == homes["7"]


async def test_prompts_that_begin_alike_go_to_one_replica_where_the_schedule_asks_for_it(yard: Yard) -> None:
    """T3."""
    await yard.model(nodes=["n1", "n2"])
    await yard.commit(ModelScheduleSet(model="m", schedule=Schedule(affinity="prefix"), source="api"))
    await yard.ready("r-1", node="n1")
    await yard.ready("r-2", node="n2")
    async with a_router(yard.url) as router, a_gateway(router) as client:

        async def home(*said: str) -> tuple[str, str]:
            messages = [{"role": "user", "content": text} for text in said]
            answer = await client.post("/v1/chat/completions", json={"model": "m", "messages": messages})
            await answer.read()
            return answer.headers["x-modelyard-replica"], answer.headers["x-modelyard-choice"]

        ann, bob = await home("ann " * 200), await home("bob " * 200)
        assert {ann, bob} == {("r-1", "least_busy"), ("r-2", "least_busy")}
        for _ in range(3):
            assert await home("ann " * 200, "and then?") == (ann[0], "prefix")
            assert await home("bob " * 200, "and then?") == (bob[0], "prefix")


async def test_a_killed_process_costs_no_request_and_its_sibling_stays(yard: Yard) -> None:
    """X14, X12, T9: no load begins, nothing else is taken out."""
    await yard.model(nodes=["n1", "n2"])
    await yard.ready("r-1", node="n1")
    await yard.ready("r-2", node="n2")
    async with a_router(yard.url) as router, a_gateway(router) as client:
        for _ in range(4):
            assert (await _ask(client))[0] == 200
        before = yard.runtime.fleet.sequence
        yard.kill("r-1")
        answers = [await _ask(client) for _ in range(10)]
        assert {(status, replica) for status, replica, _body in answers} == {(200, "r-2")}
        assert [candidate.replica for candidate in router._board.shut_ones()] == ["r-1"], "each request pays for it"
        assert yard.runtime.fleet.sequence == before


async def test_a_process_that_dies_in_mid_stream_ends_the_stream_with_the_reason(yard: Yard) -> None:
    """T8: the client is told, and doesn't take the answer for whole."""
    await yard.model(nodes=["n1"])
    await yard.ready("r-1", "--token-seconds", "0.1", node="n1")
    async with a_router(yard.url) as router, a_gateway(router) as client:
        lines: list[bytes] = []
        async with client.post("/v1/chat/completions", json=CHAT) as answer:
            with pytest.raises(aiohttp.ClientPayloadError):
                await _collect(answer, lines, then=lambda: yard.kill("r-1"))
        told = json.loads([line for line in lines if line.startswith(b"data: ")][-1].removeprefix(b"data: "))
        assert told["error"]["code"] == "replica_failed"
        await eventually(lambda: leases_on(router, "r-1") == 0)


async def test_a_busy_process_is_not_thrown_away(yard: Yard) -> None:
    """X15: one request at a time, health checks behind it; a second request waits its turn."""
    await yard.model(nodes=["n1"])
    await yard.ready("r-1", "--serial", "--token-seconds", "0.4", node="n1")
    async with a_router(yard.url) as router, a_gateway(router) as client:
        first = asyncio.create_task(_read(client, CHAT))
        await eventually(lambda: leases_on(router, "r-1") == 1)
        router._checks._prober.forget(ReplicaId("r-1"))  # as 30 s later
        status, replica, _body = await _ask(client)
        assert (status, replica) == (200, "r-1")
        assert router._board.shut_ones() == []
        await first


async def test_a_draining_replica_ends_its_streams_well_and_gets_nothing_new(yard: Yard) -> None:
    """X11, R8."""
    await yard.model(nodes=["n1", "n2"])
    for replica, node in (("r-1", "n1"), ("r-2", "n2")):
        await yard.ready(replica, "--token-seconds", "0.3", node=node)
    async with a_router(yard.url) as router, a_gateway(router) as client:
        streaming = asyncio.create_task(_read(client, CHAT))
        await eventually(lambda: leases_on(router, "r-1") + leases_on(router, "r-2") == 1)
        drained, node, other = ("r-1", "n1", "r-2") if leases_on(router, "r-1") else ("r-2", "n2", "r-1")
        await yard.commit(*a_drain(drained, node=node))
        drained_at = yard.runtime.fleet.sequence
        await router.runtime.journal.passed(drained_at, timeout_seconds=5)
        assert {(await _ask(client))[1] for _ in range(6)} == {other}

        def is_empty() -> bool:
            runtime, now_ns = yard.runtime, yard.runtime.clock.monotonic_ns()
            settings, replica = runtime.fleet.settings, ReplicaId(drained)
            return runtime.demand.is_empty(settings, replica, drained_at=drained_at, now_ns=now_ns)

        assert not is_empty()
        text = await streaming
        assert text.count(b"data: {") == len(WORDS.split()) + 1
        assert text.rstrip().endswith(b"[DONE]")
        await eventually(is_empty)


async def test_the_leases_of_a_killed_router_are_forgotten(yard: Yard) -> None:
    """X16: kill -9, five seconds of silence, and the replica is empty."""
    await yard.model(nodes=["n1"])
    await yard.ready("r-1", node="n1")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.yard_router", yard.url, "m", stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert (await process.stdout.readline()).startswith(b"lease")
    async with a_router(yard.url) as router:
        others = router._board
        await eventually(lambda: others.candidates(ModelName("m"))[0].others == 1)
        process.send_signal(signal.SIGKILL)
        await process.wait()
        killed = time.monotonic()
        await eventually(lambda: others.candidates(ModelName("m"))[0].others == 0)
        assert 3 < time.monotonic() - killed < 8


async def test_two_router_processes_with_a_cold_model_cause_one_load(yard: Yard) -> None:
    """T5: forty first requests in two processes, one replica placed."""
    await yard.model(nodes=["n1", "n2"])
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.support.yard_router", yard.url, "m", "20", stdout=asyncio.subprocess.PIPE
        )
        for _ in range(2)
    ]
    told = [await process.communicate() for process in processes]
    assert [out.splitlines() for out, _ in told] == [[b"model_loading"] * 20] * 2
    (state,) = yard.runtime.fleet.replicas.values()
    assert isinstance(state.phase, Placed)


async def test_errors_are_what_openai_clients_read(yard: Yard) -> None:
    """T8."""
    await yard.model(nodes=["n1"])
    await yard.ready("r-1", node="n1")

    def authenticate(headers: Mapping[str, str]) -> Actor:
        if headers.get("authorization") != "Bearer right":
            raise UnauthorizedError("this token is unknown")
        return Actor("client", "somebody")

    async with a_router(yard.url) as router, a_gateway(router, authenticate=authenticate) as client:
        right = {"authorization": "Bearer right"}
        asked = {
            (401, "unauthorized"): client.post("/v1/embeddings", json=EMBED),
            (404, "model_unknown"): client.post("/v1/embeddings", json={"model": "nobody"}, headers=right),
            (400, "invalid_request"): client.post("/v1/embeddings", data=b'{"model": 7}', headers=right),
            (404, "not_found"): client.post("/v1/nonsense", json={}, headers=right),
        }
        for (status, code), question in asked.items():
            answer = await question
            error = (await answer.json())["error"]
            assert (answer.status, error["code"]) == (status, code)
            assert answer.headers["x-should-retry"] == "false"
            assert error["message"]
            assert error["type"]


async def test_a_cold_model_is_answered_with_when_to_ask_again(yard: Yard) -> None:
    """T5, T8."""
    await yard.model(nodes=["n1"])
    async with a_router(yard.url) as router, a_gateway(router, wait_seconds=0.2) as client:
        trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        answer = await client.post("/v1/embeddings", json=EMBED, headers={"traceparent": trace})
        error = (await answer.json())["error"]
        assert (answer.status, error["code"]) == (503, "model_loading")
        assert error["details"]["node"] == "n1"
        assert answer.headers["x-should-retry"] == "true"
        assert 5 <= int(answer.headers["retry-after"]) <= 120
        log = yard.runtime.log
        assert log is not None
        placed = await log.read(await log.last_sequence())
        assert placed is not None
        assert trace[3:35] in placed.body.decode(), "the load's events bear the request's trace"


async def _ask(client: aiohttp.ClientSession) -> tuple[int, str, bytes]:
    async with client.post("/v1/embeddings", json=EMBED) as answer:
        return answer.status, answer.headers.get("x-modelyard-replica", ""), await answer.read()


async def _read(client: aiohttp.ClientSession, body: object) -> bytes:
    async with client.post("/v1/chat/completions", json=body) as answer:
        return await answer.read()


async def _collect(answer: aiohttp.ClientResponse, lines: list[bytes], *, then: Callable[[], None]) -> None:
    """Keep what comes, and do `then` at each line."""
    async for line in answer.content:
        lines.append(line)
        then()
