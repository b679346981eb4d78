"""The contract of the public lifecycle stream, for programs that generate their readers from it.

Invariant: it is generated from the event types that this process itself writes.
"""

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from litestar import Controller, get
from litestar.params import FromPath

from modelyard_projections.asyncapi import asyncapi_document, event_schemas
from modelyard_services.api.access import requires
from modelyard_services.errors import NotFoundError

_DISTRIBUTION: Final = "modelyard"


class Contracts(Controller):
    """AsyncAPI and JSON Schemas."""

    guards = [requires("viewer")]  # noqa: RUF012 - the framework reads it as a class attribute
    tags = ["contracts"]  # noqa: RUF012 - as above

    @get("/asyncapi.json", summary="Describe the lifecycle stream")
    async def show_asyncapi(self) -> dict[str, Any]:
        """The AsyncAPI 3.0 document: one channel for each type of event."""
        return _document()

    @get("/schemas", summary="List the types of events")
    async def list_schemas(self) -> list[str]:
        """Every type of event that is written today."""
        return sorted(_schemas())

    @get("/schemas/{tag:str}", summary="Show the schema of a type of event")
    async def show_schema(self, tag: FromPath[str]) -> dict[str, Any]:
        """The JSON Schema of the event's data."""
        schema = _schemas().get(tag)
        if schema is None:
            raise NotFoundError(f"there is no type of event {tag!r}", field="tag", value=tag)
        return schema


@cache
def _document() -> dict[str, Any]:
    try:
        found = version(_DISTRIBUTION)
    except PackageNotFoundError:
        found = "0"  # run from a checkout
    return asyncapi_document(version=found)


@cache
def _schemas() -> dict[str, dict[str, Any]]:
    return event_schemas()
