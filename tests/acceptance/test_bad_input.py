"""What users get wrong, over HTTP and on the command line: a clear answer, and nothing changed by it."""

import json
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.support.installation import ECHO, Installation, run, until

NAMED = "rack/1:gpu.a#0?x=%41"
"""Signs that paths, subjects and shells give a meaning of their own."""

MODEL = "Qwen/Qwen3-0.6B:q4"
SPEC: dict[str, Any] = {"command": ECHO}

FIVE_FAULTS = """\
models:
  - name: ""
    command: serve --fast
    vram: lots
schedules:
  - {model_name: whisper, node_selector: "tier=gpu,,("}
  - {model_name: other, min_replicas: 3, max_replicas: 1}
"""


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("PUT", "/models/m", {**SPEC, "extra": 1}, 400, "invalid_request"),
        ("PUT", "/models/m", {"command": "not a list"}, 400, "invalid_request"),
        ("PUT", "/models/m", {"command": []}, 400, "invalid_request"),
        ("PUT", "/models/m", {**SPEC, "vram": "-3GB"}, 400, "invalid_request"),
        ("PUT", "/models/m", {**SPEC, "vram": -3}, 400, "invalid_request"),
        ("PUT", "/models/m", [1], 400, "invalid_request"),
        ("PUT", f"/models/{'m' * 254}", SPEC, 400, "invalid_request"),
        ("PUT", "/models/a%20b", SPEC, 400, "invalid_request"),
        ("PUT", "/models/a%00b", SPEC, 400, "invalid_request"),
        ("PUT", "/models/a%23b", SPEC, 400, "invalid_request"),
        ("PUT", "/models/m/schedule", {"min_replicas": -1}, 400, "invalid_request"),
        ("PUT", "/models/m/schedule", {"min_replicas": 2, "max_replicas": 1}, 400, "invalid_request"),
        ("PUT", "/models/m/schedule", {"replicas": "all", "min_replicas": 1}, 400, "invalid_request"),
        ("PUT", "/models/m/schedule", {"replicas": 3}, 400, "invalid_request"),
        ("PUT", "/models/m/schedule", {"node_selector": "tier in ("}, 400, "invalid_request"),
        ("PUT", "/nodes/local-1/vram-budget", {"value": "-3GB"}, 400, "invalid_request"),
        ("PUT", "/nodes/local-1/vram-budget", {"value": "101%"}, 400, "invalid_request"),
        ("PUT", "/nodes/local-1/max-replicas-per-model", {"value": 0}, 400, "invalid_request"),
        ("PUT", "/nodes/local-1/max-replicas-per-model", {"value": "two"}, 400, "invalid_request"),
        ("PUT", "/nodes/local-1/labels/gpu.vram", {"value": "80GB"}, 400, "invalid_request"),
        ("PUT", "/nodes/local-1/labels/a%20b", {"value": "x"}, 400, "invalid_request"),
        ("PUT", "/nodes/local-1/labels/tier", {"value": "x" * 256}, 400, "invalid_request"),
        ("PATCH", "/settings", {"no_such_setting": 1}, 400, "invalid_request"),
        ("PATCH", "/settings", {"lost_after_seconds": "soon"}, 400, "invalid_request"),
        ("POST", "/nodes/nobody/approve", None, 404, "not_found"),
        ("POST", "/models/nothing/replicas", None, 404, "model_unknown"),
        ("DELETE", "/models/nothing", None, 404, "model_unknown"),
        ("DELETE", "/models/nothing/replicas", None, 404, "model_unknown"),
        ("DELETE", "/replicas/r-nothing", None, 404, "not_found"),
        ("DELETE", "/nodes/nobody", None, 404, "not_found"),
        ("POST", "/nodes/nobody/drain", None, 404, "not_found"),
        ("POST", "/nodes/nobody/reservations", {"vram": "1GiB", "holder": "me"}, 404, "not_found"),
        ("PUT", "/nodes/nobody/max-replicas-per-model", {"value": 2}, 404, "not_found"),
        ("PUT", "/nodes/nobody/vram-budget", {"value": "50%"}, 404, "not_found"),
        ("PUT", "/nodes/nobody/labels/a", {"value": "b"}, 404, "not_found"),
        ("DELETE", "/nodes/nobody/vram-budget", None, 404, "not_found"),
        ("POST", "/routes", {"model": "nothing"}, 404, "model_unknown"),
        ("DELETE", "/routes/lease-nothing", None, 404, "not_found"),
        ("GET", "/nodes?limit=0", None, 400, "invalid_query"),
        ("GET", "/nodes?limit=many", None, 400, "invalid_query"),
        ("GET", "/nodes?selector=a%20in%20(", None, 400, "invalid_query"),
        ("GET", "/events?from=yesterday", None, 400, "invalid_query"),
        ("GET", "/nodes?lable=tier", None, 400, "invalid_query"),
        ("GET", "/replicas?state=redy", None, 400, "invalid_query"),
        ("GET", "/events?type=replica.plced", None, 400, "invalid_query"),
        ("GET", "/events/stream?type=replica.plced", None, 400, "invalid_query"),
        ("GET", "/nodes/%FF", None, 400, "invalid_request"),
        ("GET", "/nothing/here", None, 404, "not_found"),
        ("DELETE", "/settings", None, 405, "method_not_allowed"),
    ],
)
def test_a_mistake_is_named_and_changes_nothing(
    shared: Installation, method: str, path: str, body: object, status: int, code: str
) -> None:
    """T8, X28."""
    before = shared.get("/state/hash")["hash"]
    refused = shared.ask(method, path, body)
    assert refused.headers["content-type"].startswith("application/problem+json"), refused.text
    problem = refused.json()
    assert (refused.status_code, problem["code"]) == (status, code), problem
    assert problem["detail"]
    assert problem["type"] == f"urn:modelyard:problem:{code}"
    if status == 400:
        assert problem["field"], problem
    assert shared.get("/state/hash")["hash"] == before


