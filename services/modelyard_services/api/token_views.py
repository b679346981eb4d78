"""Tokens as the API shows them: everything of them but the secret, which is stored nowhere.

Invariant: nothing here can be used to get in; the id is a piece of the digest of 256 random bits.
"""

from datetime import datetime
from typing import Final, Literal

import msgspec

from modelyard_events.envelope import instant
from modelyard_events.fleet import Role
from modelyard_projections.demand import Demand
from modelyard_projections.fleet.state import RegistrationToken, RevokedToken, Token

TOKEN_ID_DIGITS: Final = 12
"""Of the digest: tells a thousand tokens apart, and whose secret is at hand (`printf %s TOKEN | sha256sum`)."""


class ActorView(msgspec.Struct, frozen=True):
    kind: Literal["operator", "client", "worker", "system"]
    name: str


class TokenView(msgspec.Struct, frozen=True):
    """A token without its secret. `id` is the beginning of its SHA-256; `role` is null for workers' tokens.

    `last_used` is what routers told of since they started, null for workers' tokens and where nothing was told.
    """

    id: str
    name: str
    role: Role | None
    since: datetime
    created_by: ActorView
    last_used: datetime | None = None
    revoked: datetime | None = None
    revoked_by: ActorView | None = None


def token_view(token: Token | RegistrationToken, demand: Demand | None = None) -> TokenView:
    """A token that counts."""
    used_ns = demand.tokens_used_ns.get(token.name, 0) if demand is not None else 0
    return TokenView(
        id=token.digest[:TOKEN_ID_DIGITS],
        name=token.name,
        role=token.role if isinstance(token, Token) else None,
        since=instant(token.since_ns),
        created_by=ActorView(token.by.kind, token.by.name),
        # A name can be older than its token: uses of the one before aren't this one's.
        last_used=instant(used_ns) if used_ns > token.since_ns else None,
    )


def revoked_token_view(gone: RevokedToken) -> TokenView:
    """A token that counts no more."""
    return TokenView(
        id=gone.digest[:TOKEN_ID_DIGITS],
        name=gone.name,
        role=gone.role,
        since=instant(gone.since_ns),
        created_by=ActorView(gone.by.kind, gone.by.name),
        revoked=instant(gone.revoked_ns),
        revoked_by=ActorView(gone.revoked_by.kind, gone.revoked_by.name),
    )
