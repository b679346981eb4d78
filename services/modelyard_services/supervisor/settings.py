"""What `modelyard up` is told."""

from pathlib import Path

import msgspec

from modelyard_services.settings import TELEMETRY_SECONDS, ConfigurationSettings, RouterSettings, WorkerFigures


class UpSettings(msgspec.Struct, frozen=True, kw_only=True):
    """One installation on one machine.

    `nats_url` and `database_url` replace the embedded servers; port 0 takes a free one. `worker_vram` is what
    each local worker without a GPU may use of the RAM, `worker_gpus` names the GPUs that they divide.
    """

    data_dir: Path
    host: str = "127.0.0.1"
    port: int = 7070
    grpc_port: int = 0
    nats_port: int = 0
    nats_url: str | None = None
    nats_telemetry_seconds: float = TELEMETRY_SECONDS
    database_url: str | None = None
    configuration: ConfigurationSettings = ConfigurationSettings()
    workers: int = 1
    worker_vram: tuple[str, ...] = ()
    worker_gpus: str | None = None
    worker_labels: tuple[dict[str, str], ...] = ()
    auto_approve: bool = True
    log_level: str = "info"
    router: RouterSettings = RouterSettings()
    worker: WorkerFigures = WorkerFigures()


class Endpoints(msgspec.Struct, frozen=True):
    """Where everything of a running installation is; holds secrets, so its file is for its owner alone."""

    api_url: str
    gateway_url: str
    grpc_address: str
    nats_url: str
    database_url: str
    registration_token: str
    token: str | None = None
