"""Where the NATS servers are and how to be let in: one value for nats-py and for our own reader.

Invariant: both connect as the same user, under the same inbox prefix, so one set of permissions fits both.
"""

import asyncio
import contextlib
import ssl
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

import structlog
from msgspec import Struct
from msgspec.structs import asdict
from nats.aio.client import Client
from nats.errors import Error

from modelyard_services.effects.heed import heed
from modelyard_services.effects.log.contract import LogUnavailable

CONNECT_SECONDS_MAX: Final = 5.0
"""First connection: several servers tried in turn; whoever wants to wait longer asks again."""

RECONNECT_WAIT_SECONDS: Final = 0.1
"""Between tries on the same server. nats-py's 2 s would be most of a leader election."""

PING_SECONDS: Final = 10
PINGS_UNANSWERED_MAX: Final = 2
"""A server that vanished without closing is noticed after about 30 s; appends have their own, shorter deadlines."""

PROBE_SECONDS: Final = 1
"""How long a server may take to answer a PING once a request has gone unanswered."""

_PORT: Final = 4222
_REFUSED: Final = "authorization violation"

_log = structlog.get_logger(__name__)


class Credentials(Struct, frozen=True):
    """Who we say we are: user and password, or a token, or nothing."""

    user: str | None = None
    password: str | None = None
    token: str | None = None


class NatsEndpoint(Struct, frozen=True):
    """A NATS cluster seen from a client.

    Attributes:
        urls: `nats://[user:password@]host:port` of each server. Credentials in a URL, percent-encoded, are for all of
            the servers and win over those below.
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

    def addresses(self) -> list[tuple[str, int]]:
        """Host and port of each server."""
        return [(parts.hostname or "127.0.0.1", parts.port or _PORT) for parts in self._parts()]

    def credentials(self) -> Credentials:
        """How to be let in, everywhere the same."""
        for parts in self._parts():
            if parts.username is not None and parts.password is not None:
                return Credentials(user=unquote(parts.username), password=unquote(parts.password))
            if parts.username is not None:
                return Credentials(token=unquote(parts.username))
        return Credentials(user=self.user, password=self.password, token=self.token)

    def _parts(self) -> list[SplitResult]:
        return [urlsplit(url if "://" in url else f"nats://{url}") for url in self.urls]


async def connect(endpoint: NatsEndpoint) -> Client:
    """A nats-py connection that reconnects for ever.

    Raises:
        LogUnavailable: no server let us in within `CONNECT_SECONDS_MAX`.
    """
    client = Client()
    try:
        await _connect(client, endpoint)
    except (TimeoutError, OSError, Error) as error:
        await close(client)
        raise LogUnavailable(f"no NATS server lets us in: {_why(error, endpoint)}", nothing_written=True) from error
    except BaseException:
        await close(client)
        raise
    return client


async def close(client: Client) -> None:
    """Close `client`, also one whose server is away.

    nats-py flushes into a connection that is gone and raises what the kernel says of it; there is nothing to save.
    """
    with contextlib.suppress(OSError):
        await client.close()


async def leave_if_dead(client: Client) -> None:
    """Go to another server if this one has stopped answering without closing the connection.

    A frozen or cut-off server is noticed by nats-py's own pings only after half a minute, which no append can wait.
    """
    try:
        await heed(client.flush(timeout=PROBE_SECONDS))
    except Error:
        await client.force_reconnect()


async def _connect(client: Client, endpoint: NatsEndpoint) -> None:
    problems: list[Exception] = []

    async def on_error(problem: Exception) -> None:
        problems[:] = [problem]
        _log.debug("nats connection", problem=str(problem) or type(problem).__name__)
        if connecting and _REFUSED in str(problem).lower():
            # Ends `connect`: whoever is refused once would be refused ten times a second.
            raise problem

    connecting = True
    try:
        async with asyncio.timeout(CONNECT_SECONDS_MAX):
            await client.connect(list(endpoint.urls), error_cb=on_error, **_options(endpoint))  # type: ignore[arg-type]
    except TimeoutError as timeout:
        raise problems[0] if problems else timeout from None
    finally:
        connecting = False


def _why(error: Exception, endpoint: NatsEndpoint) -> str:
    """What to look at: where we knocked, as whom, or with which certificates."""
    where = ", ".join(f"{host}:{port}" for host, port in endpoint.addresses())
    if _REFUSED in str(error).lower():
        return f"{where} refuses user {endpoint.credentials().user!r}: wrong user or password"
    if isinstance(error, ssl.SSLError):
        return f"{where}: TLS fails: {error.reason or error} (is the authority's certificate the right one?)"
    return f"{where}: {error.strerror if isinstance(error, OSError) and error.strerror else error or 'no answer'}"


def _options(endpoint: NatsEndpoint) -> dict[str, object]:
    """Options of nats-py, which tells an absent one from None."""
    given = {"tls": endpoint.tls} | asdict(endpoint.credentials())
    return {key: value for key, value in given.items() if value is not None} | {
        "name": endpoint.name,
        "connect_timeout": 2,
        "reconnect_time_wait": RECONNECT_WAIT_SECONDS,
        "max_reconnect_attempts": -1,
        "ping_interval": PING_SECONDS,
        "max_outstanding_pings": PINGS_UNANSWERED_MAX,
        "inbox_prefix": endpoint.inbox_prefix,
    }
