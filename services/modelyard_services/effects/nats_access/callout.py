"""The answer to every NATS server's question "who is this?".

Runs in the registrar; any number of registrars share the questions. Where none answers, a server refuses after its
time limit and the client tries again: nobody gets in unasked, and everybody gets in once a registrar is back.
Invariant: a connection gets the grant of the role that `verify` found for its name and password, or nothing.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg

from modelyard_services.effects.clock import Clock
from modelyard_services.effects.nats_access.claims import Question, granted, question_of, refused
from modelyard_services.effects.nats_access.keys import Issuer
from modelyard_services.effects.nats_access.roles import Role, grant_of

Verify = Callable[[str, str], Awaitable[Role | None]]
"""Name and password to role; None refuses."""

QUESTION_SUBJECT: Final = "$SYS.REQ.USER.AUTH"
"""Fixed by the server."""

VERIFY_SECONDS_MAX: Final = 2.0
"""Below the server's own limit of 4 s, so that a slow look-up is refused by us, with a reason in the log."""

QUESTIONS_MAX: Final = 256
"""Looked up at once; more wait their turn. A fleet that reconnects as one should not swamp what `verify` asks."""

_QUEUE: Final = "modelyard-callout"

_log = structlog.get_logger(__name__)


class AuthCallout:
    """`client` is connected as the user `callout`; `issuer` signs."""

    def __init__(self, client: Client, verify: Verify, *, issuer: Issuer, clock: Clock) -> None:
        self._client = client
        self._verify = verify
        self._issuer = issuer
        self._clock = clock
        self._turns = asyncio.Semaphore(QUESTIONS_MAX)
        self._answering: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Answer from now on, also after every reconnect of the client."""
        await self._client.subscribe(QUESTION_SUBJECT, queue=_QUEUE, cb=self._on_question)
        await self._client.flush()

    async def _on_question(self, message: Msg) -> None:
        # Here the subscription waits, not each look-up: one slow one must not hold up the rest.
        await self._turns.acquire()
        task = asyncio.create_task(self._respond(message), name="answer a callout")
        self._answering.add(task)
        task.add_done_callback(self._answered)

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._answering.discard(task)
        self._turns.release()
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("callout.failed", error=repr(error))

    async def _respond(self, message: Msg) -> None:
        try:
            question = question_of(message.data)
        except ValueError as error:
            _log.warning("callout.unreadable", error=str(error))
            return
        await message.respond(await self._answer(question))

    async def _answer(self, question: Question) -> bytes:
        issued_at = int(self._clock.now().timestamp())
        try:
            async with asyncio.timeout(VERIFY_SECONDS_MAX):
                role = await self._verify(question.user, question.password)
        except Exception as error:  # noqa: BLE001 - whatever keeps us from knowing must keep the client out
            _log.warning("callout.undecided", user=question.user, host=question.host, error=repr(error))
            return refused(question, reason="undecided, try again", issuer=self._issuer, issued_at=issued_at)
        if role is None:
            _log.info("callout.refused", user=question.user, host=question.host)
            return refused(question, reason="unknown name or token", issuer=self._issuer, issued_at=issued_at)
        return granted(question, grant_of(role), issuer=self._issuer, issued_at=issued_at)
