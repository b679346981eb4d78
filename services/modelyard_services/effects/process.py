"""How a process runs: one event loop, told to stop by SIGTERM or SIGINT, its logs on stderr.

Invariant: a stop is asked for once and obeyed in order; what can't end by itself is the supervisor's to kill.
"""

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

import structlog
import uvloop

from modelyard_services.effects.tracing import Traced, tracing

LOG_LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

Serve = Callable[[asyncio.Event], Awaitable[None]]


def run_process(serve: Serve, *, log_level: str = "info", traced: Traced | None = None) -> None:
    """Run `serve(stop)` until it returns; `stop` is set by SIGTERM and SIGINT. `traced` says whose spans it makes."""
    configure_logs(log_level)
    with tracing(traced) if traced is not None else contextlib.nullcontext():
        uvloop.run(_until_stopped(serve))


def configure_logs(level: str) -> None:
    """Key-value lines on stderr from `level` on; names as in the glossary."""
    number = LOG_LEVELS[level]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer(colors=False)
            if sys.stderr.isatty()
            else structlog.processors.KeyValueRenderer(key_order=["timestamp", "level", "event"]),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    logging.basicConfig(level=max(number, logging.WARNING), stream=sys.stderr)


async def until(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Run `work` until it ends or `stop` is set; then it is cancelled and may clean up."""
    working = asyncio.create_task(work)
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        if not working.done():
            working.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await working


async def _until_stopped(serve: Serve) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await serve(stop)
