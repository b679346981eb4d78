"""Spans: what a process does for how long, and in whose trace.

Invariant: where nothing records, a span costs next to nothing and hands on the trace that it was given; a trace that
isn't valid W3C is nobody's. What is recorded never changes what is done.
"""

import contextlib
import re
from collections.abc import Iterable, Iterator
from contextvars import Token
from types import TracebackType
from typing import ClassVar, Final, Self

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import SpanKind, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

LINKS_MAX: Final = 32
"""Of one span: a batch can hold events of thousands of requests, a viewer shows a handful."""

Value = str | int | float | bool
Kind = SpanKind

_VALID: Final = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_SAMPLED: Final = "01"
_GENERATOR: Final = RandomIdGenerator()
_PROPAGATOR: Final = TraceContextTextMapPropagator()


class _Process:
    """Who records in this process: nobody, until `recorded_by` says so."""

    tracer: ClassVar[Tracer | None] = None


@contextlib.contextmanager
def recorded_by(tracer: Tracer | None) -> Iterator[None]:
    """Have `tracer` record this process's spans while the context lasts."""
    before, _Process.tracer = _Process.tracer, tracer
    try:
        yield
    finally:
        _Process.tracer = before


class Span:
    """One piece of work. Use as a context manager; `traceparent` is what it hands on to what it causes."""

    __slots__ = ("_span", "_token", "traceparent")

    def __init__(self, recorded: trace.Span | None, given: str | None) -> None:
        self._span = recorded
        self._token: Token[Context] | None = None
        self.traceparent = given if recorded is None else _format(recorded)

    def __enter__(self) -> Self:
        if self._span is not None:
            self._token = context.attach(trace.set_span_in_context(self._span))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _at: TracebackType | None
    ) -> None:
        if self._token is not None:
            context.detach(self._token)
        if isinstance(error, Exception):
            self.fail(str(error) or type(error).__name__, code=getattr(error, "code", type(error).__name__))
        self.end()

    def end(self) -> None:
        """It is over: for one that isn't used as a context manager."""
        if self._span is not None:
            self._span.end()

    @property
    def recorded(self) -> bool:
        return self._span is not None

    def rename(self, name: str) -> None:
        """Call it by a name that is known only now."""
        if self._span is not None:
            self._span.update_name(name)

    def note(self, **attributes: Value | None) -> None:
        """Add attributes, `modelyard.<name>` each; None says nothing."""
        if self._span is not None:
            self._span.set_attributes(_attributes(attributes))

    def event(self, name: str, **attributes: Value | None) -> None:
        """Something happened within it just now."""
        if self._span is not None:
            self._span.add_event(name, _attributes(attributes))

    def fail(self, problem: str, *, code: str) -> None:
        """It came to nothing."""
        if self._span is not None:
            self._span.set_attribute("error.type", code)
            self._span.set_status(StatusCode.ERROR, problem)

    def link(self, traces: Iterable[str | None]) -> None:
        """It belongs to these traces as well; bounded."""
        if self._span is None:
            return
        own = self._span.get_span_context().trace_id
        for given in list(dict.fromkeys(traces))[:LINKS_MAX]:
            linked = _context_of(given)
            if linked is not None and (other := trace.get_current_span(linked).get_span_context()).trace_id != own:
                self._span.add_link(other)


def span(
    name: str,
    *,
    kind: Kind = Kind.INTERNAL,
    parent: str | None = None,
    began_ns: int | None = None,
) -> Span:
    """A span within the trace `parent`; without one, within the span that this is called in.

    Where that span is of the very trace, it is the parent: it is the nearer one.
    """
    tracer = _Process.tracer
    if tracer is None:
        return Span(None, parent if valid(parent) else None)
    return Span(tracer.start_span(name, context=_around(parent), kind=kind, start_time=began_ns), parent)


def request_span(name: str, given: str | None) -> Span:
    """The span of a request from outside, in the client's trace, else in a new one: its traceparent is always valid."""
    tracer = _Process.tracer
    parent = given if valid(given) else None
    if tracer is not None:
        within = _context_of(parent) or Context()
        return Span(tracer.start_span(name, context=within, kind=Kind.SERVER), None)
    trace_id = parent[3:35] if parent else f"{_GENERATOR.generate_trace_id():032x}"
    flags = parent[-2:] if parent else _SAMPLED
    return Span(None, f"00-{trace_id}-{_GENERATOR.generate_span_id():016x}-{flags}")


def traceparent() -> str | None:
    """Of the span that this is called in; None where nothing is recorded."""
    current = trace.get_current_span() if _Process.tracer is not None else None
    return _format(current) if current is not None and current.get_span_context().is_valid else None


def valid(given: str | None) -> bool:
    """Whether `given` is a W3C traceparent."""
    return given is not None and _VALID.fullmatch(given) is not None


def _around(parent: str | None) -> Context | None:
    """The context to begin a span in; None is the current one."""
    told = _context_of(parent)
    if told is None:
        return None
    outer = trace.get_current_span().get_span_context()
    return None if outer.trace_id == trace.get_current_span(told).get_span_context().trace_id else told


def _context_of(given: str | None) -> Context | None:
    return _PROPAGATOR.extract({"traceparent": given}, context=Context()) if given and valid(given) else None


def _format(recorded: trace.Span) -> str:
    own = recorded.get_span_context()
    return f"00-{own.trace_id:032x}-{own.span_id:016x}-{own.trace_flags:02x}"


def _attributes(given: dict[str, Value | None]) -> dict[str, Value]:
    return {f"modelyard.{name}": value for name, value in given.items() if value is not None}
