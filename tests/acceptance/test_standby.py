"""Two reconcilers on one installation: one acts, and whatever befalls it the other does so in its place (rule C1)."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from modelyard_services.settings import LEASE_SECONDS
from tests.support.installation import Installation, free_ports, until

BUSY_SECONDS = 20.0
"""What a machine that runs everything else as well may add to a time that is told."""


class Reconciler:
    """One process as an operator sees it."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"

    @property
    def lease(self) -> dict[str, Any]:
        """What it says of the lease; empty while it doesn't answer."""
        try:
            lease: dict[str, Any] = httpx.get(f"{self._url}/readyz", timeout=2, trust_env=False).json().get("lease", {})
        except httpx.TransportError:
            return {}
        return lease

    @property
    def acts(self) -> bool:
        return bool(self.lease.get("acts"))

    @property
    def active_metric(self) -> float:
        text = httpx.get(f"{self._url}/metrics", timeout=5, trust_env=False).text
        (line,) = [line for line in text.splitlines() if line.startswith("modelyard_reconciler_active ")]
        return float(line.split()[1])


class Standby(Reconciler):
    """A second one beside that of `up`, which nobody starts again."""

    def __init__(self, installation: Installation, *options: str) -> None:
        (port,) = free_ports(1)
        super().__init__(port)
        arguments = ("reconciler", "--nats-url", installation.control_url, "--status-port", str(port), *options)
        self.process: subprocess.Popen[bytes] = installation.launch(*arguments, log="standby.log")
        until(lambda: self.lease.get("active"), "the second one knows who acts")

    def end(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait()


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Installation]:
    with Installation(tmp_path, "--workers", "1", "--vram", "1GiB") as installation:
        installation.command("PUT", "/nodes/local-1/max-replicas-per-model", {"value": 8})
        yield installation


def first_of(installation: Installation) -> Reconciler:
    """That of `up`."""
    ports = json.loads((installation.data_dir / "ports.json").read_bytes())
    return Reconciler(ports["reconciler"])


def placed(installation: Installation) -> int:
    """How often anything was ever placed."""
    events = installation.get("/events?limit=1000")["items"]
    return sum(item["type"] == "replica.placed.v1" for item in events)


def floor(installation: Installation, count: int) -> None:
    installation.command("PUT", "/models/echo/schedule", {"min_replicas": count, "max_per_node": 8})


def filled(installation: Installation, count: int) -> None:
    until(
        lambda: len(installation.ready("echo")) == count,
        f"{count} are ready",
        saying=lambda: installation.story_of("echo"),
    )


def test_one_acts_and_when_it_is_killed_the_other_does_within_the_time_of_its_lease(installation: Installation) -> None:
    """C1, C2: and a floor that was set meanwhile is filled, once."""
    installation.echo(replicas=1)
    first = first_of(installation)
    second = Standby(installation)
    try:
        assert (first.acts, second.acts) == (True, False)
        assert (first.active_metric, second.active_metric) == (1, 0)
        assert first.lease["active"] == second.lease["active"] == first.lease["holder"]
        doctor = installation.process("doctor", "--data-dir", str(installation.data_dir), code=0)
        assert first.lease["holder"] in doctor.out

        os.kill(installation.pid_of("reconciler"), signal.SIGKILL)
        killed_at = time.monotonic()
        floor(installation, 2)
        # Who comes back in its place has another name, and waits like everybody else.
        until(lambda: second.acts or first.acts, "one of the others acts", seconds=LEASE_SECONDS + BUSY_SECONDS)
        assert time.monotonic() - killed_at < LEASE_SECONDS + BUSY_SECONDS
        filled(installation, 2)
        assert placed(installation) == 2
        until(lambda: first.lease, "up has started its own again")
        assert [first.acts, second.acts].count(True) == 1
    finally:
        second.end()


def test_who_was_frozen_while_the_other_took_over_yields_and_does_nothing_twice(installation: Installation) -> None:
    """C1, I1, I10: no work is done twice and nothing is over-committed, for every append is guarded besides."""
    installation.echo(replicas=1)
    first = first_of(installation)
    # The one that freezes isn't a child of `up`, which would begin another in its place.
    second = Standby(installation)
    try:
        os.kill(installation.pid_of("reconciler"), signal.SIGTERM)
        until(lambda: second.acts, "the second acts")
        until(lambda: first.lease.get("active"), "up has started its own again")
        assert not first.acts

        second.process.send_signal(signal.SIGSTOP)
        floor(installation, 3)
        until(lambda: first.acts, "the first acts", seconds=LEASE_SECONDS + BUSY_SECONDS)
        filled(installation, 3)
        second.process.send_signal(signal.SIGCONT)
        floor(installation, 5)
        until(lambda: second.lease.get("active") == first.lease["holder"], "the second knows who acts now")
        filled(installation, 5)
        assert (first.acts, second.acts) == (True, False)
        assert placed(installation) == 5
        assert installation.hashes().agree
    finally:
        second.end()


def test_who_is_stopped_in_order_hands_over_at_once(installation: Installation) -> None:
    """C1: long before the minute is over that its lease would have lasted."""
    first = first_of(installation)
    second = Standby(installation, "--reconciler-lease-seconds", "60")
    try:
        os.kill(installation.pid_of("reconciler"), signal.SIGTERM)
        until(lambda: second.acts, "the second acts")
        until(lambda: first.lease.get("active") == second.lease["holder"], "up's own stands by")
        second.process.terminate()
        assert second.process.wait(30) == 0
        until(lambda: first.acts, "the first acts again", seconds=BUSY_SECONDS)
    finally:
        second.end()
