"""Leases in foreign hands: a route for callers that talk to the replica themselves (rule T2).

Invariant: what is handed out here expires unless it is renewed, so a caller that dies holds nothing for long.
"""

from datetime import datetime

import msgspec
from litestar import Controller, delete, post
from litestar.params import FromPath, JSONBody

from modelyard_events.envelope import instant
from modelyard_services.api.access import requires
from modelyard_services.api.service import ApiRequest, Service, service_of, trace_of
from modelyard_services.errors import InvalidRequestError, NotFoundError, UnavailableError
from modelyard_services.policy.affinity import hint_for
from modelyard_services.policy.routing import Choice
from modelyard_services.router.leases import Lease
from modelyard_services.router.loading import Caller
from modelyard_services.router.router import Ask, Router
from modelyard_services.settings import WAIT_SECONDS


class RouteBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which model; `wait_seconds` is how long to wait for a cold one, at most 60, or as the router is set up.

    `session` and `prompt_prefix` say what belongs together, where the model's schedule asks for it (T3).
    """

    model: str
    wait_seconds: float | None = None
    session: str | None = None
    prompt_prefix: str | None = None


class LeaseView(msgspec.Struct, frozen=True):
    """Send the request to `address`, then release the lease; `choice` says why it is this replica."""

    lease: str
    node: str
    model: str
    replica: str
    replica_index: int
    address: str
    revision: str
    expires_at: datetime | None
    choice: Choice


class Released(msgspec.Struct, frozen=True):
    released: bool


class Routes(Controller):
    """Leases for callers that talk to replicas themselves."""

    guards = [requires("operator")]  # noqa: RUF012 - the framework reads it as a class attribute
    tags = ["routes"]  # noqa: RUF012 - as above
    path = "/routes"

    @post("/", status_code=201, summary="Route a request")
    async def route(self, request: ApiRequest, data: JSONBody[RouteBody]) -> LeaseView:
        """A lease on the best replica; a cold model is loaded and waited for (T1, T5)."""
        service = service_of(request)
        router = _router(service)
        most = max(WAIT_SECONDS, router.settings.wait_seconds)
        if data.wait_seconds is not None and not 0 <= data.wait_seconds <= most:
            raise InvalidRequestError(f"wait_seconds is 0 to {most:g}", field="wait_seconds", value=data.wait_seconds)
        caller = Caller(actor=request.auth.actor, trace=trace_of(request))
        hint = hint_for(data.session, data.prompt_prefix)
        ask = Ask(data.wait_seconds, lease_seconds=service.fleet.settings.lease_seconds, caller=caller, hint=hint)
        return _view(await router.route(data.model, ask))

    @post("/{lease:str}", status_code=200, summary="Renew a lease")
    async def renew(self, request: ApiRequest, lease: FromPath[str]) -> LeaseView:
        """The lease lives on for its whole time again."""
        renewed = _router(service_of(request)).renew(lease)
        if renewed is None:
            raise _unknown(lease)
        return _view(renewed)

    @delete("/{lease:str}", status_code=200, summary="Release a lease")
    async def release(self, request: ApiRequest, lease: FromPath[str]) -> Released:
        """The request is over."""
        if not _router(service_of(request)).release(lease):
            raise _unknown(lease)
        return Released(released=True)


def _router(service: Service) -> Router:
    if service.router is None:
        raise UnavailableError("this process routes nothing")
    return service.router


def _view(lease: Lease) -> LeaseView:
    expires = None if lease.expires_at_ns is None else instant(lease.expires_at_ns)
    return LeaseView(
        lease.lease,
        lease.node,
        lease.model,
        lease.replica,
        lease.replica_index,
        lease.address,
        lease.revision,
        expires,
        lease.choice,
    )


def _unknown(lease: str) -> NotFoundError:
    return NotFoundError(
        f"there is no lease {lease!r} here: it was released, expired, or is another router's", field="lease"
    )
