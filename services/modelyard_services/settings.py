"""What every process of the control plane must be told: read once at the edge, frozen, passed down."""

import msgspec


class NatsSettings(msgspec.Struct, frozen=True):
    """How to reach NATS in the control role. `tls_ca` is a file; a `tls://` URL asks for TLS."""

    url: str
    user: str | None = None
    password: str | None = None
    tls_ca: str | None = None


class ProcessSettings(msgspec.Struct, frozen=True):
    """One process: its name in logs and events (`api`, `reconciler` …), and where it answers for its health.

    `health_port` 0 takes a free port, None answers nowhere.
    """

    process: str
    nats: NatsSettings
    health_host: str = "127.0.0.1"
    health_port: int | None = None
