"""The OpenAI-compatible gateway: `/v1/*` as one plain ASGI application on a router in process.

```
request ─▶ body, model ─▶ route ─▶ replica ─▶ head ─▶ chunk, chunk … ─▶ lease released
                            ▲  └ can't be reached: that replica is out, the next is tried
```

Invariant: a lease lives exactly as long as its request, however that ends; an answer is streamed as it arrives,
and once its first byte is out, no other replica is tried.
"""

from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import quote, unquote

import msgspec
import structlog

from modelyard_events.envelope import Actor
from modelyard_projections.fleet import ModelState
from modelyard_services.effects.tracing import Kind, Span, request_span, span
from modelyard_services.effects.upstream import Connection, Pool, UpstreamError
from modelyard_services.errors import (
    BusyTimeoutError,
    ModelUnknownError,
    ModelyardError,
    NotFoundError,
    OverloadedError,
    ReplicaFailedError,
)
from modelyard_services.gateway import metrics
from modelyard_services.gateway.envelope import envelope, refusal
from modelyard_services.gateway.request import (
    HOP_BY_HOP,
    Asked,
    ClientGoneError,
    Outgoing,
    RawHeaders,
    Receive,
    Scope,
    Send,
    asked_of,
    hint_of,
    read_body,
    renamed,
)
from modelyard_services.gateway.watch import Watch
from modelyard_services.policy.affinity import Hint
from modelyard_services.policy.limits import busy_timeout_on
from modelyard_services.router.leases import Lease
from modelyard_services.router.loading import Caller
from modelyard_services.router.router import Ask, Router

ATTEMPTS_MAX: Final = 3
"""Replicas tried for one request: a request that kills what it touches must not kill a whole model."""

FORWARDED: Final = frozenset({"/v1/embeddings", "/v1/completions", "/v1/chat/completions"})
_MODELS: Final = "/v1/models"
_EVENT_STREAM: Final = b"text/event-stream"

Authenticate = Callable[[Mapping[str, str]], Actor]
"""The actor behind a request's headers (names in lower case); raises `UnauthorizedError` or `ForbiddenError`."""

_log = structlog.get_logger(__name__)


class Answer(msgspec.Struct, frozen=True):
    """A replica's answer whose head is known. `replica_ns` is the time the replica took for that."""

    lease: Lease
    connection: Connection
    replica_ns: int


class Request(msgspec.Struct, frozen=True):
    """A request as ASGI gives it."""

    scope: Scope
    receive: Receive
    send: Send


class Reply(msgspec.Struct, frozen=True):
    """Where an answer goes, and when its request came."""

    at_ns: int
    send: Send


