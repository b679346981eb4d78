"""The embedded JetStream: the real nats-server on loopback, with the roles and permissions of production.

Invariant: what the server acknowledged is on disk (`sync_interval: always`), and keys, passwords and port are made
once per data directory, so whoever was given an address and a token can use them after every restart.
"""

import asyncio
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from modelyard_services.effects.embedded.binaries import nats_server
from modelyard_services.effects.embedded.ports import address, port_for
from modelyard_services.effects.embedded.private import private_directory, read_private, write_private
from modelyard_services.effects.embedded.process import Child
from modelyard_services.effects.nats_access.keys import Keys, generate_keys
from modelyard_services.effects.nats_access.server import authorization_file, secrets_file

READY_REPLY_SECONDS_MAX = 1.0
"""A server that listens sends its INFO line at once; one that doesn't within this is not ready yet."""


class _Kept(msgspec.Struct, frozen=True):
    """What must not change from start to start."""

    keys: Keys
    port: int


class EmbeddedNats(msgspec.Struct, frozen=True):
    """A server that is configured, and started as `child` by a process tree.

    Attributes:
        child: the server process.
        url: for workers and consumers, who bring their own name and token.
        control_url: with the control plane's credentials; secret.
        callout_url: with the credentials of the auth callout; secret.
        copier_url: with the credentials for setting up the readers' copy of the lifecycle stream; secret.
        keys: the key that signs what a worker may do; secret.
        store: the directory of its streams.
    """

    child: Child
    url: str
    control_url: str
    callout_url: str
    copier_url: str
    keys: Keys
    store: Path


def embedded_nats(data_directory: Path, *, host: str = "127.0.0.1", port: int = 0) -> EmbeddedNats:
    """Configure a server in `data_directory`/nats. `port` 0 takes the port of the last time, or any free one."""
    directory = private_directory(data_directory.resolve() / "nats")
    kept = _kept(directory, host=host, port=port)
    store = private_directory(directory / "store")
    config = directory / "nats.conf"
    write_private(config, _config(kept.port, host=host, store=store).encode())
    write_private(directory / "authorization.conf", authorization_file().encode())
    write_private(directory / "secrets.conf", secrets_file(kept.keys).encode())
    endpoint = address(host, kept.port)
    child = Child(
        name="nats",
        argv=(str(nats_server()), "--config", str(config)),
        ready=lambda: is_listening(host, kept.port),
        log_file=directory / "server.log",
    )
    return EmbeddedNats(
        child=child,
        url=f"nats://{endpoint}",
        control_url=f"nats://control:{kept.keys.control_password}@{endpoint}",
        callout_url=f"nats://callout:{kept.keys.callout_password}@{endpoint}",
        copier_url=f"nats://copier:{kept.keys.copier_password}@{endpoint}",
        keys=kept.keys,
        store=store,
    )


def control_url(data_directory: Path, url: str) -> str:
    """`url` with the control role's password where it is the server of `data_directory`, else `url` as it is."""
    kept = read_private(data_directory / "nats" / "credentials.json", _Kept)
    endpoint = urlsplit(url)
    if kept is None or endpoint.port != kept.port or endpoint.username is not None:
        return url
    return f"nats://control:{kept.keys.control_password}@{endpoint.netloc}"


def _kept(directory: Path, *, host: str, port: int) -> _Kept:
    file = directory / "credentials.json"
    before = read_private(file, _Kept)
    kept = _Kept(
        keys=generate_keys() if before is None else before.keys,
        port=port_for(host, wanted=port, previous=None if before is None else before.port),
    )
    if kept != before:
        write_private(file, msgspec.json.encode(kept))
    return kept


def _config(port: int, *, host: str, store: Path) -> str:
    # JSON strings are valid strings of the server's configuration language.
    def quoted(text: str) -> str:
        return msgspec.json.encode(text).decode()

    return f"""# Written by modelyard at every start; changes are lost.
host: {quoted(host)}
port: {port}
server_name: "modelyard-embedded"
max_payload: 1MiB

# nats-py can't read the second form of acknowledgement subjects, a later server may make it the default.
feature_flags {{ js_ack_fc_v2: false }}

jetstream {{
  store_dir: {quoted(str(store))}
  # An acknowledged append survives the loss of power.
  sync_interval: always
  # Each stream has its own ceiling. By default these follow the memory and the disk that are free at a start, and a
  # log that fitted yesterday would be refused today.
  max_memory_store: 256MiB
  max_file_store: 1TiB
  # The default of 50 is for whole applications; our one log stream takes every placement of the fleet.
  limits {{ batch {{ max_inflight_per_stream: 500, max_inflight_total: 1000, max_msgs: 1000, timeout: "10s" }} }}
}}

include ./authorization.conf
"""


async def is_listening(host: str, port: int) -> bool:
    """Whether a server serves clients there: the listener opens after JetStream has recovered its streams."""
    try:
        reader, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    try:
        async with asyncio.timeout(READY_REPLY_SECONDS_MAX):
            return (await reader.readline()).startswith(b"INFO ")
    except (OSError, TimeoutError):
        return False
    finally:
        writer.close()
