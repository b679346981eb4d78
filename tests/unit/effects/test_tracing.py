"""Spans and traceparents in one process: whose trace, and what a collector that is away costs."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import structlog
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from modelyard_events.envelope import AnyEvent
from modelyard_events.node import NodeRegistered
from modelyard_projections.fleet import Fleet
from modelyard_services.effects.bus import MemoryBus
from modelyard_services.effects.log.memory import MemoryLog
from modelyard_services.effects.runtime import in_memory
from modelyard_services.effects.tracing import Traced, request_span, span, traceparent, tracing
from modelyard_services.effects.tracing.provider import FLUSH_SECONDS, Patient
from modelyard_services.errors import ConflictError
from tests.support.collector import a_collector, recorded, trace_of

TRACE = "0af7651916cd43dd8448eb211c80319c"
GIVEN = f"00-{TRACE}-b7ad6b7169203331-01"
OTHER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.mark.parametrize("given", [None, "", "x", GIVEN.replace("00-", "ff-", 1), f"00-{'0' * 32}-b7ad6b7169203331-01"])
@pytest.mark.parametrize("on", [False, True])
def test_a_request_without_a_valid_trace_begins_one(given: str | None, on: bool) -> None:  # noqa: FBT001 - a parameter
    with recorded() if on else _nothing(), request_span("x", given) as work:
        assert work.traceparent is not None
        assert len(work.traceparent) == len(GIVEN)
        assert work.traceparent[3:35] not in {TRACE, "0" * 32}


@pytest.mark.parametrize("on", [False, True])
def test_a_requests_own_trace_goes_on_under_a_span_of_ours(on: bool) -> None:  # noqa: FBT001 - a parameter
    with recorded() if on else _nothing(), request_span("x", GIVEN) as work:
        assert work.traceparent is not None
        assert work.traceparent[3:35] == TRACE
        assert work.traceparent != GIVEN


def test_nothing_recorded_hands_on_the_trace_it_was_given() -> None:
    with span("x", parent=GIVEN) as work:
        assert (work.traceparent, work.recorded, traceparent()) == (GIVEN, False, None)
    with span("x", parent="nonsense") as work:
        assert work.traceparent is None


def test_the_nearer_span_of_the_same_trace_is_the_parent() -> None:
    with recorded() as kept, request_span("request", GIVEN) as request, span("route"), span("commit", parent=GIVEN):
        assert request.traceparent != traceparent()
    spans = {each.name: each for each in kept.get_finished_spans()}
    parent, route = spans["commit"].parent, spans["route"].context
    assert parent is not None
    assert route is not None
    assert parent.span_id == route.span_id


def test_a_trace_given_from_an_event_is_joined_from_within_another() -> None:
    with recorded() as kept, span("pass"), span("act", parent=GIVEN) as act:
        act.link([OTHER, OTHER, GIVEN, None, "nonsense"])
    act_span = next(each for each in kept.get_finished_spans() if each.name == "act")
    assert trace_of(act_span) == TRACE
    assert [f"{link.context.trace_id:032x}" for link in act_span.links] == [OTHER[3:35]], "others, and each once"


async def test_a_commit_tells_of_its_conflicts_and_of_what_it_appended() -> None:
    """X21: the race is seen where it is looked for."""
    async with in_memory("test", MemoryLog(), MemoryBus()) as runtime:
        await runtime.wait_ready(timeout_seconds=1)
        with recorded() as kept:
            both = [runtime.journal.commit(runtime.envelope(trace=GIVEN), _born_once) for _ in range(2)]
            await asyncio.gather(*both)
        events = [[event.name for event in each.events] for each in kept.get_finished_spans()]
        assert sorted(events) == [["appended"], ["conflict"]], "one won, the other saw it and had nothing left to do"
        assert {trace_of(each) for each in kept.get_finished_spans()} == {TRACE}


async def test_an_event_without_a_request_bears_the_trace_of_its_commit() -> None:
    """H1."""
    log = MemoryLog()
    async with in_memory("test", log, MemoryBus()) as runtime:
        await runtime.wait_ready(timeout_seconds=1)
        with recorded() as kept:
            await runtime.journal.commit(runtime.envelope(), _born_once)
        stored = await log.read(1)
        assert stored is not None
        assert trace_of(kept.get_finished_spans()[0]) in stored.body.decode()


async def test_a_refusal_is_a_failed_span_with_its_code() -> None:
    def refuse(_fleet: Fleet) -> Sequence[AnyEvent]:
        raise ConflictError("no")

    async with in_memory("test", MemoryLog(), MemoryBus()) as runtime:
        await runtime.wait_ready(timeout_seconds=1)
        with recorded() as kept, pytest.raises(ConflictError):
            await runtime.journal.commit(runtime.envelope(), refuse)
        attributes = kept.get_finished_spans()[0].attributes
        assert attributes is not None
        assert attributes["error.type"] == ConflictError.code


def test_nothing_is_recorded_unless_an_endpoint_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    with tracing(Traced("test")), span("x") as work:
        assert not work.recorded


@pytest.mark.parametrize(
    "more",
    [{"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_EXPORTER": "none"}, {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
     {"OTEL_BSP_MAX_QUEUE_SIZE": "100"}],
)  # fmt: skip
def test_what_turns_it_off_or_cant_be_used_stops_nothing(monkeypatch: pytest.MonkeyPatch, more: dict[str, str]) -> None:
    for name, value in ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"} | more).items():
        monkeypatch.setenv(name, value)
    with tracing(Traced("test")), span("x") as work:
        assert not work.recorded


def test_the_standard_variables_name_the_service_and_its_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    with a_collector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{collector.url}/v1/traces")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "ours")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
        monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1")
        with tracing(Traced("worker", node="gpu-1")), span("x"):
            pass
        (received,) = collector.spans
        assert received.process == "ours"
        assert (received.resource["modelyard.process"], received.resource["modelyard.node"]) == ("worker", "gpu-1")


MANY_SPANS = """
import json, time
import structlog
from modelyard_services.effects.tracing import Traced, span, tracing

