"""Models that make room for each other, with real processes: for memory, for a group, for the limit of models."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.installation import ECHO, Installation, segment, until
from tests.support.overlap import SLOW_TO_STOP, Overlap

ALL_BUT = "1000MiB"
"""Of the node's gibibyte: room for nobody beside it, since even the smallest backend measures more than 24 MiB."""


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """One worker with a gibibyte, whose replicas may go as soon as they are loaded."""
    with Installation(tmp_path_factory.mktemp("room"), "--workers", "1", "--vram", "1GiB") as installation:
        installation.cli("settings", "min_residency_seconds=0")
        yield installation


@pytest.fixture(autouse=True)
def empty(room: Installation) -> Iterator[None]:
    yield
    room.cli("settings", "max_loaded_models=0")
    for model in room.get("/models")["items"]:
        if room.get(f"/replicas?model={segment(model['name'])}")["items"]:
            room.cli("unload", model["name"], "--wait")
        room.cli("model", "rm", model["name"])


def define(room: Installation, model: str, vram: str, **also: Any) -> None:
    room.command("PUT", f"/models/{model}", {"command": SLOW_TO_STOP, "vram": vram, **also})


def loaded(room: Installation) -> set[str]:
    return {item["model"] for item in room.get("/replicas")["items"] if item["state"] == "ready"}


def ended(room: Installation, model: str) -> list[str]:
    events = room.get(f"/events?model={model}&type=replica.unloaded&limit=100")["items"]
    return [event["event"]["reason"] for event in events]


def sequences(room: Installation, model: str, kind: str) -> list[int]:
    return [event["sequence"] for event in room.get(f"/events?model={model}&type={kind}&limit=100")["items"]]


def test_an_idle_model_makes_room_for_one_that_is_asked_for(room: Installation) -> None:
    """P3, R8, X6: the newcomer's process starts when the victim's has ended, and its request is answered."""
    define(room, "old", "64MiB")
    define(room, "new", ALL_BUT)
    assert room.complete("old").status_code == 200
    with Overlap(room, "old", "new") as overlap:
        assert room.complete("new").status_code == 200
    assert not overlap.seen
    assert loaded(room) == {"new"}
    assert ended(room, "old") == ["evicted_memory"]
    (gone,), (began,) = sequences(room, "old", "replica.unloaded"), sequences(room, "new", "replica.load_started")
    assert gone < began
    placed = room.get("/events?model=new&type=replica.placed")["items"][0]["event"]
    assert placed["decision"]["outcome"] == "placed on local-1, in place of old#0"
    drained = room.get("/events?model=old&type=replica.drain_started")["items"][0]["event"]["decision"]
    assert (drained["kind"], drained["outcome"]) == ("eviction", "old#0 on local-1 made room for new")


def test_models_of_one_group_swap_and_others_stay(room: Installation) -> None:
    """P4, R5: A, then C, then B of A's group, at once: it ends as B and C."""
    define(room, "group-a", "64MiB", concurrency_groups=["heavy"])
    define(room, "other-c", "64MiB")
    define(room, "group-b", "64MiB", concurrency_groups=[" heavy "])
    room.cli("settings", "min_residency_seconds=3600")
    try:
        for model in ("group-a", "other-c"):
            room.cli("load", model, "--wait")
        with Overlap(room, "group-a", "group-b") as overlap:
            room.cli("load", "group-b", "--wait")
    finally:
        room.cli("settings", "min_residency_seconds=0")
    assert not overlap.seen
    assert loaded(room) == {"group-b", "other-c"}
    assert ended(room, "group-a") == ["evicted_group"]


def test_a_limit_set_at_run_time_holds_from_the_next_load_on(room: Installation) -> None:
    """C8, P4: one model at a time, the least recently used making way."""
    for model in ("one", "two", "three"):
        define(room, model, "64MiB")
    assert [room.complete(model).status_code for model in ("one", "two")] == [200, 200]
    room.cli("settings", "max_loaded_models=2")
    assert room.complete("one").status_code == 200
    until(lambda: room.complete("three").status_code == 200, "the third is loaded")
    assert loaded(room) == {"one", "three"}
    assert ended(room, "two") == ["evicted_lru"]


def test_a_model_that_may_not_go_is_named_in_the_refusal(room: Installation) -> None:
    """P4, P5, X7: pinned while it runs, and in force at once; unpinned, it makes room."""
    define(room, "whisper", "64MiB")
    define(room, "llama", ALL_BUT)
    room.cli("load", "whisper", "--wait")
    define(room, "whisper", "64MiB", pinned=True)
    refused = room.cli("load", "llama", code=1)
    assert "whisper#0 is pinned" in refused.err
    assert refused.err.rstrip().endswith(", or unpin whisper")
    define(room, "whisper", "64MiB")
    room.cli("load", "llama", "--wait")
    assert loaded(room) == {"llama"}


def test_a_request_that_is_being_served_keeps_its_model(room: Installation) -> None:
    """I5, R8: whoever asks meanwhile waits until it is done, and is served then."""
    room.command("PUT", "/models/slow", {"command": [*ECHO, "--token-seconds", "0.5"], "vram": "64MiB"})
    define(room, "next", ALL_BUT)
    room.cli("load", "slow", "--wait")
    answers: list[int] = []
    serving = threading.Thread(target=lambda: answers.append(room.complete("slow", prompt="a b c d").status_code))
    serving.start()
    until(lambda: room.get("/replicas?model=slow")["items"][0]["in_flight"] == 1, "the request is in flight")
    assert room.complete("next").status_code == 200
    serving.join()
    assert answers == [200]
    assert ended(room, "slow") == ["evicted_memory"]
