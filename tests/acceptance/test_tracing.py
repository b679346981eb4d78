"""OpenTelemetry, from a client's traceparent to a collector: real processes, real OTLP, one trace for one request."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.collector import Collector, Received, a_collector
from tests.support.installation import ECHO, Installation, until

REQUEST = "0af7651916cd43dd8448eb211c80319c"
COMMAND = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "b7ad6b7169203331"


def traceparent(trace: str) -> dict[str, str]:
    return {"traceparent": f"00-{trace}-{PARENT}-01"}


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with a_collector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
        yield collector


def test_one_request_is_one_trace_from_the_gateway_to_the_process_it_has_started(
    collector: Collector, tmp_path: Path
) -> None:
    """H1: the client's trace is in the events that its request caused, and in the spans of all who acted on them."""
    with Installation(tmp_path, "--vram", "1GiB") as installation:
        _cold_request(installation, collector)
        _scheduled_load(installation, collector)
    _flushed_at_the_end(collector)


def _cold_request(installation: Installation, collector: Collector) -> None:
    installation.command("PUT", "/models/cold", {"command": ECHO, "vram": "16MiB"})
    body = {"model": "cold", "prompt": "hello"}
    answer = installation.ask("POST", "/v1/completions", body, headers=traceparent(REQUEST))
    assert answer.is_success, answer.text
    wanted = {
        ("modelyard-api", "POST /v1/completions"),
        ("modelyard-api", "route"),
        ("modelyard-api", "wait for a replica"),
        ("modelyard-api", "upstream"),
        ("modelyard-api", "commit"),
        ("modelyard-worker", "start process"),
        ("modelyard-worker", "load"),
    }
    spans = _arrived(collector, REQUEST, wanted)
    entry = spans["POST /v1/completions"]
    assert entry.parent == PARENT, "the client's span is the parent"
    assert spans["route"].parent == entry.id
    assert spans["wait for a replica"].parent == spans["route"].id
    assert spans["upstream"].parent == entry.id
    assert spans["upstream"].attributes["modelyard.node"] == "local-1"
    assert "appended" in spans["commit"].events
    worker = spans["load"].resource
    assert (worker["modelyard.node"], worker["deployment.environment"]) == ("local-1", "test")
    assert worker["service.instance.id"] != entry.resource["service.instance.id"]
    events = installation.get("/events?model=cold&limit=100")["items"]
    traced = {event["type"] for event in events if REQUEST in (event["trace"] or "")}
    # From the decision to what the worker told of it: all of it came of the request.
    assert {"replica.placed.v1", "replica.load_started.v1", "replica.loaded.v1"} <= traced, events
    linked = {span.process for span in collector.spans if REQUEST in span.links}
    until(
        lambda: {"modelyard-registrar", "modelyard-projector"} <= {s.process for s in _linked(collector, REQUEST)},
        f"who works on many requests at once links to this one: {linked}",
    )


def _scheduled_load(installation: Installation, collector: Collector) -> None:
    """What a command makes the reconciler do is of the command's trace, and what that makes the worker do as well."""
    installation.command("PUT", "/models/kept", {"command": ECHO, "vram": "16MiB"})
    body = {"min_replicas": 1}
    answer = installation.ask("PUT", "/models/kept/schedule", body, headers=traceparent(COMMAND))
    assert answer.is_success, answer.text
    until(lambda: installation.ready("kept"), "it is loaded")
    wanted = {
        ("modelyard-api", "PUT /api/v1/models/{model}/schedule"),
        ("modelyard-reconciler", "act"),
        ("modelyard-reconciler", "commit"),
        ("modelyard-worker", "start process"),
    }
    spans = _arrived(collector, COMMAND, wanted)
    assert spans["act"].attributes["modelyard.reason"]
    assert spans["PUT /api/v1/models/{model}/schedule"].attributes["modelyard.status"] == "200"


def _flushed_at_the_end(collector: Collector) -> None:
    """What a stopping worker does last arrives too: nothing waits in a queue that dies with its process."""
    ends = [span for span in collector.spans if span.name == "report"]
    assert any(span.attributes["modelyard.first"] == "Departing" for span in ends), ends


def _linked(collector: Collector, trace: str) -> list[Received]:
    return [span for span in list(collector.spans) if trace in span.links]


def _arrived(collector: Collector, trace: str, wanted: set[tuple[str, str]]) -> dict[str, Received]:
    def seen() -> set[tuple[str, str]]:
        return {(span.process, span.name) for span in collector.of(trace)}

    until(lambda: wanted <= seen(), f"the collector has {wanted} of {trace}")
    return {span.name: span for span in collector.of(trace)}
