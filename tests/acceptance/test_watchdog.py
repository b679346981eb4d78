"""The watchdog on real processes: what idles, hangs or fills a node ends; a change holds without any restart (C8)."""

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.installation import ECHO, Installation, segment, until
from tests.support.overlap import SLOW_TO_STOP, Overlap

CHILDREN = ("nats", "postgres", "api", "registrar", "reconciler", "projector", "local-1", "local-2")
NODES = ("local-1", "local-2")
DECLARED = 16 * 2**20
"""What each model says that it needs; its process takes twice as much at least."""

SHARE = 0.97
"""Of its node's budget that a process takes here: above the reclaimer's 95 %."""


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """Two workers, whose replicas may go as soon as they are loaded."""
    with Installation(tmp_path_factory.mktemp("watchdog"), "--workers", "2", "--vram", "2GiB") as installation:
        yield installation


@pytest.fixture(autouse=True)
def unwatched(yard: Installation) -> Iterator[None]:
    """Each test begins with nothing loaded and the watchdog off, and leaves the processes as it found them."""
    yard.cli("settings", "min_residency_seconds=0")
    yield
    yard.cli("settings", "reset")
    for node in NODES:
        overridden = [each for each in watchdog(yard, node).values() if each["source"] == "node"]
        if overridden:
            yard.cli("node", "watchdog", node, "--reset")
    for model in yard.get("/models")["items"]:
        if yard.get(f"/replicas?model={segment(model['name'])}")["items"]:
            yard.cli("unload", model["name"], "--wait")
        if model["schedule"]:
            yard.cli("schedule", "rm", model["name"])
        yard.cli("model", "rm", model["name"])


@pytest.fixture
def unmoved(yard: Installation) -> Iterator[None]:
    """Fails the test unless every process of ours is the one that it began with."""
    before = [yard.pid_of(child) for child in CHILDREN]
    yield
    assert [yard.pid_of(child) for child in CHILDREN] == before


def define(yard: Installation, model: str, *options: str, command: list[str] = ECHO, **also: Any) -> None:
    yard.command("PUT", f"/models/{model}", {"command": [*command, *options], "vram": DECLARED, **also})


def watchdog(yard: Installation, node: str) -> dict[str, Any]:
    found: dict[str, Any] = yard.get(f"/nodes/{node}")["watchdog"]
    return found


def ends(yard: Installation, model: str) -> list[tuple[str, str]]:
    """Where replicas of the model ended so far, and why."""
    told = yard.get(f"/events?model={model}&type=replica.unloaded&limit=100")["items"]
    return [(each["event"]["node"], each["event"]["reason"]) for each in told]


def processes(yard: Installation, model: str) -> list[int]:
    return yard.processes(f"--model\0{model}\0")


def where(yard: Installation, model: str) -> list[str]:
    return sorted(replica["node"] for replica in yard.ready(model))


@pytest.mark.usefixtures("unmoved")
def test_an_idle_timeout_ends_the_process_that_idles_and_no_pinned_one(yard: Installation) -> None:
    """C8, R7: set while both are loaded; the gateway loads it again when it is asked for."""
    for model, pinned in (("plain", False), ("pinned", True)):
        define(yard, model, pinned=pinned)
        assert yard.complete(model).status_code == 200
    assert [replica["watchdog"]["idle_timeout_seconds"] for replica in yard.ready("plain")] == [
        {"value": 0, "source": "fleet"}
    ]
    yard.cli("settings", "idle_timeout_seconds=1")
    until(lambda: len(ends(yard, "plain")) == 1, "what idles has ended", saying=lambda: yard.story_of("plain"))
    assert [reason for _node, reason in ends(yard, "plain")] == ["idle"]
    assert processes(yard, "plain") == []
    (drained,) = yard.get("/events?model=plain&type=replica.drain_started")["items"]
    assert drained["event"]["decision"]["outcome"] == "idle for the fleet's timeout of 1 s"
    assert (ends(yard, "pinned"), len(processes(yard, "pinned"))) == ([], 1)
    yard.cli("settings", "reset", "idle_timeout_seconds")
    assert yard.complete("plain").status_code == 200


@pytest.mark.usefixtures("unmoved")
def test_an_idle_timeout_of_one_node_ends_what_idles_there_alone(yard: Installation) -> None:
    """C8: before the fleet's own, in both directions; both hold from the moment on that they are set."""
    define(yard, "spread")
    yard.command("PUT", "/models/spread/schedule", {"max_replicas": 2, "max_per_node": 1})
    for node in NODES:
        yard.cli("load", "spread", "--node", node, "--wait")
    yard.cli("node", "watchdog", "local-1", "idle_timeout_seconds=1")
    shown = yard.cli("node", "watchdog", "local-1").out.splitlines()
    assert next(line.split() for line in shown if "idle_timeout" in line)[1:] == ["1.0", "node", "0.0"]
    until(lambda: ends(yard, "spread") == [("local-1", "idle")], "the one on local-1 has ended")
    yard.cli("node", "watchdog", "local-2", "idle_timeout_seconds=0")
    yard.cli("node", "watchdog", "local-1", "--reset")
    yard.cli("load", "spread", "--node", "local-1", "--wait")
    yard.cli("settings", "idle_timeout_seconds=1")
    until(lambda: ends(yard, "spread") == [("local-1", "idle")] * 2, "the one on local-1 has ended again")
    assert where(yard, "spread") == ["local-2"]