class Gateway:
    """The ASGI application. Without `authenticate` anybody may ask: for loopback only."""

    def __init__(
        self,
        router: Router,
        pool: Pool,
        *,
        authenticate: Authenticate | None = None,
        wait_seconds: float | None = None,
    ) -> None:
        self._router = router
        self._pool = pool
        self._authenticate = authenticate
        self._wait_seconds = wait_seconds
        self._clock = router.runtime.clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            raise RuntimeError(f"the gateway serves HTTP, not {scope['type']}")
        at_ns = self._clock.monotonic_ns()
        with request_span(_name(scope), _header(scope, b"traceparent")) as work:
            await self._serve(Request(scope, receive, send), at_ns, work)

    async def _serve(self, request: Request, at_ns: int, work: Span) -> None:
        scope, receive, send = request.scope, request.receive, request.send
        metrics.begun()
        model, outcome = metrics.UNKNOWN_MODEL, metrics.BROKEN
        try:
            self._router.runtime.require_caught_up()
            caller = Caller(self._actor(scope), work.traceparent)
            if scope["method"] == "POST" and scope["path"] in FORWARDED:
                body = await read_body(receive)
                asked, fleet = asked_of(body), self._router.runtime.fleet
                meant = fleet.model_named(asked.model)
                model = meant if meant in fleet.models else model
                ask = Ask(self._wait_seconds, caller=caller, hint=self._hint(meant, asked, scope))
                outgoing = Outgoing(scope, body if meant == asked.model else renamed(body, meant))
                with Watch(receive) as watch:
                    outcome = await self._forward(meant, outgoing, ask, Reply(at_ns, send))
                outcome = metrics.DISCONNECTED if watch.gone else outcome
            else:
                outcome = await self._answer_itself(scope, send)
        except ModelyardError as error:
            outcome = await refuse(send, error)
            work.fail(error.detail, code=error.code)
        except ClientGoneError:
            outcome = metrics.DISCONNECTED
        finally:
            metrics.ended(model, outcome)
            work.note(model=model, outcome=outcome)

    def _actor(self, scope: Scope) -> Actor:
        if self._authenticate is None:
            return Actor("client", "anonymous")
        return self._authenticate(headers_of(scope))

    # Requests for a replica.

    def _hint(self, model: str, asked: Asked, scope: Scope) -> Hint | None:
        """What the request says of itself, where the schedule of `model` asks for it."""
        return None if self._router.affinity(model) == "none" else hint_of(asked, scope["headers"])

    async def _forward(self, model: str, outgoing: Outgoing, ask: Ask, reply: Reply) -> str:
        answer = await self._ask(model, outgoing, ask)
        try:
            overhead_ns = self._clock.monotonic_ns() - reply.at_ns - answer.replica_ns
            metrics.added(overhead_ns / 1e9)
            return await self._stream(answer, overhead_ns, reply.send)
        finally:
            self._pool.done(answer.connection)
            self._router.release(answer.lease.lease)

    async def _ask(self, model: str, outgoing: Outgoing, ask: Ask) -> Answer:
        problem = ""
        for _attempt in range(ATTEMPTS_MAX):
            lease = await self._lease(model, ask, problem)
            begun_ns = self._clock.monotonic_ns()
            try:
                connection = await self._send(lease, outgoing, ask.caller)
            except UpstreamError as error:
                self._router.release(lease.lease)
                problem = self._judge(lease, error)
                ask = msgspec.structs.replace(ask, avoid=ask.avoid | {lease.replica})
            except BaseException:
                self._router.release(lease.lease)
                raise
            else:
                return Answer(lease, connection, self._clock.monotonic_ns() - begun_ns)
        raise ReplicaFailedError(f"{ATTEMPTS_MAX} replicas of {model!r} failed this request, the last: {problem}")

    async def _lease(self, model: str, ask: Ask, problem: str) -> Lease:
        try:
            return await self._router.route(model, ask)
        except ReplicaFailedError as error:
            if problem:
                raise ReplicaFailedError(
                    f"{error.detail} ({problem})", retry_after_seconds=error.retry_after_seconds, extra=error.extra
                ) from error
            raise

    async def _send(self, lease: Lease, outgoing: Outgoing, caller: Caller | None) -> Connection:
        """The replica's answer, its head read."""
        with span("upstream", kind=Kind.CLIENT) as work:
            work.note(replica=lease.replica, node=lease.node, address=lease.address)
            trace = work.traceparent or (caller.trace if caller else None) or ""
            connection = await self._pool.send(lease.address, outgoing.to(lease.address, traceparent=trace))
            work.note(status=connection.status)
            return connection

    def _judge(self, lease: Lease, error: UpstreamError) -> str:
        """The problem, if the next replica may be tried; raises if not."""
        if error.kind == "full":
            raise OverloadedError(error.detail, retry_after_seconds=1) from error
        if error.began or error.kind in {"silent", "garbled"}:
            # It answered, or it may still be at work: another try would do the work twice.
            raise ReplicaFailedError(f"replica {lease.replica} on {lease.node}: {error.detail}") from error
        self._router.failed(lease, error.detail)
        self._refuse_another_turn(lease, error)
        return error.detail

    def _refuse_another_turn(self, lease: Lease, error: UpstreamError) -> None:
        """What kept one replica for as long as a request may isn't let loose on the next (C8)."""
        limit = busy_timeout_on(self._router.runtime.fleet, model=lease.model, node=lease.node)
        held_seconds = (self._clock.now_ns() - lease.granted_ns) / 1e9
        if limit.seconds and held_seconds >= limit.seconds:
            raise BusyTimeoutError(
                f"replica {lease.replica} on {lease.node}: {error.detail}, after {held_seconds:.0f} s of this request; "
                f"busy_timeout_seconds of the {limit.setter} is {limit.seconds:g}"
            ) from error

    async def _stream(self, answer: Answer, overhead_ns: int, send: Send) -> str:
        connection, lease = answer.connection, answer.lease
        headers = [header for header in connection.headers if header[0] not in HOP_BY_HOP]
        headers += _our_headers(lease, overhead_ns)
        await send({"type": "http.response.start", "status": connection.status, "headers": headers})
        try:
            while True:
                chunk = await connection.read()
                last = connection.complete
                await send({"type": "http.response.body", "body": chunk, "more_body": not last})
                if last:
                    return str(connection.status)
        except UpstreamError as error:
            self._router.failed(lease, error.detail)
            return await _break_off(lease, connection, error, send)

    # Questions about models.

    async def _answer_itself(self, scope: Scope, send: Send) -> str:
        path = (scope.get("raw_path") or scope["path"].encode()).decode("latin-1")
        if scope["method"] in {"GET", "HEAD"} and path == _MODELS:
            fleet = self._router.runtime.fleet
            names = sorted({*(name for name, state in fleet.models.items() if state.spec), *fleet.aliases})
            listed = [_model(name, fleet.models[fleet.model_named(name)]) for name in names]
            return await _answer_json(send, {"object": "list", "data": listed})
        if scope["method"] in {"GET", "HEAD"} and path.startswith(_MODELS + "/"):
            name, fleet = unquote(path.removeprefix(_MODELS + "/")), self._router.runtime.fleet
            meant = fleet.model_named(name)
            state = fleet.models.get(meant)
            if state is None or state.spec is None:
                raise ModelUnknownError(f"there is no model {name!r}", field="model")
            return await _answer_json(send, _model(name, state))
        raise NotFoundError(f"there is no {scope['method']} {path} here")


