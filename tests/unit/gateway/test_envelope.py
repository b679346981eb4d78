"""T8: every error as OpenAI clients read it."""

import json
from typing import Any, cast

import pytest

from modelyard_services import errors
from modelyard_services.api.problems import on_modelyard_error
from modelyard_services.errors import STATUS_OF, InvalidRequestError, ModelLoadingError, ModelyardError
from modelyard_services.gateway.envelope import refusal


def every_error(kind: type[ModelyardError] = ModelyardError) -> list[type[ModelyardError]]:
    own = [each for each in kind.__subclasses__() if each.__module__ == errors.__name__]
    return [*own, *[further for each in own for further in every_error(each)]]


@pytest.mark.parametrize("kind", every_error())
def test_every_error_has_its_status(kind: type[ModelyardError]) -> None:
    assert STATUS_OF[kind.code] >= 400


@pytest.mark.parametrize(
    ("kind", "status", "retry"),
    [
        (errors.ModelUnknownError, 404, b"false"),
        (errors.ModelLoadingError, 503, b"true"),
        (errors.NoCapacityError, 503, b"true"),
        (errors.UnsatisfiableError, 422, b"false"),
        (errors.OverloadedError, 429, b"true"),
        (errors.ReplicaFailedError, 502, b"true"),
        (errors.StaleRevisionError, 409, b"false"),
    ],
)
def test_each_cause_has_its_own_status_over_http_and_whether_a_retry_helps(
    kind: type[ModelyardError], status: int, retry: bytes
) -> None:
    """T8: the table of the rule, under `/v1` and under `/api/v1`."""
    error = kind("because")
    told, headers, body = refusal(error)
    assert (told, dict(headers)[b"x-should-retry"]) == (status, retry)
    assert json.loads(body)["error"]["code"] == kind.code
    problem = on_modelyard_error(cast(Any, None), error)
    assert (problem.status_code, problem.media_type) == (status, "application/problem+json")
    assert (problem.content.code, problem.content.retryable) == (kind.code, retry == b"true")
    assert problem.headers["x-should-retry"] == retry.decode()


def test_what_a_retry_cannot_help_says_so() -> None:
    status, headers, body = refusal(InvalidRequestError("no model", field="model"))
    assert status == 400
    assert dict(headers)[b"x-should-retry"] == b"false"
    error = json.loads(body)["error"]
    assert error == {
        "message": "no model",
        "type": "invalid_request_error",
        "code": "invalid_request",
        "param": "model",
    }


def test_what_a_retry_can_help_says_when() -> None:
    status, headers, body = refusal(ModelLoadingError("soon", retry_after_seconds=7.4, extra={"node": "n1"}))
    assert status == 503
    assert dict(headers)[b"x-should-retry"] == b"true"
    assert dict(headers)[b"retry-after"] == b"7"
    assert json.loads(body)["error"]["details"] == {"node": "n1"}
