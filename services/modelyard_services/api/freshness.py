"""Every answer says which sequence it was read at; `?min_seq=` waits for one (DESIGN 4).

Invariant: a client that passes the sequence of its own command reads its own write, or is told `not_yet`.
"""

from typing import Final
from urllib.parse import parse_qs

from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from modelyard_services.api.service import MIN_SEQ_WAIT_SECONDS
from modelyard_services.effects.runtime import Runtime
from modelyard_services.errors import InvalidQueryError

SEQUENCE_HEADER: Final = b"modelyard-sequence"
LAG_HEADER: Final = b"modelyard-lag"
MIN_SEQ: Final = "min_seq"
"""The one query parameter that every route knows."""


class Freshness(ASGIMiddleware):
    """Waits for `min_seq`, then notes sequence and lag on the answer."""

    scopes = (ScopeType.HTTP,)

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        runtime: Runtime = scope["litestar_app"].state.service.runtime
        if wanted := _min_seq(scope["query_string"]):
            await runtime.journal.passed(wanted, timeout_seconds=MIN_SEQ_WAIT_SECONDS)

        async def send_with_sequence(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    (SEQUENCE_HEADER, str(runtime.fleet.sequence).encode()),
                    (LAG_HEADER, str(runtime.feed.lag).encode()),
                ]
            await send(message)

        await next_app(scope, receive, send_with_sequence)


def _min_seq(query: bytes) -> int | None:
    given = parse_qs(query.decode("latin-1")).get(MIN_SEQ, [""])[0]
    if given and not (given.isascii() and given.isdigit()):
        raise InvalidQueryError(f"min_seq: {given!r} is no sequence, a whole number", field=MIN_SEQ, value=given)
    return int(given) if given else None
