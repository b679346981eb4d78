"""From a launch spec to what the kernel is given: placeholders, secrets, devices, and whether it may run here.

Invariant: secrets are resolved here, on the node, and go to the keeper through a pipe: never into the log, a file
or a command line (rule W3). The worker's own credentials (`MODELYARD_*`) reach no backend.
"""

import os
import shlex
import shutil
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

import msgspec

from modelyard_events.placeholders import filled
from modelyard_events.spec import LaunchSpec, SecretRef
from modelyard_services.worker.processes.state import Identity

OWN_PREFIX: Final = "MODELYARD_"

SECRET_BYTES_MAX: Final = 65_536
"""A token or key; a larger file is not one."""

LOADER_VARIABLES: Final = frozenset(
    {"BASH_ENV", "ENV", "LD_AUDIT", "LD_LIBRARY_PATH", "LD_PRELOAD", "NODE_OPTIONS", "PATH", "PERL5OPT", "PYTHONHOME"}
    | {"PYTHONPATH", "PYTHONSTARTUP"}
)
"""With these an allowed command can be made to run another one; an allow-list refuses them."""

COUNTED_WITHIN: Final = frozenset({"ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL"})
"""Inherited, they would renumber what our own variables name: HIP counts within what these leave."""


class LaunchRefusedError(Exception):
    """This spec can't be run on this node; the message says why and what to do."""


class Placeholders(msgspec.Struct, frozen=True):
    """What `{port} {host} {model} {replica} {gpu}` stand for; any other brace is left alone.

    `devices` are the replica's GPUs by what CUDA and ROCm call them: a number, or the UUID of a part of a card.
    """

    port: int
    host: str
    model: str
    replica: str
    devices: tuple[str, ...]

    def fill(self, text: str) -> str:
        """`text` with its placeholders replaced, once: a value that looks like a placeholder stays what it is."""
        values = {"port": str(self.port), "host": self.host, "model": self.model, "replica": self.replica}
        values["gpu"] = ",".join(self.devices)
        return filled(text, values)


class Order(msgspec.Struct, frozen=True):
    """What a keeper is told. `dies_with`: the backend ends when that process does, however it does."""

    executable: str
    command: list[str]
    environment: dict[str, str]
    working_directory: str | None
    stop_grace_seconds: float
    dies_with: Identity | None
    log_lines: int = 1_000


def order_of(
    launch: LaunchSpec,
    placeholders: Placeholders,
    *,
    inherited: Mapping[str, str],
    allowed: tuple[str, ...],
    dies_with: Identity | None,
) -> Order:
    """The order to run `launch`; `allowed` are the patterns of `--allow-command` (none: everything is).

    Raises:
        LaunchRefusedError: not allowed, or something it needs isn't on this node.
    """
    command = [placeholders.fill(word) for word in launch.command]
    dropped = {name for name in inherited if name.startswith(OWN_PREFIX)} | COUNTED_WITHIN
    environment = {name: value for name, value in inherited.items() if name not in dropped}
    environment |= devices_environment(placeholders.devices)
    environment |= {name: _value(name, value, placeholders, inherited) for name, value in launch.environment.items()}
    executable = _executable(command[0], launch.working_directory, inherited if allowed else environment)
    if allowed:
        _refuse_unless_allowed(launch, command, executable, allowed)
    _refuse_missing_files(launch)
    return Order(
        executable=executable,
        command=command,
        environment=environment,
        working_directory=launch.working_directory,
        stop_grace_seconds=launch.stop_grace_seconds,
        dies_with=dies_with,
    )


def devices_environment(devices: tuple[str, ...]) -> dict[str, str]:
    """Only the GPUs that were placed are visible, none if none was; in NVIDIA's words and in AMD's.

    CUDA counts by speed unless told to count by bus, as NVML does: index 1 would otherwise be another card than the
    one whose memory was reserved. ROCm's HIP heeds CUDA's variable too, so both say the same.
    """
    visible = ",".join(devices)
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": visible, "HIP_VISIBLE_DEVICES": visible}


def is_allowed(command: list[str], executable: str, patterns: tuple[str, ...]) -> bool:
    """Whether a pattern matches.

    With a blank it is held against the whole command line, with `/` against the executable's path, else against the
    name of a command that is found on the worker's own PATH.
    """
    line = shlex.join(command)
    return any(_matches(pattern, line, command[0], executable) for pattern in patterns)


def _matches(pattern: str, line: str, word: str, executable: str) -> bool:
    if " " in pattern:
        return fnmatchcase(line, pattern)
    if "/" in pattern:
        return fnmatchcase(executable, pattern)
    return "/" not in word and fnmatchcase(word, pattern)


def _refuse_unless_allowed(launch: LaunchSpec, command: list[str], executable: str, allowed: tuple[str, ...]) -> None:
    if not is_allowed(command, executable, allowed):
        patterns = ", ".join(map(repr, allowed))
        raise LaunchRefusedError(f"this worker doesn't run {command[0]!r}: no --allow-command of {patterns} matches")
    loaders = sorted(LOADER_VARIABLES & set(launch.environment))
    if loaders:
        raise LaunchRefusedError(f"a worker with --allow-command refuses the environment variable {loaders[0]!r}")


def _executable(word: str, working_directory: str | None, environment: Mapping[str, str]) -> str:
    if working_directory is not None and not Path(working_directory).is_dir():
        raise LaunchRefusedError(f"the working directory {working_directory!r} isn't on this node")
    if "/" in word:
        found = shutil.which(str(Path(working_directory or Path.cwd()) / word))
    else:
        found = shutil.which(word, path=environment.get("PATH", os.defpath))
    if found is None:
        raise LaunchRefusedError(f"the command {word!r} isn't on this node, or isn't executable")
    return found


def _refuse_missing_files(launch: LaunchSpec) -> None:
    base = Path(launch.working_directory or Path.cwd())
    for what, names in (("file", launch.files), ("device", launch.devices)):
        for name in names:
            if not (base / name).exists():
                raise LaunchRefusedError(f"the {what} {name!r} isn't on this node")


def _value(name: str, value: str | SecretRef, placeholders: Placeholders, inherited: Mapping[str, str]) -> str:
    if isinstance(value, str):
        return placeholders.fill(value)
    return _from_env(name, value.from_env, inherited) if value.from_env is not None else _from_file(name, value)


def _from_env(name: str, variable: str, inherited: Mapping[str, str]) -> str:
    if variable.startswith(OWN_PREFIX):
        raise LaunchRefusedError(f"secret for {name!r}: {variable!r} is the worker's own and goes to no backend")
    if variable not in inherited:
        raise LaunchRefusedError(f"secret for {name!r}: the environment variable {variable!r} isn't set on this node")
    return inherited[variable]


def _from_file(name: str, reference: SecretRef) -> str:
    path = Path(reference.from_file or "")
    try:
        with path.open("rb") as file:
            content = file.read(SECRET_BYTES_MAX + 1)
    except OSError as error:
        raise LaunchRefusedError(f"secret for {name!r}: {str(path)!r} can't be read: {error.strerror}") from error
    if len(content) > SECRET_BYTES_MAX or b"\0" in content:
        raise LaunchRefusedError(f"secret for {name!r}: {str(path)!r} is too large or not text")
    return content.decode(errors="surrogateescape").rstrip("\r\n")
