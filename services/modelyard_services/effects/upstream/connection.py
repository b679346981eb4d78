"""One connection to a replica's process, and the exchange it carries.

```
connect ─▶ begin ─▶ head known ─▶ read … read ─▶ complete ─▶ begin …
                        └── lost, silent, garbled: UpstreamError, and the connection is gone
```

Invariant: bytes are handed on in the order and as soon as they arrive; no more than `BUFFER_BYTES_MAX` wait here,
then the process behind is slowed down by the connection itself.
"""

import asyncio
from typing import Final, Literal, cast

import httptools

BUFFER_BYTES_MAX: Final = 256 * 1024
"""Read ahead of a slow client: some hundred tokens of a stream, and little beside the other buffers on the way."""

_INFORMATIONAL: Final = range(100, 200)

Kind = Literal["refused", "lost", "silent", "garbled", "full"]
Headers = list[tuple[bytes, bytes]]


class UpstreamError(Exception):
    """The exchange failed. `began` once a byte of the answer had arrived."""

    def __init__(self, kind: Kind, detail: str, *, began: bool = False) -> None:
        self.kind = kind
        self.detail = detail
        self.began = began
        super().__init__(detail)


class Connection(asyncio.Protocol):
    """A kept connection; between `begin` and `complete` it is the answer to one request."""

    def __init__(self, address: str, loop: asyncio.AbstractEventLoop) -> None:
        self.address = address
        self.status = 0
        self.headers: Headers = []
        self.complete = False
        self.busy = False
        self.touched_at = loop.time()
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._pieces: list[bytes] = []
        self._buffered = 0
        self._paused = False
        self._head_known = False
        self._heard = False
        self._until_end = True
        self._keep = False
        self._error: UpstreamError | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def reusable(self) -> bool:
        """Whether another exchange may follow."""
        return self.complete and self._keep and self._error is None and not self.closed

    @property
    def closed(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    async def begin(self, request: bytes) -> None:
        """Send `request` and wait for the head of its answer.

        Raises:
            UpstreamError: there is none.
        """
        transport = self._transport
        if transport is None or transport.is_closing():
            raise UpstreamError("lost", f"{self.address} closed the connection")
        self._reset()
        transport.write(request)
        while not self._head_known:
            self._raise()
            await self._wait()

    async def read(self) -> bytes:
        """What has arrived of the body; b"" at its end.

        Raises:
            UpstreamError: it broke off.
        """
        while not self._pieces:
            if self.complete:
                return b""
            self._raise()
            await self._wait()
        return self.take()

    def take(self) -> bytes:
        """What has arrived of the body and wasn't read yet, without waiting."""
        pieces = self._pieces
        taken = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self._buffered = 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return taken

    def abort(self, kind: Kind = "lost", detail: str = "given up") -> None:
        """Drop the connection; whoever reads from it is told why."""
        if self._error is None and not self.complete:
            self._error = UpstreamError(kind, detail, began=self._heard)
        if self._transport is not None:
            self._transport.abort()
        self._wake()

    def _reset(self) -> None:
        self.status, self.headers, self.complete, self.busy = 0, [], False, True
        self._head_known, self._heard, self._until_end = False, False, True
        self.touched_at = self._loop.time()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # What asyncio tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast, not a check: uvloop's transports aren't asyncio's to `isinstance`.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.touched_at = self._loop.time()
        if not self.busy or self.complete:
            # Nobody asked: whatever this is, the next exchange must not read it.
            self.abort("garbled", f"{self.address} sent what nobody asked for")
            return
        self._heard = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.abort("garbled", f"{self.address} doesn't speak HTTP: {error}")
            return
        if self._buffered > BUFFER_BYTES_MAX and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._head_known and self._until_end and exc is None:
            self.complete = True  # neither a length nor chunks: the end of the connection is the end of the body
        elif not self.complete and self._error is None:
            why = f": {exc}" if exc else ""
            self._error = UpstreamError("lost", f"{self.address} closed the connection{why}", began=self._heard)
        self._wake()

    # What httptools tells.

    def on_header(self, name: bytes, value: bytes) -> None:
        lower = name.lower()
        if lower in {b"content-length", b"transfer-encoding"}:
            self._until_end = False
        self.headers.append((lower, value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status in _INFORMATIONAL:
            self.headers = []
            return
        self.status, self._head_known = status, True

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)
        self._buffered += len(body)

    def on_message_complete(self) -> None:
        if self._head_known:
            # Asked here: after this call the parser has forgotten the message.
            self.complete, self._keep = True, bool(self._parser.should_keep_alive())
