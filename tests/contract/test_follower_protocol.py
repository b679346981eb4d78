"""The follower's parser, byte by byte: what it takes, and what it refuses to take for the log."""

import pytest

from modelyard_services.effects.log.parser import (
    Ended,
    FlowControl,
    Greeting,
    HoleSeen,
    Parser,
    Ping,
    Pong,
    ProtocolBroken,
    Reply,
    ServerError,
)

V1 = "$JS.ACK.LOG.follow-1.1.{sequence}.{delivery}.1700000000000000001.9"
V2 = "$JS.ACK.hub.ACCOUNT.LOG.follow-1.1.{sequence}.{delivery}.1700000000000000001.9"
ID = "Nats-Msg-Id: c{sequence}.0\r\n"


def delivery(sequence: int, number: int, *, reply: str = V1, headers: str = ID, body: str = "{}") -> bytes:
    block = f"NATS/1.0\r\n{headers.format(sequence=sequence)}\r\n"
    place = reply.format(sequence=sequence, delivery=number)
    line = f"HMSG modelyard.log.node.a 2 {place} {len(block)} {len(block) + len(body)}\r\n"
    return f"{line}{block}{body}\r\n".encode()


def status(headers: str, reply: str = "") -> bytes:
    block = f"NATS/1.0 {headers}\r\n\r\n"
    return f"HMSG _INBOX.x.e 2 {reply}{' ' if reply else ''}{len(block)} {len(block)}\r\n{block}\r\n".encode()


def fed(*data: bytes, after: int = 0, filtered: bool = False) -> Parser:
    parser = Parser(after=after, filtered=filtered)
    for piece in data:
        parser.feed(piece)
    return parser


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 1_000])
def test_however_the_bytes_are_cut_the_same_events_come_out(size: int) -> None:
    wire = b'INFO {"a":1}\r\n+OK\r\nPING\r\nPONG\r\n' + delivery(1, 1, body='{"a":"\r\nPING\r\n"}') + delivery(2, 2)
    parser = fed(*(wire[start : start + size] for start in range(0, len(wire), size)))
    assert [(e.sequence, e.event_id, e.body) for e in parser.events] == [
        (1, "c1.0", b'{"a":"\r\nPING\r\n"}'),
        (2, "c2.0", b"{}"),
    ]
    assert parser.signals == [Greeting(b'{"a":1}'), Ping(), Pong()]


@pytest.mark.parametrize("reply", [V1, V2])
def test_both_versions_of_acknowledgement_subjects_are_read(reply: str) -> None:
    (event,) = fed(delivery(42, 7, reply=reply), after=41).events
    assert (event.sequence, event.time_ns) == (42, 1_700_000_000_000_000_001)


def test_headers_tell_id_guard_and_where_a_batch_ends() -> None:
    inside = ID + "Nats-Expected-Last-Subject-Sequence: 7\r\nNats-Batch-Id: b\r\nNats-Batch-Sequence: 1\r\n"
    end = ID + "Nats-Batch-Id: b\r\nNats-Batch-Sequence: 2\r\nNats-Batch-Commit: 1\r\n"
    late = "Traceparent: x\r\n" + ID
    events = fed(delivery(1, 1, headers=inside), delivery(2, 2, headers=end), delivery(3, 3, headers=late)).events
    assert [(e.event_id, e.guard, e.batch_end) for e in events] == [
        ("c1.0", 7, False),
        ("c2.0", None, True),
        ("c3.0", None, True),
    ]


def test_a_missing_sequence_is_seen_and_what_came_before_it_is_kept() -> None:
    parser = Parser(after=0, filtered=False)
    with pytest.raises(HoleSeen):
        parser.feed(delivery(1, 1) + delivery(3, 2))
    assert [e.sequence for e in parser.events] == [1]


@pytest.mark.parametrize("sequence", [4, 5, 1])
def test_a_sequence_that_comes_again_is_a_hole_too(sequence: int) -> None:
    with pytest.raises(HoleSeen):
        fed(delivery(5, 1), delivery(sequence, 2), after=4)


def test_with_a_filter_sequences_may_jump_but_deliveries_may_not() -> None:
    assert [e.sequence for e in fed(delivery(3, 1), delivery(9, 2), filtered=True).events] == [3, 9]
    with pytest.raises(HoleSeen):
        fed(delivery(3, 1), delivery(9, 3), filtered=True)
    with pytest.raises(HoleSeen):
        fed(delivery(3, 1), after=5, filtered=True)


def test_a_heartbeat_that_counts_more_deliveries_than_came_is_a_hole() -> None:
    heartbeat = status("100 Idle Heartbeat\r\nNats-Last-Consumer: {}\r\nNats-Last-Stream: 1")
    assert fed(delivery(1, 1), heartbeat.replace(b"{}", b"1 ")).signals == []
    with pytest.raises(HoleSeen):
        fed(delivery(1, 1), heartbeat.replace(b"{}", b"2 "))


def test_flow_control_is_heard_when_asked_and_when_stalled() -> None:
    asked = status("100 FlowControl Request", "$JS.FC.LOG.follow-1.abc")
    stalled = status("100 Idle Heartbeat\r\nNats-Consumer-Stalled: $JS.FC.LOG.follow-1.def")
    assert fed(asked, stalled).signals == [
        FlowControl(b"$JS.FC.LOG.follow-1.abc"),
        FlowControl(b"$JS.FC.LOG.follow-1.def"),
    ]


def test_bad_news_is_heard() -> None:
    assert fed(b"-ERR 'Authorization Violation'\r\n", status("409 Consumer Deleted")).signals == [
        ServerError("Authorization Violation"),
        Ended("NATS/1.0 409 Consumer Deleted"),
    ]


def test_replies_come_apart_from_events() -> None:
    nobody = b"HMSG _INBOX.x.r.1 1 16 16\r\nNATS/1.0 503\r\n\r\n\r\n"
    assert fed(b"MSG _INBOX.x.r.1 1 2\r\n{}\r\n", nobody).signals == [
        Reply(b"_INBOX.x.r.1", b"{}"),
        Reply(b"_INBOX.x.r.1", b"NATS/1.0 503\r\n\r\n"),
    ]


@pytest.mark.parametrize(
    "garbage", [b"HTTP/1.1 400 Bad Request\r\n", b"HELO\r\n", b"x" * 70_000, b"MSG somewhere 2 2\r\n{}\r\n"]
)
def test_what_is_not_nats_is_refused(garbage: bytes) -> None:
    with pytest.raises(ProtocolBroken):
        fed(garbage)
