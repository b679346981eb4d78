"""A worker under a service manager: replaced it leaves its replicas to the next, stopped it ends them and departs."""

# ruff: noqa: ASYNC110 - other processes set no event of ours

import asyncio
import signal
import sys
from asyncio.subprocess import DEVNULL, Process
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psutil
import pytest

from tests.support.yard import free_port

PROGRAM = (sys.executable, "-m", "modelyard_services")
SECONDS = 120.0
"""Its processes start in seconds; where everything else runs as well, in a minute and more."""


class Installation:
    """`modelyard up` without workers of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[Process] = []

    async def start(self, *arguments: str) -> Process:
        with (self.folder / f"{len(self.processes)}.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(*PROGRAM, *arguments, stdout=DEVNULL, stderr=log)
        self.processes.append(process)
        return process

    @property
    def endpoints(self) -> Path:
        return self.folder / "data" / "endpoints.json"

    async def worker(self) -> Process:
        return await self.start(
            *("worker", "--name", "w", "--endpoints", str(self.endpoints), "--vram", "1GiB"),
            *("--state-dir", str(self.folder / "state"), "--at-end", "depart"),
        )

    async def get(self, path: str) -> Any:
        url = msgspec.json.decode(self.endpoints.read_bytes())["api_url"]
        async with httpx.AsyncClient(base_url=url, timeout=10) as client:
            return (await client.get("/api/v1" + path)).json()

    async def put(self, path: str, body: object) -> None:
        url = msgspec.json.decode(self.endpoints.read_bytes())["api_url"]
        async with httpx.AsyncClient(base_url=url, timeout=10) as client:
            (await client.put("/api/v1" + path, json=body)).raise_for_status()

    async def replica(self) -> dict[str, Any]:
        """The one replica, once it is ready."""
        async with asyncio.timeout(SECONDS):
            while True:
                items = (await self.get("/replicas"))["items"]
                if items and items[0]["state"] == "ready":
                    found: dict[str, Any] = items[0]
                    return found
                await asyncio.sleep(0.1)

    async def tags(self) -> list[str]:
        return [event["type"] for event in (await self.get("/events?limit=200&node=w"))["items"]]

    async def told(self, tag: str) -> None:
        async with asyncio.timeout(SECONDS):
            while not any(one.startswith(tag) for one in await self.tags()):
                await asyncio.sleep(0.1)


def backends() -> set[int]:
    """Every echo backend of this test."""
    return {
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if "upgraded" in (process.info["cmdline"] or ())
    }  # fmt: skip


@pytest.mark.timeout(600)
async def test_sighup_leaves_the_replicas_to_the_next_worker_and_sigterm_departs(tmp_path: Path) -> None:
    """W4: as deploy/systemd/modelyard-worker.service does by reload and by stop."""
    yard = Installation(tmp_path)
    try:
        port = str(free_port())
        await yard.start("up", "--data-dir", str(tmp_path / "data"), "--port", port, "--workers", "0")
        async with asyncio.timeout(SECONDS):
            while not yard.endpoints.exists():
                await asyncio.sleep(0.1)
        first = await yard.worker()
        echo = [sys.executable, "-m", "modelyard_services.worker.backends.echo", "--port", "{port}"]
        await yard.put("/models/m", {"command": [*echo, "--model", "upgraded"], "vram": "16MiB"})
        await yard.put("/models/m/schedule", {"min_replicas": 1, "max_replicas": 1})
        before, running = await yard.replica(), backends()
        assert running
        first.send_signal(signal.SIGHUP)
        assert await first.wait() == 0
        assert backends() == running
        second = await yard.worker()
        await yard.told("replica.adopted")
        assert (await yard.replica())["id"] == before["id"]
        assert not any(tag.startswith("node.departed") for tag in await yard.tags())
        second.terminate()
        assert await second.wait() == 0
        assert not backends()
        await yard.told("node.departed")
    finally:
        for process in reversed(yard.processes):
            if process.returncode is None:
                process.terminate()
                await process.wait()
