"""A process's spans on their way to a collector: OTLP over HTTP, as the standard `OTEL_*` variables say.

Invariant: off unless an endpoint is set; whatever the collector does, the process neither waits for it nor fails by
it: spans queue up to a limit, then are lost and counted, and the end of the process waits for them only so long.
"""

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec
import structlog
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

import modelyard_services
from modelyard_services.effects.clock import Ids
from modelyard_services.effects.tracing.spans import recorded_by

QUEUE_MAX: Final = 8_192
"""Spans that wait (`OTEL_BSP_MAX_QUEUE_SIZE`): half a minute of a busy gateway, some ten MiB."""

BATCH_MAX: Final = 512
"""Spans in one request to the collector (`OTEL_BSP_MAX_EXPORT_BATCH_SIZE`)."""

DELAY_MILLISECONDS: Final = 1_000
"""Longest wait for a batch to fill (`OTEL_BSP_SCHEDULE_DELAY`): whoever looks for a request finds it at once."""

FLUSH_SECONDS: Final = 2.0
"""What the last spans get at the end of a process: a supervisor that waits 15 s must not kill us for them."""

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_SPEAKS: Final = "http/protobuf"

_log = structlog.get_logger(__name__)


class Traced(msgspec.Struct, frozen=True):
    """Whose spans they are: the process (`api`, `worker` …), and the node it works for, if it does for one."""

    process: str
    node: str | None = None


@contextlib.contextmanager
def tracing(traced: Traced) -> Iterator[None]:
    """Record this process's spans while the context lasts, if the environment says where they go."""
    provider = _provider(traced)
    if provider is None:
        yield
        return
    try:
        with recorded_by(provider.get_tracer("modelyard", modelyard_services.__version__)):
            yield
    finally:
        _flush(provider)


class Patient(SpanExporter):
    """Hands batches on, and says once when they begin to be lost, and once how many were when they no longer are."""

    def __init__(self, inner: SpanExporter) -> None:
        self.lost = 0
        self._inner = inner

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export one batch; what fails is lost."""
        result = self._inner.export(spans)
        if result is SpanExportResult.SUCCESS:
            if self.lost:
                _log.info("the collector takes spans again", lost=self.lost)
            self.lost = 0
        else:
            if not self.lost:
                _log.warning("the collector takes no spans; they are lost until it does", lost=len(spans))
            self.lost += len(spans)
        return result

    def shutdown(self) -> None:
        """Take nothing more."""
        self._inner.shutdown()


def _provider(traced: Traced) -> TracerProvider | None:
    """None where spans go nowhere: nobody asked for them, or what was asked for can't be had."""
    if not any(os.environ.get(name) for name in _ENDPOINTS) or _is_off():
        return None
    protocol = next((os.environ[name] for name in _PROTOCOLS if os.environ.get(name)), _SPEAKS)
    if protocol != _SPEAKS:
        _log.warning("spans go nowhere: this protocol isn't spoken", protocol=protocol, spoken=_SPEAKS)
        return None
    # The library tells of every try, of which an absent collector makes one a second; `Patient` tells of the change.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - only where on

    try:
        provider = TracerProvider(resource=_resource(traced), shutdown_on_exit=False)
        provider.add_span_processor(_batches(Patient(OTLPSpanExporter())))
    except (ValueError, OSError) as error:
        # Limits that contradict one another, a certificate that isn't there: no reason to serve nothing.
        _log.error("spans go nowhere: the OTEL_* variables can't be used", problem=str(error))
        return None
    return provider


def _is_off() -> bool:
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    return disabled or "otlp" not in os.environ.get("OTEL_TRACES_EXPORTER", "otlp")


def _resource(traced: Traced) -> Resource:
    own: dict[str, str | int] = {
        "service.name": f"modelyard-{traced.process}",
        "service.namespace": "modelyard",
        "service.version": modelyard_services.__version__,
        "service.instance.id": Ids().new(traced.process),
        "host.name": socket.gethostname(),
        "process.pid": os.getpid(),
        "modelyard.process": traced.process,
    }
    if traced.node is not None:
        own["modelyard.node"] = traced.node
    # Last, what the operator says of it: OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES.
    return Resource.create(own).merge(OTELResourceDetector().detect())


def _batches(exporter: SpanExporter) -> BatchSpanProcessor:
    """Our limits, where the operator sets none; the library reads those."""

    def limit(name: str, ours: int) -> int | None:
        return None if os.environ.get(name) else ours

    return BatchSpanProcessor(
        exporter,
        max_queue_size=limit("OTEL_BSP_MAX_QUEUE_SIZE", QUEUE_MAX),
        max_export_batch_size=limit("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", BATCH_MAX),
        schedule_delay_millis=limit("OTEL_BSP_SCHEDULE_DELAY", DELAY_MILLISECONDS),
    )


def _flush(provider: TracerProvider) -> None:
    """Send what waits, for so long; the library's own patience is half a minute."""
    last = threading.Thread(target=provider.shutdown, name="last-spans", daemon=True)
    last.start()
    last.join(FLUSH_SECONDS)
    if last.is_alive():
        _log.warning("the last spans are lost: the collector didn't take them in time", seconds=FLUSH_SECONDS)
