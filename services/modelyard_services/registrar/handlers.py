"""Workers' requests, answered: register, report, offer (rules N2-N4, N13, W1).

Invariant: every request gets an answer that a worker can act on, however malformed the request; what the answer says
was decided is in the log.
"""

import hashlib
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import msgspec
import nats.errors
import structlog

from modelyard_events.codec import EventTooLargeError
from modelyard_events.envelope import Actor, AnyEvent, Envelope
from modelyard_events.errors import InvalidValueError
from modelyard_events.ids import IncarnationId, NodeName, ReplicaId
from modelyard_events.requests import (
    FACTS_MAX,
    OFFER,
    PING,
    REGISTER,
    REPORT,
    Departing,
    Offer,
    Offered,
    Refused,
    Register,
    Registered,
    Report,
    Reported,
)
from modelyard_events.subjects import unescape_name, worker_subject
from modelyard_projections.fleet import Fleet
from modelyard_services.effects.journal import as_one_story
from modelyard_services.effects.runtime import Runtime
from modelyard_services.effects.tracing import Kind, span
from modelyard_services.errors import ModelyardError, NodeGoneError
from modelyard_services.policy.facts import Outcome, report, slices, speaker
from modelyard_services.policy.registration import challenged, register
from modelyard_services.policy.stories import as_it_occurred, of_its_replica
from modelyard_services.registrar.current import current

BODY_BYTES_MAX: Final = 1024 * 1024
"""A request's body: what NATS carries in one message, and a thousand facts with their last words."""

DIGEST_BYTES: Final = 8

OfferLog = Callable[[NodeName, int], Awaitable[None]]
"""Let the worker of a node pull its events after a sequence."""

Request = TypeVar("Request", Register, Report, Offer)

FOLD_SECONDS: Final = 1.0
"""What was registered is folded already, or the worker asks again: the commit has waited for it."""

_REGISTER: Final = msgspec.json.Decoder(Register)
_REPORT: Final = msgspec.json.Decoder(Report)
_OFFER: Final = msgspec.json.Decoder(Offer)
_log = structlog.get_logger(__name__)


class Command(msgspec.Struct, frozen=True):
    """What came in on a node's command subject: its token, its verb, a body not looked at yet, its trace."""

    node: str
    verb: str
    body: bytes
    trace: str | None = None


