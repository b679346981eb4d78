"""What operators see of a model that fits nowhere, and what they do about it: tables, JSON and HTTP (rule C5)."""

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from tests.support.installation import ECHO, Installation, until

HUGE = "900GiB"
"""More than the shared installation has."""


@pytest.fixture
def huge(shared: Installation, request: pytest.FixtureRequest) -> Iterator[str]:
    """A model that is too large, of which one failed pass is enough to tell; each test has its own."""
    name = f"huge-{request.node.name}"
    shared.cli("settings", "breaker_failed_passes=1")
    shared.command("PUT", f"/models/{name}", {"command": ECHO, "vram": HUGE})
    shared.cli("schedule", "set", name, "--min-replicas", "1")
    until(lambda: shown(shared, name) is not None, "the breaker is open")
    yield name
    shared.cli("settings", "reset", "breaker_failed_passes")
    shared.cli("schedule", "rm", name)
    shared.cli("model", "rm", name)


def shown(shared: Installation, model: str) -> dict[str, Any] | None:
    found: dict[str, Any] | None = shared.get(f"/models/{model}")["schedule"]["unsatisfiable"]
    return found


def told(shared: Installation, model: str, kind: str) -> dict[str, Any]:
    """The only event of that kind, as it stands in the history, which may be a moment behind."""
    path = f"/events?model={model}&type={kind}&limit=100"
    until(lambda: shared.get(path)["items"], f"the history tells of {kind}")
    (found,) = shared.get(path)["items"]
    event: dict[str, Any] = found
    return event


def test_reason_until_and_failed_passes_are_the_same_wherever_an_operator_looks(
    shared: Installation, huge: str
) -> None:
    """C5, P5: as the event says, in every table and every JSON."""
    opened, breaker = told(shared, huge, "model.declared_unsatisfiable"), shown(shared, huge)
    assert breaker is not None
    assert breaker["reason"] == opened["event"]["reason"]
    assert (breaker["failed_passes"], opened["event"]["failed_passes"]) == (1, 1)
    assert "2 vram (short by" in breaker["reason"]
    seconds = datetime.fromisoformat(breaker["until"]) - datetime.fromisoformat(opened["time"])
    assert seconds.total_seconds() == pytest.approx(300, abs=0.01)
    (listed,) = [item for item in shared.get("/schedules")["items"] if item["model_name"] == huge]
    assert listed["unsatisfiable"] == breaker
    assert json.loads(shared.cli("--json", "model", "show", huge).out)["schedule"]["unsatisfiable"] == breaker
    assert json.loads(shared.cli("--json", "schedule", "show", huge).out)["unsatisfiable"] == breaker
    for words in (["model", "show", huge], ["schedule", "show", huge], ["models"], ["schedules"]):
        said = " ".join(shared.cli(*words).out.split())
        assert f"{breaker['reason']} (1 failed passes; not tried again until {breaker['until']})" in said, words


def test_a_command_clears_it_once_and_says_by_whom(shared: Installation, huge: str) -> None:
    """C5, H1, X28: told as done, then as nothing to do; a model that isn't there is an error."""
    shared.cli("settings", "breaker_failed_passes=100")
    done = shared.cli("model", "clear-breaker", huge).out
    assert done.startswith(f"breaker of {huge} cleared (sequence ")
    assert shown(shared, huge) is None
    assert "not tried again" not in shared.cli("model", "show", huge).out
    closed = told(shared, huge, "model.declared_satisfiable")
    assert (closed["event"]["cause"], closed["actor"]["kind"]) == ("cleared by command", "operator")
    assert shared.cli("model", "clear-breaker", huge).out.startswith("nothing to do: ")
    assert json.loads(shared.cli("--json", "model", "clear-breaker", huge).out)["changed"] is False
    assert "'nobody'" in shared.cli("model", "clear-breaker", "nobody", code=1).err
