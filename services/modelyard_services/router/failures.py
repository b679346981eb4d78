"""Errors over gRPC: a typed status, and the whole error in the trailing metadata (rule T8).

Invariant: every code that a user can meet has a status; a program reads `code` from the detail, never the text.
"""

from collections.abc import Mapping
from typing import Final

import grpc
import msgspec

from modelyard_services.errors import ModelyardError
from modelyard_services.router.proto.modelyard.v1.scheduler_pb2 import ErrorDetail

DETAIL_KEY: Final = "modelyard-error-bin"

GRPC_STATUS: Final[Mapping[str, grpc.StatusCode]] = {
    "invalid_request": grpc.StatusCode.INVALID_ARGUMENT,
    "unauthorized": grpc.StatusCode.UNAUTHENTICATED,
    "forbidden": grpc.StatusCode.PERMISSION_DENIED,
    "not_found": grpc.StatusCode.NOT_FOUND,
    "model_unknown": grpc.StatusCode.NOT_FOUND,
    "model_loading": grpc.StatusCode.UNAVAILABLE,
    "no_capacity": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "overloaded": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "unsatisfiable": grpc.StatusCode.FAILED_PRECONDITION,
    "replica_failed": grpc.StatusCode.UNAVAILABLE,
    "stale_revision": grpc.StatusCode.ABORTED,
    "contended": grpc.StatusCode.ABORTED,
    "not_yet": grpc.StatusCode.UNAVAILABLE,
    "unavailable": grpc.StatusCode.UNAVAILABLE,
    "log_unavailable": grpc.StatusCode.UNAVAILABLE,
    "log_replaced": grpc.StatusCode.OUT_OF_RANGE,
}
"""What the calls of this service can fail by; anything else is INTERNAL."""

Failure = tuple[grpc.StatusCode, str, tuple[tuple[str, bytes], ...]]


def failure(error: ModelyardError) -> Failure:
    """Status, text and trailing metadata of a call that failed by `error`."""
    detail = ErrorDetail(
        code=error.code,
        detail=error.detail,
        field=error.field or "",
        retryable=error.retryable,
        retry_after_seconds=error.retry_after_seconds or 0.0,
        extra_json=msgspec.json.encode(error.extra, enc_hook=str).decode() if error.extra else "",
    )
    status = GRPC_STATUS.get(error.code, grpc.StatusCode.INTERNAL)
    return status, error.detail, ((DETAIL_KEY, detail.SerializeToString()),)
