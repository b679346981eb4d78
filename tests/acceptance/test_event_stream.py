"""Events over HTTP: a page and a stream of them tell the same, whatever is asked for."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode

import httpx

from tests.support.installation import Installation, segment, until

MODEL = "org/streamed:q4"


def test_a_stream_tells_what_a_page_tells(shared: Installation) -> None:
    """H1: also events that name only a replica of the model, and replicas that have ended since."""
    shared.echo(MODEL, replicas=1)
    shared.command("DELETE", f"/models/{segment(MODEL)}/schedule")
    (replica,) = shared.ready(MODEL)
    shared.command("DELETE", f"/replicas/{replica['id']}")
    until(lambda: any(event["type"] == "model.replica_ended.v1" for event in page(shared, model=MODEL)), "it has ended")
    first = page(shared, model=MODEL)[0]["sequence"]
    for filters in (
        {"model": MODEL},
        {"model": MODEL, "node": replica["node"]},
        {"model": MODEL, "type": "replica"},
        {"node": replica["node"], "actor": "reconciler"},
        {"correlation": page(shared, model=MODEL)[-1]["correlation"]},
    ):
        expected = page(shared, after=first, **filters)
        assert expected, filters
        with stream(shared, first, **filters) as events:
            assert [next(events) for _ in expected] == expected


def test_a_stream_that_cant_begin_is_refused_before_it_begins(shared: Installation) -> None:
    """T8."""
    refused = shared.ask("GET", "/events/stream", headers={"last-event-id": "yesterday"})
    assert (refused.status_code, refused.json()["field"]) == (400, "Last-Event-ID")


def page(installation: Installation, **filters: Any) -> list[dict[str, Any]]:
    answer = installation.get(f"/events?{urlencode({'limit': 1000} | filters)}")
    assert answer["next"] is None
    found: list[dict[str, Any]] = answer["items"]
    return found


@contextmanager
def stream(installation: Installation, after: int, **filters: Any) -> Iterator[Iterator[dict[str, Any]]]:
    url = f"{installation.endpoints.api_url}/api/v1/events/stream?{urlencode(filters)}"
    headers = {"last-event-id": str(after)}
    with httpx.stream("GET", url, headers=headers, timeout=30, trust_env=False) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield (json.loads(line.removeprefix("data: ")) for line in answer.iter_lines() if line.startswith("data: "))
