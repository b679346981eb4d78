"""A whole installation as its user has it: `modelyard up` as a process, its HTTP, its command line, its data directory.

Invariant: nothing is left running, whatever a test does to it; nothing here looks inside our code but for the proof
of one state everywhere, which is the supervisor's own.
"""

import asyncio
import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx
import msgspec
import pytest

from modelyard_services.cli.main import main
from modelyard_services.supervisor.proof import Hashes, hashes_of
from modelyard_services.supervisor.settings import Endpoints
from modelyard_services.supervisor.up import Running
from tests.support.background import Background

START_SECONDS = 240.0
"""A start takes some three seconds; on a machine that runs everything else as well, many times that."""

STOP_SECONDS = 60.0
SETTLE_SECONDS = 120.0
"""How long a fleet may take to be again as it should, on a busy machine."""

POLL_SECONDS = 0.1
EVENTS_TOLD = 60
"""Of a story's end: the last few replacements."""
MODELYARD = (sys.executable, "-m", "modelyard_services")
Seen = TypeVar("Seen")

ECHO = [sys.executable, "-m", "modelyard_services.worker.backends.echo"]
ECHO += ["--port", "{port}", "--host", "{host}", "--model", "{model}"]


class Result(msgspec.Struct, frozen=True):
    """How one command line ended."""

    code: int
    out: str
    err: str


