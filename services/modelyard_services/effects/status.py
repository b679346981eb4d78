"""Is a process alive, is it ready, and its figures: `/healthz`, `/readyz`, `/metrics`.

Invariant: open without a token on loopback only; `serve_status` never listens beyond it.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from modelyard_services.effects.http_server import serve_http

STATUS_HOST: Final = "127.0.0.1"

Send = Callable[[dict[str, Any]], Awaitable[None]]
Problems = Callable[[], list[str]]
Notes = Callable[[], dict[str, Any]]
"""What a process says of itself beyond whether it is ready."""


async def serve_status(port: int, problems: Problems, notes: Notes = dict) -> None:
    """Answer on `port` until cancelled; ready while `problems()` is empty, whatever `notes()` says."""

    async def app(scope: dict[str, Any], _receive: object, send: Send) -> None:
        if not await answer_status(scope["path"], problems, send, notes=notes):
            await _send(send, 404, "application/json", b'{"code":"not_found"}')

    await serve_http(app, host=STATUS_HOST, port=port)


async def answer_status(path: str, problems: Problems, send: Send, *, notes: Notes = dict) -> bool:
    """Answer if `path` is one of the three; whether it was."""
    match path:
        case "/healthz":
            await _send(send, 200, "application/json", b'{"status":"alive"}')
        case "/readyz":
            found = problems()
            body = {"status": "not ready" if found else "ready", "problems": found, **notes()}
            await _send(send, 503 if found else 200, "application/json", msgspec.json.encode(body))
        case "/metrics":
            await _send(send, 200, CONTENT_TYPE_LATEST, generate_latest())
        case _:
            return False
    return True


async def _send(send: Send, status: int, media_type: str, body: bytes) -> None:
    headers = [(b"content-type", media_type.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
