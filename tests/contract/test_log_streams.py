"""The streams as they are declared, who is let in, and what happens when the log is full."""

import asyncio
import json
import ssl
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path

import msgspec
import pytest
import structlog
import trustme
import uvloop

from modelyard_events.subjects import EVENTS_STREAM, LEASES_STREAM, LOG_STREAM, TELEMETRY_STREAM
from modelyard_services.effects.connect import connected, open_runtime
from modelyard_services.effects.log.contract import Log, LogFull, LogMisconfigured, LogUnavailable
from modelyard_services.effects.log.endpoint import NatsEndpoint, connect
from modelyard_services.effects.log.jetstream import open_log
from modelyard_services.effects.log.streams import Layout, declare_streams
from modelyard_services.settings import NatsSettings, ProcessSettings
from tests.contract.conftest import declare
from tests.contract.decisions import A, B, event, read_all, read_until
from tests.support.nats_servers import Servers, started


async def raw(servers: Servers, subject: str, body: object = None) -> dict[str, dict[str, object]]:
    client = await connect(servers.endpoint)
    try:
        reply = await client.request(f"$JS.API.{subject}", json.dumps(body).encode() if body else b"", timeout=5)
    finally:
        await client.close()
    answer: dict[str, dict[str, object]] = json.loads(reply.data)
    assert "error" not in answer, answer
    return answer


async def test_declaring_twice_keeps_the_log(nats_r1: Servers) -> None:
    first = await declare(nats_r1)
    client = await connect(nats_r1.endpoint)
    try:
        again = await asyncio.gather(*(declare_streams(client, Layout()) for _ in range(5)))
    finally:
        await client.close()
    assert set(again) == {first}


@pytest.fixture
def fresh() -> Iterator[Servers]:
    """A server on which nothing was ever declared."""
    with started(1) as servers:
        yield servers


async def test_how_long_a_heartbeat_is_kept_is_as_the_first_process_is_told(fresh: Servers) -> None:
    """N8, S1: 30 s by the rule; what another is told later changes nothing."""
    for seconds in (90.0, 45.0):
        async with connected(NatsSettings(fresh.url, telemetry_seconds=seconds), "test"):
            telemetry = (await raw(fresh, f"STREAM.INFO.{TELEMETRY_STREAM}"))["config"]
        assert telemetry["max_age"] == 90 * 10**9


async def test_the_streams_are_what_the_design_says(nats_r3: Servers) -> None:
    log_id = await declare(nats_r3)
    log, events, telemetry, leases = [
        (await raw(nats_r3, f"STREAM.INFO.{stream}"))["config"]
        for stream in (LOG_STREAM, EVENTS_STREAM, TELEMETRY_STREAM, LEASES_STREAM)
    ]
    assert log["metadata"]["modelyard.log_id"] == log_id  # type: ignore[index]
    assert (log["storage"], log["discard"], log["num_replicas"]) == ("file", "new", 3)
    assert (log["deny_delete"], log["deny_purge"], log["allow_atomic"], log["allow_direct"]) == (True,) * 4
    assert (log["max_age"], log["max_msgs"], log["duplicate_window"]) == (0, -1, 600 * 10**9)
    assert (events["subjects"], events["max_age"]) == (["modelyard.events.>"], 7 * 24 * 3600 * 10**9)
    assert (telemetry["storage"], telemetry["max_msgs_per_subject"]) == ("memory", 1)
    assert telemetry["max_age"] == 30 * 10**9
    assert (leases["storage"], leases["max_msgs_per_subject"], leases["max_age"]) == ("file", 1, 0)
    assert {stream["num_replicas"] for stream in (events, telemetry, leases)} == {3}


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("max_age", 10**12),
        ("discard", "old"),
        ("allow_atomic", False),
        ("deny_purge", False),
        ("allow_rollup_hdrs", True),
    ],
)
async def test_a_stream_that_could_lose_history_is_refused_by_name(
    nats_r1: Servers, setting: str, value: object
) -> None:
    await declare(nats_r1)
    config = (await raw(nats_r1, f"STREAM.INFO.{LOG_STREAM}"))["config"]
    await nats_r1.forget(LOG_STREAM)
    off = {"deny_purge": False} if setting == "allow_rollup_hdrs" else {}
    await raw(nats_r1, f"STREAM.CREATE.{LOG_STREAM}", config | off | {setting: value})
    with pytest.raises(LogMisconfigured, match=setting):
        async with open_log(nats_r1.endpoint):
            pass
    client = await connect(nats_r1.endpoint)
    try:
        with pytest.raises(LogMisconfigured, match=setting):
            await declare_streams(client, Layout())
    finally:
        await client.close()


