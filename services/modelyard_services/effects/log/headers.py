"""The headers of an event on the wire: id, guard and place in its atomic batch.

Invariant: what `event_headers` writes, the server stores as it is and `stored_event` reads back; so the log itself
says which events belong together and which sequence each writer had seen.
"""

import re
from typing import Final

from modelyard_services.effects.log.contract import Message, Stored

_ID: Final = "Nats-Msg-Id"
_GUARD: Final = "Nats-Expected-Last-Subject-Sequence"
_BATCH_ID: Final = "Nats-Batch-Id"
_BATCH_SEQUENCE: Final = "Nats-Batch-Sequence"
_BATCH_COMMIT: Final = "Nats-Batch-Commit"

# A header block as we write it, whole: one match instead of a search for each line, which replays are bounded by.
_OURS: Final = re.compile(
    f"NATS/1\\.0\r\n{_ID}: ([^\r]*)\r\n(?:{_GUARD}: (\\d+)\r\n)?"
    f"(?:({_BATCH_ID}: )[^\r]*\r\n{_BATCH_SEQUENCE}: \\d+\r\n({_BATCH_COMMIT}: 1\r\n)?)?\r\n".encode()
)
_ID_LINE: Final = f"\r\n{_ID}:".encode()
_GUARD_LINE: Final = f"\r\n{_GUARD}:".encode()
_BATCH_LINE: Final = f"\r\n{_BATCH_ID}:".encode()
_COMMIT_LINE: Final = f"\r\n{_BATCH_COMMIT}:".encode()


def event_headers(message: Message, *, guarded: bool) -> dict[str, str]:
    """What travels with an event that is sent alone."""
    headers = {_ID: message.event_id}
    if guarded:
        headers[_GUARD] = str(message.expected)
    return headers


def batch_headers(batch: str, position: int, *, last: bool) -> dict[str, str]:
    """What makes an event the `position`th (from 1) of an atomic batch."""
    headers = {_BATCH_ID: batch, _BATCH_SEQUENCE: str(position)}
    if last:
        headers[_BATCH_COMMIT] = "1"
    return headers


def stored_event(sequence: int, time_ns: int, subject: str, headers: bytes, body: bytes) -> Stored:
    """An event as it stands in the log, from its raw header block."""
    if (ours := _OURS.fullmatch(headers)) is None:
        return _stored_by_search(sequence, time_ns, subject, headers, body)
    event_id, guard, batch, commit = ours.groups()
    return Stored(
        sequence,
        time_ns,
        subject,
        event_id.decode(),
        body,
        batch is None or commit is not None,
        None if guard is None else int(guard),
    )


def _stored_by_search(sequence: int, time_ns: int, subject: str, headers: bytes, body: bytes) -> Stored:
    """The same from headers in another order, or with others between them."""
    guard = _value(headers, _GUARD_LINE)
    return Stored(
        sequence,
        time_ns,
        subject,
        (_value(headers, _ID_LINE) or b"").decode(),
        body,
        _BATCH_LINE not in headers or _COMMIT_LINE in headers,
        None if guard is None else int(guard),
    )


def _value(headers: bytes, line: bytes) -> bytes | None:
    start = headers.find(line)
    if start < 0:
        return None
    start += len(line)
    return headers[start : headers.find(b"\r\n", start)].strip()
