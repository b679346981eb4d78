"""What every process of the control plane must be told: read once at the edge, frozen, passed down."""

from typing import Final, Self

import msgspec

from modelyard_events.errors import InvalidValueError
from modelyard_events.spec import ScheduleSource

WAIT_SECONDS: Final = 60.0
"""How long a request waits for a model that loads (rule T5)."""

QUEUE_MAX: Final = 1_024
"""Requests that wait per model and router (rule T7)."""

PROBE_SECONDS: Final = 2.0
"""An idle server answers a health check in milliseconds; two seconds allow for a machine under load (rule T4)."""

PROBE_FRESH_SECONDS: Final = 30.0
"""How long a replica that answered its probe is used unasked (rule T4)."""


LEASE_SECONDS: Final = 5.0
"""After how long without a renewal another reconciler acts (rule C1): as long as a worker or a router may be silent."""

LEASE_SECONDS_LEAST: Final = 1.0
"""Renewals come five times as often; more would be noise to a server that syncs each write to its disk."""

LEASE_SECONDS_MOST: Final = 60.0
"""Nobody acts for this long after a crash: more than a fleet should wait."""


TELEMETRY_SECONDS: Final = 30.0
"""Three heartbeats (rule N8)."""

LOG_LINES_MOST: Final = 10_000
"""Of one replica: its two log files then take a hundred megabytes."""

STDERR_LINES_MOST: Final = 100
"""With the end of a process: more than any traceback that somebody reads."""


class NatsSettings(msgspec.Struct, frozen=True):
    """How to reach NATS in the control role.

    `url` holds one server or several, separated by commas, with credentials if need be. `tls_ca` is a file; a
    `tls://` URL asks for TLS. The rest is for streams that don't exist yet: `replicas` 1 embedded, 3 in production;
    `telemetry_seconds` is how long the last heartbeat of each node is kept for observers that come later (rule N8).
    """

    url: str
    user: str | None = None
    password: str | None = None
    tls_ca: str | None = None
    replicas: int = 1
    telemetry_seconds: float = TELEMETRY_SECONDS


class CalloutSettings(msgspec.Struct, frozen=True):
    """What the registrar needs to say who may connect to NATS: its own connection, and the key it signs with."""

    url: str
    issuer_seed: str


class ProcessSettings(msgspec.Struct, frozen=True):
    """One process: its name in logs and events (`api`, `reconciler` …), and the port it answers for its health on.

    `status_port` 0 takes a free port, None answers nowhere; always on loopback.
    """

    process: str
    nats: NatsSettings
    status_port: int | None = None


class Given(msgspec.Struct, frozen=True):
    """What somebody gave, and whether by an option (`flag`) or by its variable (`env`)."""

    value: str
    source: ScheduleSource


class ConfigurationSettings(msgspec.Struct, frozen=True):
    """What is in force from the start on: schedules as text, a file of schedules, more files; the later wins."""

    scheduling: Given | None = None
    scheduling_config: Given | None = None
    files: tuple[str, ...] = ()


class WorkerFigures(msgspec.Struct, frozen=True):
    """How a worker looks after its processes: questions and their limit (T4), ports (W4), what it keeps (W5, W7)."""

    probe_seconds: float = PROBE_SECONDS
    probe_interval_seconds: float = 15.0
    probe_misses: int = 3
    port_quarantine_seconds: float = 15.0
    log_lines: int = 1_000
    stderr_lines: int = 20

    def checked(self) -> Self:
        """Itself, if it makes sense.

        Raises:
            InvalidValueError: the next question would come before the answer to the last.
        """
        if self.probe_seconds >= self.probe_interval_seconds:
            problem = f"must be more than probe_seconds ({self.probe_seconds:g}): an answer may take that long"
            raise InvalidValueError("probe_interval_seconds", self.probe_interval_seconds, problem)
        return self

    @property
    def options(self) -> tuple[str, ...]:
        """The same as options of `modelyard worker`."""
        return options_of(self)


class RouterSettings(msgspec.Struct, frozen=True):
    """How requests wait and replicas are probed; `probe_fresh_seconds` 0 asks a process before every use (T4)."""

    wait_seconds: float = WAIT_SECONDS
    queue_max: int = QUEUE_MAX
    probe_fresh_seconds: float = PROBE_FRESH_SECONDS
    probe_seconds: float = PROBE_SECONDS

    @property
    def options(self) -> tuple[str, ...]:
        """The same as options of `modelyard api`."""
        return options_of(self)


class ReconcilerSettings(msgspec.Struct, frozen=True):
    """`configuration` is applied before the first pass (S3); a rival acts `lease_seconds` after the last sign (C1)."""

    process: ProcessSettings
    configuration: ConfigurationSettings = ConfigurationSettings()
    lease_seconds: float = LEASE_SECONDS


class ProjectorSettings(msgspec.Struct, frozen=True):
    """`copier_url` reaches NATS as the one who keeps the readers' copy of the lifecycle stream; None keeps none."""

    process: ProcessSettings
    database_url: str
    copier_url: str | None = None


class ApiSettings(msgspec.Struct, frozen=True):
    """Where the API listens, and the read model it pages through. `grpc_port` None serves no gRPC."""

    process: ProcessSettings
    host: str = "127.0.0.1"
    port: int = 7070
    grpc_port: int | None = None
    database_url: str | None = None
    open_on_loopback: bool = True
    router: RouterSettings = RouterSettings()


def options_of(settings: msgspec.Struct) -> tuple[str, ...]:
    """Each field as the option of its name: `queue_max` is `--queue-max`."""
    told = msgspec.structs.asdict(settings).items()
    return tuple(word for name, value in told for word in (f"--{name.replace('_', '-')}", str(value)))