async def test_a_stream_without_a_log_id_is_not_ours(nats_r1: Servers) -> None:
    await declare(nats_r1)
    config = (await raw(nats_r1, f"STREAM.INFO.{LOG_STREAM}"))["config"]
    await nats_r1.forget(LOG_STREAM)
    await raw(nats_r1, f"STREAM.CREATE.{LOG_STREAM}", config | {"metadata": {}})
    with pytest.raises(LogMisconfigured, match="log_id"):
        async with open_log(nats_r1.endpoint):
            pass


async def test_too_few_replicas_are_refused(nats_r1: Servers) -> None:
    await declare(nats_r1)
    client = await connect(nats_r1.endpoint)
    try:
        with pytest.raises(LogMisconfigured, match="replicas"):
            await declare_streams(client, Layout(replicas=3))
    finally:
        await client.close()


async def test_a_log_that_is_not_declared_yet_is_unavailable(nats_r1: Servers) -> None:
    await nats_r1.forget()
    with pytest.raises(LogUnavailable):
        async with open_log(nats_r1.endpoint):
            pass


async def test_a_nearly_full_log_still_takes_facts_and_ends(nats_r1: Servers) -> None:
    await fills_up(nats_r1)


async def test_a_nearly_full_log_on_a_cluster_still_takes_facts_and_ends(nats_r3: Servers) -> None:
    await fills_up(nats_r3)


async def fills_up(servers: Servers) -> None:
    await declare(servers, log_bytes_max=1_000_000)
    async with open_log(servers.endpoint) as log:
        first = [event(A, "c0.0", 0, b"x" * 20_000), event(B, "c0.1")]
        await log.append(first)
        ordinary = await until_full(log, A, 1, essential=False)
        assert 0.8 * 1_000_000 < 20_000 * ordinary < 0.9 * 1_000_000
        essential = await until_full(log, B, 2, essential=True)
        assert 2 <= essential <= 6
        # What is in the log is still acknowledged, what isn't leaves no trace.
        assert await log.append(first) == (1, 2)
        with pytest.raises(LogFull):
            await log.append([event(f"{A}z", "c9.0", 0, b"x" * 20_000), event(f"{B}z", "c9.1")], essential=True)
        assert [s.sequence for s in await read_all(log)] == list(range(1, ordinary + essential + 3))


async def until_full(log: Log, subject: str, expected: int, *, essential: bool) -> int:
    """Append until there is no room; how many were taken."""
    for taken in range(100):
        try:
            message = event(subject, f"{subject}{essential}.{taken}", expected, b"x" * 20_000)
            (expected,) = await log.append([message], essential=essential)
        except LogFull:
            return taken
    raise AssertionError("the log never filled up")


