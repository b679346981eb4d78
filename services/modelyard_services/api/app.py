"""The control API as one ASGI application: `/api/v1`, health, and the gateway under `/v1` beside it.

Invariant: every route is in the OpenAPI document, and every known error is a problem with its code.
"""

from collections.abc import Sequence

from litestar import Litestar, Router
from litestar.datastructures import State
from litestar.enums import ScopeType
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.types import ASGIApp, ControllerRouterHandler, Receive, Scope, Send

from modelyard_services.api import problems
from modelyard_services.api.access import Identify
from modelyard_services.api.access_commands import AccessCommands
from modelyard_services.api.configuration_commands import ConfigurationCommands
from modelyard_services.api.contracts import Contracts
from modelyard_services.api.explanations import Explanations
from modelyard_services.api.freshness import Freshness
from modelyard_services.api.health import healthz, metrics, readyz
from modelyard_services.api.history import History
from modelyard_services.api.logs import Logs
from modelyard_services.api.model_commands import ModelCommands, ReplicaCommands
from modelyard_services.api.node_commands import NodeCommands
from modelyard_services.api.openapi import openapi_document
from modelyard_services.api.parameters import KnownParameters
from modelyard_services.api.past_states import PastStates
from modelyard_services.api.queries import Queries
from modelyard_services.api.raw_path import DecodePathValues, route_on_raw_path
from modelyard_services.api.routes import Routes
from modelyard_services.api.service import Service
from modelyard_services.api.traces import Traces

CONTROLLERS = (
    Queries,
    NodeCommands,
    ModelCommands,
    ReplicaCommands,
    ConfigurationCommands,
    AccessCommands,
    History,
    PastStates,
    Explanations,
    Logs,
    Routes,
    openapi_document,
    Contracts,
)

BODY_BYTES_MAX = 1024 * 1024
"""A request to the control API; a spec of 64 KiB is the largest thing it takes."""


def build_app(
    service: Service, *, handlers: Sequence[ControllerRouterHandler] = (), gateway: ASGIApp | None = None
) -> ASGIApp:
    """The application over `service`; `gateway` serves `/v1`."""
    api = Router(
        path="/api/v1",
        route_handlers=[*CONTROLLERS, *handlers],
        middleware=[Traces(), Identify(), KnownParameters(), Freshness()],
    )
    app = Litestar(
        route_handlers=[api, healthz, _guarded(service, readyz), _guarded(service, metrics)],
        middleware=[DecodePathValues()],
        exception_handlers=problems.EXCEPTION_HANDLERS,
        state=State({"service": service}),
        request_max_body_size=BODY_BYTES_MAX,
        logging_config=None,
        openapi_config=OpenAPIConfig(
            title="modelyard",
            version="1",
            path="/api/v1/docs",
            render_plugins=[JsonRenderPlugin(path="/framework.json")],
        ),
    )
    return _beside(route_on_raw_path(app), gateway)


def _guarded(service: Service, handler: ControllerRouterHandler) -> Router:
    """`handler`, behind a token once anything listens beyond loopback."""
    middleware = [] if service.access.open_on_loopback else [Identify()]
    return Router(path="/", route_handlers=[handler], middleware=middleware)


def _beside(control: ASGIApp, gateway: ASGIApp | None) -> ASGIApp:
    async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
        if gateway is not None and scope["type"] == ScopeType.HTTP and scope["path"].startswith("/v1/"):
            await gateway(scope, receive, send)
        else:
            await control(scope, receive, send)

    return dispatch
