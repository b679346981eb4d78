"""Who may ask, and which workers may register: tokens by digest (rule N4).

Invariant: no token is ever in an event, only its SHA-256; a token is compared with every known one in constant
time, so an answer's time tells nothing. While there are tokens, one of them is an admin's: without one nobody could
make or revoke another, and the installation would be shut to its own people.
"""

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from typing import Final, Protocol, TypeVar

from modelyard_events.envelope import AnyEvent
from modelyard_events.errors import InvalidValueError
from modelyard_events.fleet import (
    FleetRegistrationTokenCreated,
    FleetRegistrationTokenRevoked,
    FleetTokenCreated,
    FleetTokenRevoked,
    Role,
)
from modelyard_events.names import node_name
from modelyard_projections.fleet import Fleet
from modelyard_projections.fleet.state import RegistrationToken, Token
from modelyard_services.errors import ConflictError, NotFoundError, OverloadedError

TOKENS_MAX: Final = 1_000
"""Tokens of one kind: each request is compared with all of them, about 0.3 ms at this size."""

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


class _Digested(Protocol):
    @property
    def digest(self) -> str: ...


DigestedT = TypeVar("DigestedT", bound=_Digested)


def digest_of(secret: str) -> str:
    """The SHA-256 of a token or a state directory's secret: 256 random bits need no slower hash."""
    return hashlib.sha256(secret.encode()).hexdigest()


def is_secret_of(secret: str, digest: str) -> bool:
    """Whether `secret` has that digest, in constant time."""
    return hmac.compare_digest(digest_of(secret), digest)


def token_of(fleet: Fleet, secret: str) -> Token | None:
    """The API token whose secret this is."""
    return _matching(secret, fleet.tokens.values())


def registration_token_of(fleet: Fleet, secret: str) -> RegistrationToken | None:
    """The registration token whose secret this is."""
    return _matching(secret, fleet.registration_tokens.values())


def create_token(fleet: Fleet, *, name: str, role: Role, digest: str) -> list[AnyEvent]:
    """A client may ask in `role`.

    Raises:
        ConflictError: the name is taken by another token, or nobody could make a token after this one.
    """
    known = fleet.tokens.get(name)
    if known is not None and (known.role, known.digest) == (role, digest):
        return []
    _check_new(name, digest, fleet.tokens)
    if role != "admin" and not _admins(fleet):
        raise ConflictError(
            f"{role} would be the role of the only token, and from then on nobody could make another: create one with "
            "the role admin first",
            field="role",
            value=role,
        )
    return [FleetTokenCreated(name=name, role=role, digest=digest)]


def rotate_token(fleet: Fleet, *, name: str, digest: str) -> list[AnyEvent]:
    """The secret of that name is worth nothing from here on, the new one takes its name and role.

    Raises:
        NotFoundError: there is no such token (X28).
    """
    _check_known(name, fleet.tokens, "token")
    before = fleet.tokens[name]
    if before.digest == digest:
        return []
    _check_digest(digest)
    return [FleetTokenRevoked(name=name), FleetTokenCreated(name=name, role=before.role, digest=digest)]


def revoke_token(fleet: Fleet, *, name: str) -> list[AnyEvent]:
    """The token is worth nothing from here on.

    Raises:
        NotFoundError: there is no such token (X28).
        ConflictError: it is the last admin's, and others remain.
    """
    _check_known(name, fleet.tokens, "token")
    if _admins(fleet) == [name] and len(fleet.tokens) > 1:
        raise ConflictError(
            f"{name!r} is the last token of an admin, and the others could neither be revoked nor joined by another: "
            "create another admin's first, or revoke the others",
            field="name",
            value=name,
        )
    return [FleetTokenRevoked(name=name)]


def create_registration_token(fleet: Fleet, *, name: str, digest: str) -> list[AnyEvent]:
    """Workers may register with it.

    Raises:
        ConflictError: the name is taken by another token.
    """
    known = fleet.registration_tokens.get(name)
    if known is not None and known.digest == digest:
        return []
    _check_new(name, digest, fleet.registration_tokens)
    return [FleetRegistrationTokenCreated(name=name, digest=digest)]


def rotate_registration_token(fleet: Fleet, *, name: str, digest: str) -> list[AnyEvent]:
    """The token of that name is worth nothing from here on, the new one takes its name.

    Raises:
        NotFoundError: there is no such token (X28).
    """
    _check_known(name, fleet.registration_tokens, "registration token")
    if fleet.registration_tokens[name].digest == digest:
        return []
    _check_digest(digest)
    return [
        FleetRegistrationTokenRevoked(name=name),
        FleetRegistrationTokenCreated(name=name, digest=digest),
    ]


def revoke_registration_token(fleet: Fleet, *, name: str) -> list[AnyEvent]:
    """No worker registers with it from here on; those that did stay.

    Raises:
        NotFoundError: there is no such token (X28).
    """
    _check_known(name, fleet.registration_tokens, "registration token")
    return [FleetRegistrationTokenRevoked(name=name)]


def _admins(fleet: Fleet) -> list[str]:
    return [name for name, token in fleet.tokens.items() if token.role == "admin"]


def _matching(secret: str, known: Iterable[DigestedT]) -> DigestedT | None:
    digest, found = digest_of(secret), None
    for token in known:
        # No early end: the time must not tell how many tokens were compared.
        if hmac.compare_digest(digest, token.digest):
            found = token
    return found


def _check_new(name: str, digest: str, known: Mapping[str, object]) -> None:
    node_name(name, field="name")
    _check_digest(digest)
    if name in known:
        raise ConflictError(f"a token is named {name!r} already; revoke it, or take another name", field="name")
    if len(known) >= TOKENS_MAX:
        raise OverloadedError(f"{TOKENS_MAX} tokens exist; revoke one first")


def _check_digest(digest: str) -> None:
    if _DIGEST.fullmatch(digest) is None:
        raise InvalidValueError("digest", f"{digest[:8]}…", "is not a SHA-256 in lower-case hex")


def _check_known(name: str, known: Mapping[str, object], kind: str) -> None:
    if name not in known:
        raise NotFoundError(f"no {kind} is named {name!r}", field="name", value=name)
