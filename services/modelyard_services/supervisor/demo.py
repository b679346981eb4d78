"""`modelyard demo`: the main job on real parts, step by step, each checked before the next.

Invariant: it ends with exit 0 only if every step was seen to hold; a step that doesn't says what was wrong.
"""

import asyncio
import math
import signal
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from os import kill
from pathlib import Path
from typing import Any, Final

import httpx
from rich.console import Console
from rich.table import Table

from modelyard_events.sizes import format_size
from modelyard_services.supervisor.proof import Hashes, hashes_of
from modelyard_services.supervisor.settings import UpSettings
from modelyard_services.supervisor.up import Running, up

MODEL: Final = "minilm"
SENTENCES: Final = (
    "The cat sits on the warm windowsill.",
    "A kitten is resting by the window.",
    "The quarterly revenue exceeded all forecasts.",
)
REPLICAS: Final = 2
TRAFFIC: Final = 60
TRAFFIC_AT_ONCE: Final = 4

SPREAD_MAX: Final = 1.5
"""Most over mean: sixty requests, four at a time, can't be split more unevenly by a fair choice."""

WAIT_SECONDS: Final = 120.0
"""The longest step, a cold load of the model on a busy laptop, takes some ten seconds."""

POLL_SECONDS: Final = 0.1


class DemoFailedError(Exception):
    """A step didn't hold; its text says which and what was seen."""


def demo_settings(data_dir: Path, *, port: int) -> UpSettings:
    """Three workers with labels and budgets of their own; nobody is admitted unasked."""
    return UpSettings(
        data_dir=data_dir,
        port=port,
        workers=3,
        worker_vram=("2GiB", "1GiB", "512MiB"),
        worker_labels=({"tier": "fast"}, {"tier": "fast"}, {"tier": "spare"}),
        auto_approve=False,
        log_level="info",
    )


async def demo(settings: UpSettings, stop: asyncio.Event, out: Console) -> None:
    """Run the demo on an installation of its own, and end that.

    Raises:
        DemoFailedError: a step didn't hold.
        ChildFailedError: the installation didn't come up.
    """
    shown: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    tasks: list[asyncio.Task[None]] = []

    def on_ready(running: Running) -> None:
        tasks.append(asyncio.create_task(_show(running, out, stop, shown)))

    out.print("Starting NATS, PostgreSQL, the control plane and three workers …")
    await up(settings, stop, on_ready=on_ready)
    if not shown.done():
        raise DemoFailedError("stopped before the end")
    shown.result()


async def _show(running: Running, out: Console, stop: asyncio.Event, shown: asyncio.Future[None]) -> None:
    try:
        async with httpx.AsyncClient(
            base_url=running.endpoints.api_url, timeout=WAIT_SECONDS, trust_env=False
        ) as client:
            await _Demo(running, out, client).run()
    except (DemoFailedError, httpx.HTTPError) as error:
        shown.set_exception(error if isinstance(error, DemoFailedError) else DemoFailedError(f"HTTP: {error}"))
    else:
        shown.set_result(None)
    finally:
        stop.set()


