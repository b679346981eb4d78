"""A worker cut off from the log: its replica is replaced; once it is heard again, nothing runs that nobody tracks."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.support.cable import Cable, a_cable
from tests.support.installation import Installation, Traffic, until

EDGE = "edge"
BACKEND = "backends.echo"
SETTINGS = {"lost_after_seconds": 20, "mass_loss_share": 0.6, "min_residency_seconds": 0}


@pytest.mark.timeout(600)
def test_a_partition_is_survived_within_the_grace_and_cleaned_up_after_it(tmp_path: Path) -> None:
    """N9, W8, X26, I7: first it heals in time, then too late."""
    with Installation(tmp_path, "--workers", "1", "--vram", "1GiB") as installation, edge(installation) as cable:
        installation.command("PATCH", "/settings", SETTINGS | {"lost_grace_seconds": 600})
        first = _replica_on_the_edge(installation)
        with Traffic(installation, "echo") as traffic:
            with cable.cut():
                _is_replaced(installation, first)
                traffic.goes_on()
            until(lambda: _state(installation, first) == "ready", "the same life comes back with its replica")
            assert _events(installation, "node.recovered")
            assert not _events(installation, "node.incarnation_started", after=_events(installation, "node.lost")[0])
            traffic.goes_on()

            installation.command("PATCH", "/settings", {"lost_grace_seconds": 2})
            with cable.cut():
                until(lambda: _state(installation, first) is None, "after the grace it ends for good")
                assert len(installation.processes(BACKEND)) == 2, "nobody can tell the worker yet"
                traffic.goes_on()
            until(lambda: installation.get(f"/nodes/{EDGE}")["liveness"] == "alive", "it is heard again")
            until(
                lambda: len(installation.processes(BACKEND)) == len(installation.get("/replicas")["items"]),
                "what nobody tracks is ended",
            )
            traffic.goes_on()
        assert _state(installation, first) is None
        traffic.ended_only_with(200)
        (ended,) = [event for event in _events(installation, "replica.unloaded") if first in event["event"]["replicas"]]
        assert ended["event"]["reason"] == "node_lost"
        assert installation.hashes().agree


@contextmanager
def edge(installation: Installation) -> Iterator[Cable]:
    """A worker that reaches NATS through a cable."""
    endpoints = installation.endpoints
    port = urlsplit(endpoints.nats_url).port
    assert port is not None
    with a_cable(port) as cable:
        worker = installation.launch(
            "worker", "--name", EDGE, "--vram", "1GiB", "--state-dir", str(installation.directory / EDGE),
            "--nats-url", f"nats://127.0.0.1:{cable.port}", "--registration-token", endpoints.registration_token,
            log="edge.log",
        )  # fmt: skip
        try:
            until(lambda: installation.ask("GET", f"/nodes/{EDGE}").is_success, "the edge has registered")
            yield cable
        finally:
            worker.terminate()
            worker.wait(30)


def _replica_on_the_edge(installation: Installation) -> str:
    installation.cli("node", "cordon", "local-1")
    installation.echo(replicas=1)
    installation.cli("node", "uncordon", "local-1")
    (replica,) = installation.ready("echo")
    assert replica["node"] == EDGE
    found: str = replica["id"]
    return found


def _is_replaced(installation: Installation, replica: str) -> None:
    until(lambda: _state(installation, replica) == "unreachable", "its node is lost")
    until(lambda: [one["node"] for one in installation.ready("echo")] == ["local-1"], "another one is up elsewhere")


def _state(installation: Installation, replica: str) -> str | None:
    found = [one["state"] for one in installation.get("/replicas")["items"] if one["id"] == replica]
    return found[0] if found else None


def _events(installation: Installation, tag: str, *, after: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    since = 0 if after is None else after["sequence"]
    found: list[dict[str, Any]] = installation.get(f"/events?type={tag}&node={EDGE}&after={since}&limit=100")["items"]
    return found
