"""`--json` on every command: one JSON document on standard output, whatever the command does; tables for people."""

import json
from pathlib import Path

import pytest

from tests.support.installation import ECHO, Installation, until
from tests.unit.cli.commands import Command, commands

SERVES = {("api",), ("router",), ("gateway",), ("registrar",), ("reconciler",), ("projector",), ("worker",)}
"""They print nothing: their logs go to standard error."""

SHOWN = {("demo",), ("up",)}
"""`demo` is a show for people; `up --json` is looked at where it starts."""

ELSEWHERE = {("doctor",), ("simulate",), ("logs",)}
"""Their own tests read their JSON: what they print isn't the API's answer."""

FILE = "models: [{name: planned, command: [serve], vram: 1GiB}]"
STORY = [
    "nodes", "node ls", "models", "model ls", "schedules", "schedule ls", "ps", "events --limit 5", "settings",
    "settings lost_after_seconds=61", "settings show",
    "settings set lost_after_seconds=62", "settings reset", "settings clear-mass-loss", "freeze", "thaw",
    "plan {file}", "apply {file}", "model rm planned",
    "node show local-2", "node approve local-2", "node cordon local-2", "node uncordon local-2",
    "node label local-2 a=b", "node unlabel local-2 a", "node slots local-2 2", "node budget local-2 512MiB",
    "node budget local-2 --reset", "node slots local-2 --reset",
    "node watchdog local-2 max_loaded_models=9", "node watchdog local-2", "node watchdog local-2 --reset",
    "model set told --vram 16MiB -- {echo}", "model show told", "schedule set told --max-replicas 2",
    "state", "state --at 3", "diff 3", "diff 1 3 --kind node", "causes 3", "why told", "why told --node local-2",
    "schedule show told", "model capacity told", "model clear-breaker told", "measure {file}",
    "load told --node local-2 --wait", "restart told --wait", "unload told --wait",
    "schedule rm told", "model rm told", "node drain local-2 --wait", "node resume local-2",
    "token ls", "token ls --registration --revoked", "token create who --registration",
    "token rotate who --registration", "token revoke who --registration",
    "node reject stranger", "node remove stranger",
]  # fmt: skip
"""With what it acts on; the last two are refused, for the installation's own nodes are needed."""


@pytest.mark.timeout(300)  # some sixty commands, one of them a rollout
def test_every_command_answers_in_json(shared: Installation, tmp_path: Path) -> None:
    """DESIGN 6."""
    file = tmp_path / "fleet.yaml"
    file.write_text(FILE)
    done: set[Command] = set()
    for line in STORY:
        words = [word for part in line.split() for word in _meant(part, file)]
        refused = words[-1] == "stranger"
        result = shared.cli("--json", *words, code=1 if refused else 0)
        assert refused or json.loads(result.out) is not None, line
        assert not refused or (result.out == "" and "stranger" in result.err)
        done.add(_command(line))
    reserved = json.loads(shared.cli("--json", "node", "reserve", "local-2", "1MiB", "--holder", "me").out)
    json.loads(shared.cli("--json", "node", "release", "local-2", reserved["reservation"]).out)
    done |= {("node", "reserve"), ("node", "release")}
    known = {path for path, _command in commands()}
    assert known - done == SERVES | SHOWN | ELSEWHERE
    assert not done - known
    until(lambda: not shared.get("/replicas")["items"], "the story leaves nothing behind")


def test_people_get_tables(shared: Installation) -> None:
    for words, heading in (("nodes", "NODE"), ("ps", "REPLICA"), ("token ls", "LAST USED"), ("settings", "SETTING")):
        assert heading in shared.cli(*words.split()).out.splitlines()[0]


def _meant(part: str, file: Path) -> list[str]:
    return {"{file}": [str(file)], "{echo}": ECHO}.get(part, [part])


def _command(line: str) -> Command:
    words = tuple(line.split())
    known = {path for path, _command in commands()}
    return words[:2] if words[:2] in known else words[:1]
