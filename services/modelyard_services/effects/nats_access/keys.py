"""The secrets by which a NATS server knows the control plane and trusts what it says about everybody else.

Invariant: made once per installation. A new issuer key needs every server's configuration changed with it; until
then no worker can connect.
"""

import secrets

import msgspec
import nkeys  # type: ignore[import-untyped]  # it ships no types; nothing but this module imports it

from modelyard_services.errors import InvalidRequestError

_PASSWORD_BYTES = 32
_SEED_BYTES = 32


class Keys(msgspec.Struct, frozen=True):
    """All secret but `issuer_public`.

    Attributes:
        issuer_seed: signs what a worker may do; only the process with the callout needs it.
        issuer_public: what the servers check those signatures against.
        control_password: of the user `control`, every control-plane process.
        callout_password: of the user `callout`, who answers the servers' questions.
        copier_password: of the user `copier`, who sets up the copy of the lifecycle stream that readers read.
        system_password: of the user `system`, for operators' tools on the servers themselves.
    """

    issuer_seed: str
    issuer_public: str
    control_password: str
    callout_password: str
    copier_password: str
    system_password: str


class Issuer:
    """The key that signs grants, held by the callout alone."""

    def __init__(self, seed: str) -> None:
        """Take the seed of an account key.

        Raises:
            InvalidRequestError: it is no such seed.
        """
        try:
            prefix, _ = nkeys.decode_seed(seed.encode())
            self._pair = nkeys.from_seed(seed.encode())
        except (nkeys.NkeysError, ValueError) as error:
            raise InvalidRequestError("not the seed of a NATS key", field="issuer_seed") from error
        if prefix != nkeys.PREFIX_BYTE_ACCOUNT:
            raise InvalidRequestError("not the seed of an account key (SA…)", field="issuer_seed")
        self.public: str = self._pair.public_key.decode()

    def sign(self, text: bytes) -> bytes:
        signature: bytes = self._pair.sign(text)
        return signature


def generate_keys() -> Keys:
    """A new set."""
    seed = nkeys.encode_seed(secrets.token_bytes(_SEED_BYTES), nkeys.PREFIX_BYTE_ACCOUNT)
    return Keys(
        issuer_seed=seed.decode(),
        issuer_public=Issuer(seed.decode()).public,
        control_password=_password(),
        callout_password=_password(),
        copier_password=_password(),
        system_password=_password(),
    )


def _password() -> str:
    return secrets.token_urlsafe(_PASSWORD_BYTES)
