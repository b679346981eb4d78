"""What replicas get of a request: the body as it was, and nothing that was meant for us."""

from collections.abc import Iterable

import pytest

from modelyard_services.errors import InvalidRequestError, PayloadTooLargeError
from modelyard_services.gateway.request import (
    BODY_BYTES_MAX,
    ClientGoneError,
    Message,
    Outgoing,
    Receive,
    Scope,
    asked_of,
    hint_of,
    read_body,
    renamed,
)

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def a_scope(*headers: tuple[bytes, bytes], query: bytes = b"") -> Scope:
    return {"raw_path": b"/v1/embeddings", "path": "/v1/embeddings", "query_string": query, "headers": list(headers)}


def told(*messages: Message) -> Receive:
    coming = iter(messages)

    async def receive() -> Message:
        return next(coming)

    return receive


def parts(bodies: Iterable[bytes]) -> Receive:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": True} for body in bodies]
    return told(*messages, {"type": "http.request", "body": b"", "more_body": False})


def test_the_body_goes_on_byte_for_byte_with_its_length_and_trace() -> None:
    body = b'{ "model":"m"}'
    sent = Outgoing(a_scope((b"content-type", b"application/json"), query=b"a=b"), body)
    head, _, rest = sent.to("10.0.0.1:80", traceparent=TRACE).partition(b"\r\n\r\n")
    assert rest == body
    assert head.split(b"\r\n") == [
        b"POST /v1/embeddings?a=b HTTP/1.1",
        b"host: 10.0.0.1:80",
        b"traceparent: " + TRACE.encode(),
        b"content-type: application/json",
        b"content-length: 14",
    ]


def test_tokens_cookies_and_headers_of_one_connection_stay_here() -> None:
    ours = [
        (b"authorization", b"Bearer secret"),
        (b"cookie", b"a=b"),
        (b"x-actor", b"me"),
        (b"traceparent", b"theirs"),
        (b"transfer-encoding", b"chunked"),
        (b"connection", b"close, X-Hop"),
        (b"x-hop", b"1"),
        (b"host", b"us"),
    ]
    sent = Outgoing(a_scope(*ours, (b"x-request-id", b"7")), b"{}").to("a:1", traceparent=TRACE)
    assert b"x-request-id: 7\r\n" in sent
    assert not any(value in sent for _name, value in ours if value not in {b"1", b"chunked"})
    assert b"x-hop" not in sent
    assert b"chunked" not in sent


async def test_a_body_in_parts_is_read_whole() -> None:
    assert await read_body(parts([b"ab", b"cd"])) == b"abcd"


async def test_a_body_beyond_the_limit_is_refused_before_it_is_whole() -> None:
    endless = (b"x" * (BODY_BYTES_MAX // 4) for _ in range(5))
    with pytest.raises(PayloadTooLargeError):
        await read_body(parts(endless))


async def test_a_client_that_breaks_off_is_noticed() -> None:
    with pytest.raises(ClientGoneError):
        await read_body(told({"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}))


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", b'{"model": 7}', b'{"model": ""}', b'{"model": "\xff"}'])
def test_a_body_without_a_model_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequestError):
        asked_of(body)


def test_the_model_is_found_wherever_it_stands() -> None:
    assert asked_of(b'{"messages": [{"model": "no"}], "model": "a/b:c d"}').model == "a/b:c d"


@pytest.mark.parametrize(
    ("headers", "body", "session"),
    [
        ([(b"x-modelyard-session", b"h")], b'{"model": "m", "prompt_cache_key": "k", "user": "u"}', b"h"),
        ([], b'{"model": "m", "prompt_cache_key": "k", "user": "u"}', b"k"),
        ([], b'{"model": "m", "user": "\\u0075"}', b"u"),
        ([(b"x-modelyard-session", b"")], b'{"model": "m", "user": ""}', None),
        ([], b'{"model": "m", "user": 5}', None),
        ([], b'{"model": "m", "user": "\xff"}', None),
        ([], b'{"model": "m", "user": null}', None),
    ],
)
def test_a_session_is_named_by_header_cache_key_or_user(
    headers: list[tuple[bytes, bytes]], body: bytes, session: bytes | None
) -> None:
    """T3; what names no session is the replica's to judge."""
    assert hint_of(asked_of(body), headers).session == session


def test_a_prompt_begins_as_its_messages_or_its_text_do() -> None:
    """T3: conversations that go on begin alike, and only the beginning is kept."""
    first = hint_of(asked_of(b'{"model": "m", "messages": [{"role": "user", "content": "a"}]}'), []).prompt
    later = hint_of(asked_of(b'{"messages": [{"role": "user", "content": "a"}, {}], "model": "m"}'), []).prompt
    assert first is not None
    assert later is not None
    assert later.startswith(first[:-1])
    assert hint_of(asked_of(b'{"model": "m", "prompt": "a"}'), []).prompt == b'"a"'
    long = b'{"model": "m", "prompt": "%b"}' % (b"a" * 100_000)
    assert len(hint_of(asked_of(long), []).prompt or b"") == 16_384


def test_a_renamed_body_keeps_every_other_byte_of_its_values() -> None:
    """Numbers that no float holds, doubled spaces and escapes are the backend's to judge."""
    body = b'{"input": [1e400, 12345678901234567890123, "\\u00e9  x"], "model" : "gpt-4", "n":1.10}'
    new = renamed(body, "org/m")
    assert asked_of(new).model == "org/m"
    for part in (b'[1e400, 12345678901234567890123, "\\u00e9  x"]', b"1.10"):
        assert part in new
