"""NATS or PostgreSQL away: it is told, what can go on goes on, and afterwards all of it is one again."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.installation import Installation, until

AWAY_SECONDS_MAX = 30.0
"""A write waits 15 s for an answer, longer than the election of a new leader of the log takes; clients wait longer."""


@contextmanager
def silent(*pids: int) -> Iterator[None]:
    """A server that holds its connections and says nothing."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@contextmanager
def gone(installation: Installation, child: str) -> Iterator[None]:
    """A server that was killed, and that nobody starts again for now."""
    os.kill(installation.pid, signal.SIGSTOP)
    try:
        os.kill(installation.pid_of(child), signal.SIGKILL)
        yield
    finally:
        os.kill(installation.pid, signal.SIGCONT)


@pytest.mark.timeout(240)
def test_while_servers_are_away_what_can_go_on_goes_on(tmp_path: Path) -> None:
    """W8, T2, I10."""
    with Installation(tmp_path, "--workers", "2", "--vram", "1GiB") as installation:
        installation.echo(replicas=2)
        replicas = {replica["id"] for replica in installation.ready("echo")}
        with silent(installation.pid_of("nats")):
            _without_a_log(installation, label="silent")
        _converged(installation, replicas)
        with gone(installation, "nats"):
            _without_a_log(installation, label="gone")
        _converged(installation, replicas)
        with silent(*installation.processes("postgres")):
            _without_a_database(installation)
        _converged(installation, replicas)
        with gone(installation, "postgres"):
            _without_a_database(installation)
        _converged(installation, replicas)


def _without_a_log(installation: Installation, *, label: str) -> None:
    # T2: what is in hand is served; after 2 s unheard a router grants nothing that the others can't see.
    assert installation.complete("echo").status_code == 200
    begun = time.monotonic()
    # Another label each time: a silent server may have taken the append that nobody heard of.
    refused = installation.ask("PUT", f"/nodes/local-1/labels/{label}", {"value": "x"})
    assert time.monotonic() - begun < AWAY_SECONDS_MAX
    assert (refused.status_code, refused.json()["code"]) == (503, "unavailable"), refused.text
    assert "retry-after" in refused.headers
    reason = until(lambda: _reasons(installation), "the API says that it isn't ready", seconds=AWAY_SECONDS_MAX)
    assert any(part in reason for part in ("nats", "router")), reason
    assert len(installation.get("/replicas")["items"]) == 2
    assert installation.get("/nodes/local-1")["name"] == "local-1"
    routed = installation.complete("echo")
    assert (routed.status_code, routed.json()["error"]["code"]) == (503, "unavailable"), routed.text


def _without_a_database(installation: Installation) -> None:
    answer = installation.command("PUT", "/nodes/local-1/labels/kept", {"value": "x"})
    assert installation.get(f"/nodes/local-1?min_seq={answer['sequence']}")["labels"]["kept"]["value"] == "x"
    assert installation.complete("echo").status_code == 200
    begun = time.monotonic()
    refused = installation.ask("GET", "/events")
    assert time.monotonic() - begun < AWAY_SECONDS_MAX
    assert (refused.status_code, refused.json()["code"]) == (503, "unavailable"), refused.text


def _reasons(installation: Installation) -> str:
    answer = installation.ask("GET", "/readyz")
    return " ".join(answer.json()["problems"]) if answer.status_code == 503 else ""


def _converged(installation: Installation, replicas: set[str]) -> None:
    until(installation.is_ready, "the API is ready again")
    until(lambda: installation.complete("echo").status_code == 200, "requests are routed again")
    assert {replica["id"] for replica in installation.ready("echo")} == replicas, "a short silence ends no replica"
    assert installation.hashes().agree
    assert installation.get("/events?limit=1")["items"]
