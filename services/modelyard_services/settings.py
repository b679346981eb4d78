"""What every process of the control plane must be told: read once at the edge, frozen, passed down."""

import msgspec


class NatsSettings(msgspec.Struct, frozen=True):
    """How to reach NATS in the control role.

    `url` holds one server or several, separated by commas, with credentials if need be. `tls_ca` is a file; a
    `tls://` URL asks for TLS. `replicas` is for streams that don't exist yet: 1 embedded, 3 in production.
    """

    url: str
    user: str | None = None
    password: str | None = None
    tls_ca: str | None = None
    replicas: int = 1


class CalloutSettings(msgspec.Struct, frozen=True):
    """What the registrar needs to say who may connect to NATS: its own connection, and the key it signs with."""

    url: str
    issuer_seed: str


class ProcessSettings(msgspec.Struct, frozen=True):
    """One process: its name in logs and events (`api`, `reconciler` …), and where it answers for its health.

    `status_port` 0 takes a free port, None answers nowhere.
    """

    process: str
    nats: NatsSettings
    status_host: str = "127.0.0.1"
    status_port: int | None = None
