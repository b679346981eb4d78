"""OpenTelemetry, kept in one place: the rest of the program knows spans and traceparents only."""

from modelyard_services.effects.tracing.provider import Traced, tracing
from modelyard_services.effects.tracing.spans import Kind, Span, recorded_by, request_span, span, traceparent

__all__ = ["Kind", "Span", "Traced", "recorded_by", "request_span", "span", "traceparent", "tracing"]
