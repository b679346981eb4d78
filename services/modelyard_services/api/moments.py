"""What a query looks at: the fleet as it is, or as it was at `?at=` (rule H3).

Invariant: of the past only the log's own part is known. What telemetry said then (requests in flight, free memory as
measured, last uses) is null, never the figure of now.
"""

from datetime import datetime
from typing import Annotated, Final

import msgspec
from litestar.params import QueryParameter

from modelyard_events.envelope import instant
from modelyard_projections.demand import Demand
from modelyard_projections.fleet import Fleet
from modelyard_services.api.service import Service
from modelyard_services.effects.log.contract import Log
from modelyard_services.errors import InvalidQueryError, InvalidRequestError, UnavailableError
from modelyard_services.policy.readings import Readings
from modelyard_services.policy.searcher import PLAIN, Searcher

SEQUENCE_DIGITS_MAX: Final = 18
"""A longer number is no sequence of any log."""

At = Annotated[
    str | None,
    QueryParameter(
        name="at",
        description="As it was at this sequence or time (RFC 3339), else as it is now; telemetry is null then.",
    ),
]


class Moment(msgspec.Struct, frozen=True):
    """The fleet at a moment, and what telemetry says of it; `demand` is None in the past. Times are nanoseconds."""

    fleet: Fleet
    readings: Readings
    search: Searcher
    demand: Demand | None
    now_ns: int
    monotonic_ns: int


async def moment(service: Service, at: str | None, *, field: str = "at") -> Moment:
    """The moment that `at` names.

    Raises:
        InvalidQueryError: it isn't a moment, or hasn't come yet.
        NotYetError: it is a long way back, and not all of it is folded yet.
        OverloadedError: too many ask about the past already.
        UnavailableError: the log is away.
    """
    clock = service.runtime.clock
    if at is None:
        fleet = service.fleet
        now = service.readings(fleet)
        return Moment(fleet, now, service.search, service.runtime.demand, clock.now_ns(), clock.monotonic_ns())
    fleet = await _folded(service, at, field)
    return Moment(fleet, Readings(), PLAIN, None, fleet.time_ns, 0)


def time_of(fleet: Fleet) -> datetime | None:
    """When the log took the last event of `fleet`; None in an empty one."""
    return instant(fleet.time_ns) if fleet.sequence else None


async def _folded(service: Service, at: str, field: str) -> Fleet:
    log = open_log(service)
    try:
        if at.isascii() and at.isdigit():
            return await service.past.at_sequence(log, sequence_of(at, field=field))
        return await service.past.at_time(log, _time_ns(at), now_ns=service.runtime.clock.now_ns())
    except InvalidRequestError as error:
        raise InvalidQueryError(f"{field}: {error.detail}", field=field, value=at) from error


def open_log(service: Service) -> Log:
    """The log.

    Raises:
        UnavailableError: it is away.
    """
    if service.runtime.log is None:
        raise UnavailableError("the log is away: only what is now can be told", retry_after_seconds=2)
    return service.runtime.log


def sequence_of(given: str, *, field: str) -> int:
    """The sequence that a client wrote.

    Raises:
        InvalidRequestError: it isn't one.
    """
    if not (given.isascii() and given.isdigit()):
        raise InvalidRequestError(f"{given!r} isn't a sequence: a whole number", field=field, value=given)
    if len(given) > SEQUENCE_DIGITS_MAX:
        raise InvalidRequestError("no sequence is that long", field=field, value=given)
    return int(given)


def _time_ns(given: str) -> int:
    # A `+` in a query is a blank unless the client escapes it.
    text = given.strip().replace(" ", "+") if "T" in given else given
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidRequestError(f"{given!r} is neither a sequence nor a time like 2026-01-31T12:00:00Z") from None
    if found.tzinfo is None:
        raise InvalidRequestError("a time needs its zone, as in 2026-01-31T12:00:00Z")
    return round(found.timestamp() * 1e6) * 1_000
