"""The embedded NATS server keeps its promises: real, durable, closed to others, and back after a crash."""

import asyncio
import os
import signal
import stat
from pathlib import Path

import msgspec
import nats
import nats.errors
import pytest
from nats.aio.client import Client
from nats.js.api import StreamConfig

from modelyard_services.effects.embedded.children import ChildState, ProcessTree
from modelyard_services.effects.embedded.nats import embedded_nats
from modelyard_services.effects.port_claims import Claims, claims_directory


async def test_acknowledged_messages_survive_kill_9_and_the_server_comes_back_by_itself(tmp_path: Path) -> None:
    async with ProcessTree(tmp_path / "run") as tree:
        server = embedded_nats(tmp_path)
        await tree.start(server.child)
        client = await nats.connect(server.control_url)
        await client.jetstream().add_stream(StreamConfig(name="LOG", subjects=["log"]))
        acknowledged = await client.jetstream().publish("log", b"kept")
        await client.close()
        _kill(tree)
        await _restarted(tree)
        client = await nats.connect(server.control_url)
        assert (await client.jetstream().get_msg("LOG", acknowledged.seq)).data == b"kept"
        await client.close()


async def test_addresses_and_secrets_stay_valid_over_restarts(tmp_path: Path) -> None:
    seen = set()
    for _ in range(2):
        async with ProcessTree(tmp_path / "run") as tree:
            server = embedded_nats(tmp_path)
            await tree.start(server.child)
            client = await nats.connect(server.control_url)
            await client.close()
            seen.add((server.url, server.control_url, server.callout_url, server.keys.issuer_seed))
    assert len(seen) == 1


async def test_a_given_port_is_taken(tmp_path: Path) -> None:
    port = embedded_nats(tmp_path / "other").url.rsplit(":", 1)[1]
    async with ProcessTree(tmp_path / "run") as tree:
        server = embedded_nats(tmp_path, port=int(port))
        await tree.start(server.child)
        assert server.url == f"nats://127.0.0.1:{port}"


async def test_nobody_gets_in_without_a_password(tmp_path: Path) -> None:
    async with ProcessTree(tmp_path / "run") as tree:
        server = embedded_nats(tmp_path)
        await tree.start(server.child)
        client = Client()
        with pytest.raises(nats.errors.Error, match=r"(?i)authorization"):
            await client.connect(server.url, user="control", password="guessed", allow_reconnect=False)  # noqa: S106
        await client.close()


async def test_secrets_are_closed_to_others(tmp_path: Path) -> None:
    async with ProcessTree(tmp_path / "run") as tree:
        await tree.start(embedded_nats(tmp_path).child)
        for name, mode in ((".", 0o700), ("credentials.json", 0o600), ("secrets.conf", 0o600), ("store", 0o700)):
            assert stat.S_IMODE((tmp_path / "nats" / name).stat().st_mode) == mode


async def test_it_syncs_before_it_acknowledges_and_listens_on_loopback(tmp_path: Path) -> None:
    async with ProcessTree(tmp_path / "run") as tree:
        server = embedded_nats(tmp_path)
        await tree.start(server.child)
        system = await nats.connect(
            server.control_url.replace(
                f"control:{server.keys.control_password}", f"system:{server.keys.system_password}"
            )
        )
        answer = await system.request("$SYS.REQ.SERVER.PING.VARZ", b"{}", timeout=3)
        await system.close()
    told = msgspec.json.decode(answer.data)["data"]
    assert told["host"] == "127.0.0.1"
    assert told["jetstream"]["config"]["sync_always"] is True
    assert told["feature_flags"]["js_ack_fc_v2"] is False


def _kill(tree: ProcessTree) -> None:
    pid = tree.report()[0].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


async def _restarted(tree: ProcessTree) -> None:
    async with asyncio.timeout(15):
        while (report := tree.report()[0]).restarts == 0 or report.state is not ChildState.RUNNING:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def test_a_port_that_was_chosen_is_nobody_elses_before_its_server_listens(tmp_path: Path) -> None:
    """Two starts at one moment would choose the same, and the later to bind would fail."""
    chosen = embedded_nats(tmp_path).url.rpartition(":")[2]
    assert not Claims(claims_directory()).claim(int(chosen))