class Installation:
    """One data directory, and `modelyard up` on it between `start` and `stop`."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.directory = directory
        self.data_dir = directory / "data"
        self.token: str | None = None
        self.variables: dict[str, str] = {}
        self._options = options
        self._up: subprocess.Popen[bytes] | None = None
        self._client: httpx.Client | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self.end()

    # Its life.

    def start(self, *options: str) -> None:
        """Start it, and wait until it says that it is ready."""
        self._up = self.launch("up", "--data-dir", str(self.data_dir), "--port", "0", *self._options, *options)
        until(lambda: "ready;" in self.output() or self._ended(), "up is ready or has ended", seconds=START_SECONDS)
        assert self._up.poll() is None, f"up ended with {self._up.returncode}: {self.output()}"
        if self._client is not None:
            self._client.close()
        self._client = httpx.Client(base_url=self.endpoints.api_url, timeout=SETTLE_SECONDS, trust_env=False)

    def launch(self, *arguments: str, log: str = "up.log") -> subprocess.Popen[bytes]:
        """Any of our processes, in a session of its own, its output in `log`."""
        with (self.directory / log).open("wb") as output:
            return subprocess.Popen(  # noqa: S603 - our own command
                (*MODELYARD, *arguments),
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=self._environment(), start_new_session=True,
            )  # fmt: skip

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Tell the whole process group to stop, as a terminal does; the exit code."""
        assert self._up is not None
        os.killpg(self._up.pid, number)
        return self._up.wait(STOP_SECONDS)

    def end(self) -> None:
        """Leave nothing running, not even what a failing test left half done."""
        if self._client is not None:
            self._client.close()
        if self._up is not None and self._up.poll() is None:
            self._up.send_signal(signal.SIGCONT)
            self._up.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._up.wait(STOP_SECONDS)
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self._up is not None:
            self._up.wait()

    def kill(self) -> None:
        """SIGKILL to `modelyard up` alone."""
        assert self._up is not None
        self._up.kill()
        self._up.wait()

    def output(self) -> str:
        return (self.directory / "up.log").read_text()

    # Its processes.

    @property
    def endpoints(self) -> Endpoints:
        return msgspec.json.decode((self.data_dir / "endpoints.json").read_bytes(), type=Endpoints)

    @property
    def pid(self) -> int:
        """`modelyard up` itself."""
        assert self._up is not None
        return self._up.pid

    def pid_of(self, name: str) -> int:
        """The process of the child `name`: nats, postgres, api, registrar, reconciler, projector, local-1 …"""
        pid: int = json.loads((self.data_dir / "run" / f"{name}.json").read_bytes())["pid"]
        return pid

    def processes(self, with_word: str = "") -> list[int]:
        """Everything alive that this installation started, by environment, command line or working directory."""
        return [pid for pid in _pids() if pid != os.getpid() and self._is_ours(pid, with_word.encode())]

    def ports_of(self, with_word: str) -> list[str]:
        """The `--port` of each process that `processes` finds."""
        words = [_command_line(pid) for pid in self.processes(with_word)]
        return sorted(line[line.index("--port") + 1] for line in words if "--port" in line)

    def pid_at(self, address: str, with_word: str) -> int:
        """The process with the `--port` of `address`."""
        (found,) = (pid for pid in self.processes(with_word) if address.rpartition(":")[2] in _command_line(pid))
        return found

    def story_of(self, model: str) -> str:
        """All that a failure should tell of `model`: its replicas, what runs, and the last events of all."""
        replicas = [item for item in self.get("/replicas")["items"] if item["model"] == model]
        backends = [f"{pid} {' '.join(_command_line(pid))}" for pid in self.processes("backends.")]
        events = [json.dumps(item["event"])[:300] for item in self.get("/events?limit=1000")["items"]]
        return "\n".join([*map(json.dumps, replicas), *backends, *events[-EVENTS_TOLD:]])

    def _is_ours(self, pid: int, word: bytes) -> bool:
        mark, process = os.fsencode(self.directory), Path(f"/proc/{pid}")
        try:
            if process.joinpath("stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                return False
            command = process.joinpath("cmdline").read_bytes()
            where = os.fsencode(process.joinpath("cwd").readlink())
            return word in command and mark in command + where + process.joinpath("environ").read_bytes()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            return False  # ended meanwhile, or somebody else's

    def _environment(self) -> dict[str, str]:
        ours = {key: value for key, value in os.environ.items() if not key.startswith("MODELYARD_")}
        return ours | self.variables | {"ACCEPTANCE_TEST_OF": str(self.directory)}

    def _ended(self) -> bool:
        return self._up is not None and self._up.poll() is not None

    # Asking it.

    @property
    def control_url(self) -> str:
        """NATS in the control role."""
        keys = json.loads((self.data_dir / "nats" / "credentials.json").read_bytes())["keys"]
        return self.endpoints.nats_url.replace("://", f"://control:{keys['control_password']}@")

    @property
    def client(self) -> httpx.Client:
        """For requests that no well-behaved client would send."""
        assert self._client is not None
        return self._client

    def ask(self, method: str, path: str, body: Any = None, *, headers: dict[str, str] | None = None) -> httpx.Response:
        """One request to the API (`/api/v1` is added to what doesn't begin with `/v1`, `/healthz` or `/readyz`)."""
        plain = path.startswith(("/v1", "/healthz", "/readyz"))
        sent = {"authorization": f"Bearer {self.token}"} if self.token else {}
        return self.client.request(
            method, path if plain else f"/api/v1{path}", json=body, headers=sent | (headers or {})
        )

    def get(self, path: str) -> Any:
        """What a query answers; it must succeed."""
        answer = self.ask("GET", path)
        assert answer.is_success, f"GET {path}: {answer.status_code} {answer.text}"
        return answer.json()

    def command(self, method: str, path: str, body: Any = None) -> Any:
        """What a command answers; it must succeed."""
        answer = self.ask(method, path, body)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json()

    def cli(self, *arguments: str, code: int = 0) -> Result:
        """One query or command on the command line; it must end with `code`.

        In this process, for a new interpreter takes ten times as long as the command itself.
        """
        before = ["--api", self.endpoints.api_url, *(("--token", self.token) if self.token else ())]
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
            main([*before, *arguments])
        result = Result(int(ended.value.code or 0), out.getvalue(), err.getvalue())
        assert result.code == code, f"{arguments} ended with {result.code}: {result.out}{result.err}"
        return result

    def process(self, *arguments: str, code: int) -> Result:
        """One command line in a process of its own, which must end with `code`."""
        result = run(*arguments, environment=self._environment())
        assert result.code == code, f"{arguments} ended with {result.code}: {result.out}{result.err}"
        return result

    def complete(self, model: str, *, prompt: str = "hello") -> httpx.Response:
        """One completion through the gateway."""
        return self.ask("POST", "/v1/completions", {"model": model, "prompt": prompt})

    def echo(self, model: str = "echo", *options: str, replicas: int = 0) -> None:
        """Define an echo model, with a floor of `replicas`, one a node, and wait for these."""
        self.command("PUT", f"/models/{segment(model)}", {"command": [*ECHO, *options], "vram": "16MiB"})
        if replicas:
            schedule = {"min_replicas": replicas, "max_per_node": 1}
            self.command("PUT", f"/models/{segment(model)}/schedule", schedule)
            until(lambda: len(self.ready(model)) == replicas, f"{replicas} of {model} are ready")

    def ready(self, model: str) -> list[dict[str, Any]]:
        return [item for item in self.get("/replicas")["items"] if item["model"] == model and item["state"] == "ready"]

    def is_ready(self) -> bool:
        try:
            return self.ask("GET", "/readyz").is_success
        except httpx.TransportError:
            return False

    def hashes(self) -> Hashes:
        """Memory, replay and rows, at one sequence at which all three stand."""
        found: list[Hashes] = []
        until(lambda: self.ask("GET", "/events?limit=1").is_success, "PostgreSQL answers")

        def agreed() -> bool:
            memory = self.get("/state/hash")
            running = Running(self.endpoints, self.control_url, lambda: ())
            proof = hashes_of(running, memory_sequence=memory["sequence"], memory=memory["hash"])
            found.append(asyncio.run(proof))
            return found[-1].sequences_agree

        until(agreed, "memory, replay and PostgreSQL stand at one sequence")
        return found[-1]


class Traffic(Background):
    """Requests to a model, one after the other, in the background: how they ended, and what the failed ones said."""

    def __init__(self, installation: Installation, model: str) -> None:
        super().__init__()
        self.statuses: list[int] = []
        self.said: dict[int, str] = {}
        self._installation = installation
        self._model = model

    def goes_on(self, *, seconds: float = SETTLE_SECONDS) -> None:
        """Wait for the next good answers."""
        wanted = self.statuses.count(200) + 3
        until(lambda: self.statuses.count(200) >= wanted, "traffic goes on", seconds=seconds)

    def ended_only_with(self, *allowed: int) -> None:
        """0 stands for a connection that broke; any other way to end fails with who answered, and what."""
        assert {*self.statuses} <= {*allowed}, "\n".join(self.said[status] for status in {*self.statuses} - {*allowed})

    def run(self) -> None:
        url = self._installation.endpoints.gateway_url
        with httpx.Client(timeout=SETTLE_SECONDS, trust_env=False) as client:
            while not self.stop.wait(0.02):
                self.statuses.append(self._ask(client, f"{url}/completions"))

    def _ask(self, client: httpx.Client, url: str) -> int:
        try:
            answer = client.post(url, json={"model": self._model, "prompt": "hello"})
        except httpx.TransportError:
            return 0
        self.said[answer.status_code] = f"{answer.status_code} {dict(answer.headers)} {answer.text}"
        return answer.status_code


def run(*arguments: str, environment: dict[str, str] | None = None, seconds: float = START_SECONDS) -> Result:
    """One command line, to its end."""
    ended = subprocess.run(  # noqa: S603 - our own command
        (*MODELYARD, *arguments), capture_output=True, text=True, env=environment, timeout=seconds, check=False
    )
    return Result(ended.returncode, ended.stdout, ended.stderr)


def until(
    look: Callable[[], Seen], goal: str, *, seconds: float = SETTLE_SECONDS, saying: Callable[[], object] = str
) -> Seen:
    """What `look` sees, once it is true; if it never is, a failure that tells what `saying` sees instead."""
    deadline = time.monotonic() + seconds
    while not (seen := look()):
        assert time.monotonic() < deadline, f"after {seconds:.0f} s still not so: {goal}; {saying()}"
        time.sleep(POLL_SECONDS)
    return seen


def segment(name: str) -> str:
    """`name` as one path segment."""
    return quote(name, safe="")


@contextlib.contextmanager
def taken_port() -> Iterator[int]:
    """A port on which somebody else listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        yield port


def free_ports(count: int) -> Sequence[int]:
    """Ports on which nobody listens."""
    with contextlib.ExitStack() as held:
        return [held.enter_context(taken_port()) for _ in range(count)]


def _command_line(pid: int) -> list[str]:
    """Empty once it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
