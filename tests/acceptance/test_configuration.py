"""`up --config`: a bad file stops the start with every fault named, a good one is in force from the start."""

import json
from pathlib import Path

from tests.support.installation import ECHO, Installation, until

MISTAKES = """\
models:
  - name: one
    command: [run, "{port}"]
    vram: -3GB
  - name: "two words"
    command: [run]
  - name: three
    comand: [run]
schedules:
  - model_name: one
    min_replicas: 3
    max_replicas: 2
  - model_name: four
    node_selector: "tier in ("
"""

FAULTS = ((4, "vram"), (5, "name"), (8, "comand"), (11, "min_replicas"), (14, "node_selector"))
"""Line and field of each mistake."""


def test_five_mistakes_are_told_with_line_and_field_and_nothing_starts(tmp_path: Path) -> None:
    """S2, S3."""
    installation, config = Installation(tmp_path), tmp_path / "fleet.yaml"
    config.write_text(MISTAKES)
    refused = installation.process("up", "--data-dir", str(installation.data_dir), "--config", str(config), code=1)
    for line, field in FAULTS:
        assert f"fleet.yaml:{line}: " in refused.err, (line, field, refused.err)
        assert field in refused.err
    assert "Traceback" not in refused.err
    assert not installation.data_dir.exists()
    assert installation.processes() == []


def test_a_truncated_file_is_refused_with_its_line(tmp_path: Path) -> None:
    installation, config = Installation(tmp_path), tmp_path / "fleet.yaml"
    for text in (
        "models:\n  - name: one\n    command: [run, ",
        '{"models": [{"name": "one"',
        "models:\n  - na",
        "\x00",
    ):
        config.write_text(text)
        refused = installation.process("up", "--data-dir", str(installation.data_dir), "--config", str(config), code=1)
        assert "fleet.yaml" in refused.err
        assert "Traceback" not in refused.err
        assert not installation.data_dir.exists()


def test_a_good_file_is_in_force_from_the_start_and_owns_its_schedules(tmp_path: Path) -> None:
    """S3, X19, X23."""
    config = tmp_path / "fleet.yaml"
    model = {"name": "Org/echo:1", "command": ECHO, "vram": "16MiB", "concurrency_groups": ["heavy"], "pinned": True}
    schedule = {"model_name": "Org/echo:1", "min_replicas": 1}
    config.write_text(json.dumps({"models": [model], "schedules": [schedule]}))
    with Installation(tmp_path, "--vram", "1GiB", "--config", str(config)) as installation:
        until(lambda: installation.ready("Org/echo:1"), "the floor is kept up before any request")
        path = "/models/Org%2Fecho%3A1"
        assert installation.get(path)["spec"]["concurrency_groups"] == ["heavy"]
        assert installation.get("/schedules")["items"][0]["source"] == "file"
        warned = installation.cli("schedule", "set", "Org/echo:1", "--max-replicas", "2").out
        assert "warning: " in warned
        assert "file" in warned
        installation.stop()
        installation.start()
        kept = installation.get("/schedules")["items"][0]
        assert (kept["source"], kept["min_replicas"], kept["max_replicas"]) == ("file", 1, 0)
