"""What a NATS server has to be told about users and keys: the same text embedded and in production.

Invariant: `authorization.conf` holds no secret; the secrets are variables defined above it, in a file of mode 0600.
"""

from importlib.resources import files

from modelyard_services.effects.nats_access.keys import Keys

WORKERS_ACCOUNT = "WORKERS"
READERS_ACCOUNT = "READERS"
"""As `authorization.conf` names them."""


def authorization() -> str:
    """The part of the configuration that says who is who."""
    return files(__package__).joinpath("authorization.conf").read_text()


def variables(keys: Keys) -> str:
    """The secrets that `authorization` refers to, as lines of configuration to put before it.

    In quotes on purpose: the server parses an unquoted or environment value, and takes one like `1e9` for a number.
    """
    return f"""MODELYARD_NATS_ISSUER: "{keys.issuer_public}"
MODELYARD_NATS_CONTROL_PASSWORD: "{keys.control_password}"
MODELYARD_NATS_CALLOUT_PASSWORD: "{keys.callout_password}"
MODELYARD_NATS_COPIER_PASSWORD: "{keys.copier_password}"
MODELYARD_NATS_SYSTEM_PASSWORD: "{keys.system_password}"
"""
