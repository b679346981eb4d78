"""T8: every error as OpenAI clients read it."""

import json

import pytest

from modelyard_services import errors
from modelyard_services.errors import STATUS_OF, InvalidRequestError, ModelLoadingError, ModelyardError
from modelyard_services.gateway.envelope import refusal


def every_error(kind: type[ModelyardError] = ModelyardError) -> list[type[ModelyardError]]:
    own = [each for each in kind.__subclasses__() if each.__module__ == errors.__name__]
    return [*own, *[further for each in own for further in every_error(each)]]


@pytest.mark.parametrize("kind", every_error())
def test_every_error_has_its_status(kind: type[ModelyardError]) -> None:
    assert STATUS_OF[kind.code] >= 400


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
