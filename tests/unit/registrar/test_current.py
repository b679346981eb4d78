"""What a registrar answers while its fold is behind the log, or the log is away (rules W1, W8)."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

import msgspec
import pytest

from modelyard_events.codec import encode, subject_of
from modelyard_events.envelope import Actor, AnyEvent, Envelope
from modelyard_events.fleet import FleetRegistrationTokenCreated, FleetRegistrationTokenRevoked, FleetTokenCreated
from modelyard_events.ids import CommandId, NodeName, ReplicaId
from modelyard_events.requests import LoadStarted, Refused, Report, Reported
from modelyard_events.subjects import escape_name
from modelyard_services.effects.bus import MemoryBus
from modelyard_services.effects.log.contract import LogUnavailable, Message, Stored
from modelyard_services.effects.log.memory import MemoryLog
from modelyard_services.effects.nats_access.roles import Reader, Worker
from modelyard_services.effects.runtime import Runtime, in_memory
from modelyard_services.errors import NotYetError, UnavailableError
from modelyard_services.policy.tokens import digest_of
from modelyard_services.registrar import current
from modelyard_services.registrar.access import Access
from modelyard_services.registrar.handlers import Command, Registrar
from tests.support.given import (
    a_model,
    a_placed_replica,
    an_approved_node,
    given,
    incarnation_of,
    some_process,
)

N1 = NodeName("n1")
TOKEN = "join me"  # noqa: S105 - of this test's own log
JOIN = FleetRegistrationTokenCreated(name="default", digest=digest_of(TOKEN))
REPORT = Report(N1, incarnation_of(N1), 1, (LoadStarted(ReplicaId("r-1"), some_process()),))


class SlowLog(MemoryLog):
    """A log that followers hear of late; it can be away."""

    delay_seconds = 0.2
    away = False

    async def follow(self, *, after: int, subject: str | None = None) -> AsyncGenerator[list[Stored], None]:
        async for chunk in super().follow(after=after, subject=subject):
            await asyncio.sleep(self.delay_seconds)
            yield chunk

    async def last_sequence(self) -> int:
        if self.away:
            raise LogUnavailable("nobody leads", nothing_written=True)
        return await super().last_sequence()

    async def write(self, *events: AnyEvent) -> None:
        """Append as another process would, each event alone."""
        before = await super().last_sequence()
        envelope = Envelope(Actor("system", "another"), CommandId(f"c-{before}"), "test")
        for position, event in enumerate(events):
            subject = subject_of(event)
            body, guard = encode(event, envelope), self._last.get(subject, 0)
            await self.append([Message(subject, envelope.event_id(position), body, guard)])


@pytest.fixture
def log() -> SlowLog:
    return SlowLog()


@pytest.fixture
async def runtime(log: SlowLog) -> AsyncIterator[Runtime]:
    async with in_memory("registrar", log, MemoryBus()) as runtime:
        await runtime.wait_ready(timeout_seconds=1)
        yield runtime


async def asked(runtime: Runtime, report: Report = REPORT) -> Reported | Refused:
    async def offer(_node: NodeName, _after: int) -> None:
        raise AssertionError("not asked for")

    registrar = Registrar(runtime, offer, auto_approve=False)
    body = await registrar.answer(Command(escape_name(N1), "report", msgspec.json.encode(report)))
    return msgspec.json.decode(body, type=Reported | Refused)


def history() -> Sequence[AnyEvent]:
    events = [*an_approved_node(N1), *a_model(), *a_placed_replica()]
    assert given(*events).fleet.replicas
    return events


async def test_a_worker_that_is_ahead_of_the_registrar_is_not_told_that_it_is_gone(
    log: SlowLog, runtime: Runtime
) -> None:
    """W1: it reads its events itself, and reports before this fold has them."""
    await log.write(*history())
    assert await asked(runtime) == Reported(len(history()) + 1)


async def test_a_new_token_opens_at_once_and_a_revoked_one_no_more(log: SlowLog, runtime: Runtime) -> None:
    """N4."""
    access = Access(runtime)
    await log.write(JOIN, FleetTokenCreated(name="billing", role="viewer", digest=digest_of("read me")))
    assert await access.verify(N1, TOKEN) == Worker(N1)
    assert await access.verify("billing", "read me") == Reader("billing")
    assert await access.verify("no node", TOKEN) is None
    await log.write(FleetRegistrationTokenRevoked(name="default"))
    assert await access.verify(N1, TOKEN) is None


async def test_a_fold_that_stays_behind_is_no_ground_for_an_answer(
    log: SlowLog, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W8: the worker asks again."""
    monkeypatch.setattr(current, "CATCH_UP_SECONDS", 0.01)
    await log.write(*history())
    reply = await asked(runtime)
    assert isinstance(reply, Refused)
    assert reply.code == NotYetError.code


async def test_a_log_that_is_away_is_no_ground_for_an_answer(log: SlowLog, runtime: Runtime) -> None:
    """W8."""
    log.away = True
    reply = await asked(runtime)
    assert isinstance(reply, Refused)
    assert reply.code == UnavailableError.code
    with pytest.raises(UnavailableError, match="nobody leads"):
        await Access(runtime).verify(N1, TOKEN)


async def test_a_log_that_cant_be_read_is_no_ground_for_an_answer(runtime: Runtime) -> None:
    runtime.feed.failure = "corrupt at 7"
    with pytest.raises(UnavailableError, match="corrupt at 7"):
        await Access(runtime).verify(N1, TOKEN)