with structlog.testing.capture_logs() as logs:
    began = time.monotonic()
    with tracing(Traced("test")):
        for _ in range(5_000):
            with span("x"):
                pass
        ending = time.monotonic()
    print(json.dumps([ending - began, time.monotonic() - ending, len(logs)]))
"""


@pytest.mark.parametrize("how", ["refuses", "is silent"])
def test_a_collector_that_is_away_holds_nobody_up(how: str) -> None:
    """Neither while spans are made, nor at the end, nor the process's own end; and it is said once.

    A process of its own, as in life: the library's tries outlive the flush, and draw from everybody's `random`.
    """
    with _somewhere(listens=how == "is silent") as port:
        environment = os.environ | {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "600000",
            "OTEL_BSP_MAX_QUEUE_SIZE": "600",
        }
        began = time.monotonic()
        process = subprocess.run(  # noqa: S603 - our own program
            [sys.executable, "-c", MANY_SPANS], env=environment, capture_output=True, check=True
        )
        whole = time.monotonic() - began
    made, ended, told = json.loads(process.stdout)
    # On any machine far below what the library would wait: half a minute at the end, ten for the collector.
    assert made < 60
    assert ended < FLUSH_SECONDS + 20
    assert whole < made + ended + 60, "what still tries keeps no process alive"
    assert 1 <= told <= 2, "whoever looks for spans is told why there are none"


@contextmanager
def _somewhere(*, listens: bool) -> Iterator[int]:
    """A port on which nobody answers: refused, or accepted and left alone."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        if listens:
            yield port
            return
    yield port


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _born_once(fleet: Fleet) -> list[AnyEvent]:
    return [] if fleet.nodes else [NodeRegistered(node="gpu-1", node_type="backend")]


def test_lost_spans_are_told_of_once_and_counted_when_it_is_over() -> None:
    answers = iter([SpanExportResult.FAILURE] * 3 + [SpanExportResult.SUCCESS] * 2)

    class Inner(InMemorySpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            del spans  # what it answers is the test's
            return next(answers)

    with recorded() as kept, span("x"):
        pass
    patient = Patient(Inner())
    with structlog.testing.capture_logs() as logs:
        for _ in range(5):
            patient.export(kept.get_finished_spans())
    assert [(entry["log_level"], entry["lost"]) for entry in logs] == [("warning", 1), ("info", 3)]
