"""The whole state at a moment, and what differs between two of them (rule H3).

Invariant: both are folded from the log by the one fold there is, and say which sequence they are of.
"""

from datetime import datetime
from typing import Annotated, Final

import msgspec
from litestar import Controller, get
from litestar.params import FromQuery, QueryParameter

from modelyard_projections.fleet import Fleet
from modelyard_projections.hashing import StateHash
from modelyard_services.api import views
from modelyard_services.api.access import requires
from modelyard_services.api.difference import Change, Kind, difference
from modelyard_services.api.moments import At, Moment, moment, time_of
from modelyard_services.api.queries import Cursor, Limit
from modelyard_services.api.service import PAGE_MAX, ApiRequest, page, service_of
from modelyard_services.errors import InvalidQueryError, PayloadTooLargeError

STATE_ENTITIES_MAX: Final = 10_000
"""In one answer: about 10 MB. More is asked for list by list, each with `?at=`."""

From = Annotated[str, QueryParameter(name="from", description="A sequence or a time (RFC 3339).")]
To = Annotated[str | None, QueryParameter(name="to", description="A sequence or a time (RFC 3339); now, if not given.")]


class StateView(msgspec.Struct, frozen=True):
    """Everything at `sequence`, whose event the log took at `time`; null in an empty log.

    Schedules are their models'. `hash` is the canonical one: equal for every replay of the same log.
    """

    sequence: int
    time: datetime | None
    hash: str
    settings: views.SettingsView
    nodes: list[views.NodeView]
    models: list[views.ModelView]
    replicas: list[views.ReplicaView]
    reservations: list[views.ReservationView]


class PointView(msgspec.Struct, frozen=True):
    sequence: int
    time: datetime | None


class DifferenceView(msgspec.Struct, frozen=True, rename={"since": "from", "until": "to"}):
    """What changed, by kind and name, between two points of the log."""

    since: PointView
    until: PointView
    items: list[Change]
    next: str | None
    sequence: int


class PastStates(Controller):
    """What was."""

    guards = [requires("viewer")]  # noqa: RUF012 - the framework reads it as a class attribute
    tags = ["history"]  # noqa: RUF012 - as above

    @get("/state", summary="Show the whole state at a moment")
    async def show_state(self, request: ApiRequest, at: At = None) -> StateView:
        """Nodes, models, replicas, reservations and settings, all of one moment."""
        seen = await moment(service_of(request), at)
        fleet = seen.fleet
        entities = len(fleet.nodes) + len(fleet.models) + len(fleet.replicas) + len(fleet.reservations)
        if entities > STATE_ENTITIES_MAX:
            raise PayloadTooLargeError(
                f"{entities} entities are more than the {STATE_ENTITIES_MAX} of one answer: ask for /nodes, /models, "
                "/replicas and /reservations with the same at",
                field="at",
                value=at,
            )
        return _state(seen)

    @get("/diff", summary="Compare two moments")
    async def show_difference(
        self,
        request: ApiRequest,
        *,
        since: From,
        until: To = None,
        kind: FromQuery[Kind | None] = None,
        limit: Limit = PAGE_MAX,
        after: Cursor = None,
    ) -> DifferenceView:
        """What was added, removed or changed from one to the other, each with its fields before and after."""
        service = service_of(request)
        before = (await moment(service, since, field="from")).fleet
        later = (await moment(service, until, field="to")).fleet
        if later.sequence < before.sequence:
            raise InvalidQueryError(
                f"to: it (sequence {later.sequence}) is before from (sequence {before.sequence})",
                field="to",
                value=until,
            )
        changes = [one for one in difference(before, later) if kind is None or one.kind == kind]
        taken, cursor = page(changes, _key, limit=limit, after=after)
        return DifferenceView(_point(before), _point(later), taken, cursor, later.sequence)


def _key(change: Change) -> str:
    return f"{change.kind}/{change.name}"


def _state(seen: Moment) -> StateView:
    fleet = seen.fleet
    monotonic_ns = seen.monotonic_ns
    return StateView(
        sequence=fleet.sequence,
        time=time_of(fleet),
        hash=StateHash.of(fleet).text,
        settings=views.settings_view(fleet),
        nodes=[
            views.node_view(
                fleet.nodes[name], fleet.settings, seen.demand, now_ns=seen.now_ns, monotonic_ns=monotonic_ns
            )
            for name in sorted(fleet.nodes)
        ],
        models=[views.model_view(fleet.models[name], fleet) for name in sorted(fleet.models)],
        replicas=[
            views.replica_view(fleet.replicas[identity], fleet, seen.demand, monotonic_ns=monotonic_ns)
            for identity in sorted(fleet.replicas)
        ],
        reservations=[views.reservation_view(fleet.reservations[identity]) for identity in sorted(fleet.reservations)],
    )


def _point(fleet: Fleet) -> PointView:
    return PointView(fleet.sequence, time_of(fleet))
