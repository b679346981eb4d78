"""The signed statements by which a NATS server learns what a connection may do (JWTs signed by an ed25519 nkey).

Invariant: pure; the same claims, key and time give the same text. The time only dates a statement: a server asks
again at every connection, so a grant needs no end of its own.
"""

import base64
import hashlib

import msgspec

from modelyard_services.effects.nats_access.keys import Issuer
from modelyard_services.effects.nats_access.roles import ANSWER_SECONDS_MAX, ANSWERS_MAX, Grant

_HEADER = {"typ": "JWT", "alg": "ed25519-nkey"}
_CLAIMS_VERSION = 2
_NO_LIMIT = -1
_NANOSECONDS = 1_000_000_000


class Question(msgspec.Struct, frozen=True):
    """A server asks who a connection is.

    Attributes:
        server: the server's public key; the answer names it.
        connection: the key that the server made up for the connection; the answer names it.
        user: what the client gave as its name, empty if nothing.
        password: what it gave to prove it, empty if nothing.
        host: where it connects from.
    """

    server: str
    connection: str
    user: str
    password: str
    host: str


class _Server(msgspec.Struct):
    id: str


class _Client(msgspec.Struct):
    host: str = ""


class _Connect(msgspec.Struct):
    user: str = ""
    password: str = msgspec.field(default="", name="pass")


class _Request(msgspec.Struct):
    server_id: _Server
    user_nkey: str
    client_info: _Client
    connect_opts: _Connect


class _RequestClaims(msgspec.Struct):
    nats: _Request


def question_of(token: bytes) -> Question:
    """What the server asks.

    Raises:
        ValueError: that isn't a server's question (`msgspec.DecodeError` is one, too).
    """
    parts = token.split(b".")
    if len(parts) != len(("header", "claims", "signature")):
        raise ValueError("not a token of three parts")
    request = msgspec.json.decode(base64.urlsafe_b64decode(parts[1] + b"=="), type=_RequestClaims).nats
    return Question(
        server=request.server_id.id,
        connection=request.user_nkey,
        user=request.connect_opts.user,
        password=request.connect_opts.password,
        host=request.client_info.host,
    )


def granted(question: Question, grant: Grant, *, issuer: Issuer, issued_at: int) -> bytes:
    """The answer that lets the connection in with `grant`."""
    permissions: dict[str, object] = {
        "pub": {"allow": grant.publish},
        "sub": {"allow": grant.subscribe},
        "subs": grant.subscriptions_max,
        "data": _NO_LIMIT,
        "payload": _NO_LIMIT,
        "allowed_connection_types": ["STANDARD"],
        "type": "user",
        "version": _CLAIMS_VERSION,
    }
    if grant.answers:
        permissions["resp"] = {"max": ANSWERS_MAX, "ttl": ANSWER_SECONDS_MAX * _NANOSECONDS}
    user: dict[str, object] = {"sub": question.connection, "aud": grant.account, "name": question.user}
    user["nats"] = permissions
    return _answer(question, {"jwt": _signed(user, issuer, issued_at).decode()}, issuer, issued_at)


def refused(question: Question, *, reason: str, issuer: Issuer, issued_at: int) -> bytes:
    """The answer that keeps it out; `reason` goes to the server's log, not to the client."""
    return _answer(question, {"error": reason}, issuer, issued_at)


def _answer(question: Question, content: dict[str, object], issuer: Issuer, issued_at: int) -> bytes:
    nats = {**content, "type": "authorization_response", "version": _CLAIMS_VERSION}
    return _signed({"sub": question.connection, "aud": question.server, "nats": nats}, issuer, issued_at)


def _signed(claims: dict[str, object], issuer: Issuer, issued_at: int) -> bytes:
    dated = {**claims, "iss": issuer.public, "iat": issued_at}
    identity = hashlib.sha256(msgspec.json.encode(dated)).hexdigest()
    text = _text(_HEADER) + b"." + _text({**dated, "jti": identity})
    return text + b"." + _base64(issuer.sign(text))


def _text(value: object) -> bytes:
    return _base64(msgspec.json.encode(value))


def _base64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
