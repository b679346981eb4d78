"""The OpenAPI document, made whole: bodies that we judge ourselves, fault by fault, are described here.

Invariant: every route, every body and the one shape of every error are in the document.
"""

from typing import Any, Final

import msgspec
from litestar import Request, get

from modelyard_services.api.freshness import MIN_SEQ
from modelyard_services.api.problems import PROBLEM_JSON, Problem
from modelyard_services.policy.entries import ModelBody, ScheduleBody

REF: Final = "#/components/schemas/{name}"

# The framework stops at the first fault of a body; these two are read whole, so that all faults are told at once.
BODIES: Final[dict[tuple[str, str], type]] = {
    ("/api/v1/models/{model}", "put"): ModelBody,
    ("/api/v1/models/{model}/schedule", "put"): ScheduleBody,
}

PREFIX: Final = "/api/v1/"

MIN_SEQ_PARAMETER: Final[dict[str, Any]] = {
    "name": MIN_SEQ,
    "in": "query",
    "required": False,
    "description": "Wait until what is answered from has passed this sequence; `not_yet` after 2 s.",
    "schema": {"type": "integer", "minimum": 0},
}


@get("/openapi.json", summary="This document", tags=["documents"], opt={"open": True})
async def openapi_document(request: Request[Any, Any, Any]) -> dict[str, Any]:
    """The OpenAPI document of the control API."""
    return completed(request.app.openapi_schema.to_schema())


def completed(document: dict[str, Any]) -> dict[str, Any]:
    """`document` with the bodies and the errors that the framework doesn't know of."""
    kinds = [*BODIES.values(), Problem]
    _schemas, components = msgspec.json.schema_components(kinds, ref_template=REF)
    known = document.setdefault("components", {}).setdefault("schemas", {})
    known.update(components)
    for (path, method), body in BODIES.items():
        operation = document["paths"][path][method]
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": _ref(body)}}}
    problem = {"description": "Refused or failed", "content": {PROBLEM_JSON: {"schema": _ref(Problem)}}}
    for name, path in document["paths"].items():
        for operation in path.values():
            if isinstance(operation, dict) and "responses" in operation:
                operation["responses"].pop("400", None)
                operation["responses"]["default"] = problem
                if name.startswith(PREFIX):
                    operation.setdefault("parameters", []).append(MIN_SEQ_PARAMETER)
    return document


def _ref(kind: type) -> dict[str, str]:
    return {"$ref": REF.format(name=kind.__name__)}
