"""Who can answer in JSON: every command but those that serve, whose output are logs."""

import inspect
import json
from pathlib import Path

import pytest

from modelyard_services.cli.local import _announce
from modelyard_services.cli.session import Session
from modelyard_services.supervisor.settings import Endpoints
from tests.unit.cli.commands import commands

SERVES = {"worker", "api", "router", "gateway", "registrar", "reconciler", "projector", "demo"}
ENDPOINTS = Endpoints("http://a", "http://a/v1", "a:1", "nats://a", "postgresql://secret", "secret", "secret")


def test_every_command_that_prints_is_told_how_to() -> None:
    """DESIGN 6."""
    without = {
        " ".join(path)
        for path, command in commands()
        if command.default_command is not None
        and "session" not in inspect.signature(command.default_command).parameters
    }
    assert without == SERVES


@pytest.mark.parametrize("as_json", [False, True])
def test_up_says_where_everything_is_and_keeps_its_secrets(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, *, as_json: bool
) -> None:
    _announce(ENDPOINTS, ("look out",), file=tmp_path / "endpoints.json", session=Session(as_json=as_json))
    said = capsys.readouterr().out
    assert "postgresql://secret" not in said
    assert "http://a" in said
    assert "look out" in said
    if as_json:
        assert json.loads(said)["endpoints_file"] == str(tmp_path / "endpoints.json")
    else:
        assert "ready;" in said.splitlines()[-1]