def test_a_body_that_is_no_json_is_refused(shared: Installation) -> None:
    for body in (b"{", b"\xff\xfe", b"", b"null", b"[" * 100_000):
        refused = shared.client.put("/api/v1/models/m", content=body, headers={"content-type": "application/json"})
        assert (refused.status_code, refused.json()["code"]) == (400, "invalid_request"), body[:9]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "invalid_request"),
        (b'{"prompt": "x"}', 400, "invalid_request"),
        (b'{"model": 7}', 400, "invalid_request"),
        (b'{"model": ""}', 400, "invalid_request"),
        (b'{"model": "nothing", "prompt": "x"}', 404, "model_unknown"),
    ],
)
def test_the_gateway_refuses_as_openai_does(shared: Installation, body: bytes, status: int, code: str) -> None:
    """T8."""
    refused = shared.client.post("/v1/completions", content=body)
    assert refused.status_code == status, refused.text
    assert refused.json()["error"]["code"] == code
    assert refused.json()["error"]["message"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("no-such-command",),
        ("node", "no-such-command"),
        ("node", "cordon"),
        ("load",),
        ("node", "budget", "local-1", "-3GB"),
        ("up", "--workers", "many"),
        ("up", "--no-such-option"),
        ("worker", "--node-type", "fridge"),
        ("token", "create", "x", "--role", "king"),
        ("load", "m", "--replicas", "two"),
        ("node", "cordon", ""),
        ("model", "rm", ""),
        ("model", "show", "m" * 70_000),
        ("node", "label", "local-1", "tier"),
        ("node", "label", "local-1"),
        ("node", "unlabel", "local-1"),
        ("node", "slots", "local-1"),
        ("schedule", "set", "m", "--idle-timeout-seconds", "nan"),
        ("schedule", "set", "m", "--target-in-flight", "inf"),
        ("settings", "set"),
        ("settings", "freeze"),
        ("ps", "--state", "asleep"),
        ("node", "ls", "--liveness", "asleep"),
        ("plan",),
        ("apply", "--prune"),
        ("simulate",),
        ("nodes", "--token", "ü"),
    ],
)
def test_wrong_usage_ends_with_two(shared: Installation, arguments: tuple[str, ...]) -> None:
    wrong = shared.cli(*arguments, code=2)
    assert wrong.err.startswith("usage: ")
    assert wrong.out == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("node", "cordon", "nobody"), "not_found"),
        (("node", "label", "local-1", "node.name=x"), "derived by the system"),
        (("node", "budget", "local-1", "3QB"), "invalid_request"),
        (("node", "slots", "nobody", "2"), "not_found"),
        (("model", "set", "a b", "--", *ECHO), "white space"),
        (("model", "set", "m"), "command"),
        (("model", "show", "nothing"), "model_unknown"),
        (("load", "nothing"), "model_unknown"),
        (("unload", "nothing"), "model_unknown"),
        (("unload", "nothing#0"), "names 0 replicas"),
        (("logs", "nothing"), "model_unknown"),
        (("settings", "no_such=1"), "'no_such' is no setting"),
        (("settings", "max_loaded_models=many"), "'many' is not a whole number"),
        (("settings", "reclaim_memory=maybe"), "'maybe' is not true or false"),
        (("schedule", "set", "m", "--placement", "spraed"), "'spraed' is none of spread, binpack"),
        (("schedule", "set", "m", "--gpus", "0"), "0 is out of range; give 1 or more"),
        (("schedule", "set", "m", "-l", "tier=("), "'tier=(' is not a selector"),
        (("plan", "/nowhere.yaml"), "/nowhere.yaml: can't be read"),
        (("worker", "--name", "w"), "--endpoints"),
        (("worker", "--endpoints", "/nowhere"), "/nowhere"),
        (("worker", "--name", "w" * 254, "--nats-url", "nats://127.0.0.1:1", "--registration-token", "t"), "253"),
        (("worker", "--vram=-3GB", "--nats-url", "nats://127.0.0.1:1", "--registration-token", "t"), "vram"),
    ],
)
def test_a_refused_command_line_ends_with_one(shared: Installation, arguments: tuple[str, ...], says: str) -> None:
    refused = shared.cli(*arguments, code=1)
    assert says in refused.err
    assert "Traceback" not in refused.err
    assert refused.out == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("ps", "--node", "locl-1"), "no node is named 'locl-1'; did you mean 'local-1'?"),
        (("ps", "--model", "nothing"), "no model is named 'nothing'; "),
        (("events", "--node", "nobody"), "no node is named 'nobody'; "),
    ],
)
def test_nothing_to_show_of_a_name_that_nobody_has_is_told(
    shared: Installation, arguments: tuple[str, ...], says: str
) -> None:
    """An empty list is right for a program; a person is told why it is empty."""
    empty = shared.cli(*arguments, code=0)
    assert empty.err.startswith(says)
    assert json.loads(shared.cli("--json", *arguments, code=0).out)["items"] == []
    assert shared.cli("ps", "--node", "local-1", code=0).err == ""


