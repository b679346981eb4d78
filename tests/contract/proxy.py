"""A TCP proxy that cuts connections, for followers to get over."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Final

_PIECE: Final = 16 * 1024


class Proxy:
    """Forwards to `port`; cuts each connection after about `bytes_per_connection` towards the client."""

    def __init__(self, port: int, *, bytes_per_connection: int) -> None:
        self.port = 0
        self.connections = 0
        self._target = port
        self._bytes = bytes_per_connection
        self._sizes = count(1)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        there, back = await asyncio.open_connection("127.0.0.1", self._target)
        # Another number of bytes each time, so that cuts fall into lines, headers and bodies alike.
        budget = self._bytes + 101 * next(self._sizes)
        tasks = [
            asyncio.create_task(_forward(reader, back, None)),
            asyncio.create_task(_forward(there, writer, budget)),
        ]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for end in (writer, back):
            end.transport.abort()
        await asyncio.wait(tasks)


@asynccontextmanager
async def cutting_proxy(port: int, *, bytes_per_connection: int) -> AsyncIterator[Proxy]:
    proxy = Proxy(port, bytes_per_connection=bytes_per_connection)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        await server.wait_closed()


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, budget: int | None) -> None:
    try:
        while piece := await reader.read(_PIECE if budget is None else min(_PIECE, budget)):
            writer.write(piece)
            await writer.drain()
            if budget is not None:
                budget -= len(piece)
                if budget <= 0:
                    return
    except OSError:
        return
