"""Tokens: nobody needs one on loopback until there is one; from then on everybody does, everywhere."""

import asyncio
import json
from pathlib import Path

import grpc
import grpc.aio

from modelyard_services.router.proto.modelyard.v1 import scheduler_pb2 as pb
from modelyard_services.router.proto.modelyard.v1.scheduler_pb2_grpc import SchedulerStub
from tests.support.installation import Installation, until

NO_PROXY = (("grpc.enable_http_proxy", 0),)


def test_once_there_is_a_token_every_door_asks_for_one(tmp_path: Path) -> None:
    with Installation(tmp_path, "--vram", "1GiB") as installation:
        installation.echo(replicas=1)
        assert installation.complete("echo").status_code == 200
        assert _route(installation) == "OK"
        root = json.loads(installation.cli("token", "create", "root", "--role", "admin", "--json").out)["token"]
        _every_door_is_shut(installation)
        installation.token = "guessed"  # noqa: S105 - a wrong one
        _every_door_is_shut(installation)
        installation.token = root
        _every_door_opens(installation)
        _a_viewer_only_looks(installation)
        installation.stop()
        assert root.encode() not in _written(installation.data_dir)
        installation.start()
        _every_door_opens(installation)
        installation.token = None
        _every_door_is_shut(installation)


def _every_door_is_shut(installation: Installation) -> None:
    for method, path in (("GET", "/nodes"), ("PUT", "/nodes/local-1/labels/a"), ("GET", "/events")):
        refused = installation.ask(method, path, {"value": "x"} if method == "PUT" else None)
        assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized"), path
    for answer in (installation.complete("echo"), installation.ask("GET", "/v1/models")):
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized"), answer.text
    assert _route(installation) == "UNAUTHENTICATED"
    assert "unauthorized" in installation.cli("nodes", code=1).err
    for open_to_all in ("/healthz", "/readyz"):
        assert installation.ask("GET", open_to_all).status_code == 200


def _every_door_opens(installation: Installation) -> None:
    assert "local-1" in installation.cli("nodes").out
    assert installation.command("PUT", "/nodes/local-1/labels/a", {"value": "x"})["sequence"]
    assert installation.complete("echo").status_code == 200
    assert _route(installation) == "OK"


def _a_viewer_only_looks(installation: Installation) -> None:
    eyes = installation.command("POST", "/tokens", {"name": "eyes", "role": "viewer"})["token"]
    as_viewer = {"authorization": f"Bearer {eyes}"}
    assert installation.ask("GET", "/nodes", headers=as_viewer).status_code == 200
    refused = installation.ask("POST", "/nodes/local-1/cordon", headers=as_viewer)
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    installation.cli("token", "revoke", "eyes")
    assert installation.ask("GET", "/nodes", headers=as_viewer).status_code == 401
    assert "root" in installation.cli("token", "ls").out


def _route(installation: Installation) -> str:
    """The status of one `Route` over gRPC."""
    return asyncio.run(_routed(installation.endpoints.grpc_address, installation.token))


async def _routed(address: str, token: str | None) -> str:
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    async with grpc.aio.insecure_channel(address, options=NO_PROXY) as channel:
        stub = SchedulerStub(channel)  # type: ignore[no-untyped-call]  # generated
        try:
            lease = await stub.Route(pb.RouteRequest(model="echo"), metadata=metadata)
            await stub.Release(pb.ReleaseRequest(lease=lease.lease), metadata=metadata)
        except grpc.aio.AioRpcError as error:
            return error.code().name
    return "OK"


def _written(directory: Path) -> bytes:
    """All that is kept in `directory`: log, logs, secrets."""
    return b"".join(file.read_bytes() for file in directory.rglob("*") if file.is_file())


def test_beyond_loopback_the_owner_has_a_token_from_the_start(tmp_path: Path) -> None:
    """N4: nothing is open then; the token stands in endpoints.json."""
    with Installation(tmp_path, "--host", "0.0.0.0") as installation:  # noqa: S104 - that is the point
        assert installation.ask("GET", "/nodes").status_code == 401
        installation.token = installation.endpoints.token
        node = until(lambda: installation.get("/nodes")["items"], "the worker registered")[0]
        assert node["admission"] == "pending"
        assert (installation.data_dir / "endpoints.json").stat().st_mode & 0o077 == 0


def test_every_loopback_address_is_loopback_for_tokens_and_admission_alike(tmp_path: Path) -> None:
    """N4: 127.0.0.2 is as much this machine's own as 127.0.0.1."""
    with Installation(tmp_path, "--host", "127.0.0.2", "--vram", "1GiB") as installation:
        assert installation.endpoints.api_url.startswith("http://127.0.0.2:")
        assert installation.endpoints.token is None
        node = until(lambda: installation.get("/nodes")["items"], "the worker registered")[0]
        assert node["admission"] == "approved"
        installation.echo(replicas=1)
        assert installation.complete("echo").status_code == 200
