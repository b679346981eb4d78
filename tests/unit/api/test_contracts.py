"""The contract of the lifecycle stream is there to be fetched."""

from collections.abc import AsyncIterator
from typing import Any, cast

import httpx
import pytest

from modelyard_events.codec import TAGS
from modelyard_services.api.app import build_app
from modelyard_services.api.service import Service
from modelyard_services.effects.bus import MemoryBus
from modelyard_services.effects.log.memory import MemoryLog
from modelyard_services.effects.runtime import in_memory
from modelyard_services.policy.access import Access


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with in_memory("api", MemoryLog(), MemoryBus()) as runtime:
        await runtime.wait_ready(timeout_seconds=1)
        app = build_app(Service(runtime, Access(runtime.fleet, True)))
        transport = httpx.ASGITransport(app=cast(Any, app))
        async with httpx.AsyncClient(transport=transport, base_url="http://test/api/v1") as one:
            yield one


async def test_the_asyncapi_document_tells_of_every_type_of_event(client: httpx.AsyncClient) -> None:
    answer = await client.get("/asyncapi.json")
    assert answer.headers["content-type"].startswith("application/json")
    assert answer.json()["channels"].keys() == TAGS.keys()


async def test_every_type_of_event_has_its_schema(client: httpx.AsyncClient) -> None:
    tags = (await client.get("/schemas")).json()
    assert tags == sorted(TAGS)
    for tag in tags:
        schema = (await client.get(f"/schemas/{tag}")).json()
        assert tag in str(schema["$defs"])


async def test_an_unknown_type_of_event_is_named(client: httpx.AsyncClient) -> None:
    answer = await client.get("/schemas/node.teleported.v1")
    assert (answer.status_code, answer.json()["code"], answer.json()["value"]) == (
        404,
        "not_found",
        "node.teleported.v1",
    )
