"""The NATS protocol as far as a follower of a log meets it: bytes in, stored events and signals out.

Invariant: events come out in the log's order without a hole; at the first position that isn't the next one it
raises `HoleSeen`, and everything before it has come out. It touches no socket, so it can be tested byte by byte.

It is written for speed: replaying the log is bounded by this loop, not by the server or by decoding.
"""

from typing import Final

from msgspec import Struct

from modelyard_services.effects.log.contract import Stored
from modelyard_services.effects.log.headers import stored_event

REPLY_SUBSCRIPTION: Final = b"1"
"""Answers to our requests."""

EVENT_SUBSCRIPTION: Final = b"2"
"""What our consumer delivers."""

_LINE_BYTES_MAX: Final = 64 * 1024
"""INFO is the longest line; a longer one is no NATS server."""

_STALLED: Final = b"\r\nNats-Consumer-Stalled:"
_LAST_DELIVERED: Final = b"\r\nNats-Last-Consumer:"


class Greeting(Struct, frozen=True):
    """The server's INFO."""

    body: bytes


class Ping(Struct, frozen=True):
    """The server wants a PONG."""


class Pong(Struct, frozen=True):
    """The server has read everything we sent."""


class ServerError(Struct, frozen=True):
    """The server's -ERR."""

    text: str


class Reply(Struct, frozen=True):
    """The answer to a request, by the address it came to."""

    subject: bytes
    body: bytes


class FlowControl(Struct, frozen=True):
    """The server sends no more than a window until this subject is answered."""

    subject: bytes


class Ended(Struct, frozen=True):
    """The consumer is gone."""

    text: str


Signal = Greeting | Ping | Pong | ServerError | Reply | FlowControl | Ended


class HoleSeen(Exception):  # noqa: N818  an observation
    """An event is missing before this position."""


class ProtocolBroken(Exception):  # noqa: N818  an observation
    """The bytes aren't the NATS protocol."""


class Parser:
    """Parses one connection.

    `filtered` says what has no holes: the stream's sequence when every event is delivered (the strongest check), the
    consumer's own count when a filter lets some through; the sequence must rise all the same. After a leader was
    killed, a server was seen to begin a consumer again at the log's first event.
    """

    def __init__(self, *, after: int, filtered: bool) -> None:
        self.events: list[Stored] = []
        self.signals: list[Signal] = []
        self._filtered = filtered
        self._sequence = after
        self._delivered = 0
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Take `data`; what it completes is in `events` and `signals`.

        Raises:
            HoleSeen: an event is missing.
            ProtocolBroken: this is not NATS.
        """
        try:
            self._feed(self._rest + data if self._rest else data)
        except (ValueError, IndexError) as error:
            raise ProtocolBroken(str(error)) from error

    def _feed(self, data: bytes) -> None:
        start, size, find = 0, len(data), data.find
        while (end := find(b"\r\n", start)) >= 0:
            first = data[start]
            if first in _MESSAGES:
                fields = data[start:end].split()
                body = end + 2
                stop = body + int(fields[-1])
                if stop + 2 > size:
                    break
                if first == _HMSG:
                    header_end = body + int(fields[-2])
                    self._headed(fields, data[body:header_end], data[header_end:stop])
                else:
                    self._plain(fields, data[body:stop])
                start = stop + 2
            else:
                self._line(data[start:end])
                start = end + 2
        self._rest = data[start:]
        if end < 0 and len(self._rest) > _LINE_BYTES_MAX:
            raise ProtocolBroken("a line without an end")

    def _headed(self, fields: list[bytes], headers: bytes, body: bytes) -> None:
        if len(fields) == _HMSG_WITH_REPLY and fields[2] == EVENT_SUBSCRIPTION:
            place = fields[3].rsplit(b".", 4)
            if len(place) == _ACK_FIELDS and place[-2].isdigit():
                self._event(fields[1], place, headers, body)
                return
        self._status(fields, headers, body)

    def _event(self, subject: bytes, place: list[bytes], headers: bytes, body: bytes) -> None:
        sequence = int(place[-4])
        self._delivered += 1
        if self._filtered:
            if int(place[-3]) != self._delivered or sequence <= self._sequence:
                raise HoleSeen(f"delivery {self._delivered} is {place[-3]!r} at {sequence}, after {self._sequence}")
        elif sequence != self._sequence + 1:
            raise HoleSeen(f"{sequence} came after {self._sequence}")
        self._sequence = sequence
        self.events.append(stored_event(sequence, int(place[-2]), subject.decode(), headers, body))

    def _status(self, fields: list[bytes], headers: bytes, body: bytes) -> None:
        """A message that is no event: heartbeat, flow control, a reply with headers, or bad news."""
        if fields[2] == REPLY_SUBSCRIPTION:
            self.signals.append(Reply(fields[1], body or headers))
        elif not headers.startswith(b"NATS/1.0 100"):
            self.signals.append(Ended(headers.decode(errors="replace").strip()))
        elif len(fields) == _HMSG_WITH_REPLY:
            self.signals.append(FlowControl(fields[3]))
        else:
            self._heartbeat(headers)

    def _heartbeat(self, headers: bytes) -> None:
        delivered = _number(headers, _LAST_DELIVERED)
        if delivered is not None and delivered > self._delivered:
            raise HoleSeen(f"{delivered} were delivered, {self._delivered} arrived")
        start = headers.find(_STALLED)
        if start >= 0:
            line = headers[start + len(_STALLED) : headers.find(b"\r\n", start + 2)]
            self.signals.append(FlowControl(line.strip()))

    def _plain(self, fields: list[bytes], body: bytes) -> None:
        if fields[2] == REPLY_SUBSCRIPTION:
            self.signals.append(Reply(fields[1], body))
            return
        place = fields[3].rsplit(b".", 4) if len(fields) == _MSG_WITH_REPLY else []
        if len(place) != _ACK_FIELDS:
            raise ProtocolBroken("a message that no consumer sent")
        self._event(fields[1], place, b"", body)

    def _line(self, line: bytes) -> None:
        word = line[:5].rstrip().upper()
        if word == b"PING":
            self.signals.append(Ping())
        elif word == b"PONG":
            self.signals.append(Pong())
        elif word == b"INFO":
            self.signals.append(Greeting(line[5:]))
        elif word == b"-ERR":
            self.signals.append(ServerError(line[5:].decode(errors="replace").strip("' ")))
        elif word != b"+OK":
            raise ProtocolBroken(f"unknown line {line[:40]!r}")


def _number(headers: bytes, line: bytes) -> int | None:
    start = headers.find(line)
    if start < 0:
        return None
    start += len(line)
    return int(headers[start : headers.find(b"\r\n", start)])


_HMSG: Final = ord("H")
_MESSAGES: Final = b"HM"
_HMSG_WITH_REPLY: Final = 6
_MSG_WITH_REPLY: Final = 5
_ACK_FIELDS: Final = 5
"""Fields of a delivery's reply subject from the right: pending, time, consumer position, stream sequence, the rest.
The same in both versions of acknowledgement subjects; only the rest differs."""
