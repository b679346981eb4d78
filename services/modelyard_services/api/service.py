"""What the API's handlers share: the runtime, who may ask, and how a command is committed and answered.

Invariant: every command carries its actor, its idempotency and its `If-Match` into the decision itself, so that
none of them can be overtaken between the check and the append.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import msgspec
from litestar import Request
from litestar.datastructures import State

from modelyard_events.envelope import AnyEvent, Envelope
from modelyard_events.ids import NodeName
from modelyard_projections.fleet import Fleet, ModelState, NodeState
from modelyard_projections.homes import Homes
from modelyard_services.api.traces import TRACE_KEY
from modelyard_services.effects.database import Database
from modelyard_services.effects.journal import Committed
from modelyard_services.effects.past import Past
from modelyard_services.effects.runtime import Runtime
from modelyard_services.errors import (
    InvalidRequestError,
    ModelUnknownError,
    NotFoundError,
    PreconditionError,
)
from modelyard_services.policy.access import Access, Identity
from modelyard_services.policy.readings import Readings, read
from modelyard_services.policy.searcher import PLAIN, Searcher
from modelyard_services.router.router import Router

ApiRequest = Request[Any, Identity, State]
Decide = Callable[[Fleet], Sequence[AnyEvent]]
SequenceOf = Callable[[Fleet], int]
Item = TypeVar("Item")

MIN_SEQ_WAIT_SECONDS: Final = 2.0
"""How long a read waits for `?min_seq=` before it answers `not_yet`."""

PAGE_MAX: Final = 1_000
"""Items in one list answer."""

IDEMPOTENCY_KEY_MAX: Final = 255


def node_in(fleet: Fleet, name: str) -> NodeState:
    """The node `name` of `fleet`.

    Raises:
        NotFoundError: there is none.
    """
    found = fleet.nodes.get(NodeName(name))
    if found is None:
        raise NotFoundError(f"there is no node {name!r}", field="node", value=name)
    return found


def model_in(fleet: Fleet, name: str) -> ModelState:
    """The model of that name or alias, defined or only scheduled or still running.

    Raises:
        ModelUnknownError: there is none.
    """
    found = fleet.models.get(fleet.model_named(name))
    if found is None:
        raise ModelUnknownError(f"there is no model {name!r}", field="model", value=name)
    return found


class Service(msgspec.Struct, frozen=True):
    """The API's shared parts."""

    runtime: Runtime
    access: Access
    router: Router | None = None
    database: Database | None = None
    search: Searcher = PLAIN
    homes: Homes = msgspec.field(default_factory=Homes)
    past: Past = msgspec.field(default_factory=Past)

    @property
    def fleet(self) -> Fleet:
        return self.runtime.fleet

    def readings(self, fleet: Fleet) -> Readings:
        """What telemetry says at this moment, for a decision on `fleet`."""
        if self.router is not None:
            return self.router.readings(fleet)
        runtime = self.runtime
        return read(
            fleet, runtime.demand, heard_ns=runtime.clock.monotonic_ns(), connected_ns=runtime.connected_since_ns
        )

    def node(self, name: str) -> NodeState:
        """The node `name`.

        Raises:
            NotFoundError: there is none.
        """
        return node_in(self.fleet, name)

    def model(self, name: str) -> ModelState:
        """The model of that name or alias, defined or only scheduled or still running.

        Raises:
            ModelUnknownError: there is none.
        """
        return model_in(self.fleet, name)

    async def commit(
        self, request: ApiRequest, decide: Decide, *, matches: SequenceOf | None = None, command: str | None = None
    ) -> Committed:
        """Commit `decide` in the caller's name; `matches` gives the sequence that `If-Match` is held against.

        Raises:
            ModelyardError: as the decision and the journal do.
        """
        expected = _if_match(request.headers)
        body = await request.body()
        envelope = self._envelope(request, body, command)

        def checked(fleet: Fleet) -> Sequence[AnyEvent]:
            if expected is not None and matches is not None and matches(fleet) != expected:
                raise PreconditionError(
                    f"it stands at sequence {matches(fleet)} now, not at {expected}; read it again",
                    field="If-Match",
                    value=expected,
                )
            return decide(fleet)

        return await self.runtime.journal.commit(envelope, checked)

    def command_id(self, request: ApiRequest) -> str:
        """The command id of this request: derived from its Idempotency-Key, else random.

        Raises:
            InvalidRequestError: the key is too long.
        """
        key = request.headers.get("idempotency-key")
        if key is None:
            return self.runtime.ids.new("c")
        if not 0 < len(key) <= IDEMPOTENCY_KEY_MAX:
            raise InvalidRequestError(
                f"an Idempotency-Key has 1 to {IDEMPOTENCY_KEY_MAX} characters", field="Idempotency-Key", value=key[:40]
            )
        scope = "\x00".join((request.auth.actor.name, request.method, request.scope["path"], key))
        return "k-" + hashlib.sha256(scope.encode()).hexdigest()[:32]

    def _envelope(self, request: ApiRequest, body: bytes, command: str | None) -> Envelope:
        keyed = "idempotency-key" in request.headers
        return self.runtime.envelope(
            request.auth.actor,
            command=command or self.command_id(request),
            trace=trace_of(request),
            request_digest=hashlib.sha256(body).hexdigest() if keyed else None,
        )


class CommandView(msgspec.Struct, frozen=True):
    """The answer to a command: the sequence to read at, whether anything changed, what to watch out for."""

    sequence: int
    changed: bool = True
    warnings: tuple[str, ...] = ()


def answer(committed: Committed, *warnings: str) -> CommandView:
    """The plain answer to a committed command."""
    return CommandView(committed.sequence, bool(committed.events) or committed.repeated, warnings)


def trace_of(request: ApiRequest) -> str | None:
    """The traceparent that what this request causes bears."""
    trace: str | None = request.scope["state"].get(TRACE_KEY)
    return trace


def service_of(request: ApiRequest) -> Service:
    """The service behind `request`."""
    service: Service = request.app.state.service
    return service


def page(
    items: Sequence[Item], key: Callable[[Item], str], *, limit: int, after: str | None
) -> tuple[list[Item], str | None]:
    """One page of `items` sorted by `key`, beginning after `after`, and the cursor of the next page."""
    ordered = sorted((item for item in items if after is None or key(item) > after), key=key)
    taken = ordered[:limit]
    return taken, key(taken[-1]) if len(ordered) > limit else None


def _if_match(headers: Mapping[str, str]) -> int | None:
    given = headers.get("if-match")
    if given is None or given.strip() == "*":
        return None
    text = given.strip().removeprefix("W/").strip('"')
    if not text.isdigit():
        raise InvalidRequestError('If-Match holds a sequence in quotes, as in "42"', field="If-Match", value=given)
    return int(text)
