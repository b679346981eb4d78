"""Connections to replicas, before real sockets that answer as they are told."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from modelyard_services.effects.upstream import Connection, Pool, UpstreamError
from modelyard_services.effects.upstream.connection import BUFFER_BYTES_MAX

REQUEST = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Backend:
    """Runs `serve` for each request; counts connections."""

    def __init__(self, serve: Serve) -> None:
        self.serve = serve
        self.connections = 0
        self.address = ""
        self.open: dict[asyncio.Task[object] | None, asyncio.StreamWriter] = {}

    async def on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open[asyncio.current_task()] = writer
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while not writer.is_closing():
                await reader.readuntil(b"\r\n\r\n")
                await self.serve(reader, writer)
        writer.close()

    async def end(self) -> None:
        for writer in self.open.values():
            writer.transport.abort()
        await asyncio.wait([task for task in self.open if task is not None])
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def a_backend(serve: Serve) -> AsyncIterator[Backend]:
    backend = Backend(serve)
    server = await asyncio.start_server(backend.on_connection, "127.0.0.1", 0)
    async with server:
        backend.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield backend
        await backend.end()


def saying(*pieces: bytes) -> Serve:
    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)

    return serve


async def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def body_of(pool: Pool, connection: Connection) -> bytes:
    body = b""
    try:
        while piece := await connection.read():
            body += piece
    finally:
        pool.done(connection)
    return body


async def test_a_clean_exchange_keeps_its_connection_for_the_next() -> None:
    async with a_backend(saying(OK)) as backend, Pool() as pool:
        for _ in range(3):
            connection = await pool.send(backend.address, REQUEST)
            assert connection.status == 200
            assert await body_of(pool, connection) == b"ok"
        assert backend.connections == 1


async def test_exchanges_at_once_have_a_connection_each() -> None:
    async with a_backend(saying(OK)) as backend, Pool() as pool:
        answers = await asyncio.gather(*[pool.send(backend.address, REQUEST) for _ in range(5)])
        assert len({id(connection) for connection in answers}) == 5
        for connection in answers:
            pool.done(connection)


async def test_chunks_arrive_one_by_one_and_informational_heads_are_passed_over() -> None:
    head = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    async with a_backend(saying(head, b"3\r\nabc\r\n", b"2\r\nde\r\n", b"0\r\n\r\n")) as backend, Pool() as pool:
        connection = await pool.send(backend.address, REQUEST)
        assert [await connection.read() for _ in range(3)] == [b"abc", b"de", b""]
        pool.done(connection)
        assert connection.reusable


async def test_a_body_without_a_length_ends_with_its_connection() -> None:
    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nall of it")
        writer.close()

    async with a_backend(serve) as backend, Pool() as pool:
        connection = await pool.send(backend.address, REQUEST)
        assert await body_of(pool, connection) == b"all of it"
        assert not connection.reusable


async def test_a_kept_connection_that_died_is_replaced_unnoticed() -> None:
    """The process hung up while nobody spoke: no failure of the replica."""
    async with a_backend(saying(OK)) as backend, Pool() as pool:
        await body_of(pool, await pool.send(backend.address, REQUEST))

        async def once(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            backend.serve = saying(OK)
            writer.close()

        backend.serve = once
        assert await body_of(pool, await pool.send(backend.address, REQUEST)) == b"ok"
        assert backend.connections == 2


async def test_a_process_that_hangs_up_unanswered_is_lost_and_one_that_is_gone_refuses() -> None:
    async with a_backend(hang_up) as backend, Pool() as pool:
        with pytest.raises(UpstreamError) as lost:
            await pool.send(backend.address, REQUEST)
        assert (lost.value.kind, lost.value.began) == ("lost", False)
        gone = backend.address
    async with Pool() as pool:
        with pytest.raises(UpstreamError) as refused:
            await pool.send(gone, REQUEST)
        assert refused.value.kind == "refused"


async def test_an_answer_that_breaks_off_is_not_taken_for_whole() -> None:
    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")
        writer.close()

    async with a_backend(serve) as backend, Pool() as pool:
        connection = await pool.send(backend.address, REQUEST)
        with pytest.raises(UpstreamError) as broken:
            await body_of(pool, connection)
        assert broken.value.began


async def test_what_is_not_http_is_garbled() -> None:
    async with a_backend(saying(b"SSH-2.0-OpenSSH\r\n")) as backend, Pool() as pool:
        with pytest.raises(UpstreamError) as garbled:
            await pool.send(backend.address, REQUEST)
        assert garbled.value.kind == "garbled"


async def test_silence_beyond_the_limit_ends_an_exchange() -> None:
    async with a_backend(saying()) as backend, Pool(silent_seconds=0.1) as pool:
        with pytest.raises(UpstreamError) as silent:
            await pool.send(backend.address, REQUEST)
        assert silent.value.kind == "silent"


async def test_an_exchange_that_was_given_up_never_hands_its_rest_to_the_next() -> None:
    """X22's cousin: an answer never reaches the wrong request."""
    slow = saying(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nfir", b"st!")
    async with a_backend(slow) as backend, Pool() as pool:
        connection = await pool.send(backend.address, REQUEST)
        pool.done(connection)
        backend.serve = saying(OK)
        assert await body_of(pool, await pool.send(backend.address, REQUEST)) == b"ok"
        assert backend.connections == 2


async def test_a_slow_reader_slows_the_process_down() -> None:
    """No more than the limit, and what the kernel holds, waits for a client that doesn't read."""
    sent = 0

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while sent < 64 * BUFFER_BYTES_MAX:
            writer.write(b"x" * BUFFER_BYTES_MAX)
            await writer.drain()
            sent += BUFFER_BYTES_MAX

    async with a_backend(serve) as backend, Pool() as pool:
        connection = await pool.send(backend.address, REQUEST)
        await asyncio.sleep(0.2)
        assert connection._buffered < 3 * BUFFER_BYTES_MAX
        assert sent < 64 * BUFFER_BYTES_MAX
        pool.done(connection)


async def test_the_number_of_connections_is_limited() -> None:
    async with a_backend(saying(OK)) as backend, Pool(connections_max=1) as pool:
        held = await pool.send(backend.address, REQUEST)
        with pytest.raises(UpstreamError) as full:
            await pool.send(backend.address, REQUEST)
        assert full.value.kind == "full"
        pool.done(held)
