"""A client's request on its way to a replica: read whole, its model found, its head rewritten.

Invariant: the body is passed on byte for byte, but for the name of a model that was asked for by an alias; what
belongs to one connection, or to us (the client's token), is not passed on.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Annotated, Any, Final

import msgspec

from modelyard_services.errors import InvalidRequestError, PayloadTooLargeError
from modelyard_services.policy.affinity import PROMPT_BYTES_MAX, Hint

BODY_BYTES_MAX: Final = 32 * 1024 * 1024
"""A chat with several images in base64; 32 such requests at once are 1 GiB, what a gateway may be given."""

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
RawHeaders = list[tuple[bytes, bytes]]

HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
SESSION_HEADER: Final = b"x-modelyard-session"
"""The session a request belongs to (rule T3); it wins over what the body says."""

_NOT_FORWARDED: Final = HOP_BY_HOP | {
    b"host",
    b"content-length",
    b"expect",
    b"authorization",  # the client's token is for us; a backend must never see it
    b"cookie",
    b"x-actor",
    SESSION_HEADER,
    b"traceparent",
}


class ClientGoneError(Exception):
    """The client hung up before its request was whole."""


_ABSENT: Final = msgspec.Raw()


class Asked(msgspec.Struct, frozen=True):
    """What a body asks for; all but the model as it stands there, for it is the replica's to judge."""

    model: Annotated[str, msgspec.Meta(min_length=1)]
    prompt_cache_key: msgspec.Raw = _ABSENT
    user: msgspec.Raw = _ABSENT
    messages: msgspec.Raw = _ABSENT
    prompt: msgspec.Raw = _ABSENT


_ASKED: Final = msgspec.json.Decoder(Asked)
_FIELDS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


async def read_body(receive: Receive) -> bytes:
    """The whole body.

    Raises:
        PayloadTooLargeError: it is beyond `BODY_BYTES_MAX`.
        ClientGoneError: it broke off.
    """
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body"):
        body: bytes = message.get("body", b"")
        return _bounded(body)
    parts: list[bytes] = []
    size = 0
    while message["type"] == "http.request":
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > BODY_BYTES_MAX or not message.get("more_body"):
            return _bounded(b"".join(parts))
        message = await receive()
    raise ClientGoneError


def asked_of(body: bytes) -> Asked:
    """What `body` asks for.

    Raises:
        InvalidRequestError: it isn't JSON, or names none.
    """
    try:
        return _ASKED.decode(body)
    except msgspec.ValidationError as error:
        raise InvalidRequestError(f"the body needs a 'model': {error}", field="model") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"the body is not JSON: {error}") from error


def renamed(body: bytes, model: str) -> bytes:
    """`body` asking for `model`: a replica knows its model's own name, not the alias that a client used."""
    fields = _FIELDS.decode(body)
    fields["model"] = msgspec.Raw(msgspec.json.encode(model))
    return msgspec.json.encode(fields)


def hint_of(asked: Asked, headers: RawHeaders) -> Hint:
    """Where the request belongs: the session that it names, and the beginning of its prompt (rule T3)."""
    session = next((value for name, value in headers if name == SESSION_HEADER and value), None)
    prompt = bytes(memoryview(asked.messages or asked.prompt)[:PROMPT_BYTES_MAX])
    return Hint(session or _text(asked.prompt_cache_key) or _text(asked.user), prompt or None)


def _text(raw: msgspec.Raw) -> bytes | None:
    """The text that `raw` holds; None if it holds none."""
    try:
        value = msgspec.json.decode(raw) if raw else None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None  # text that can't be read names no session; what else it means is the replica's to judge
    return value.encode() if isinstance(value, str) and value else None


class Outgoing:
    """The request as replicas get it."""

    def __init__(self, scope: Scope, body: bytes) -> None:
        path: bytes = scope.get("raw_path") or scope["path"].encode()
        query: bytes = scope["query_string"]
        self._target = path + b"?" + query if query else path
        headers: RawHeaders = scope["headers"]
        dropped = _NOT_FORWARDED | _named_by_connection(headers)
        lines = [b"%b: %b\r\n" % header for header in headers if header[0] not in dropped]
        lines.append(b"content-length: %d\r\n\r\n" % len(body))
        self._rest = b"".join((*lines, body))

    def to(self, address: str, *, traceparent: str) -> bytes:
        """All of it, for the process at `address`, in this trace."""
        head = (self._target, address.encode(), traceparent.encode(), self._rest)
        return b"POST %b HTTP/1.1\r\nhost: %b\r\ntraceparent: %b\r\n%b" % head


def _named_by_connection(headers: RawHeaders) -> frozenset[bytes]:
    named = [value for name, value in headers if name == b"connection"]
    if not named or named in ([b"keep-alive"], [b"close"]):
        return frozenset()
    return frozenset(token.strip().lower() for value in named for token in value.split(b","))


def _bounded(body: bytes) -> bytes:
    if len(body) > BODY_BYTES_MAX:
        raise PayloadTooLargeError(f"a request has at most {BODY_BYTES_MAX} bytes")
    return body
