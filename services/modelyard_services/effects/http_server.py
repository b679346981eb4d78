"""An ASGI application served over HTTP until it is cancelled, for every process that answers HTTP.

Invariant: a stop lets open requests finish within a limit, then closes.
"""

import asyncio
import contextlib
from collections.abc import Generator
from typing import Any, Final

import uvicorn

KEEP_ALIVE_SECONDS: Final = 75
"""Longer than common clients keep idle connections, so that they close first."""

STOP_SECONDS: Final = 10
"""How long open requests may go on once the process was told to stop."""

BACKLOG: Final = 2048


class _Server(uvicorn.Server):
    """uvicorn without its own signal handling: the process decides when to stop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


async def serve_http(app: Any, *, host: str, port: int) -> None:
    """Serve the ASGI application `app` until cancelled; then open requests may finish."""
    server = _Server(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            http="httptools",
            lifespan="off",
            access_log=False,
            proxy_headers=False,  # nothing here asks for the client's address
            log_level="warning",
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=STOP_SECONDS,
            backlog=BACKLOG,
            server_header=False,
            date_header=False,
        )
    )
    serving = asyncio.create_task(server.serve(), name="http")
    try:
        await asyncio.shield(serving)
    except asyncio.CancelledError:
        server.should_exit = True
        await serving
        raise
