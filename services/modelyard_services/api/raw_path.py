"""Routes are split before they are decoded, so that names may hold `/`, `:` and `.` (DESIGN 6).

Invariant: `Qwen%2FQwen3-32B%3Aq4` is one path value in every route, and a model named `a/why` is not `why` of `a`.
"""

from urllib.parse import unquote

from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Receive, Scope, Send

from modelyard_services.errors import InvalidRequestError


def route_on_raw_path(app: ASGIApp) -> ASGIApp:
    """`app`, routed on the path as the client wrote it."""

    async def on_raw_path(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in {"http", "websocket"}:
            raw = scope.get("raw_path") or scope["path"].encode()
            scope["path"] = raw.decode("latin-1")
        await app(scope, receive, send)

    return on_raw_path


class DecodePathValues(ASGIMiddleware):
    """Decodes each path value after the route is found."""

    scopes = (ScopeType.HTTP,)

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        scope["path_params"] = {
            name: _decoded(name, value) if isinstance(value, str) else value
            for name, value in scope["path_params"].items()
        }
        await next_app(scope, receive, send)


def _decoded(name: str, value: str) -> str:
    try:
        return unquote(value, errors="strict")
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"{value!r} isn't percent-encoded UTF-8", field=name, value=value) from error
