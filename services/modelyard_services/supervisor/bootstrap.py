"""What must be in the log before the first worker and the first client, and before we call ourselves ready.

Invariant: a token is made once per data directory and only its digest enters the log; beyond loopback nothing
listens before there is one for clients.
"""

import asyncio
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

import msgspec

from modelyard_events.envelope import Actor, AnyEvent
from modelyard_events.ids import IncarnationId, NodeName
from modelyard_projections.fleet import Fleet
from modelyard_services.effects.clock import Ids
from modelyard_services.effects.embedded.errors import ChildFailedError
from modelyard_services.effects.embedded.private import read_private, write_private
from modelyard_services.effects.runtime import Runtime
from modelyard_services.policy.tokens import (
    create_registration_token,
    create_token,
    digest_of,
    registration_token_of,
    token_of,
)

BOOTSTRAP_SECONDS: Final = 30.0
"""How long the log may take to be there: the first start creates it."""

REGISTER_SECONDS_MAX: Final = 60.0
"""A worker of ours registers within two seconds; a machine that starts a dozen at once takes longer."""

REGISTERED_POLL_SECONDS: Final = 0.05

OWN_NAME: Final = "up"
SECRETS_FILE: Final = "secrets.json"
ACTOR: Final = Actor("system", "up")


class Secrets(msgspec.Struct, frozen=True):
    """What this installation's own workers and its owner prove themselves with. `token` only beyond loopback.

    `admitted`: the log has taken them once, so one that it doesn't know any more was taken back.
    """

    registration_token: str
    token: str | None = None
    admitted: bool = False


def secrets_of(data_dir: Path, *, beyond_loopback: bool) -> Secrets:
    """The secrets kept in `data_dir`, made on the first start."""
    before = read_private(data_dir / SECRETS_FILE, Secrets)
    kept = before or Secrets(registration_token=Ids().secret())
    if beyond_loopback and kept.token is None:
        kept = msgspec.structs.replace(kept, token=Ids().secret())
    if kept != before:
        write_private(data_dir / SECRETS_FILE, msgspec.json.encode(kept))
    return kept


async def admit(runtime: Runtime, data_dir: Path, secrets: Secrets) -> Secrets:
    """Put the secrets' digests into the log, where they aren't yet; the secrets that count from now on.

    Raises:
        UnavailableError: the log isn't there in time.
    """
    await runtime.wait_ready(timeout_seconds=BOOTSTRAP_SECONDS)
    kept = renewed(runtime.fleet, secrets)
    write_private(data_dir / SECRETS_FILE, msgspec.json.encode(kept))
    await runtime.journal.commit(runtime.envelope(ACTOR), lambda fleet: admission_of(fleet, kept))
    kept = msgspec.structs.replace(kept, admitted=True)
    write_private(data_dir / SECRETS_FILE, msgspec.json.encode(kept))
    return kept


def renewed(fleet: Fleet, secrets: Secrets) -> Secrets:
    """`secrets` with another in place of each that was revoked or rotated: what leaked must never count again."""
    registration, token = secrets.registration_token, secrets.token
    if secrets.admitted and registration_token_of(fleet, registration) is None:
        registration = Ids().secret()
    if secrets.admitted and token is not None and token_of(fleet, token) is None:
        token = Ids().secret()
    return Secrets(registration, token)


def admission_of(fleet: Fleet, secrets: Secrets) -> list[AnyEvent]:
    """What makes `secrets` count. A name that was rotated is its operator's: then we take another one."""
    events: list[AnyEvent] = []
    if registration_token_of(fleet, secrets.registration_token) is None:
        name = _free_name(fleet.registration_tokens)
        events += create_registration_token(fleet, name=name, digest=digest_of(secrets.registration_token))
    if secrets.token is not None and token_of(fleet, secrets.token) is None:
        digest = digest_of(secrets.token)
        events += create_token(fleet, name=_free_name(fleet.tokens), role="admin", digest=digest)
    return events


def _free_name(taken: Collection[str]) -> str:
    names = (OWN_NAME, *(f"{OWN_NAME}-{number}" for number in range(2, len(taken) + 3)))
    return next(name for name in names if name not in taken)


async def registered(runtime: Runtime, lives: Mapping[NodeName, IncarnationId | None], stop: asyncio.Event) -> None:
    """Wait until each worker in `lives` has begun another life than the one named there, or until `stop`.

    Raises:
        ChildFailedError: not all have within `REGISTER_SECONDS_MAX`.
    """
    deadline = runtime.clock.monotonic_ns() + round(REGISTER_SECONDS_MAX * 1e9)
    while not stop.is_set():
        missing = [name for name, before in lives.items() if life_of(runtime.fleet, name) in {None, before}]
        if not missing:
            return
        if runtime.clock.monotonic_ns() > deadline:
            names = ", ".join(missing)
            raise ChildFailedError(
                f"{names} did not register within {REGISTER_SECONDS_MAX:g} s: see logs/{missing[0]}.log"
            )
        await runtime.clock.sleep(REGISTERED_POLL_SECONDS)


def life_of(fleet: Fleet, name: NodeName) -> IncarnationId | None:
    """The incarnation of `name` that the log knows last; None if it never registered or was removed."""
    return fleet.nodes[name].incarnation if name in fleet.nodes else None
