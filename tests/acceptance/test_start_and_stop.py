"""`modelyard up` ends with all it started, and the next start goes on where the last one stopped."""

import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support.installation import Installation, run, taken_port, until


def test_a_restart_goes_on_where_the_last_start_stopped(tmp_path: Path) -> None:
    """Stopped by Ctrl-C, by SIGTERM, and by kill -9 (X2, W4)."""
    installation = Installation(tmp_path, "--workers", "2", "--vram", "1GiB")
    with installation:
        installation.echo(replicas=2)
        installation.command("PUT", "/nodes/local-1/labels/rack%2Frow", {"value": "7"})
        installation.command("PUT", "/nodes/local-1/max-replicas-per-model", {"value": 3})
        installation.command("POST", "/registration-tokens", {"name": "rack-7"})
        before, endpoints = told(installation), installation.endpoints
        sequence = installation.get("/nodes")["sequence"]

        assert installation.stop(signal.SIGINT) == 0, installation.output()
        assert installation.processes() == []
        installation.start()
        assert told(installation) == before
        assert installation.endpoints == endpoints
        assert installation.get("/nodes")["sequence"] > sequence
        until(lambda: len(installation.ready("echo")) == 2, "the schedule brings the replicas back")
        assert installation.complete("echo").status_code == 200

        installation.kill()
        until(lambda: not installation.processes(), "nothing outlives a killed up", seconds=20)
        installation.start()
        assert told(installation) == before
        until(lambda: len(installation.ready("echo")) == 2, "the schedule brings the replicas back again")
        assert installation.hashes().agree
        assert installation.stop(signal.SIGTERM) == 0, installation.output()
        assert installation.processes() == []


def told(installation: Installation) -> dict[str, Any]:
    """What operators said, which no restart may change."""
    nodes, models = installation.get("/nodes")["items"], installation.get("/models")["items"]
    return {
        "nodes": [{key: node[key] for key in ("name", "admission", "intent", "labels")} for node in nodes],
        "slots": [node["max_replicas_per_model"] for node in nodes],
        "models": [(model["name"], model["spec"], model["revision"], model["schedule"]) for model in models],
        "schedules": installation.get("/schedules")["items"],
        "tokens": installation.ask("POST", "/registration-tokens", {"name": "rack-7"}).json()["code"],
    }


def test_a_second_start_on_a_directory_in_use_is_refused(shared: Installation) -> None:
    refused = run("up", "--data-dir", str(shared.data_dir), "--port", "0")
    assert refused.code == 1
    assert "in use by another modelyard" in refused.err
    assert shared.is_ready()


def test_a_port_that_is_taken_ends_the_start_and_leaves_nothing(tmp_path: Path) -> None:
    installation = Installation(tmp_path)
    with taken_port() as port:
        refused = installation.process("up", "--data-dir", str(installation.data_dir), "--port", str(port), code=1)
    assert f"port_in_use: nothing can listen on 127.0.0.1:{port}" in refused.err
    assert "Traceback" not in refused.err
    assert installation.processes() == []


def test_a_data_directory_that_cannot_be_used_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for data_dir in (tmp_path / "file", Path("/proc/nowhere")):
        refused = run("up", "--data-dir", str(data_dir), "--port", "0")
        assert refused.code == 1
        assert refused.err.startswith("data_directory_unusable: "), refused.err


@pytest.mark.parametrize("option", ["--port", "--grpc-port"])
def test_the_port_of_another_installation_is_not_taken_for_our_own(
    shared: Installation, tmp_path: Path, option: str
) -> None:
    """Its API answers that it is ready, which we once took for ours."""
    listens = {"--port": shared.endpoints.api_url, "--grpc-port": shared.endpoints.grpc_address}[option]
    ports = {"--port": "0", option: listens.rpartition(":")[2]}
    installation = Installation(tmp_path)
    arguments = [word for pair in ports.items() for word in pair]
    refused = installation.process("up", "--data-dir", str(installation.data_dir), *arguments, code=1)
    assert "port_in_use" in refused.err
    assert not (installation.data_dir / "endpoints.json").exists()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("nonsense", "invalid_request: database_url: no URL of a PostgreSQL database"),
        ("mysql://root:secret@127.0.0.1/x", "invalid_request: database_url: no URL of a PostgreSQL database"),
        ("postgresql://me:secret@127.0.0.1:1/x", "unavailable: PostgreSQL is away: connection failed"),
    ],
)
def test_a_database_that_cannot_be_used_is_told_before_anything_starts(tmp_path: Path, url: str, says: str) -> None:
    """X28: in words, at once, and without the password."""
    installation = Installation(tmp_path)
    start = ("up", "--data-dir", str(installation.data_dir), "--port", "0", "--database-url", url)
    refused = installation.process(*start, code=1)
    assert refused.err.startswith(says)
    assert not {"Traceback", "secret"} & set(refused.err.replace(":", " ").split())
    assert installation.processes() == []