class _Demo:
    """The steps, in order."""

    def __init__(self, running: Running, out: Console, client: httpx.AsyncClient) -> None:
        self._running = running
        self._out = out
        self._client = client

    async def run(self) -> None:
        steps: tuple[tuple[str, Callable[[], Awaitable[None]]], ...] = (
            ("Three workers registered; none is admitted unasked, so we approve them", self._admit),
            (f"The model {MODEL!r} is defined and scheduled; its memory is reserved before it starts", self._load),
            ("Real sentences through the OpenAI-compatible gateway", self._embed),
            ("Traffic spreads over both replicas", self._spread),
            ("A worker is killed with -9; its replica serves on and its successor adopts it", self._kill_worker),
            ("A replica's process is killed with -9; traffic goes on and it is replaced", self._kill_replica),
            ("The story as events, each with actor and cause", self._story),
            ("One state everywhere: in memory, replayed from the log, and in PostgreSQL", self._prove),
        )
        for number, (title, step) in enumerate(steps, start=1):
            self._out.print(f"\n[bold]{number}. {title}[/bold]")
            await step()
        self._out.print("\n[bold green]Everything held.[/bold green]")

    async def _admit(self) -> None:
        async def registered() -> list[dict[str, Any]] | None:
            nodes = await self._items("/nodes")
            return nodes if len(nodes) == 3 else None  # noqa: PLR2004 - the demo's workers

        nodes = await self._until("three nodes are registered", registered)
        _require(all(node["admission"] == "pending" for node in nodes), "a node was admitted without a command")
        for node in nodes:
            await self._command("POST", f"/nodes/{node['name']}/approve", {})
        rows = [
            (node["name"], node["admission"], node["labels"]["tier"]["value"], format_size(node["vram_total"]))
            for node in await self._items("/nodes")
        ]
        self._table(("NODE", "ADMISSION", "TIER", "VRAM"), rows)
        _require(all(row[1] == "approved" for row in rows), "an approved node isn't")

    async def _load(self) -> None:
        command = [sys.executable, "-m", "modelyard_services.worker.backends.minilm"]
        command += ["--host", "{host}", "--port", "{port}", "--model", "{model}"]
        await self._command("PUT", f"/models/{MODEL}", {"command": command, "vram": "400MiB"})
        schedule = {"min_replicas": REPLICAS, "max_per_node": 1, "node_selector": "tier=fast"}
        await self._command("PUT", f"/models/{MODEL}/schedule", schedule)
        placed = await self._until("both replicas are placed", lambda: self._replicas(states=None))
        reserved = {node["name"]: node["vram_reserved"] for node in await self._items("/nodes")}
        _require(all(reserved[replica["node"]] > 0 for replica in placed), "a replica was placed without its memory")
        await self._until("both replicas are ready", self._replicas)
        await self._show_replicas()

    async def _embed(self) -> None:
        answer = await self._client.post("/v1/embeddings", json={"model": MODEL, "input": list(SENTENCES)})
        _require(answer.is_success, f"the gateway answered {answer.status_code}: {answer.text[:200]}")
        vectors = [entry["embedding"] for entry in answer.json()["data"]]
        alike, unlike = _cosine(vectors[0], vectors[1]), _cosine(vectors[0], vectors[2])
        rows = [
            (f"{SENTENCES[0]} ~ {SENTENCES[1]}", f"{alike:.3f}"),
            (f"{SENTENCES[0]} ~ {SENTENCES[2]}", f"{unlike:.3f}"),
        ]
        self._table(("SENTENCES", "SIMILARITY"), rows)
        _require(alike > unlike + 0.2, "the similar sentences aren't nearer than the others")
        headers = {name: answer.headers[name] for name in answer.headers if name.startswith("x-modelyard-")}
        self._out.print("  " + "  ".join(f"{name}: {value}" for name, value in headers.items()), highlight=False)

    async def _spread(self) -> None:
        counts = Counter(await self._traffic(TRAFFIC))
        self._table(("NODE", "REQUESTS"), sorted(counts.items()))
        _require(len(counts) == REPLICAS, f"only {list(counts)} served")
        _require(max(counts.values()) <= SPREAD_MAX * TRAFFIC / REPLICAS, "one replica got most of the traffic")

    async def _kill_worker(self) -> None:
        before = {replica["id"]: replica["node"] for replica in await self._items("/replicas")}
        victim = min(before.values())
        pid = next(child.pid for child in self._running.report() if child.name == victim)
        if pid is None:
            raise DemoFailedError(f"the worker {victim} isn't running")
        traffic = asyncio.create_task(self._traffic(TRAFFIC))
        await asyncio.sleep(POLL_SECONDS)
        kill(pid, signal.SIGKILL)
        served = Counter(await traffic)
        self._out.print(f"  killed the worker of {victim} (pid {pid}); {TRAFFIC} requests answered meanwhile")
        self._table(("NODE", "REQUESTS"), sorted(served.items()))
        adopted = await self._until("its replica is adopted", lambda: self._told("replica.adopted", victim))
        _require(before.get(adopted["replica"]) == victim, "what was adopted isn't what served there")
        _require(before.keys() == {one["id"] for one in await self._items("/replicas")}, "a replica was replaced")

    async def _kill_replica(self) -> None:
        victim = min(await self._items("/replicas"), key=lambda replica: str(replica["node"]))
        started = await self._until("its process is known", lambda: self._told("replica.load_started", victim["node"]))
        pid = started["process"]["pid"]
        kill(pid, signal.SIGKILL)
        await self._traffic(TRAFFIC)
        self._out.print(f"  killed {victim['id']} of {victim['node']} (pid {pid}); {TRAFFIC} requests answered since")
        ready = await self._until("the replica is replaced", lambda: self._replicas(besides={victim["id"]}))
        _require(victim["id"] not in {replica["id"] for replica in ready}, "the dead replica is still listed")
        await self._show_replicas()

    async def _story(self) -> None:
        events: list[dict[str, Any]] = []
        hidden = {"fleet", "reservation"}
        sequence = int((await self._get("/nodes", limit=1))["sequence"])

        async def told() -> list[dict[str, Any]] | None:
            page: list[dict[str, Any]] = (await self._get("/events", after=0, limit=1000))["items"]
            return page if page and page[-1]["sequence"] >= sequence else None

        events = await self._until("the history is complete", told)
        rows = [
            (event["sequence"], event["type"].rsplit(".", 1)[0], _actor(event), _subject(event), event["causation"])
            for event in events
            if event["type"].split(".")[0] not in hidden
        ]
        self._table(("SEQUENCE", "EVENT", "ACTOR", "ABOUT", "CAUSED BY"), rows)
        _require(all(event["actor"]["name"] for event in events), "an event has no actor")

    async def _prove(self) -> None:
        async def agreed() -> Hashes | None:
            memory = await self._get("/state/hash")
            found = await hashes_of(self._running, memory_sequence=memory["sequence"], memory=memory["hash"])
            return found if found.sequences_agree else None

        hashes = await self._until("all three stand at one sequence", agreed)
        rows = [("memory", hashes.memory), ("replay", hashes.replay), ("PostgreSQL", hashes.rows)]
        self._table((f"STATE AT {hashes.sequence}", "HASH"), rows)
        _require(hashes.agree, "the states differ")

    async def _traffic(self, requests: int) -> list[str]:
        limit = asyncio.Semaphore(TRAFFIC_AT_ONCE)

        async def one(number: int) -> str:
            async with limit:
                body = {"model": MODEL, "input": f"request {number}"}
                answer = await self._client.post("/v1/embeddings", json=body)
                _require(answer.is_success, f"request {number} got {answer.status_code}: {answer.text[:200]}")
                return answer.headers["x-modelyard-node"]

        return list(await asyncio.gather(*[one(number) for number in range(requests)]))

    async def _replicas(
        self, *, states: frozenset[str] | None = frozenset({"ready"}), besides: set[str] | None = None
    ) -> list[dict[str, Any]] | None:
        found = [
            replica
            for replica in await self._items("/replicas")
            if (states is None or replica["state"] in states) and replica["id"] not in (besides or ())
        ]
        return found if len(found) >= REPLICAS else None

    async def _show_replicas(self) -> None:
        rows = [
            (
                f"{replica['model']}#{replica['replica_index']}",
                replica["node"],
                replica["state"],
                format_size(replica["vram"]),
            )
            for replica in await self._items("/replicas")
        ]
        self._table(("REPLICA", "NODE", "STATE", "RESERVED"), rows)

    async def _told(self, tag: str, node: str) -> dict[str, Any] | None:
        """The last event of that tag about `node`."""
        events: list[dict[str, Any]] = (await self._get("/events", type=tag, node=node, after=0, limit=1000))["items"]
        return dict(events[-1]["event"]) if events else None

    async def _items(self, path: str) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = (await self._get(path))["items"]
        return items

    async def _get(self, path: str, **query: Any) -> Any:
        answer = await self._client.get("/api/v1" + path, params=query)
        _require(answer.is_success, f"GET {path} got {answer.status_code}: {answer.text[:300]}")
        return answer.json()

    async def _command(self, method: str, path: str, body: Any) -> None:
        answer = await self._client.request(method, "/api/v1" + path, json=body, headers={"x-actor": "demo"})
        _require(answer.is_success, f"{method} {path} got {answer.status_code}: {answer.text[:300]}")

    async def _until(self, goal: str, look: Callable[[], Awaitable[Any]]) -> Any:
        deadline = asyncio.get_running_loop().time() + WAIT_SECONDS
        while (found := await look()) is None:
            if asyncio.get_running_loop().time() > deadline:
                raise DemoFailedError(f"after {WAIT_SECONDS:.0f} s still not so: {goal}")
            await asyncio.sleep(POLL_SECONDS)
        return found

    def _table(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        table = Table(*columns, box=None, pad_edge=False, header_style="dim")
        for row in rows:
            table.add_row(*["" if cell is None else str(cell) for cell in row])
        self._out.print(table)


def _require(holds: object, otherwise: str) -> None:
    if not holds:
        raise DemoFailedError(otherwise)


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    return dot / (math.hypot(*one) * math.hypot(*other))


def _actor(event: dict[str, Any]) -> str:
    return f"{event['actor']['kind']}:{event['actor']['name']}"


def _subject(event: dict[str, Any]) -> str:
    body = event["event"]
    return str(body.get("replica") or ",".join(body.get("replicas", ())) or body.get("node") or body.get("model"))