@pytest.mark.usefixtures("unmoved")
def test_a_busy_timeout_ends_a_process_that_hangs_though_it_is_pinned(yard: Installation) -> None:
    """C8, R7: by force, under the request; an idle timeout leaves it alone meanwhile."""
    define(yard, "stuck", "--token-seconds", "600", pinned=True)
    yard.cli("load", "stuck", "--wait")
    (process,) = processes(yard, "stuck")
    yard.cli("settings", "idle_timeout_seconds=1")
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(yard.complete("stuck")))
    asking.start()
    until(lambda: yard.ready("stuck")[0]["in_flight"] == 1, "the request is in flight")
    yard.cli("settings", "busy_timeout_seconds=3")
    until(lambda: len(ends(yard, "stuck")) == 1, "what hangs has ended", saying=lambda: yard.story_of("stuck"))
    assert [reason for _node, reason in ends(yard, "stuck")] == ["busy_timeout"]
    assert process not in processes(yard, "stuck")
    asking.join()
    # It isn't let loose on another replica, which it would keep as long, nor is its client told to try again.
    (answer,) = answers
    assert (answer.status_code, answer.headers["x-should-retry"]) == (502, "false")
    assert len(ends(yard, "stuck")) == 1
    (drained,) = yard.get("/events?model=stuck&type=replica.drain_started")["items"]
    figures = drained["event"]["decision"]["figures"]
    assert figures["seconds"] >= figures["limit"] == 3
    (stopped,) = yard.get("/events?model=stuck&type=replica.stop_requested")["items"]
    assert stopped["event"]["forced"]


@pytest.mark.usefixtures("unmoved")
def test_one_model_at_a_time_on_one_node_as_many_as_fit_on_the_other(yard: Installation) -> None:
    """C8, P4: the first goes before the second loads, and their processes never overlap."""
    for model in ("first", "second"):
        define(yard, model, command=SLOW_TO_STOP)
        yard.command("PUT", f"/models/{model}/schedule", {"max_replicas": 2, "max_per_node": 1})
    yard.cli("load", "first", "--node", "local-1", "--wait")
    yard.cli("node", "watchdog", "local-1", "max_loaded_models=1")
    with Overlap(yard, "first", "second") as overlap:
        yard.cli("load", "second", "--node", "local-1", "--wait")
    assert not overlap.seen
    assert ends(yard, "first") == [("local-1", "evicted_lru")]
    for model in ("first", "second"):
        yard.cli("load", model, "--node", "local-2", "--wait")
    assert (where(yard, "first"), where(yard, "second")) == (["local-2"], ["local-1", "local-2"])


def test_a_nodes_own_limit_outlives_its_worker(yard: Installation) -> None:
    """C8, N11, X2: a killed worker comes back as a new incarnation, and finds the operator's figure."""
    for model in ("kept", "next"):
        define(yard, model)
    yard.cli("node", "watchdog", "local-1", "max_loaded_models=1", "idle_timeout_seconds=3600")
    before = yard.get("/nodes/local-1")
    os.kill(yard.pid_of("local-1"), signal.SIGKILL)
    until(lambda: yard.get("/nodes/local-1")["incarnation"] != before["incarnation"], "the worker has come back")
    assert watchdog(yard, "local-1") == before["watchdog"]
    yard.cli("load", "kept", "--node", "local-1", "--wait")
    yard.cli("load", "next", "--node", "local-1", "--wait")
    assert ends(yard, "kept") == [("local-1", "evicted_lru")]


@pytest.mark.usefixtures("unmoved")
def test_a_nearly_full_node_frees_memory_by_what_processes_really_take(yard: Installation) -> None:
    """C8, R3: declared as a third of the budget, measured above 95 % of it; the other node reclaims nothing."""
    define(yard, "hoard")
    yard.command("PUT", "/models/hoard/schedule", {"max_replicas": 2, "max_per_node": 1})
    for node in NODES:
        yard.cli("load", "hoard", "--node", node, "--wait")
    until(lambda: all(each["vram"] > DECLARED for each in yard.ready("hoard")), "both processes are measured")
    for replica in yard.ready("hoard"):
        yard.cli("node", "budget", replica["node"], str(round(replica["vram"] / SHARE)))
    try:
        yard.cli("node", "watchdog", "local-1", "reclaim_memory=true")
        until(lambda: ends(yard, "hoard") == [("local-1", "evicted_memory")], "local-1 has made room")
        assert where(yard, "hoard") == ["local-2"]
    finally:
        for node in NODES:
            yard.cli("node", "budget", node, "--reset")
