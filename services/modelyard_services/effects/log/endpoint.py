"""Where the NATS servers are and how to be let in: one value for nats-py and for our own reader.

Invariant: both connect as the same user, under the same inbox prefix, so one set of permissions fits both.
"""

import asyncio
import ssl
from typing import Final
from urllib.parse import unquote, urlsplit

import structlog
from msgspec import Struct
from nats.aio.client import Client
from nats.errors import Error

from modelyard_services.effects.log.contract import LogUnavailable

CONNECT_SECONDS_MAX: Final = 5.0
"""First connection: several servers tried in turn; whoever wants to wait longer asks again."""

RECONNECT_WAIT_SECONDS: Final = 0.1
"""Between tries on the same server. nats-py's 2 s would be most of a leader election."""

PING_SECONDS: Final = 10
PINGS_UNANSWERED_MAX: Final = 2
"""A server that vanished without closing is noticed after about 30 s; appends have their own, shorter deadlines."""

_PORT: Final = 4222

_log = structlog.get_logger(__name__)


class Server(Struct, frozen=True):
    """One address to try."""

    host: str
    port: int
    user: str | None
    password: str | None
    token: str | None


class NatsEndpoint(Struct, frozen=True):
    """A NATS cluster seen from a client.

    Attributes:
        urls: `nats://[user:password@]host:port` of each server; credentials in a URL win over those below.
        user: who we are, with `password`.
        password: secret.
        token: instead of both; secret.
        tls: the context to use when the servers want TLS; None for plain connections.
        inbox_prefix: where replies come to; permissions keep owners' inboxes apart by it.
        name: shown by the servers' monitoring.
    """

    urls: tuple[str, ...]
    user: str | None = None
    password: str | None = None
    token: str | None = None
    tls: ssl.SSLContext | None = None
    inbox_prefix: str = "_INBOX"
    name: str = "modelyard"

    def servers(self) -> list[Server]:
        """The addresses, each with its credentials."""
        return [self._server(url) for url in self.urls]

    def _server(self, url: str) -> Server:
        parts = urlsplit(url if "://" in url else f"nats://{url}")
        user, password, token = self.user, self.password, self.token
        if parts.username is not None and parts.password is not None:
            user, password, token = unquote(parts.username), unquote(parts.password), None
        elif parts.username is not None:
            user, password, token = None, None, unquote(parts.username)
        return Server(parts.hostname or "127.0.0.1", parts.port or _PORT, user, password, token)


async def connect(endpoint: NatsEndpoint) -> Client:
    """A nats-py connection that reconnects for ever.

    Raises:
        LogUnavailable: no server let us in within `CONNECT_SECONDS_MAX`.
    """
    client = Client()
    try:
        await _connect(client, endpoint)
    except (TimeoutError, OSError, Error) as error:
        await client.close()
        raise LogUnavailable(f"no NATS server lets us in: {error or 'no answer'}", nothing_written=True) from error
    except BaseException:
        await client.close()
        raise
    return client


async def _connect(client: Client, endpoint: NatsEndpoint) -> None:
    failures: list[Exception] = []

    async def on_error(error: Exception) -> None:
        failures[:] = [error]
        _log.debug("nats connection", problem=str(error) or type(error).__name__)

    options: dict[str, object] = {"user": endpoint.user, "password": endpoint.password, "token": endpoint.token}
    if endpoint.tls is not None:
        options["tls"] = endpoint.tls
    try:
        async with asyncio.timeout(CONNECT_SECONDS_MAX):
            await client.connect(
                list(endpoint.urls),
                name=endpoint.name,
                error_cb=on_error,
                connect_timeout=2,
                reconnect_time_wait=RECONNECT_WAIT_SECONDS,  # type: ignore[arg-type]  # seconds, any fraction of them
                max_reconnect_attempts=-1,
                ping_interval=PING_SECONDS,
                max_outstanding_pings=PINGS_UNANSWERED_MAX,
                inbox_prefix=endpoint.inbox_prefix,
                **options,  # type: ignore[arg-type]  # nats-py tells an absent option from None
            )
    except TimeoutError as timeout:
        raise failures[0] if failures else timeout from None
