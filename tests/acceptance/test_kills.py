"""kill -9 of each process in turn, under traffic and commands: all of it goes on, and nothing is lost or done twice.

Another worker of the machine wants the port of the worker that is killed: its answers would be those of another model.
"""

import os
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.installation import Installation, Traffic, until
from tests.support.stranger import Stranger

REPLICAS = 2
CHILDREN = ("nats", "postgres", "api", "registrar", "reconciler", "projector", "local-1")
BACKEND = "backends.echo"


@pytest.mark.timeout(600)
def test_whatever_is_killed_all_of_it_goes_on(tmp_path: Path) -> None:
    """W4, X14, X16, X22, X26, I9, I10, I11."""
    with Installation(tmp_path, "--workers", "2", "--vram", "1GiB") as installation:
        installation.echo(replicas=REPLICAS)
        with Traffic(installation, "echo") as traffic, Stranger(_replica_on(installation, "local-1")["address"]):
            for number, child in enumerate(CHILDREN):
                _killed_child_comes_back(installation, child)
                _acknowledged_though_away(installation, number)
                traffic.goes_on()
            _killed_backend_is_replaced(installation)
            traffic.goes_on()
        _nothing_is_in_flight(installation)
        _each_command_is_there_once(installation)
        _no_process_that_nobody_tracks(installation)
        assert installation.hashes().agree
        traffic.ended_only_with(0, 200, 502, 503)


def _replica_on(installation: Installation, node: str) -> dict[str, Any]:
    return next(replica for replica in installation.ready("echo") if replica["node"] == node)


def _killed_child_comes_back(installation: Installation, child: str) -> None:
    killed = installation.pid_of(child)
    os.kill(killed, signal.SIGKILL)
    until(lambda: installation.pid_of(child) != killed, f"{child} is started again")


def _acknowledged_though_away(installation: Installation, number: int) -> None:
    """A command under a key, asked again until it is acknowledged."""
    headers = {"idempotency-key": f"killed-{number}"}

    def acknowledged() -> bool:
        try:
            answer = installation.ask("PUT", f"/nodes/local-1/labels/k{number}", {"value": "x"}, headers=headers)
        except httpx.TransportError:
            return False
        assert answer.status_code in {200, 503}, answer.text
        return answer.status_code == 200

    until(acknowledged, "the command is acknowledged")
    until(installation.is_ready, "the API is ready")
    until(lambda: len(installation.ready("echo")) == REPLICAS, "all replicas are ready")


def _killed_backend_is_replaced(installation: Installation) -> None:
    """Of the worker that was not killed: of the other's, one may be about to end that still counts as ready."""
    killed = _replica_on(installation, "local-2")
    os.kill(installation.pid_at(killed["address"], BACKEND), signal.SIGKILL)

    def replaced() -> bool:
        ready = {replica["id"] for replica in installation.ready("echo")}
        return len(ready) == REPLICAS and killed["id"] not in ready

    until(replaced, "the killed backend is replaced", saying=lambda: installation.story_of("echo"))


def _nothing_is_in_flight(installation: Installation) -> None:
    """X16."""
    until(
        lambda: all(replica["in_flight"] == 0 for replica in installation.get("/replicas")["items"]),
        "in-flight counts are back to 0",
    )


def _each_command_is_there_once(installation: Installation) -> None:
    until(lambda: _labelled(installation) == sorted(f"k{number}" for number in range(len(CHILDREN))), "each once")


def _labelled(installation: Installation) -> list[str]:
    """The keys of our label commands, one for each event that there is."""
    events = installation.get("/events?type=node.labels_changed&limit=1000")["items"]
    return sorted(key for event in events for key in event["event"].get("changed", {}) if key.startswith("k"))


def _no_process_that_nobody_tracks(installation: Installation) -> None:
    """X26: what runs is what is believed to run, each on the port at which it is believed to answer."""
    until(
        lambda: installation.ports_of(BACKEND) == _ports_that_are_ready(installation),
        "the backends that run are the replicas that are ready",
        saying=lambda: installation.story_of("echo"),
    )


def _ports_that_are_ready(installation: Installation) -> list[str]:
    return sorted(replica["address"].rpartition(":")[2] for replica in installation.ready("echo"))