def test_a_process_of_its_own_ends_alike(shared: Installation) -> None:
    assert shared.process("node", "cordon", code=2).err.startswith("usage: ")
    assert "not_found" in shared.process("--api", shared.endpoints.api_url, "node", "cordon", "nobody", code=1).err
    assert "local-1" in shared.process("--api", shared.endpoints.api_url, "nodes", code=0).out


def test_an_api_that_is_away_is_told_with_what_to_do() -> None:
    away = run("--api", "http://127.0.0.1:9", "nodes")
    assert away.code == 1
    assert "is `modelyard up` running?" in away.err
    assert "can't reach the API at http://[::1" in run("--api", "http://[::1", "nodes").err


def test_a_live_name_is_refused_to_a_second_worker(shared: Installation) -> None:
    """N3: the error names the first's incarnation and address, and nothing flaps."""
    first = shared.get("/nodes/local-1")
    endpoints = str(shared.data_dir / "endpoints.json")
    state = str(shared.directory / "second")
    second = shared.process("worker", "--name", "local-1", "--endpoints", endpoints, "--state-dir", state, code=1)
    assert first["incarnation"] in second.err
    assert first["address"] in second.err
    assert "Traceback" not in second.err
    now = shared.get("/nodes/local-1")
    assert (now["incarnation"], now["liveness"]) == (first["incarnation"], "alive")


def test_a_name_that_is_a_step_in_a_path_or_looks_like_markup_is_only_a_name(shared: Installation) -> None:
    """DESIGN 6: nobody's model makes the tables of all others unreadable, or another route be asked."""
    names = (".", "..", "[/bold]x", "[red]x", "a%2Fb", "\N{ROCKET}")
    for name in names:
        shared.cli("model", "set", name, "--vram", "1MiB", "--", *ECHO)
        assert shared.cli("model", "show", name).out.splitlines()[0].strip() == name
    listed = [row.split()[0] for row in shared.cli("models").out.splitlines()[1:]]
    for name in names:
        assert name in listed
        assert f"model {name} removed" in shared.cli("model", "rm", name).out


