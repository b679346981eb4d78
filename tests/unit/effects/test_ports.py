"""Processes that we start: what they can't have is refused before, and a failure is told in its own words."""

import socket
import sys
from pathlib import Path

import pytest

from modelyard_services.effects.database import Database
from modelyard_services.effects.embedded.errors import ChildFailedError, PortTakenError
from modelyard_services.effects.embedded.ports import port_for
from modelyard_services.effects.embedded.process import Child, LiveProcess
from modelyard_services.errors import InvalidRequestError


def test_a_port_that_is_wanted_and_taken_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(PortTakenError, match=f"127.0.0.1:{port}: Address already in use; choose another"):
            port_for("127.0.0.1", wanted=port, previous=None)
    assert port_for("127.0.0.1", wanted=port, previous=None) == port


def test_an_address_that_is_not_this_machines_is_refused() -> None:
    with pytest.raises(PortTakenError, match=r"192\.0\.2\.1:7070: Cannot assign requested address"):
        port_for("192.0.2.1", wanted=7070, previous=None)


async def test_a_failure_is_told_by_this_lifes_own_lines(tmp_path: Path) -> None:
    """The end of the log may be another life's, which had another reason."""
    log = tmp_path / "child.log"
    log.write_text("the life before failed for want of luck\n")
    with pytest.raises(ChildFailedError) as silent:
        await LiveProcess(_child(log, "pass")).ready()
    assert silent.value.detail.endswith("ends with:\n(nothing)")
    with pytest.raises(ChildFailedError) as failed:
        await LiveProcess(_child(log, "print('x' * 9_000); print('no disk')")).ready()
    assert failed.value.detail.endswith("ends with:\nno disk\n")


@pytest.mark.parametrize("url", ["nonsense", "", "mysql://u:secret@h/x", "postgresql://u:secret@h:port/x"])
def test_a_database_url_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(InvalidRequestError, match="write postgresql://") as refused:
        Database(url, process="test")
    assert "secret" not in refused.value.detail


def _child(log: Path, code: str) -> Child:
    async def never() -> bool:
        return False

    return Child(name="child", argv=(sys.executable, "-c", code), ready=never, log_file=log)
