"""What deploy/nats holds works: three real servers from those very files, with plain connections instead of TLS."""

import asyncio
from collections.abc import AsyncIterator
from importlib.resources import files
from pathlib import Path

import msgspec
import nats
import nats.errors
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from modelyard_events.ids import NodeName
from modelyard_events.subjects import inbox_prefix, node_command_subject
from modelyard_services.effects.clock import Clock
from modelyard_services.effects.embedded.binaries import nats_server
from modelyard_services.effects.embedded.children import ProcessTree
from modelyard_services.effects.embedded.nats import is_listening
from modelyard_services.effects.embedded.ports import port_for
from modelyard_services.effects.embedded.process import Child
from modelyard_services.effects.log.contract import LogMisconfigured, LogUnavailable
from modelyard_services.effects.log.streams import Layout, declare_streams
from modelyard_services.effects.nats_access import callout, keys, roles, server

DEPLOY = Path(__file__).parents[2] / "deploy" / "nats"
LOOPBACK = "127.0.0.1"
NODE = NodeName("n1")
TOKEN = "registration-token"  # noqa: S105 - of this test's own servers


class Cluster(msgspec.Struct, frozen=True):
    keys: keys.Keys
    ports: tuple[int, ...]

    def url(self, number: int) -> str:
        return f"nats://{LOOPBACK}:{self.ports[number]}"


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    made = Cluster(keys=keys.generate_keys(), ports=_ports())
    routes = _ports()
    async with ProcessTree(tmp_path / "run") as tree:
        children = [_server(tmp_path, made, routes, number) for number in range(3)]
        await asyncio.gather(*(tree.start(child) for child in children))
        yield made


async def test_three_servers_keep_the_log_and_let_in_whom_one_registrar_knows(cluster: Cluster) -> None:
    control = await _connected(cluster.url(0), user="control", password=cluster.keys.control_password)
    await _declared(control)
    assert (await control.jetstream().stream_info("LOG")).config.num_replicas == 3
    answering = await _connected(cluster.url(1), user="callout", password=cluster.keys.callout_password)
    issuer = keys.Issuer(cluster.keys.issuer_seed)
    await callout.AuthCallout(answering, _verify, issuer=issuer, clock=Clock()).start()
    await control.subscribe(node_command_subject(NODE, "*"), cb=_welcome)
    await control.flush()
    worker = await _connected(cluster.url(2), user=NODE, password=TOKEN, inbox_prefix=inbox_prefix(NODE).encode())
    assert (await worker.request(node_command_subject(NODE, "register"), b"", timeout=5)).data == b"welcome"
    for client in (worker, answering, control):
        await client.close()


def test_embedded_and_deployed_servers_share_one_authorization() -> None:
    embedded = files(server.__package__).joinpath("authorization.conf").read_text()
    assert (DEPLOY / "authorization.conf").read_text() == embedded


async def _welcome(message: Msg) -> None:
    await message.respond(b"welcome")


async def _verify(_name: str, password: str) -> roles.Role | None:
    return roles.Worker(NODE) if password == TOKEN else None


async def _connected(url: str, **options: object) -> Client:
    return await nats.connect(url, connect_timeout=10, **options)


async def _declared(control: Client) -> None:
    """A cluster of three has no leader in its first seconds."""
    async with asyncio.timeout(40):
        while True:
            try:
                await declare_streams(control, Layout(replicas=3, log_bytes_max=2**20, events_bytes_max=2**20))
            except (LogMisconfigured, LogUnavailable, nats.errors.Error):
                await asyncio.sleep(0.2)
            else:
                return


def _ports() -> tuple[int, ...]:
    return tuple(port_for(LOOPBACK, wanted=0, previous=None) for _ in range(3))


def _server(directory: Path, cluster: Cluster, routes: tuple[int, ...], number: int) -> Child:
    name = f"nats-{number + 1}"
    here = directory / name
    here.mkdir()
    for file in DEPLOY.glob("*.conf"):
        (here / file.name).write_text("" if "tls" in file.name else file.read_text())
    (here / "secrets.conf").write_text(server.secrets_file(cluster.keys))
    site = {
        "MODELYARD_NATS_NAME": name,
        "MODELYARD_NATS_LISTEN": f"{LOOPBACK}:{cluster.ports[number]}",
        "MODELYARD_NATS_STORE": str(here / "store"),
        "MODELYARD_NATS_MEMORY": 2**28,
        "MODELYARD_NATS_DISK": 2**30,
        "MODELYARD_NATS_CLUSTER_LISTEN": f"{LOOPBACK}:{routes[number]}",
        "MODELYARD_NATS_ROUTES": [f"nats-route://{LOOPBACK}:{port}" for port in routes],
    }
    text = "\n".join(f"{key}: {msgspec.json.encode(value).decode()}" for key, value in site.items())
    (here / "site.conf").write_text(text)
    return Child(
        name=name,
        argv=(str(nats_server()), "--config", str(here / "nats.conf")),
        ready=lambda: is_listening(LOOPBACK, cluster.ports[number]),
        log_file=here / "server.log",
    )