async def test_an_append_without_any_server_says_that_nothing_was_written(
    nats_alone: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelyard_services.effects.log.appender.APPEND_SECONDS_MAX", 1.0)
    await declare(nats_alone)
    async with open_log(nats_alone.endpoint) as log:
        nats_alone.nodes[0].kill()
        await asyncio.sleep(0.2)
        with pytest.raises(LogUnavailable) as away:
            await log.append([event(A, "c1.0")])
        assert away.value.nothing_written
        await asyncio.to_thread(nats_alone.nodes[0].start)
        assert await log.append([event(A, "c2.0")]) == (1,)


async def test_an_append_to_a_frozen_server_says_that_the_outcome_is_unknown(
    nats_alone: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelyard_services.effects.log.appender.APPEND_SECONDS_MAX", 1.0)
    await declare(nats_alone)
    async with open_log(nats_alone.endpoint) as log:
        await log.append([event(f"{A}before", "c0.0")])
        nats_alone.nodes[0].pause()
        with pytest.raises(LogUnavailable) as away:
            await log.append([event(A, "c1.0"), event(B, "c1.1")])
        assert not away.value.nothing_written
        nats_alone.nodes[0].resume()
        # Repeated with the same ids and guards it is settled, whatever became of the first one.
        assert await log.append([event(A, "c1.0"), event(B, "c1.1")]) == (2, 3)
        assert await log.last_sequence() == 3


async def test_no_server_at_all_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelyard_services.effects.log.endpoint.CONNECT_SECONDS_MAX", 0.5)
    with pytest.raises(LogUnavailable):
        await connect(NatsEndpoint(urls=("nats://127.0.0.1:1",)))


@pytest.fixture
def slow_cluster() -> Iterator[Servers]:
    """Three servers that know one another, all of them down."""
    with started(3) as servers:
        for node in servers.nodes:
            node.stop()
        yield servers


async def test_streams_are_declared_as_soon_as_a_cluster_that_starts_slowly_can_take_them(
    slow_cluster: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """X10: two servers have a leader, but nowhere to put a third replica: that is no misconfiguration, and is told."""
    monkeypatch.setattr("modelyard_services.effects.log.api.READ_SECONDS_MAX", 1.0)
    for node in slow_cluster.nodes[:2]:
        node.start()
    settings = ProcessSettings("test", NatsSettings(slow_cluster.url, replicas=3))
    with structlog.testing.capture_logs() as logs:
        async with asyncio.timeout(60), open_runtime(settings) as runtime:
            while not any("no suitable peers" in problem for problem in runtime.problems):
                assert not runtime.ready
                assert runtime.feed.failure is None, runtime.problems
                await asyncio.sleep(0.02)
            assert any("no suitable peers" in str(entry.get("problem")) for entry in logs), "the log says what it is"
            slow_cluster.nodes[2].start()
            await runtime.wait_ready(timeout_seconds=30)
    assert len(logs) < 100, "a wait is told of, not drummed"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def guarded(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """A server that wants TLS and a password."""
    directory: Path = tmp_path_factory.mktemp("tls")
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(directory / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(directory / "cert.pem")
    extra = f"""
    tls {{ cert_file: "{directory / "cert.pem"}", key_file: "{directory / "key.pem"}" }}
    authorization {{ users: [ {{ user: "control", password: "se cret" }} ] }}
    """
    with started(1, extra=extra) as servers:
        yield servers


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_tls_and_password_reach_both_connections(
    guarded: Servers, authority: trustme.CA, run: Callable[[Coroutine[None, None, None]], None]
) -> None:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    run(lets_in(guarded, context))


async def lets_in(guarded: Servers, context: ssl.SSLContext) -> None:
    bare = msgspec.structs.replace(guarded.endpoint, tls=context)
    in_url = msgspec.structs.replace(bare, urls=(guarded.url.replace("://", "://control:se%20cret@"),))
    in_fields = msgspec.structs.replace(bare, user="control", password="se cret")  # noqa: S106
    client = await connect(in_url)
    try:
        await declare_streams(client, Layout())
    finally:
        await client.close()
    for endpoint in (in_url, in_fields):
        async with open_log(endpoint) as log:
            last = await log.last_sequence()
            await log.append([event(f"{A}{last}", f"c{last}.0")])
            assert await read_until(log, last + 1)
    with pytest.raises(LogUnavailable, match="wrong user or password"):
        await connect(msgspec.structs.replace(in_fields, password="wrong"))  # noqa: S106
