"""`modelyard doctor` tells an installation that is well from one that isn't, and says what to mend."""

import json
from pathlib import Path
from typing import Any

from tests.acceptance.test_outages import gone, silent
from tests.support.installation import Installation

BAD = """\
models:
  - name: a
    command: [run]
    vram: -3GB
schedules:
  - model_name: a
    min_replicas: 3
    max_replicas: 2
"""


def test_what_is_well_is_told_and_what_is_broken_is_named_with_its_cure(tmp_path: Path) -> None:
    """T8, S2, W8."""
    with Installation(tmp_path) as installation:
        well = examined(installation, code=0)
        assert {finding["status"] for finding in well.values()} <= {"ok", "skipped"}
        assert {"nats", "log", "log copies", "lease", "clock", "postgresql", "read model", "nodes"} <= well.keys()
        assert {"api", "registrar", "reconciler", "projector"} <= well.keys()

        secrets, config = installation.data_dir / "secrets.json", tmp_path / "bad.yaml"
        secrets.chmod(0o644)
        config.write_text(BAD)
        told = broken(installation, "--config", str(config))
        assert told.keys() == {"secrets", "configuration"}
        assert str(secrets) in told["secrets"]["found"]
        assert all(place in told["configuration"]["found"] for place in (f"{config}:4", f"{config}:7"))
        secrets.chmod(0o600)

        with silent(*installation.processes("postgres")):
            assert "postgresql" in broken(installation)
        with gone(installation, "nats"):
            assert {"log", "registrar", "reconciler"} <= broken(installation).keys()
        with silent(installation.pid_of("reconciler")):
            # How long it takes to ask decides whether its lease has run out by then.
            assert {"reconciler"} <= broken(installation).keys() <= {"reconciler", "lease"}


def test_what_isnt_there_is_skipped_and_nothing_is_made(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    with Installation(tmp_path) as elsewhere:
        url = elsewhere.endpoints.api_url
        ended = elsewhere.process("--json", "--api", url, "doctor", "--data-dir", str(empty), code=0)
        assert found(ended.out)["log"]["status"] == "skipped"
        assert found(ended.out)["api"]["status"] == "ok"
        assert not empty.exists()
        assert elsewhere.stop() == 0
    ended = elsewhere.process("--json", "doctor", "--data-dir", str(elsewhere.data_dir), code=0)
    assert "start it" in found(ended.out)["log"]["found"]
    assert found(ended.out)["processes"]["status"] == "ok"


def broken(installation: Installation, *options: str) -> dict[str, Any]:
    """What it calls broken, by check; each with what to do."""
    told = examined(installation, *options, code=1)
    named = {check: finding for check, finding in told.items() if finding["status"] == "broken"}
    assert all(finding["advice"] for finding in named.values())
    return named


def examined(installation: Installation, *options: str, code: int) -> dict[str, Any]:
    directory = str(installation.data_dir)
    return found(installation.process("--json", "doctor", "--data-dir", directory, *options, code=code).out)


def found(out: str) -> dict[str, Any]:
    return {finding["check"]: finding for finding in json.loads(out)["findings"]}
