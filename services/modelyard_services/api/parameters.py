"""Query parameters are held to what their route knows, so that a mistyped one is never an answer to another question.

Invariant: every parameter of a request is one that the OpenAPI document names for its route, and stands there once.
"""

from collections.abc import Collection, Iterator
from typing import Any, Final, Literal, get_args, get_origin
from urllib.parse import parse_qsl

import msgspec
from litestar.enums import ScopeType
from litestar.handlers import BaseRouteHandler
from litestar.middleware import ASGIMiddleware
from litestar.params import QueryParameter
from litestar.types import ASGIApp, Receive, Scope, Send

from modelyard_events.codec import TAGS
from modelyard_services.api.freshness import MIN_SEQ
from modelyard_services.errors import InvalidQueryError
from modelyard_services.policy.suggestion import meant

FIELDS_MAX: Final = 100
"""Parameters in one query: no route has a tenth of that."""

EVENT_TYPES: Final = sorted({tag[:end] for tag in TAGS for end in (len(tag), tag.rindex("."), tag.index("."))})
"""What `?type=` takes: each type of event, without its version, and the kinds."""


class QueryField(msgspec.Struct, frozen=True):
    """A query parameter: its name in a URL, and the words it takes, none where it takes more than words."""

    name: str
    choices: tuple[str, ...] = ()


class KnownParameters(ASGIMiddleware):
    """Refuses a query with a parameter that its route doesn't know, or with one twice."""

    scopes = (ScopeType.HTTP,)

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        if scope["query_string"]:
            known = [field.name for field in parameters_of(scope["route_handler"]).values()]
            _hold(scope["query_string"].decode("latin-1"), [*known, MIN_SEQ])
        await next_app(scope, receive, send)


def parameters_of(handler: BaseRouteHandler) -> dict[str, QueryField]:
    """The query parameters of a route, by the names that its function has for them."""
    return {
        name: QueryField(field.kwarg_definition.name or name, tuple(_words(field.annotation)))
        for name, field in handler.parsed_fn_signature.parameters.items()
        if isinstance(field.kwarg_definition, QueryParameter)
    }


def known_type(given: str | None) -> str | None:
    """`given`, a type of event or the front of one.

    Raises:
        InvalidQueryError: no event is of such a type.
    """
    if given is None or given in EVENT_TYPES:
        return given
    raise InvalidQueryError(
        f"type: no event is of type {given!r}; {meant(given, EVENT_TYPES)} (GET /schemas has them all)",
        field="type",
        value=given,
    )


def _hold(query: str, known: Collection[str]) -> None:
    try:
        given = parse_qsl(query, keep_blank_values=True, max_num_fields=FIELDS_MAX)
    except ValueError as error:
        raise InvalidQueryError(f"more than {FIELDS_MAX} query parameters") from error
    seen: set[str] = set()
    for name, value in given:
        if name not in known:
            problem = f"there is no query parameter {name!r} here; {meant(name, known)}"
            raise InvalidQueryError(problem, field=name, value=value)
        if name in seen:
            raise InvalidQueryError(f"{name}: it stands there twice; give it once", field=name, value=value)
        seen.add(name)


def _words(annotation: Any) -> Iterator[str]:
    if get_origin(annotation) is Literal:
        yield from map(str, get_args(annotation))
    else:
        for part in get_args(annotation):
            yield from _words(part)