def _our_headers(lease: Lease, overhead_ns: int) -> RawHeaders:
    node = lease.node if lease.node.isascii() else quote(lease.node)
    return [
        (b"x-modelyard-node", node.encode()),
        (b"x-modelyard-replica", lease.replica.encode()),
        (b"x-modelyard-lease", lease.lease.encode()),
        (b"x-modelyard-choice", lease.choice.rule.encode()),
        (b"x-modelyard-overhead-ms", b"%.3f" % (overhead_ns / 1e6)),
    ]


async def _break_off(lease: Lease, connection: Connection, error: UpstreamError, send: Send) -> str:
    """Tell the client of a stream why it ends; the connection is then closed, for the answer isn't whole."""
    _log.warning("answer broke off", replica=lease.replica, node=lease.node, problem=error.detail)
    if any(name == b"content-type" and value.startswith(_EVENT_STREAM) for name, value in connection.headers):
        why = ReplicaFailedError(f"replica {lease.replica} on {lease.node}: {error.detail}")
        event = b"data: " + envelope(why) + b"\n\n"
        await send({"type": "http.response.body", "body": event, "more_body": True})
    return metrics.BROKEN


def headers_of(scope: Scope) -> dict[str, str]:
    """A request's headers, names in lower case."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


async def refuse(send: Send, error: ModelyardError) -> str:
    """Answer with `error`; its status as text."""
    status, headers, body = refusal(error)
    await _answer(send, status, headers, body)
    return str(status)


async def _answer_json(send: Send, content: object) -> str:
    body = msgspec.json.encode(content)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await _answer(send, 200, headers, body)
    return "200"


async def _answer(send: Send, status: int, headers: RawHeaders, body: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _model(name: str, state: ModelState) -> dict[str, object]:
    """An entry of the list; an alias names the model it stands for as its root."""
    created = (state.defined_ns or 0) // 1_000_000_000
    return {"id": name, "object": "model", "created": created, "owned_by": "modelyard", "root": state.name}


def _name(scope: Scope) -> str:
    """Of its span: few, whatever paths clients come up with."""
    path = scope["path"] if scope["path"] in FORWARDED else _MODELS
    return f"{scope['method']} {path}"


def _header(scope: Scope, wanted: bytes) -> str | None:
    headers: RawHeaders = scope["headers"]
    return next((value.decode("latin-1") for name, value in headers if name == wanted), None)
