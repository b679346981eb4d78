"""`modelyard demo`, as a new user runs it."""

import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.installation import Installation, taken_port, until

DEMO_SECONDS = 280
"""It takes some 45 s on an idle machine."""


@pytest.mark.timeout(DEMO_SECONDS + 20)
def test_the_demo_shows_all_of_it_and_leaves_nothing(tmp_path: Path) -> None:
    """I9: the three hashes are one."""
    installation = Installation(tmp_path)
    demo = installation.launch("demo", log="demo.log")
    try:
        code = demo.wait(DEMO_SECONDS)
    finally:
        demo.kill()
        demo.wait()
        installation.end()
    shown = (tmp_path / "demo.log").read_text()
    assert code == 0, shown
    assert "Everything held." in shown
    hashes = re.findall(r"^(memory|replay|PostgreSQL) +([0-9a-f]{32})$", shown, re.MULTILINE)
    assert [name for name, _hash in hashes] == ["memory", "replay", "PostgreSQL"], shown
    assert len({text for _name, text in hashes}) == 1


def test_a_demo_that_is_interrupted_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    installation = Installation(tmp_path)
    demo = installation.launch("demo", log="demo.log")
    try:
        until(lambda: "1. Three workers" in (tmp_path / "demo.log").read_text(), "the demo began")
        time.sleep(1)
        demo.send_signal(signal.SIGINT)
        assert demo.wait(60) == 1
        assert installation.processes() == []
    finally:
        _end(demo, installation)
    assert "the demo failed" in (tmp_path / "demo.log").read_text()
    assert "Traceback" not in (tmp_path / "demo.log").read_text()


def test_a_demo_whose_port_is_taken_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    installation = Installation(tmp_path)
    with taken_port() as port:
        refused = installation.process("demo", "--port", str(port), code=1)
    assert str(port) in refused.err
    assert "Traceback" not in refused.err
    assert installation.processes() == []


def _end(demo: subprocess.Popen[bytes], installation: Installation) -> None:
    demo.kill()
    demo.wait()
    installation.end()
