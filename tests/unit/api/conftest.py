"""One API and its client for each test."""

from collections.abc import AsyncIterator

import httpx
import pytest

from modelyard_services.effects.bus import MemoryBus
from modelyard_services.effects.log.memory import MemoryLog
from modelyard_services.effects.runtime import Runtime, in_memory
from tests.support.api import client_of


@pytest.fixture
async def runtime() -> AsyncIterator[Runtime]:
    async with in_memory("api", MemoryLog(), MemoryBus()) as runtime:
        await runtime.wait_ready(timeout_seconds=1)
        yield runtime


@pytest.fixture
async def client(runtime: Runtime) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(runtime, open_on_loopback=True) as client:
        yield client
