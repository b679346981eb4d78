"""What an operator asks the morning after: what was, what changed, what led to it, and why (H2, H3)."""

import json
from typing import Any

import pytest

from tests.support.installation import ECHO, Installation, until


@pytest.mark.timeout(300)  # a model is loaded and replaced by real processes
def test_an_incident_is_explained_afterwards(shared: Installation) -> None:
    """H2, H3: by commands alone, over real servers, the log being all that is left of it."""
    before = sequence(shared)
    shared.cli("model", "set", "night", "--vram", "64MiB", "--", *ECHO)
    shared.cli("load", "night", "--node", "local-1", "--wait")
    loaded = sequence(shared)
    (replica,) = items(shared, "ps", "--model", "night")
    refused = shared.cli("load", "night", "--node", "local-1", code=1)
    assert "slot" in refused.err
    shared.cli("unload", "night", "--wait")
    shared.cli("model", "rm", "night")
    until(lambda: not items(shared, "ps", "--model", "night"), "nothing is left of it")

    then = shared.cli("state", "--at", str(loaded)).out
    assert "night#0" in then
    assert replica["id"] in then
    assert "night" not in shared.cli("state", "--at", str(before)).out
    changed = shared.cli("diff", str(before), str(loaded)).out
    assert "+ model night" in changed
    assert f"+ replica {replica['id']}" in changed
    assert "~ node local-1" in changed
    undone = shared.cli("diff", str(loaded)).out
    assert f"- replica {replica['id']}" in undone

    events = json.loads(shared.cli("--json", "events", "--model", "night", "--type", "replica.loaded").out)["items"]
    story = shared.cli("causes", str(events[-1]["sequence"])).out.splitlines()
    tags = [line.split()[2] for line in story]
    assert "replica.placed" in tags
    assert "replica.loaded" in tags
    assert tags.index("replica.placed") < tags.index("replica.loaded")

    why = shared.cli("why", "night", "--at", str(loaded)).out
    assert "1 ready of 1 replicas" in why
    assert "placed on local-1" in why
    told = json.loads(shared.cli("--json", "why", "night", "--at", str(loaded)).out)
    placement = next(one for one in told["decisions"] if one["kind"] == "placement")
    account = shared.cli("why", "--decision", placement["id"]).out
    assert f"decided on sequence {placement['basis']}" in account
    assert "report this" not in account
    assert "local-1" in account


def test_what_cannot_be_told_is_refused_in_words(shared: Installation) -> None:
    """H3: a moment that isn't one, a decision that isn't there, a question about nothing."""
    assert "still to come" in shared.cli("state", "--at", "2999-01-01T00:00:00Z", code=1).err
    assert "neither a sequence nor a time" in shared.cli("diff", "yesterday", code=1).err
    assert "the log ends at" in shared.cli("state", "--at", "99999999", code=1).err
    assert "no event 99999999" in shared.cli("causes", "99999999", code=1).err
    assert "no decision" in shared.cli("why", "--decision", "nobody", code=1).err
    assert "name a model" in shared.cli("why", code=2).err


def sequence(shared: Installation) -> int:
    answer: dict[str, Any] = shared.get("/replicas")
    return int(answer["sequence"])


def items(shared: Installation, *words: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(shared.cli("--json", *words).out)["items"]
    return found
