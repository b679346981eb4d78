"""Kept connections by address, bounded in number, in idle time and in silence.

Invariant: a request is sent again only when a kept connection turned out to be dead before any byte of an answer:
the process had hung up before it could have read the request, or it will answer the fresh one alike.
"""

import asyncio
from typing import Final, Self

from modelyard_services.effects.upstream.connection import Connection, UpstreamError

CONNECT_SECONDS: Final = 2.0
"""A listening process accepts in microseconds; beyond two seconds the machine is gone."""

IDLE_SECONDS: Final = 4.0
"""Below the five seconds after which uvicorn, and llama-server, hang up on idle connections."""

IDLE_MAX: Final = 128
"""Kept per address: as many as a gateway has clients at once on one replica, at some kilobytes each."""

CONNECTIONS_MAX: Final = 8_192
"""In all, half of a common limit on open files; the other half are the clients'."""

SILENT_SECONDS: Final = 600.0
"""Without a byte from the process: a long prompt on a slow machine takes minutes to its first token."""

_SWEEP_SECONDS: Final = 1.0


class Pool:
    """Connections to every replica that this process talks to. Use as an async context manager."""

    def __init__(self, *, silent_seconds: float = SILENT_SECONDS, connections_max: int = CONNECTIONS_MAX) -> None:
        self._silent_seconds = silent_seconds
        self._connections_max = connections_max
        self._idle: dict[str, list[Connection]] = {}
        self._open: set[Connection] = set()
        self._sweeper: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        self._sweep()
        return self

    async def __aexit__(self, *_exception: object) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in list(self._open):
            connection.abort()
        self._open.clear()
        self._idle.clear()

    async def send(self, address: str, request: bytes) -> Connection:
        """The answer to `request`, its head known. Give it to `done` whatever happens then.

        Raises:
            UpstreamError: no answer began.
        """
        kept = self._take_idle(address)
        if kept is not None:
            try:
                return await self._begin(kept, request)
            except UpstreamError as error:
                if error.kind != "lost" or error.began:
                    raise
        return await self._begin(await self._connect(address), request)

    def done(self, connection: Connection) -> None:
        """The exchange is over: keep the connection if it ended cleanly, else drop it."""
        connection.busy = False
        if connection.reusable:
            idle = self._idle.setdefault(connection.address, [])
            if len(idle) < IDLE_MAX:
                idle.append(connection)
                return
        self._drop(connection)

    async def _begin(self, connection: Connection, request: bytes) -> Connection:
        try:
            await connection.begin(request)
        except BaseException:
            self._drop(connection)
            raise
        return connection

    def _take_idle(self, address: str) -> Connection | None:
        idle = self._idle.get(address)
        while idle:
            # The one used last: the others grow old and are closed.
            connection = idle.pop()
            if not connection.closed:
                return connection
            self._open.discard(connection)
        return None

    async def _connect(self, address: str) -> Connection:
        if len(self._open) >= self._connections_max:
            raise UpstreamError("full", f"{self._connections_max} connections to replicas are open")
        loop = asyncio.get_running_loop()
        host, _, port = address.rpartition(":")
        connection = Connection(address, loop)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await loop.create_connection(lambda: connection, host.strip("[]"), int(port))
        except (OSError, TimeoutError) as error:
            raise UpstreamError("refused", f"{address} can't be reached: {error or 'no answer'}") from error
        self._open.add(connection)
        return connection

    def _drop(self, connection: Connection) -> None:
        self._open.discard(connection)
        connection.abort()

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for idle in self._idle.values():
            # Oldest first, as they were given back.
            while idle and (idle[0].closed or now - idle[0].touched_at > IDLE_SECONDS):
                self._drop(idle.pop(0))
        self._idle = {address: idle for address, idle in self._idle.items() if idle}
        for connection in list(self._open):
            if connection.busy and now - connection.touched_at > self._silent_seconds:
                connection.abort("silent", f"{connection.address} sent nothing for {self._silent_seconds:g} s")
        self._sweeper = loop.call_later(_SWEEP_SECONDS, self._sweep)
