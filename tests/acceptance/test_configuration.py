"""Files at the start and by `plan` and `apply`: bad ones do nothing but name every fault, good ones are in force."""

import json
from pathlib import Path
from typing import Any

from tests.support.installation import ECHO, Installation, until
from tests.support.model_files import llama, write_gguf

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


def test_a_plan_changes_nothing_and_apply_does_what_it_said(tmp_path: Path) -> None:
    """S3, R5: changes, placements and what can't be are told first; then done; then there is nothing left to do."""
    config = tmp_path / "fleet.yaml"
    models = [{"name": name, "command": ECHO, "vram": "16MiB", "concurrency_groups": ["g"]} for name in ("a", "b")]
    schedules = [{"model_name": name, "min_replicas": 1} for name in ("a", "b")]
    config.write_text(json.dumps({"models": models, "schedules": schedules}))
    with Installation(tmp_path, "--vram", "1GiB") as installation:
        before = installation.get("/state/hash")["hash"]
        plan = json.loads(installation.cli("--json", "plan", str(config)).out)
        assert [(each["kind"], each["model"], each["change"]) for each in plan["changes"]] == [
            ("model", "a", "added"),
            ("model", "b", "added"),
            ("schedule", "a", "added"),
            ("schedule", "b", "added"),
        ]
        assert [each["model"] for each in plan["consequences"]["placements"]] == ["a"]
        (refused,) = plan["consequences"]["unplaced"]
        assert (refused["model"], refused["field"], refused["document"]) == ("b", "concurrency_groups", str(config))
        # Once routers could be heard; until then a replica that stays might as well be busy.
        until(lambda: "a#0 is needed" in installation.cli("plan", str(config)).out, "the plan names who stays and why")
        assert installation.get("/state/hash")["hash"] == before

        assert "4 applied" in installation.cli("apply", str(config)).out
        until(lambda: installation.ready("a"), "what the plan placed is ready")
        assert installation.ready("b") == []
        assert "nothing to do" in installation.cli("apply", str(config)).out

        config.write_text(json.dumps({"models": models[1:], "schedules": schedules[1:]}))
        assert "nothing to do" in installation.cli("plan", str(config)).out
        swap = json.loads(installation.cli("--json", "plan", str(config), "--prune").out)
        assert [each["model"] for each in swap["consequences"]["endings"]] == ["a"]
        assert [each["model"] for each in swap["consequences"]["placements"]] == ["b"]
        installation.cli("apply", str(config), "--prune")
        until(lambda: installation.ready("b"), "the other takes its place")
        assert [model["name"] for model in installation.get("/models")["items"] if model["defined"]] == ["b"]

        config.write_text(MISTAKES)
        stands = installation.get("/state/hash")["hash"]
        refused_text = installation.cli("apply", str(config), code=1).err
        assert all(f"fleet.yaml:{line}: " in refused_text for line, _ in FAULTS), refused_text
        assert installation.get("/state/hash")["hash"] == stands


def test_each_source_is_authoritative_at_every_start_and_known_by_name(tmp_path: Path) -> None:
    """S1, S3: option, variable and file; only the reconciler applies them; what they don't list stays."""
    text, file = tmp_path / "text.json", tmp_path / "more.yaml"
    text.write_text(json.dumps([{"model_name": "variable", "max_replicas": 1}]))
    file.write_text("schedules:\n- model_name: file\n  max_replicas: 1\n- model_name: option\n  max_replicas: 3\n")
    option = json.dumps([{"model_name": "option", "max_replicas": 1}, {"model_name": "alone", "max_replicas": 1}])
    installation = Installation(tmp_path, "--config", str(file), "--model-scheduling", option)
    installation.variables["MODELYARD_MODEL_SCHEDULING_CONFIG"] = str(text)
    with installation:
        told = {each["model_name"]: each for each in installation.get("/schedules")["items"]}
        assert {name: each["source"] for name, each in told.items()} == {
            "option": "file",
            "alone": "flag",
            "variable": "env",
            "file": "file",
        }
        assert told["option"]["max_replicas"] == 3
        assert not any(each["model_defined"] for each in told.values())
        assert "warning: " in installation.output()
        assert "'option' was scheduled before" in installation.output()
        for name in ("option", "alone", "variable"):
            assert "applied again at the next start" in installation.cli("schedule", "set", name, "-l", "x").out
        installation.cli("schedule", "set", "unlisted", "--max-replicas", "7")
        installation.stop()
        installation.start()
        again = {each["model_name"]: each for each in installation.get("/schedules")["items"]}
        assert again["unlisted"]["max_replicas"] == 7
        for name, each in told.items():
            assert again[name]["source"] == each["source"]
            assert again[name]["node_selector"] == each["node_selector"]


def test_the_header_of_a_model_s_file_is_what_is_reserved_and_said(tmp_path: Path) -> None:
    """R4: over file, API and command line; a spec's own figure goes before it."""
    file = write_gguf(tmp_path / "tiny.gguf", llama(), tensor_bytes=2**20)
    cache, weights = 4 * 4_096 * 2 * 64 * 2, file.stat().st_size
    config = tmp_path / "fleet.yaml"
    model = {"name": "m", "command": ECHO, "files": [str(file)], "aliases": ["tiny"]}
    config.write_text(json.dumps({"models": [model], "schedules": [{"model_name": "m", "min_replicas": 1}]}))
    with Installation(tmp_path, "--vram", "1GiB", "--config", str(config)) as installation:
        until(lambda: installation.ready("m"), "it is placed by its header")
        (placed,) = [event["event"] for event in events(installation) if event["type"] == "replica.placed.v1"]
        assert (placed["footprint_rule"], sum(placed["vram"].values())) == ("gguf", weights + cache)
        assert installation.get("/models/m")["spec"]["estimate"] == {
            "rule": "gguf",
            "weights": weights,
            "cache": cache,
            "context_length": 4_096,
        }
        measured = json.loads(installation.cli("--json", "measure", str(file)).out)
        assert measured["vram"] == weights + cache
        assert "no such file" in installation.cli("measure", "/missing.gguf", code=1).err.lower()
        assert "nothing to do" in installation.cli("apply", str(config)).out
        config.write_text(json.dumps({"models": [{**model, "context_length": 1_024}]}))
        (change,) = json.loads(installation.cli("--json", "plan", str(config)).out)["changes"]
        fields = {each["field"]: each["after"] for each in change["fields"]}
        assert fields["estimate"]["cache"] == cache // 4
        answer = installation.complete("tiny")
        assert (answer.status_code, answer.json()["model"]) == (200, "m")


def events(installation: Installation) -> list[dict[str, Any]]:
    until(lambda: installation.ask("GET", "/events?limit=1").is_success, "PostgreSQL answers")
    found: list[dict[str, Any]] = installation.get("/events?limit=1000")["items"]
    return found
