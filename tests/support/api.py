"""The control API in this process, over the log in memory.

Invariant: it is the real application; only the socket is missing.
"""

from typing import Any, cast

import httpx

from modelyard_services.api.app import build_app
from modelyard_services.api.service import Service
from modelyard_services.effects.runtime import Runtime
from modelyard_services.policy.access import Access


def client_of(runtime: Runtime, *, open_on_loopback: bool) -> httpx.AsyncClient:
    """A client of the API over `runtime`."""
    app = build_app(Service(runtime, Access(runtime.fleet, open_on_loopback)))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=cast(Any, app)), base_url="http://test")
