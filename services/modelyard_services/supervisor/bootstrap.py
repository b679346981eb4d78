"""What must be in the log before the first worker and the first client, and before we call ourselves ready.

Invariant: a token is made once per data directory and only its digest enters the log; beyond loopback nothing
listens before there is one for clients.
"""

import asyncio
from collections.abc import Mapping
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
from modelyard_services.policy.tokens import create_registration_token, create_token, digest_of

BOOTSTRAP_SECONDS: Final = 30.0
"""How long the log may take to be there: the first start creates it."""

REGISTER_SECONDS_MAX: Final = 60.0
"""A worker of ours registers within two seconds; a machine that starts a dozen at once takes longer."""

REGISTERED_POLL_SECONDS: Final = 0.05

OWN_NAME: Final = "up"
ACTOR: Final = Actor("system", "up")


class Secrets(msgspec.Struct, frozen=True):
    """What this installation's own workers and its owner prove themselves with. `token` only beyond loopback."""

    registration_token: str
    token: str | None = None


def secrets_of(data_dir: Path, *, beyond_loopback: bool) -> Secrets:
    """The secrets kept in `data_dir`, made on the first start."""
    file = data_dir / "secrets.json"
    before = read_private(file, Secrets)
    kept = before or Secrets(registration_token=Ids().secret())
    if beyond_loopback and kept.token is None:
        kept = msgspec.structs.replace(kept, token=Ids().secret())
    if kept != before:
        write_private(file, msgspec.json.encode(kept))
    return kept


async def admit(runtime: Runtime, secrets: Secrets) -> None:
    """Put the secrets' digests into the log, where they aren't yet.

    Raises:
        UnavailableError: the log isn't there in time.
    """

    def decide(fleet: Fleet) -> list[AnyEvent]:
        events: list[AnyEvent] = []
        if OWN_NAME not in fleet.registration_tokens:
            digest = digest_of(secrets.registration_token)
            events += create_registration_token(fleet, name=OWN_NAME, digest=digest)
        if secrets.token is not None and OWN_NAME not in fleet.tokens:
            events += create_token(fleet, name=OWN_NAME, role="admin", digest=digest_of(secrets.token))
        return events

    await runtime.wait_ready(timeout_seconds=BOOTSTRAP_SECONDS)
    await runtime.journal.commit(runtime.envelope(ACTOR), decide)


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
