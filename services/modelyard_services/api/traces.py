"""Each request's span, in the client's trace or in a new one; what the request causes bears it (rule H1).

Invariant: the traceparent that handlers see is always valid, whatever the client sent.
"""

from typing import Final

from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from modelyard_services.effects.tracing import request_span

TRACE_KEY: Final = "modelyard.traceparent"
_SERVER_ERROR: Final = 500


class Traces(ASGIMiddleware):
    """Outermost of the API, so that refusals are recorded as well."""

    scopes = (ScopeType.HTTP,)

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        given = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"traceparent"), None)
        method = scope.get("method", "")  # the other kind of scope, a websocket, is none of ours
        with request_span(f"{method} {scope['path_template']}", given) as work:

            async def send_and_note(message: Message) -> None:
                if message["type"] == "http.response.start":
                    work.note(status=message["status"])
                    if message["status"] >= _SERVER_ERROR:
                        work.fail(f"answered {message['status']}", code=str(message["status"]))
                await send(message)

            scope["state"][TRACE_KEY] = work.traceparent
            await next_app(scope, receive, send_and_note)
