"""What deploy/ starts is what the program takes: every command line, every variable, every file they name."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from modelyard_services.cli.main import app
from modelyard_services.effects.embedded.binaries import nats_server
from modelyard_services.supervisor.programs import STOP_SECONDS
from tests.unit.cli.commands import arguments, commands
from tests.unit.cli.configuration_page import PROCESSES, variables

DEPLOY: Final = Path(__file__).parents[2] / "deploy"
UNITS: Final = sorted((DEPLOY / "systemd").glob("*.service"))
PROGRAM: Final = "/opt/modelyard/bin/modelyard"
VARIABLE: Final = re.compile(r"^(?:# )?(MODELYARD_[A-Z_]+)=", re.MULTILINE)


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return loaded


def settings_of(unit: Path) -> list[tuple[str, str]]:
    lines = [line for line in unit.read_text().splitlines() if "=" in line and not line.startswith("#")]
    return [(key, value) for key, _sign, value in (line.partition("=") for line in lines)]


def ours() -> dict[str, list[str]]:
    """The command lines of every process that deploy/ starts, by where they stand."""
    found = {
        f"compose.yaml: {name}": [str(word) for word in service["command"]]
        for name, service in compose()["services"].items()
        if service["image"] == "modelyard"
    }
    for unit in UNITS:
        (line,) = [value for key, value in settings_of(unit) if key == "ExecStart"]
        program, *words = shlex.split(line)
        assert program == PROGRAM
        found[unit.name] = words
    return found


@pytest.fixture
def _variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NATS_URL", "DATABASE_URL", "REGISTRATION_TOKEN"):
        monkeypatch.setenv(f"MODELYARD_{name}", "given")


@pytest.mark.usefixtures("_variables")
@pytest.mark.parametrize("where", ours())
def test_the_program_takes_every_command_line(where: str) -> None:
    command, _bound, _ignored = app.parse_args(ours()[where], exit_on_error=False, print_error=False)
    assert command.__name__ == ours()[where][0]


def test_a_whole_installation_is_started() -> None:
    needed = {"registrar", "reconciler", "projector", "api", "worker"}
    assert {words[0] for where, words in ours().items() if "compose" in where} == needed
    assert {words[0] for where, words in ours().items() if "compose" not in where} == needed
    assert sum(name.startswith("nats-") for name in compose()["services"]) == 3


DOCUMENTS: Final = sorted([DEPLOY.parent / "README.md", *DEPLOY.rglob("*.md"), *(DEPLOY.parent / "docs").glob("*.md")])
TOLD: Final = re.compile(r"(?:^|`|\$ |/)modelyard ((?:--[a-z]+ \S+ )?[a-z][^`\n|;]*)", re.MULTILINE)


def told_commands() -> list[tuple[str, str]]:
    """Every command line that a document tells its reader to type, by its document."""
    found = [(file, line) for file in DOCUMENTS for line in TOLD.findall(file.read_text(encoding="utf-8"))]
    return sorted({(str(file.relative_to(DEPLOY.parent)), line.split("#")[0].strip(" &,.")) for file, line in found})


@pytest.mark.parametrize(("document", "line"), told_commands())
def test_the_documents_tell_of_commands_and_options_that_exist(document: str, line: str) -> None:
    """Whoever copies a line from the documents at three in the morning must not be told that it is wrong."""
    known = dict(commands())
    words = line.split()
    while words and words[0].startswith("--"):
        words = words[2:]  # --api URL, --token TOKEN
    path = next((tuple(words[:count]) for count in (2, 1) if tuple(words[:count]) in known), None)
    groups = {path[0] for path in known if len(path) > 1}
    assert path is not None or words[0] in groups, f"{document}: there is no command {line!r}"
    if path is None:
        return
    options = {name for each in arguments(known[path]) for name in each.names} | {
        "--json",
        "--api",
        "--token",
        "--help",
    }
    named = {word.split("=")[0] for word in words if word.startswith("--") and word != "--"}
    assert named <= options, f"{document}: {line!r}"


def test_what_stops_has_longer_than_it_takes() -> None:
    """X14: a process that is killed while it says goodbye is one that the fleet must find lost."""
    services = compose()["services"]
    for name in ours():
        if name.startswith("compose.yaml: "):
            grace = services[name.removeprefix("compose.yaml: ")]["stop_grace_period"]
            assert float(grace.removesuffix("s")) > STOP_SECONDS, name
    for unit in UNITS:
        assert float(dict(settings_of(unit))["TimeoutStopSec"]) > STOP_SECONDS, unit.name


def test_every_variable_is_one_that_a_command_reads() -> None:
    known = {variable for name in PROCESSES for variable in variables(name)}
    files = [*(DEPLOY / "systemd").glob("*.example"), DEPLOY / "compose" / "make_secrets.py"]
    named = {
        name for file in files for name in re.findall(r"\bMODELYARD_[A-Z_]+(?==)", file.read_text(encoding="utf-8"))
    }
    assert named
    assert named - known == set()


def test_every_file_that_compose_mounts_is_there_or_is_made(tmp_path: Path) -> None:
    subprocess.run([sys.executable, DEPLOY / "compose" / "make_secrets.py", tmp_path], check=True)  # noqa: S603 - ours
    made = {path.name for path in tmp_path.iterdir()}
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    services = compose()["services"].values()
    mounts = [volume.split(":")[0] for service in services for volume in service.get("volumes", ())]
    wanted = [place for place in mounts if place.startswith("./")]
    wanted += [file for service in services for file in service.get("env_file", ())]
    wanted += [secret["file"] for secret in compose()["secrets"].values()]
    assert [file for file in wanted if not (DEPLOY / file).exists() and Path(file).name not in made] == []


def test_the_servers_take_the_files_that_compose_mounts(tmp_path: Path) -> None:
    """Only the store differs here: nobody but root may make it where it is in the image."""
    subprocess.run([sys.executable, DEPLOY / "compose" / "make_secrets.py", tmp_path], check=True)  # noqa: S603 - ours
    for number in (1, 2, 3):
        for volume in compose()["services"][f"nats-{number}"]["volumes"]:
            place, target, *_mode = volume.split(":")
            source = tmp_path / Path(place).name if Path(place).name == "secrets.conf" else DEPLOY / place
            if target.startswith("/etc/nats/"):
                (tmp_path / "etc").mkdir(exist_ok=True)
                content = source.read_text().replace("/var/lib/modelyard/nats", str(tmp_path / "store"))
                (tmp_path / "etc" / Path(target).name).write_text(content)
        checked = subprocess.run(  # noqa: S603 - our own server
            [nats_server(), "-t", "-c", tmp_path / "etc" / "nats.conf"], capture_output=True, text=True, check=False
        )
        assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_is_hardened_and_not_root(unit: Path) -> None:
    settings = dict(settings_of(unit))
    assert settings.get("DynamicUser") == "yes" or settings.get("User") == "modelyard-worker"
    assert settings["NoNewPrivileges"] == "yes"
    assert settings["ProtectSystem"] == "strict"
    assert settings["Restart"] == "always"
    assert settings["EnvironmentFile"].lstrip("-").startswith("/etc/modelyard/")


def test_a_worker_is_replaced_by_reload_and_departs_on_stop() -> None:
    """W4: SIGHUP leaves the replicas; test_worker_upgrade.py shows what the worker does."""
    settings = dict(settings_of(DEPLOY / "systemd" / "modelyard-worker.service"))
    assert settings["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert settings["KillMode"] == "process"
    assert settings["ExecStart"].endswith("--at-end depart")


def test_the_image_is_not_roots_and_copies_what_is_there() -> None:
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    copied = [line.split()[1:-1] for line in lines if line.startswith("COPY ") and "--from" not in line]
    assert [name for names in copied for name in names if not (DEPLOY.parent / name).exists()] == []
    assert "USER modelyard" in lines
    assert any(line.startswith("HEALTHCHECK") for line in lines)
