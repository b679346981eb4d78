"""A collector as OpenTelemetry means it: OTLP over HTTP on loopback, its protobuf decoded; and spans kept in memory.

Invariant: what is asserted on came over the wire of a real exporter, or from the real SDK.
"""

import contextlib
import gzip
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as WireSpan
from opentelemetry.proto.trace.v1.trace_pb2 import Status
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from modelyard_services.effects.tracing import recorded_by


class Received(msgspec.Struct, frozen=True):
    """One span as the collector got it; ids in hex, `links` by trace id."""

    process: str
    resource: dict[str, str]
    name: str
    trace: str
    id: str
    parent: str
    attributes: dict[str, str]
    events: tuple[str, ...]
    links: tuple[str, ...]
    failed: bool


class Collector:
    """The spans that arrived so far."""

    def __init__(self) -> None:
        self.spans: list[Received] = []
        self.url = ""

    def of(self, trace: str) -> list[Received]:
        """The spans of one trace."""
        return [span for span in list(self.spans) if span.trace == trace]

    def take(self, body: bytes) -> None:
        """Decode one export."""
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            said = _texts(resource.resource.attributes)
            for scope in resource.scope_spans:
                self.spans.extend(_received(span, said) for span in scope.spans)


@contextlib.contextmanager
def a_collector() -> Iterator[Collector]:
    """A collector that takes everything."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            assert self.path == "/v1/traces"
            collector.take(gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
            del format, args  # quiet

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector.url = f"http://127.0.0.1:{server.server_address[1]}"
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    try:
        yield collector
    finally:
        server.shutdown()
        serving.join()
        server.server_close()


@contextlib.contextmanager
def recorded() -> Iterator[InMemorySpanExporter]:
    """The spans of this process while the context lasts."""
    kept = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(kept))
    with recorded_by(provider.get_tracer("test")):
        yield kept
    provider.shutdown()


def trace_of(span: ReadableSpan) -> str:
    """A recorded span's trace id in hex."""
    assert span.context is not None
    return f"{span.context.trace_id:032x}"


def _received(span: WireSpan, resource: dict[str, str]) -> Received:
    return Received(
        process=resource["service.name"],
        resource=resource,
        name=span.name,
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        attributes=_texts(span.attributes),
        events=tuple(event.name for event in span.events),
        links=tuple(link.trace_id.hex() for link in span.links),
        failed=span.status.code == Status.STATUS_CODE_ERROR,
    )


def _texts(attributes: Sequence[KeyValue]) -> dict[str, str]:
    found = {}
    for each in attributes:
        kind = each.value.WhichOneof("value")
        found[each.key] = str(getattr(each.value, kind)) if kind else ""
    return found
