"""Drains and rollouts under live requests, with two reconcilers at work: nobody who is served notices."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.installation import ECHO, Installation, Traffic, until

WORDS = 60
PAUSE_SECONDS = "0.15"
"""Nine seconds of stream: many times what a replacement takes."""


@pytest.mark.timeout(400)
def test_nobody_who_is_served_notices_a_drain_or_a_rollout_though_two_reconcile(tmp_path: Path) -> None:
    """N10, R6, R8, C1, X11."""
    with Installation(tmp_path, "--workers", "2", "--vram", "1GiB") as installation, _a_second_reconciler(installation):
        _a_stream_outlives_the_drain_of_its_node(installation)
        _a_rollout_fails_no_request(installation)
        assert installation.hashes().agree


@contextmanager
def _a_second_reconciler(installation: Installation) -> Iterator[None]:
    process = installation.launch("reconciler", "--nats-url", installation.control_url, log="reconciler-2.log")
    try:
        yield
        assert process.poll() is None, (installation.directory / "reconciler-2.log").read_text()
    finally:
        process.terminate()
        process.wait(30)


def _a_stream_outlives_the_drain_of_its_node(installation: Installation) -> None:
    command = [*ECHO, "--token-seconds", PAUSE_SECONDS]
    installation.command("PUT", "/models/slow", {"command": command, "vram": "16MiB"})
    installation.command("PUT", "/models/slow/schedule", {"min_replicas": 1, "max_replicas": 1})
    (first,) = until(lambda: installation.ready("slow"), "the first replica is ready")
    with _stream(installation) as lines:
        said = [next(lines)]
        installation.command("POST", f"/nodes/{first['node']}/drain")
        until(lambda: _ready_elsewhere(installation, first["node"]), "its replacement is ready")
        until(lambda: _state_of(installation, first["id"]) == "draining", "the old one takes no new requests")
        (old,) = [each for each in installation.get("/replicas")["items"] if each["id"] == first["id"]]
        assert old["in_flight"] == 1, "the stream had ended before it could be cut"
        said += lines
    assert said[-1] == "[DONE]"
    assert "".join(map(_text, said[:-1])).split() == [str(number) for number in range(WORDS)]
    until(lambda: not installation.get(f"/nodes/{first['node']}")["replicas"], "the node is empty")
    ended = installation.get("/events?model=slow&type=model.replica_ended&limit=10")["items"]
    assert [event["event"]["reason"] for event in ended] == ["drained"]
    placed = installation.get("/events?model=slow&type=replica.placed&limit=10")["items"]
    assert len(placed) == 2, "two reconcilers, one replacement"
    installation.command("POST", f"/nodes/{first['node']}/resume")
    installation.cli("schedule", "rm", "slow")
    installation.cli("unload", "slow", "--wait")


def _a_rollout_fails_no_request(installation: Installation) -> None:
    installation.echo(replicas=2)
    before = {replica["id"] for replica in installation.ready("echo")}
    with Traffic(installation, "echo") as traffic:
        traffic.goes_on()
        body = {"command": [*ECHO, "--token-seconds", "0.001"], "vram": "16MiB"}
        installation.command("PUT", "/models/echo", body)
        revision = installation.get("/models/echo")["revision"]

        def rolled_out() -> bool:
            living = [each for each in installation.get("/replicas")["items"] if each["model"] == "echo"]
            return [(each["revision"], each["state"]) for each in living] == [(revision, "ready")] * 2

        until(rolled_out, "both replicas are of the new revision", saying=lambda: installation.story_of("echo"))
        traffic.goes_on()
    assert not before & {replica["id"] for replica in installation.ready("echo")}
    traffic.ended_only_with(200)
    placed = installation.get("/events?model=echo&type=replica.placed&limit=100")["items"]
    assert len(placed) == 4, "two reconcilers, one newcomer for each"


@contextmanager
def _stream(installation: Installation) -> Iterator[Iterator[str]]:
    """The data of a completion's stream, as it comes."""
    prompt = " ".join(map(str, range(WORDS)))
    url = f"{installation.endpoints.gateway_url}/completions"
    body = {"model": "slow", "prompt": prompt, "stream": True}
    with httpx.Client(timeout=60, trust_env=False) as client, client.stream("POST", url, json=body) as answer:
        assert answer.status_code == 200
        yield (line.removeprefix("data: ") for line in answer.iter_lines() if line)


def _text(chunk: str) -> str:
    choice: dict[str, Any] = json.loads(chunk)["choices"][0]
    return str(choice["text"] or "")


def _ready_elsewhere(installation: Installation, node: str) -> bool:
    return any(each["node"] != node for each in installation.ready("slow"))


def _state_of(installation: Installation, replica: str) -> str:
    return str(next(each["state"] for each in installation.get("/replicas")["items"] if each["id"] == replica))
