"""Errors as OpenAI clients read them: one envelope, and whether a retry can help (rule T8).

Invariant: every known cause has its status and code; `x-should-retry` says no where the same request can't succeed.
"""

from typing import Any, Final

import msgspec

from modelyard_services.errors import STATUS_OF, ModelyardError

_TYPE_OF: Final = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_SERVER_ERROR: Final = 500


class ErrorBody(msgspec.Struct, frozen=True, omit_defaults=True):
    """OpenAI's error object; `details` are our own members (state, node, progress …)."""

    message: str
    type: str
    code: str
    param: str | None = None
    details: dict[str, Any] | None = None


class ErrorEnvelope(msgspec.Struct, frozen=True):
    error: ErrorBody


Refusal = tuple[int, list[tuple[bytes, bytes]], bytes]


def refusal(error: ModelyardError) -> Refusal:
    """Status, headers and body of the answer to a request that failed by `error`."""
    status = STATUS_OF[error.code]
    body = envelope(error)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"x-should-retry", b"true" if error.retryable else b"false"),
    ]
    if error.retry_after_seconds is not None:
        headers.append((b"retry-after", b"%d" % max(1, round(error.retry_after_seconds))))
    return status, headers, body


def envelope(error: ModelyardError) -> bytes:
    """The body alone, as a broken stream carries it too."""
    status = STATUS_OF[error.code]
    kind = _TYPE_OF.get(status, "server_error" if status >= _SERVER_ERROR else "invalid_request_error")
    body = ErrorBody(error.detail, kind, error.code, error.field, error.extra or None)
    return msgspec.json.encode(ErrorEnvelope(body), enc_hook=str)
