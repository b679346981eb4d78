"""A process's connection to NATS, with the streams declared and the log opened on it.

Invariant: what comes out of here was verified: the log is the one our configuration describes, durable and atomic.
"""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from functools import partial

from modelyard_services.effects.bus import NatsBus
from modelyard_services.effects.log.endpoint import NatsEndpoint, close, connect
from modelyard_services.effects.log.jetstream import JetStreamLog
from modelyard_services.effects.log.streams import Layout, declare_streams
from modelyard_services.effects.runtime import Connected, Runtime
from modelyard_services.effects.status import serve_status
from modelyard_services.errors import InvalidRequestError
from modelyard_services.settings import NatsSettings, ProcessSettings


def endpoint_of(settings: NatsSettings, *, name: str) -> NatsEndpoint:
    """The servers as a client is told of them.

    Raises:
        InvalidRequestError: the authority's certificate can't be read.
    """
    tls = _trusting(settings.tls_ca) if settings.tls_ca else None
    return NatsEndpoint(
        urls=tuple(url.strip() for url in settings.url.split(",")),
        user=settings.user,
        password=settings.password,
        tls=tls,
        name=f"modelyard {name}",
    )


def _trusting(authority: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=authority)
    except OSError as error:  # a file that holds no certificate is one too
        problem = f"nats_tls_ca: {authority} can't be read as certificates: {error.strerror or error}"
        raise InvalidRequestError(problem, field="nats_tls_ca", value=authority) from error


@contextlib.asynccontextmanager
async def connected(settings: NatsSettings, process: str) -> AsyncIterator[Connected]:
    """Log and bus over one connection, which reconnects for ever.

    Raises:
        LogUnavailable: no server answers.
        LogMisconfigured: the streams aren't what we need.
    """
    endpoint = endpoint_of(settings, name=process)
    client = await connect(endpoint)
    try:
        telemetry_age_ns = round(settings.telemetry_seconds * 1e9)
        await declare_streams(client, Layout(replicas=settings.replicas, telemetry_age_ns=telemetry_age_ns))
        log = await JetStreamLog.open(client, endpoint)
        try:
            yield log, NatsBus(client)
        finally:
            await log.close()
    finally:
        await close(client)


@contextlib.asynccontextmanager
async def open_runtime(settings: ProcessSettings) -> AsyncIterator[Runtime]:
    """The runtime of one process, which answers for its health where the settings say."""
    async with Runtime(settings.process, partial(connected, settings.nats, settings.process)) as runtime:
        if settings.status_port is None:
            yield runtime
            return
        status = asyncio.create_task(
            serve_status(settings.status_port, lambda: runtime.problems, lambda: runtime.notes), name="status"
        )
        try:
            yield runtime
        finally:
            status.cancel()
            await asyncio.gather(status, return_exceptions=True)
