"""The secrets by which a NATS server knows the control plane and trusts what it says about everybody else.

Invariant: made once per installation. A new issuer key needs every server's configuration changed with it; until
then no worker can connect.
"""

import secrets

import msgspec
import nkeys  # type: ignore[import-untyped]  # it ships no types; nothing but this module imports it

_PASSWORD_BYTES = 32
_SEED_BYTES = 32


class Keys(msgspec.Struct, frozen=True):
    """All secret but `issuer_public`.

    Attributes:
        issuer_seed: signs what a worker may do; only the process with the callout needs it.
        issuer_public: what the servers check those signatures against.
        control_password: of the user `control`, every control-plane process.
        callout_password: of the user `callout`, who answers the servers' questions.
        system_password: of the user `system`, for operators' tools on the servers themselves.
    """

    issuer_seed: str
    issuer_public: str
    control_password: str
    callout_password: str
    system_password: str


def generate_keys() -> Keys:
    """A new set."""
    seed = nkeys.encode_seed(secrets.token_bytes(_SEED_BYTES), nkeys.PREFIX_BYTE_ACCOUNT)
    return Keys(
        issuer_seed=seed.decode(),
        issuer_public=nkeys.from_seed(seed).public_key.decode(),
        control_password=_password(),
        callout_password=_password(),
        system_password=_password(),
    )


def _password() -> str:
    return secrets.token_urlsafe(_PASSWORD_BYTES)