def test_the_faults_of_a_file_are_told_line_by_line_and_to_programs_as_json(
    shared: Installation, tmp_path: Path
) -> None:
    """S2, T8."""
    file = tmp_path / "five.yaml"
    file.write_text(FIVE_FAULTS)
    for command in ("plan", "apply"):
        told = shared.cli(command, str(file), code=1).err.splitlines()
        assert told[0] == "invalid_request: 5 faults, nothing was applied:"
        assert [line.split(": ")[:2] for line in told[1:]] == [
            [f"  {file}:{line}", field]
            for line, field in ((2, "name"), (3, "command"), (4, "vram"), (6, "node_selector"), (7, "min_replicas"))
        ]
        problem = json.loads(shared.cli("--json", command, str(file), code=1).err)
        assert (problem["code"], len(problem["errors"])) == ("invalid_request", 5)


def test_what_answers_there_and_is_no_api_is_told_apart() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as stranger:
        Thread(target=stranger.serve_forever, daemon=True).start()
        told = run("--api", f"http://127.0.0.1:{stranger.server_port}", "nodes")
        stranger.shutdown()
    assert told.code == 1
    assert "answered 404 with text/html, which is not modelyard's API" in told.err


def test_names_with_signs_work_in_every_command(shared: Installation) -> None:
    """DESIGN 6: `/`, `:`, `.`, `#`, `?` and `%` are only characters."""
    endpoints = str(shared.data_dir / "endpoints.json")
    worker = shared.launch(
        "worker", "--name", NAMED, "--endpoints", endpoints, "--state-dir", str(shared.directory / "named"),
        "--vram", "1GiB", "--label", "nvidia.com/gpu=yes", log="named.log",
    )  # fmt: skip
    try:
        until(lambda: NAMED in shared.cli("nodes").out, "the worker registered")
        _every_node_command(shared)
        _every_model_command(shared)
    finally:
        worker.terminate()
        worker.wait(30)
    assert worker.returncode == 0, (shared.directory / "named.log").read_text()
    until(lambda: shared.cli("node", "show", NAMED).out.count("departed"), "a stopped worker departs at once")
    shared.cli("node", "remove", NAMED)


def _every_node_command(shared: Installation) -> None:
    for line in (
        ("cordon", NAMED), ("uncordon", NAMED), ("drain", NAMED, "--wait"), ("resume", NAMED),
        ("label", NAMED, "example.com/a:b=c/d:e"), ("slots", NAMED, "2"), ("budget", NAMED, "50%"),
        ("budget", NAMED, "--reset"), ("show", NAMED), ("reject", NAMED), ("approve", NAMED),
    ):  # fmt: skip
        shared.cli("node", *line)
    labels = shared.get("/nodes?selector=example.com%2Fa%3Ab%3Dc%2Fd%3Ae")["items"]
    assert [node["name"] for node in labels] == [NAMED]
    shared.cli("node", "unlabel", NAMED, "example.com/a:b")
    shared.cli("node", "reserve", NAMED, "1MiB", "--holder", "a/b:c")
    held = [each for each in shared.get("/reservations")["items"] if each["node"] == NAMED]
    shared.cli("node", "release", NAMED, held[0]["id"])


def _every_model_command(shared: Installation) -> None:
    shared.cli("model", "set", MODEL, "--vram", "16MiB", "--", *ECHO)
    shared.cli("schedule", "set", MODEL, "--max-replicas", "2", "-l", "nvidia.com/gpu=yes")
    shared.cli("schedule", "show", MODEL)
    shared.cli("load", MODEL, "--node", NAMED, "--wait")
    assert shared.complete(MODEL).status_code == 200
    assert MODEL in shared.cli("ps", "--model", MODEL, "--node", NAMED).out
    assert "is loaded" in shared.cli("logs", MODEL).out
    assert "no line of a living replica" in shared.cli("logs", f"{MODEL}#9").err
    assert shared.cli("events", "--json").out
    shared.cli("model", "show", MODEL)
    assert MODEL in shared.cli("models").out
    assert MODEL in shared.cli("schedules").out
    shared.cli("unload", f"{MODEL}#0", "--node", NAMED, "--wait")
    shared.cli("schedule", "rm", MODEL)
    shared.cli("model", "rm", MODEL)
