"""kill -9 of the worker, of `modelyard up`, and of both: replicas serve on as long as anybody can look after them."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.installation import ECHO, Installation, Traffic, until

SLOW_TO_STOP = ["sh", "-c", '"$@" & trap "sleep 2; kill $!; wait" TERM; wait', "sh", *ECHO]
"""It serves on for two seconds of its grace."""

BACKEND = "backends.echo"
ENDING_SECONDS = 20.0
"""A backend that is asked to stop ends within its grace, ten seconds."""


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Installation]:
    """One worker with the only replica of a model."""
    with Installation(tmp_path, "--workers", "1", "--vram", "1GiB") as installation:
        installation.echo(replicas=1)
        yield installation


def test_a_replica_serves_on_while_its_worker_is_killed_and_started_again(alone: Installation) -> None:
    """W4, N2, N3, X26: the same process under the same id, the only one that there is; no request fails.

    And `up` ends what was adopted as it does what it started itself.
    """
    (before,) = alone.ready("echo")
    backends = alone.processes(BACKEND)
    with Traffic(alone, "echo") as traffic:
        for times in (1, 2):
            traffic.goes_on()
            kill_worker(alone)
            adopted(alone, times)
            traffic.goes_on()
    traffic.ended_only_with(200)
    (after,) = alone.ready("echo")
    assert (after["id"], after["address"]) == (before["id"], before["address"])
    assert alone.processes(BACKEND) == backends
    assert alone.stop() == 0, alone.output()
    assert alone.processes() == []


def test_no_replica_outlives_up_and_the_next_one_leaves_none_to_nobody(alone: Installation) -> None:
    """W4, X22, X26: `up` killed after its worker, so that nobody is left to ask; then with replicas in their grace."""
    kill_worker(alone)
    alone.kill()
    until(lambda: not alone.processes(), "nothing outlives a killed up", seconds=ENDING_SECONDS)
    alone.start()
    alone.command("PUT", "/models/slow", {"command": SLOW_TO_STOP, "vram": "16MiB"})
    both_serve(alone)
    alone.kill()
    alone.start()
    both_serve(alone)
    until(
        lambda: set(alone.ports_of(BACKEND)) == ports(alone),
        "each process is a replica's",
        saying=lambda: alone.story_of("slow"),
    )


def kill_worker(installation: Installation) -> None:
    """SIGKILL to the worker alone."""
    os.kill(installation.pid_of("local-1"), signal.SIGKILL)


def adopted(installation: Installation, times: int) -> None:
    """Wait until a worker has come back and adopted its replica for so many times."""
    events = "/events?type=replica.adopted&limit=100"
    until(lambda: len(installation.get(events)["items"]) == times, "the replica is adopted")


def both_serve(installation: Installation) -> None:
    until(
        lambda: all(installation.complete(model).status_code == 200 for model in ("echo", "slow")),
        "both models serve",
        saying=lambda: installation.story_of("slow"),
    )


def ports(installation: Installation) -> set[str]:
    ready = [*installation.ready("echo"), *installation.ready("slow")]
    return {replica["address"].rpartition(":")[2] for replica in ready}
