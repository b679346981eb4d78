"""What must be in the log before the first worker and the first client: their tokens.

Invariant: a token is made once per data directory and only its digest enters the log; beyond loopback nothing
listens before there is one for clients.
"""

from pathlib import Path
from typing import Final

import msgspec

from modelyard_events.envelope import Actor, AnyEvent
from modelyard_projections.fleet import Fleet
from modelyard_services.effects.clock import Ids
from modelyard_services.effects.connect import open_runtime
from modelyard_services.effects.embedded.private import read_private, write_private
from modelyard_services.policy.tokens import create_registration_token, create_token, digest_of
from modelyard_services.settings import ProcessSettings

BOOTSTRAP_SECONDS: Final = 30.0
"""How long the log may take to be there: the first start creates it."""

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


async def admit(secrets: Secrets, process: ProcessSettings) -> None:
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

    async with open_runtime(process) as runtime:
        await runtime.wait_ready(timeout_seconds=BOOTSTRAP_SECONDS)
        await runtime.journal.commit(runtime.envelope(ACTOR), decide)
