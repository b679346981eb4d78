"""`--wait` and Ctrl-C: what a terminal, a log and whoever stops waiting are shown."""

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from modelyard_services.cli.session import CommandFailedError, Session
from modelyard_services.cli.waiting import until

INTERRUPTED_WHILE_READ = """
import os, signal, sys

class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == "modelyard_services.cli.main":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupts())
from modelyard_services.__main__ import main
main()
"""


def test_a_log_gets_whole_lines_without_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    until(Session(), "m is ready", _after(6))
    told = capsys.readouterr().err
    assert told == "waiting 1s until m is ready\n"


def test_a_terminal_gets_one_line_that_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    reads, writes = pty.openpty()
    with os.fdopen(writes, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        until(Session(), "m is ready", _after(6))
        terminal.flush()
        told = ""
        while not told.endswith("\n"):
            told += os.read(reads, 4096).decode()
    os.close(reads)
    assert told.startswith("\rwaiting 1s until m is ready")
    assert told.count("\n") == 1


def test_a_program_gets_nothing_but_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    until(Session(as_json=True), "m is ready", _after(6))
    assert capsys.readouterr().err == ""


def test_who_stops_waiting_is_told_that_it_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        until(Session(), "n1 is empty", _interrupted)
    assert capsys.readouterr().err == "stopped waiting until n1 is empty; what was asked for goes on\n"


def test_waiting_has_an_end() -> None:
    with pytest.raises(CommandFailedError, match="after 0 s still not so: m is ready"):
        until(Session(), "m is ready", lambda: False, seconds=0)


def test_ctrl_c_while_the_program_is_read_leaves_no_trace() -> None:
    ended = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-c", INTERRUPTED_WHILE_READ], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stderr) == (-signal.SIGINT, "")


def _after(looks: int) -> Callable[[], bool]:
    left = iter(range(looks))
    return lambda: next(left, None) is None


def _interrupted() -> bool:
    raise KeyboardInterrupt
