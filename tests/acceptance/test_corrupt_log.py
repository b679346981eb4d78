"""Garbage in the log: every reader stops there and says where and why; nothing is skipped."""

import asyncio
import json
from pathlib import Path

import httpx
import nats

from tests.support.installation import Installation, until

GARBAGE = b'{"event": {"type": "fleet.settings_chan'


def test_a_corrupt_body_stops_every_reader_at_its_sequence(tmp_path: Path) -> None:
    with Installation(tmp_path) as installation:
        before = installation.get("/state/hash")
        sequence = asyncio.run(_publish(installation.control_url, GARBAGE))
        assert sequence == before["sequence"] + 1
        for child in ("api", "registrar", "reconciler", "projector"):
            reason = until(lambda child=child: _reasons(installation, child), f"{child} says why it stopped")  # type: ignore[misc]
            assert f"log sequence {sequence}: corrupt body" in reason, (child, reason)
        assert installation.get("/state/hash") == before
        assert installation.ask("GET", "/healthz").status_code == 200
        refused = installation.ask("PUT", "/nodes/local-1/labels/tier", {"value": "gpu"})
        assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
        assert str(sequence) in refused.json()["detail"]
        assert installation.get("/events?after=0&limit=1000")["items"][-1]["sequence"] == before["sequence"]


async def _publish(url: str, body: bytes) -> int:
    client = await nats.connect(url, inbox_prefix="_INBOX_control")
    try:
        return (await client.jetstream().publish("modelyard.log.fleet", body)).seq
    finally:
        await client.close()


def _reasons(installation: Installation, child: str) -> str:
    ports = json.loads((installation.data_dir / "ports.json").read_bytes())
    port = ports["http" if child == "api" else child]
    try:
        answer = httpx.get(f"http://127.0.0.1:{port}/readyz", trust_env=False, timeout=10)
    except httpx.TransportError:
        return ""
    return " ".join(answer.json()["problems"]) if answer.status_code == 503 else ""
