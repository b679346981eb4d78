"""gRPC `modelyard.v1.Scheduler` on a router: leases for callers elsewhere, changes for those who watch.

Invariant: a lease handed out here expires unless renewed, for nothing tells when its holder dies (rule T2).
"""

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import grpc.aio

from modelyard_events.envelope import Recorded, instant
from modelyard_events.fleet import Role
from modelyard_events.ids import ModelName
from modelyard_services.effects.feed import recorded_after
from modelyard_services.effects.tracing import request_span
from modelyard_services.errors import (
    InvalidRequestError,
    ModelyardError,
    NotFoundError,
    OverloadedError,
    UnavailableError,
)
from modelyard_services.policy.access import Access
from modelyard_services.policy.affinity import hint_for
from modelyard_services.router import leases
from modelyard_services.router.changes import changes_of, timestamp
from modelyard_services.router.failures import failure
from modelyard_services.router.loading import Caller
from modelyard_services.router.proto.modelyard.v1 import scheduler_pb2 as pb
from modelyard_services.router.proto.modelyard.v1.scheduler_pb2_grpc import SchedulerServicer
from modelyard_services.router.router import Ask, Router

WATCHERS_MAX: Final = 128
"""Each reads the log on a connection of its own."""

WAIT_SECONDS_MAX: Final = 600.0

FOLD_SECONDS_MAX: Final = 30.0
"""How far our own fold may be behind a watcher's reader of the same log."""

Context = grpc.aio.ServicerContext[Any, Any]


class Scheduler(SchedulerServicer):
    """The service. Leases need the operator's role, as over HTTP; watching needs the viewer's."""

    def __init__(self, router: Router, access: Access) -> None:
        self._router = router
        self._access = access
        self._watchers = 0

    async def Route(self, request: pb.RouteRequest, context: Context) -> pb.Lease:  # noqa: N802 - gRPC's
        async with _told(context):
            caller = self._caller(context, "operator")
            wait_seconds = request.wait_seconds if request.HasField("wait_seconds") else None
            if not request.model:
                raise InvalidRequestError("a route needs a model", field="model")
            if wait_seconds is not None and not 0 <= wait_seconds <= WAIT_SECONDS_MAX:
                raise InvalidRequestError(
                    f"waits lie in 0 … {WAIT_SECONDS_MAX:g} s", field="wait_seconds", value=wait_seconds
                )
            with request_span("modelyard.v1.Scheduler/Route", caller.trace) as work:
                traced = Caller(caller.actor, work.traceparent)
                hint = hint_for(request.session, request.prompt_prefix)
                seconds = self._router.runtime.fleet.settings.lease_seconds
                ask = Ask(wait_seconds, lease_seconds=seconds, caller=traced, hint=hint)
                return _lease(await self._router.route(request.model, ask))
        raise AssertionError("an error ends the call")

    async def Release(self, request: pb.ReleaseRequest, context: Context) -> pb.ReleaseResponse:  # noqa: N802
        async with _told(context):
            self._caller(context, "operator")
            return pb.ReleaseResponse(released=self._router.release(request.lease))
        raise AssertionError("an error ends the call")

    async def Renew(self, request: pb.RenewRequest, context: Context) -> pb.Lease:  # noqa: N802
        async with _told(context):
            self._caller(context, "operator")
            renewed = self._router.renew(request.lease)
            if renewed is None:
                raise NotFoundError(f"this router holds no lease {request.lease!r} (any more)", field="lease")
            return _lease(renewed)
        raise AssertionError("an error ends the call")

    async def Watch(self, request: pb.WatchRequest, context: Context) -> AsyncIterator[pb.Change]:  # noqa: N802
        async with _told(context):
            self._caller(context, "viewer")
            with self._watcher():
                log = self._router.runtime.log
                if log is None:
                    raise UnavailableError("the log is away", retry_after_seconds=2)
                after = request.after if request.HasField("after") else self._router.runtime.fleet.sequence
                async for recorded in recorded_after(log, after):
                    for change in await self._changes(recorded, self._meant(request.model)):
                        yield change

    async def _changes(self, recorded: Recorded, model: ModelName | None) -> list[pb.Change]:
        # Homes are as old as the fold, a moment behind the log.
        await self._router.runtime.feed.passed(recorded.sequence, timeout_seconds=FOLD_SECONDS_MAX)
        return changes_of(recorded, self._router.homes, model=model)

    def _meant(self, name: str) -> ModelName | None:
        return self._router.runtime.fleet.model_named(name) if name else None

    @contextlib.contextmanager
    def _watcher(self) -> Iterator[None]:
        if self._watchers >= WATCHERS_MAX:
            raise OverloadedError(f"{WATCHERS_MAX} watch already", retry_after_seconds=5)
        self._watchers += 1
        try:
            yield
        finally:
            self._watchers -= 1

    def _caller(self, context: Context, role: Role) -> Caller:
        # Before that no token is known, and whoever needs one would be let in or turned away for good.
        self._router.runtime.require_caught_up()
        metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        identity = self._access.identify(metadata)
        identity.require(role)
        return Caller(identity.actor, metadata.get("traceparent"))


@contextlib.asynccontextmanager
async def _told(context: Context) -> AsyncIterator[None]:
    """Turns a known error into the call's status."""
    try:
        yield
    except ModelyardError as error:
        status, detail, trailing = failure(error)
        await context.abort(status, detail, trailing)


def _lease(lease: leases.Lease) -> pb.Lease:
    expires_at = None if lease.expires_at_ns is None else timestamp(instant(lease.expires_at_ns))
    return pb.Lease(
        lease=lease.lease,
        node=lease.node,
        model=lease.model,
        replica=lease.replica,
        replica_index=lease.replica_index,
        address=lease.address,
        revision=lease.revision,
        expires_at=expires_at,
        choice=pb.Choice(rule=lease.choice.rule, why=lease.choice.why),
    )
