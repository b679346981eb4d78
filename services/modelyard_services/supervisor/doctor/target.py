"""Which installation is examined, and how each part of it is reached.

Invariant: reading this changes nothing in a data directory: an `up` that runs there doesn't notice.
"""

from collections.abc import Mapping
from pathlib import Path

import msgspec

from modelyard_services.effects.embedded.lives import is_held
from modelyard_services.effects.embedded.nats import control_url
from modelyard_services.effects.embedded.private import read_private
from modelyard_services.supervisor.settings import Endpoints
from modelyard_services.supervisor.up import Ports


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What the caller said; what is None, and a default API, are taken from the data directory where it knows better.

    `environment` may hold configuration.
    """

    data_dir: Path
    api_url: str
    api_is_default: bool = False
    token: str | None = None
    nats_url: str | None = None
    database_url: str | None = None
    config_files: tuple[Path, ...] = ()
    environment: Mapping[str, str] = {}


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """One installation. `processes`: the ports on loopback where processes answer for their health, by name.

    `up_runs` is None where no `modelyard up` ever ran in the data directory.
    """

    data_dir: Path
    up_runs: bool | None
    api_url: str | None
    token: str | None
    nats_url: str | None
    database_url: str | None
    processes: Mapping[str, int]
    config_files: tuple[Path, ...]
    environment: Mapping[str, str]


def target_of(asked: Asked) -> Target:
    """Where everything is: as asked, else as the `modelyard up` of the data directory wrote it down."""
    endpoints = read_private(asked.data_dir / "endpoints.json", Endpoints)
    up_runs = None if endpoints is None else is_held(asked.data_dir / "run")
    target = Target(
        data_dir=asked.data_dir,
        up_runs=up_runs,
        # The default is nobody's choice: not asked for where the installation is known to be stopped.
        api_url=None if asked.api_is_default and up_runs is False else asked.api_url,
        token=asked.token,
        nats_url=asked.nats_url,
        database_url=asked.database_url,
        processes={},
        config_files=asked.config_files,
        environment=asked.environment,
    )
    return _completed(target, endpoints, asked) if endpoints is not None and up_runs else target


def _completed(target: Target, endpoints: Endpoints, asked: Asked) -> Target:
    return msgspec.structs.replace(
        target,
        api_url=endpoints.api_url if asked.api_is_default else asked.api_url,
        token=asked.token or endpoints.token,
        nats_url=asked.nats_url or control_url(asked.data_dir, endpoints.nats_url),
        database_url=asked.database_url or endpoints.database_url,
        processes=_processes(asked.data_dir),
    )


def _processes(data_dir: Path) -> dict[str, int]:
    ports = read_private(data_dir / "ports.json", Ports)
    if ports is None:
        return {}
    return {"registrar": ports.registrar, "reconciler": ports.reconciler, "projector": ports.projector}
