"""Errors as problem details (RFC 9457): `type`, `title`, `status`, `code`, `detail`, and the field at fault.

Invariant: a known cause never becomes a bare 500; an unknown one says so and is logged with its trace.
"""

from collections.abc import Callable
from typing import Any, Final

import msgspec
import structlog
from litestar import Request, Response
from litestar.enums import ParamType
from litestar.exceptions import HTTPException, ValidationException
from litestar.status_codes import HTTP_500_INTERNAL_SERVER_ERROR

from modelyard_events.errors import InvalidValueError
from modelyard_services.api.parameters import parameters_of
from modelyard_services.errors import (
    STATUS_OF,
    InvalidEntriesError,
    InvalidQueryError,
    InvalidRequestError,
    ModelyardError,
)
from modelyard_services.policy.suggestion import meant

PROBLEM_JSON: Final = "application/problem+json"
TYPE_PREFIX: Final = "urn:modelyard:problem:"

_log = structlog.get_logger(__name__)


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """The body of every error under `/api/v1`."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    field: str | None = None
    value: Any = None
    retryable: bool = False
    errors: list[dict[str, Any]] | None = None
    extra: dict[str, Any] | None = None


def problem(code: str, detail: str, **members: Any) -> Response[Problem]:
    """The response for one error."""
    status = STATUS_OF[code]
    body = Problem(
        type=TYPE_PREFIX + code,
        title=code.replace("_", " "),
        status=status,
        code=code,
        detail=detail,
        **members,
    )
    # As under `/v1`: one header that says it, whatever the client makes of bodies.
    headers = {"x-should-retry": "true" if body.retryable else "false"}
    return Response(body, status_code=status, media_type=PROBLEM_JSON, headers=headers)


def on_modelyard_error(_request: Request[Any, Any, Any], error: ModelyardError) -> Response[Problem]:
    """An expected failure, with `Retry-After` where it is known."""
    response = problem(
        error.code,
        error.detail,
        field=error.field,
        value=_plain(error.value),
        retryable=error.retryable,
        extra=error.extra or None,
        errors=[_plain(fault) for fault in error.errors] if isinstance(error, InvalidEntriesError) else None,
    )
    if error.retry_after_seconds is not None:
        response.headers["Retry-After"] = str(max(1, round(error.retry_after_seconds)))
    return response


def on_invalid_value(request: Request[Any, Any, Any], error: InvalidValueError) -> Response[Problem]:
    """A value that its field refuses."""
    kind = InvalidQueryError if error.field in request.query_params else InvalidRequestError
    return problem(kind.code, str(error), field=error.field, value=_plain(error.value))


def on_http_error(request: Request[Any, Any, Any], error: HTTPException) -> Response[Problem]:
    """The framework's own refusals: unknown route or method, a body that can't be read."""
    if isinstance(error, ValidationException):
        return _on_validation(request, error)
    code = {404: "not_found", 405: "method_not_allowed", 413: "payload_too_large"}.get(
        error.status_code, "invalid_request" if error.status_code < HTTP_500_INTERNAL_SERVER_ERROR else "internal"
    )
    response = problem(code, f"{request.method} {request.url.path}: {error.detail}")
    response.headers.update(error.headers or {})
    return response


def on_too_deep(request: Request[Any, Any, Any], _error: RecursionError) -> Response[Problem]:
    """A body of thousands of brackets in one another."""
    return problem("invalid_request", f"{request.method} {request.url.path}: the body is nested too deeply")


def on_unknown_error(request: Request[Any, Any, Any], error: Exception) -> Response[Problem]:
    """A defect of ours."""
    _log.error("request failed", method=request.method, path=request.url.path, exc_info=error)
    return problem("internal", f"unexpected {type(error).__name__}; it is in the server's log")


def _on_validation(request: Request[Any, Any, Any], error: ValidationException) -> Response[Problem]:
    extra = error.extra if isinstance(error.extra, list) else []
    faults = [_fault(request, fault) for fault in extra if isinstance(fault, dict)]
    field = faults[0]["field"] if faults else None
    detail = "; ".join(f"{fault['field']}: {fault['detail']}" for fault in faults) or error.detail
    value = request.query_params.get(field) if field else None
    kind = InvalidQueryError if any(fault["in"] == ParamType.QUERY.value for fault in faults) else InvalidRequestError
    return problem(kind.code, detail, field=field, value=value, errors=faults or None)


def _fault(request: Request[Any, Any, Any], fault: dict[str, Any]) -> dict[str, str]:
    """A fault as the client wrote its cause: the framework names the parameters of our functions."""
    source = fault.get("source", "")
    told = {
        "field": str(fault.get("key", "")),
        "detail": str(fault.get("message", "")),
        "in": source.value if isinstance(source, ParamType) else str(source),
    }
    query = parameters_of(request.route_handler).get(told["field"])
    if query is None:
        return told
    given = request.query_params.get(query.name, "")
    detail = f"there is no {given!r}; {meant(given, query.choices)}" if query.choices else told["detail"]
    return {**told, "field": query.name, "detail": detail}


def _plain(value: object) -> Any:
    return msgspec.to_builtins(value, enc_hook=str) if value is not None else None


EXCEPTION_HANDLERS: Final[dict[int | type[Exception], Callable[[Request[Any, Any, Any], Any], Response[Any]]]] = {
    ModelyardError: on_modelyard_error,
    InvalidValueError: on_invalid_value,
    HTTPException: on_http_error,
    RecursionError: on_too_deep,
    HTTP_500_INTERNAL_SERVER_ERROR: on_unknown_error,
    Exception: on_unknown_error,
}
