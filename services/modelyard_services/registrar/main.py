"""The registrar process: request/reply on each node's command subject, and who may connect to NATS.

Invariant: any number of registrars share the requests of one queue group; each decides on its own fold, and the
log's guards keep them apart.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

import nats.errors
import structlog
from faststream import FastStream
from faststream.nats import NatsBroker, NatsMessage
from faststream.security import BaseSecurity, SASLPlaintext
from nats.aio.client import Client

from modelyard_events.ids import NodeName
from modelyard_events.subjects import NODE_COMMANDS
from modelyard_services.effects.bus import TRACE_HEADER, NatsBus
from modelyard_services.effects.clock import Clock, backoff_seconds
from modelyard_services.effects.connect import endpoint_of, open_runtime
from modelyard_services.effects.log.contract import LogUnavailable
from modelyard_services.effects.log.endpoint import NatsEndpoint, close, connect
from modelyard_services.effects.nats_access.callout import AuthCallout
from modelyard_services.effects.nats_access.keys import Issuer
from modelyard_services.effects.nats_access.node_log import offer_node_log
from modelyard_services.effects.runtime import Runtime
from modelyard_services.registrar.access import Access
from modelyard_services.registrar.beats import keep_telling
from modelyard_services.registrar.handlers import Command, OfferLog, Registrar
from modelyard_services.registrar.settings import RegistrarSettings
from modelyard_services.settings import CalloutSettings

QUEUE: Final = "registrar"
"""The group among which NATS shares the requests."""

REQUESTS_MAX: Final = 256
"""Requests decided at once: a claim of a held name waits 2 s for a ping, and a fleet reconnects as one."""

RETRY_BASE_SECONDS: Final = 0.1
RETRY_CAP_SECONDS: Final = 5.0
"""Between tries to reach servers that are away: soon after a restart, gentle in an outage."""

_log = structlog.get_logger(__name__)


async def serve(settings: RegistrarSettings, stop: asyncio.Event) -> None:
    """Run until `stop` is set."""
    async with serving(settings):
        await stop.wait()


@contextlib.asynccontextmanager
async def serving(settings: RegistrarSettings) -> AsyncIterator[Runtime]:
    """A registrar that answers while the context lasts."""
    async with open_runtime(settings.process) as runtime, contextlib.AsyncExitStack() as stack:
        if settings.callout is not None:
            await stack.enter_async_context(_callout(runtime, settings.callout))
        registrar = Registrar(runtime, _offers(runtime), auto_approve=settings.auto_approve)
        broker = broker_for(endpoint_of(settings.process.nats, name=settings.process.process))
        subscribe(broker, registrar)
        app = FastStream(broker, logger=None)
        await app.start()
        stack.push_async_callback(_stop, app)
        beats = asyncio.create_task(keep_telling(runtime), name="registrar-beats")
        try:
            yield runtime
        finally:
            beats.cancel()
            await asyncio.gather(beats, return_exceptions=True)


async def _stop(app: FastStream) -> None:
    """Let requests in hand be answered; with the server away there are none that anybody waits for."""
    try:
        await app.stop()
    except (nats.errors.Error, OSError) as error:
        _log.info("nats was away at the stop", problem=str(error))


def broker_for(endpoint: NatsEndpoint) -> NatsBroker:
    """A broker that connects as `endpoint` says, and reconnects for ever."""
    return NatsBroker(
        list(endpoint.urls),
        name=endpoint.name,
        max_reconnect_attempts=-1,
        inbox_prefix=endpoint.inbox_prefix,
        security=_security(endpoint),
        logger=None,
        apply_types=False,
    )


def subscribe(broker: NatsBroker, registrar: Registrar) -> None:
    """Answer all nodes' commands on `broker` by `registrar`."""

    @broker.subscriber(NODE_COMMANDS, queue=QUEUE, max_workers=REQUESTS_MAX, decoder=_undecoded)
    async def on_command(command: Command) -> bytes:
        return await registrar.answer(command)


async def _undecoded(message: NatsMessage) -> Command:
    """The registrar decodes by verb, in one pass, and answers what can't be."""
    trace = message.headers.get(TRACE_HEADER)
    return Command(message.path["node"], message.path["verb"], message.body, trace)


def _security(endpoint: NatsEndpoint) -> BaseSecurity | None:
    if endpoint.user is not None and endpoint.password is not None:
        return SASLPlaintext(endpoint.user, endpoint.password, ssl_context=endpoint.tls)
    return BaseSecurity(ssl_context=endpoint.tls) if endpoint.tls is not None else None


def _offers(runtime: Runtime) -> OfferLog:
    async def offer(node: NodeName, after: int) -> None:
        bus = runtime.bus
        if not isinstance(bus, NatsBus):
            raise TypeError("a worker's events come from JetStream")
        await offer_node_log(bus.client.jetstream(), node, after=after)

    return offer


@contextlib.asynccontextmanager
async def _callout(runtime: Runtime, settings: CalloutSettings) -> AsyncIterator[None]:
    client = await _connected(NatsEndpoint(urls=(settings.url,), name="modelyard callout"), runtime.clock)
    try:
        issuer = Issuer(settings.issuer_seed)
        await AuthCallout(client, Access(runtime).verify, issuer=issuer, clock=runtime.clock).start()
        yield
    finally:
        await close(client)


async def _connected(endpoint: NatsEndpoint, clock: Clock) -> Client:
    """A connection, however long the servers are away."""
    attempt = 0
    while True:
        try:
            return await connect(endpoint)
        except LogUnavailable as away:
            _log.warning("nats is away", problem=away.detail, attempt=attempt)
        await clock.sleep(backoff_seconds(attempt, base=RETRY_BASE_SECONDS, cap=RETRY_CAP_SECONDS))
        attempt += 1