class Registrar:
    """Decides what workers ask, on the warm fold of `runtime`."""

    def __init__(self, runtime: Runtime, offer_log: OfferLog, *, auto_approve: bool) -> None:
        self._runtime = runtime
        self._offer_log = offer_log
        self._auto_approve = auto_approve

    async def answer(self, command: Command) -> bytes:
        """The reply to what a worker asks."""
        # Named for what it may be: whoever knocks can't fill a collector with names.
        verb = command.verb if command.verb in {REGISTER, REPORT, OFFER} else "unknown"
        with span(f"registrar {verb}", kind=Kind.SERVER, parent=command.trace) as work:
            work.note(node=command.node)
            answer = await self._answer(command.node, command.verb, command.body)
            if isinstance(answer, Refused):
                work.fail(answer.detail, code=answer.code)
            return msgspec.json.encode(answer)

    async def _answer(self, node: str, verb: str, body: bytes) -> Registered | Reported | Offered | Refused:
        try:
            return await self._dispatch(node, verb, body)
        except ModelyardError as error:
            _log.info("refused", node=node, verb=verb, code=error.code, reason=error.detail)
            return Refused(error.code, error.detail)
        except (msgspec.MsgspecError, InvalidValueError, EventTooLargeError) as error:
            _log.warning("request can't be read", node=node, verb=verb, problem=str(error))
            return Refused("invalid_request", str(error))
        except (nats.errors.Error, TimeoutError) as error:
            _log.warning("nats is away", node=node, verb=verb, problem=repr(error))
            return Refused("unavailable", f"NATS is away: {error}")

    async def _dispatch(self, node: str, verb: str, body: bytes) -> Registered | Reported | Offered:
        if len(body) > BODY_BYTES_MAX:
            raise InvalidValueError("body", f"{len(body)} bytes", f"is more than {BODY_BYTES_MAX} bytes")
        await current(self._runtime)
        if verb == REGISTER:
            return await self._register(_of(node, _REGISTER.decode(body)), body)
        if verb == REPORT:
            return await self._report(_of(node, _REPORT.decode(body)))
        if verb == OFFER:
            return await self._offer(_of(node, _OFFER.decode(body)))
        raise InvalidValueError("verb", verb, f"is none of {REGISTER}, {REPORT}, {OFFER}")

    async def _register(self, request: Register, body: bytes) -> Registered:
        held = challenged(self._fleet, request)
        silent = None if held is None or await self._lives(request.node, held) else held

        def decide(fleet: Fleet) -> list[AnyEvent]:
            return register(fleet, request, auto_approve=self._auto_approve, silent=silent)

        # With where the node stood: a worker that was lost may ask the very same again, and it means something new.
        position = self._fleet.node_sequence(request.node)
        command = f"register-{request.incarnation}-{_digest(request.node, body)}-{position}"
        committed = await self._runtime.journal.commit(self._envelope(request.node, command), decide, essential=True)
        await self._runtime.journal.passed(committed.sequence, timeout_seconds=FOLD_SECONDS)
        node = self._fleet.nodes.get(request.node)
        if node is None:
            raise NodeGoneError(f"node {request.node!r} was removed just now; register afresh")
        if committed.events:
            _log.info("registered", node=node.name, incarnation=request.incarnation, sequence=committed.sequence)
        # Its own node's last event, for it hears no others: the log's last one might never come to it.
        return Registered(node.admission, self._fleet.node_sequence(node.name), self._fleet.settings.heartbeat_seconds)

    async def _lives(self, node: NodeName, incarnation: IncarnationId) -> bool:
        """Only the incarnation that is asked for answers; its rival listens on the same subject."""
        asked, patience = incarnation.encode(), self._fleet.settings.ping_seconds
        answer = await self._runtime.bus.ask(worker_subject(node, PING), asked, timeout_seconds=patience)
        return answer == asked

    async def _report(self, told: Report) -> Reported:
        if len(told.facts) > FACTS_MAX:
            raise InvalidValueError("facts", len(told.facts), f"are more than {FACTS_MAX}")
        sequence, stale = self._fleet.sequence, dict[ReplicaId, str]()
        speaker(self._fleet, told.node, told.incarnation)
        for part in slices(told):
            sequence, late = await self._report_part(part)
            stale |= late
        return Reported(sequence, stale)

    async def _report_part(self, part: Report) -> tuple[int, dict[ReplicaId, str]]:
        outcome, times = Outcome((), {}), dict[int, int | None]()

        def decide(fleet: Fleet) -> tuple[AnyEvent, ...]:
            nonlocal outcome, times
            outcome = report(fleet, part)
            times = {id(event): at for event, at in zip(outcome.events, outcome.occurred_ns, strict=True)}
            return outcome.events

        # With what it says: a worker that got no answer sends the number again with the facts that came since.
        digest = _digest(part.node, msgspec.json.encode(part.facts))
        command = f"report-{part.incarnation}-{part.report}-{digest}"
        envelope = self._envelope(part.node, command)
        # A report may hold facts of many replicas. They are appended together, for the order in which they happened
        # and for speed, but each event joins the story of its own replica; a departure is one story for all of them.
        departs = any(isinstance(fact, Departing) for fact in part.facts)
        story = as_one_story if departs else of_its_replica

        def attribute(fleet: Fleet, event: AnyEvent, envelope: Envelope) -> Envelope:
            return as_it_occurred(times[id(event)], story(fleet, event, envelope))

        committed = await self._runtime.journal.commit(envelope, decide, essential=True, attribute=attribute)
        return committed.sequence, outcome.stale

    async def _offer(self, request: Offer) -> Offered:
        speaker(self._fleet, request.node, request.incarnation)
        await self._offer_log(request.node, request.after)
        return Offered()

    @property
    def _fleet(self) -> Fleet:
        return self._runtime.journal.fleet

    def _envelope(self, node: NodeName, command: str) -> Envelope:
        return self._runtime.envelope(Actor("worker", node), command=command)


def _of(token: str, request: Request) -> Request:
    """A worker may write to its own subject only, so the node in the body must be the subject's."""
    if unescape_name(token) != request.node:
        raise InvalidValueError("node", request.node, f"is not {unescape_name(token)}, the subject's node")
    return request


def _digest(node: NodeName, data: bytes) -> str:
    return hashlib.blake2b(node.encode() + b"\0" + data, digest_size=DIGEST_BYTES).hexdigest()
