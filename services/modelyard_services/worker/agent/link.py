"""The worker's connection to NATS: as its node, with its registration token, for as long as it lives.

Invariant: a server that is away is tried again for ever, with back-off; running processes don't notice (rule W8).
"""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Final

import nats
import nats.errors
import structlog
from nats.aio.client import Client

from modelyard_events.subjects import inbox_prefix
from modelyard_services.effects.clock import backoff_seconds
from modelyard_services.effects.log.endpoint import close
from modelyard_services.worker.agent.settings import WorkerSettings

RECONNECT_SECONDS: Final = 1
RETRY_BASE_SECONDS: Final = 0.2
RETRY_CAP_SECONDS: Final = 5.0
CONNECT_SECONDS: Final = 8
"""Longer than the server gives the registrar to say who we are."""

_log = structlog.get_logger(__name__)


@contextlib.asynccontextmanager
async def linked(settings: WorkerSettings, on_back: Callable[[], None]) -> AsyncIterator[Client]:
    """A connected client, however long the server is away; calls `on_back` whenever a lost connection is back."""
    client = await _connect(settings, on_back)
    try:
        yield client
    finally:
        await close(client)


async def _connect(settings: WorkerSettings, on_back: Callable[[], None]) -> Client:
    attempt = 0
    while True:
        try:
            return await _connect_once(settings, on_back)
        except (nats.errors.Error, OSError, TimeoutError) as error:
            _log.warning("nats is away", problem=str(error) or type(error).__name__, attempt=attempt)
        await asyncio.sleep(backoff_seconds(attempt, base=RETRY_BASE_SECONDS, cap=RETRY_CAP_SECONDS))
        attempt += 1


async def _connect_once(settings: WorkerSettings, on_back: Callable[[], None]) -> Client:
    async def on_disconnect() -> None:
        _log.warning("nats went away")

    async def on_reconnect() -> None:
        _log.info("nats is back")
        on_back()

    async def on_error(error: Exception) -> None:
        _log.warning("nats", problem=str(error) or type(error).__name__)

    client = Client()
    await client.connect(
        settings.nats_url,
        user=settings.name,
        password=settings.registration_token,
        name=f"modelyard worker {settings.name}",
        inbox_prefix=inbox_prefix(settings.name).encode(),
        tls=ssl.create_default_context(cafile=settings.tls_ca) if settings.tls_ca else None,
        allow_reconnect=True,
        max_reconnect_attempts=-1,
        reconnect_time_wait=RECONNECT_SECONDS,
        connect_timeout=CONNECT_SECONDS,
        disconnected_cb=on_disconnect,
        reconnected_cb=on_reconnect,
        error_cb=on_error,
    )
    return client
