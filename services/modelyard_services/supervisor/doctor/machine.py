"""What can be seen on this machine alone: programs, disk, files, limits, GPUs, configuration.

Invariant: looks, and changes nothing.
"""

import resource
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

from modelyard_events.sizes import format_size
from modelyard_services.effects.embedded.binaries import nats_server, postgres_program
from modelyard_services.effects.embedded.lives import lives_in
from modelyard_services.reconciler.sources import FILE, INLINE, configuration_settings, read_configuration
from modelyard_services.settings import ConfigurationSettings
from modelyard_services.supervisor.doctor import findings
from modelyard_services.supervisor.doctor.findings import Finding
from modelyard_services.supervisor.doctor.target import Target
from modelyard_services.worker.gpus import discover
from modelyard_services.worker.visible import visible

PROGRAM_SECONDS_MAX: Final = 5.0
"""A program tells its version in milliseconds; a cold disk takes a second."""

_SECRETS: Final = ("endpoints.json", "secrets.json", "nats/credentials.json", "nats/secrets.conf", "nats/nats.conf")
_SECRETS_OF_POSTGRES: Final = ("postgres/credentials.json",)


def python(_target: Target) -> list[Finding]:
    """The interpreter."""
    return [findings.python_version()]


def programs(_target: Target) -> list[Finding]:
    """The embedded servers' programs.

    Raises:
        BinaryMissingError: one isn't installed.
    """
    found = [_version(program) for program in (nats_server(), postgres_program("postgres"))]
    return [Finding("programs", "ok", "; ".join(found))]


def directory(target: Target) -> list[Finding]:
    """The data directory: who runs there, whether its secrets are shut, whether its disk has room."""
    if target.up_runs is None:
        return [Finding("data directory", "skipped", f"no `modelyard up` has run in {target.data_dir}")]
    names = [life.name for life in lives_in(target.data_dir / "run")]
    secrets = [target.data_dir / name for name in (*_SECRETS, *_SECRETS_OF_POSTGRES)]
    modes = {str(file): stat.S_IMODE(file.stat().st_mode) for file in secrets if file.exists()}
    return [
        findings.leftovers(names, owned=target.up_runs),
        findings.disk(shutil.disk_usage(target.data_dir).free, where=str(target.data_dir)),
        findings.secret_files(modes),
    ]


def limits(_target: Target) -> list[Finding]:
    """What the system allows one process."""
    return [findings.descriptors(resource.getrlimit(resource.RLIMIT_NOFILE)[0])]


def gpus(target: Target) -> list[Finding]:
    """The GPUs that a worker here would offer.

    Raises:
        InvalidValueError: a variable such as CUDA_VISIBLE_DEVICES names one that isn't there.
    """
    readings = visible(discover(), target.environment).read()
    names = [f"{gpu.index}: {gpu.name}, {_memory(gpu.vram_total)}" for gpu in readings]
    return [Finding("gpus", "ok", "; ".join(names) or "none: a worker here offers RAM, as its --vram says")]


def configuration(target: Target) -> list[Finding]:
    """Models and schedules from files and environment, as a start would read them.

    Raises:
        InvalidEntriesError: they hold mistakes; names all of them.
    """
    environment = target.environment
    file = environment.get(FILE)
    settings = configuration_settings(
        environment.get(INLINE), Path(file) if file else None, target.config_files, environment=environment
    )
    if settings == ConfigurationSettings():
        return [Finding("configuration", "skipped", "no file and no variable names any")]
    found = read_configuration(settings)
    return [Finding("configuration", "ok", f"{len(found.models)} models and {len(found.schedules)} schedules")]


PROBES: Final[dict[str, Callable[[Target], list[Finding]]]] = {
    "python": python,
    "programs": programs,
    "data directory": directory,
    "descriptors": limits,
    "gpus": gpus,
    "configuration": configuration,
}
"""Each may block: call it from a thread."""


def _version(program: Path) -> str:
    said = subprocess.run(  # noqa: S603 - a program of our own installation
        [str(program), "--version"], capture_output=True, text=True, timeout=PROGRAM_SECONDS_MAX, check=True
    )
    return said.stdout.strip()


def _memory(size: int | None) -> str:
    return "memory unknown" if size is None else format_size(size)
