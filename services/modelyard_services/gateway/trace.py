"""The W3C trace a request belongs to: the client's if it sent one, else a new one.

Invariant: every request to a replica, and every event that a request causes, bears a valid traceparent.
"""

import re
from typing import Final

from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import Span, SpanKind, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_VALID: Final = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_SAMPLED: Final = "01"
_GENERATOR: Final = RandomIdGenerator()
_PROPAGATOR: Final = TraceContextTextMapPropagator()


class Trace:
    """One request's part of its trace; a span is recorded where a `tracer` is given."""

    def __init__(self, given: str | None, *, name: str, tracer: Tracer | None) -> None:
        self._span: Span | None = None
        parent = given if given and _VALID.fullmatch(given) else None
        if tracer is not None:
            self._span = _begin(tracer, name, parent)
            self.traceparent = _format(self._span)
        else:
            trace = parent[3:35] if parent else f"{_GENERATOR.generate_trace_id():032x}"
            flags = parent[-2:] if parent else _SAMPLED
            self.traceparent = f"00-{trace}-{_GENERATOR.generate_span_id():016x}-{flags}"

    def end(self, **attributes: str | int) -> None:
        """The request is over."""
        if self._span is not None:
            self._span.set_attributes({f"modelyard.{key}": value for key, value in attributes.items()})
            self._span.end()


def _begin(tracer: Tracer, name: str, parent: str | None) -> Span:
    context = _PROPAGATOR.extract({"traceparent": parent}) if parent else None
    return tracer.start_span(name, context=context, kind=SpanKind.SERVER)


def _format(span: Span) -> str:
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
