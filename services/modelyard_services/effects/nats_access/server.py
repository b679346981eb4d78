"""What a NATS server has to be told about users and keys: the same files embedded and in production.

Invariant: `authorization.conf` holds no secret; it includes the `secrets.conf` beside it, which has mode 0600.
"""

from importlib.resources import files

from modelyard_services.effects.nats_access.keys import Keys

WORKERS_ACCOUNT = "WORKERS"
READERS_ACCOUNT = "READERS"
"""As `authorization.conf` names them."""


def authorization_file() -> str:
    """The content of `authorization.conf`: who is who."""
    return files(__package__).joinpath("authorization.conf").read_text()


def secrets_file(keys: Keys) -> str:
    """The content of `secrets.conf`.

    In quotes on purpose: the server parses an unquoted or environment value, and takes one like `1e9` for a number.
    """
    return f"""MODELYARD_NATS_ISSUER: "{keys.issuer_public}"
MODELYARD_NATS_CONTROL_PASSWORD: "{keys.control_password}"
MODELYARD_NATS_CALLOUT_PASSWORD: "{keys.callout_password}"
MODELYARD_NATS_COPIER_PASSWORD: "{keys.copier_password}"
MODELYARD_NATS_SYSTEM_PASSWORD: "{keys.system_password}"
"""
