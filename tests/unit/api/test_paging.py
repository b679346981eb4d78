"""Every list is bounded by a page with a name, and the command line reads all of its pages."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import httpx
import pytest

from modelyard_services.api.app import build_app
from modelyard_services.api.service import PAGE_MAX, Service
from modelyard_services.cli import session
from modelyard_services.cli.session import CommandFailedError, Session
from modelyard_services.effects.bus import MemoryBus
from modelyard_services.effects.log.memory import MemoryLog
from modelyard_services.effects.runtime import Runtime, in_memory
from modelyard_services.policy.access import Access
from tests.support.given import a_pending_node
from tests.support.yard import served


@pytest.fixture
async def runtime() -> AsyncIterator[Runtime]:
    async with in_memory("api", MemoryLog(), MemoryBus()) as runtime:
        await runtime.wait_ready(timeout_seconds=1)
        yield runtime


def api(runtime: Runtime) -> Any:
    return build_app(Service(runtime, Access(runtime.fleet, True)))


async def test_every_list_endpoint_has_a_limit_and_a_cursor(runtime: Runtime) -> None:
    """A fleet of 20,000 replicas must not be one answer; read from the contract, so that a new list can't forget it."""
    transport = httpx.ASGITransport(app=cast(Any, api(runtime)))
    async with httpx.AsyncClient(transport=transport, base_url="http://test/api/v1") as client:
        document = (await client.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    lists = []
    for path, operations in document["paths"].items():
        operation = operations.get("get", {"responses": {}})
        shape = operation["responses"].get("200", {}).get("content", {}).get("application/json", {}).get("schema", {})
        body = schemas.get(shape.get("$ref", "").rpartition("/")[2], shape)
        if body.get("properties", {}).get("items", {}).get("type") == "array":
            lists.append(path)
            known = {each["name"]: each["schema"] for each in operation["parameters"]}
            assert known["limit"]["maximum"] == PAGE_MAX, path
            assert known["limit"]["default"] <= PAGE_MAX, path
            assert "after" in known, path
            assert "next" in body["properties"], path
    assert {"/api/v1/nodes", "/api/v1/replicas", "/api/v1/tokens", "/api/v1/events"} <= set(lists)


async def test_the_command_line_reads_all_pages_of_a_list(runtime: Runtime) -> None:
    for first in range(0, PAGE_MAX + 2, 100):
        events = [event for number in range(first, first + 100) for event in a_pending_node(f"n{number:05}")]
        await runtime.journal.commit(runtime.envelope(), lambda _fleet, events=events: events)  # type: ignore[misc]
    async with served(api(runtime)) as url:
        answer = await asyncio.to_thread(Session(url).list, "/nodes", admission="pending")
    assert [node["name"] for node in answer["items"]] == sorted(runtime.fleet.nodes)
    assert len(answer["items"]) > PAGE_MAX
    assert answer["next"] is None


async def test_a_list_beyond_all_bounds_is_refused(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "LIST_MAX", 1)
    events = [event for name in ("a", "b", "c") for event in a_pending_node(name)]
    await runtime.journal.commit(runtime.envelope(), lambda _fleet: events)
    async with served(api(runtime)) as url:
        with pytest.raises(CommandFailedError, match="more than 1 items"):
            await asyncio.to_thread(Session(url).list, "/nodes", limit=1)
