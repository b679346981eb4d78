"""Facts on their way to a registrar that is slow, away or of another opinion (rules W1, W8)."""

import asyncio
from collections.abc import Callable

import msgspec
import pytest
from structlog.testing import capture_logs

from modelyard_events.ids import IncarnationId, NodeName, ReplicaId
from modelyard_events.replica import ProcessExit
from modelyard_events.requests import FACTS_MAX, REPORT, Crashed, Fact, Refused, Report, Reported, ReportReply, Stopped
from modelyard_events.subjects import node_command_subject
from modelyard_services.effects.bus import MemoryBus
from modelyard_services.errors import NodeGoneError, UnavailableError
from modelyard_services.worker.agent import reporter as module
from modelyard_services.worker.agent.reporter import REPORT_BYTES_MAX, Reporter

N1, LIFE = NodeName("n1"), IncarnationId("life-1")


class Control(MemoryBus):
    """A registrar that answers as it is told to, then that all is decided; None is no answer."""

    def __init__(self, *answers: ReportReply | UnavailableError | None) -> None:
        super().__init__()
        self.reports: list[Report] = []
        self.sizes: list[int] = []
        self.on_report: Callable[[], None] = lambda: None
        self._replies = list(answers)

    async def ask(self, subject: str, body: bytes, *, timeout_seconds: float) -> bytes | None:
        del timeout_seconds  # it answers at once, or not at all
        assert subject == node_command_subject(N1, REPORT)
        self.reports.append(msgspec.json.decode(body, type=Report))
        self.sizes.append(len(body))
        self.on_report()
        answer = self._replies.pop(0) if self._replies else Reported(1)
        if isinstance(answer, UnavailableError):
            raise answer
        return None if answer is None else msgspec.json.encode(answer)

    @property
    def facts(self) -> list[Fact]:
        return [fact for report in self.reports for fact in report.facts]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_BASE_SECONDS", 0.001)


def stopped(count: int) -> list[Stopped]:
    return [Stopped(ReplicaId(f"r-{number}")) for number in range(count)]


def a_reporter(*facts: Fact, on_stale: Callable[[], None] = lambda: None) -> Reporter:
    reporter = Reporter(N1, LIFE, on_stale=on_stale)
    for fact in facts:
        reporter.tell(fact, 7)
    return reporter


async def test_facts_are_told_in_their_order_in_numbered_reports() -> None:
    """W1."""
    facts, control = stopped(FACTS_MAX + 1), Control()
    reporter = a_reporter(*facts)
    await reporter.flush(control)
    assert control.facts == facts
    assert [(report.report, report.incarnation) for report in control.reports] == [(0, LIFE), (1, LIFE)]
    assert reporter.pending == 0


async def test_a_report_is_sent_again_as_it_was_until_it_is_decided() -> None:
    """W8: whoever is away, whatever comes in the meantime; so the registrar can tell a resend."""
    control = Control(None, UnavailableError("away"), Refused("contended", "busy"), Refused("not_yet", "behind"))
    first, second = stopped(2)
    reporter = a_reporter(first)
    control.on_report = lambda: reporter.tell(second, 8) if len(control.reports) == 1 else None
    await reporter.flush(control)
    assert [report.facts for report in control.reports] == [(first,)] * 5 + [(second,)]
    assert [report.report for report in control.reports] == [0] * 5 + [1]


async def test_each_try_waits_longer_than_the_last_and_a_new_report_begins_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """W8: a registrar that comes back isn't met by every worker at once, nor kept waiting once it answers."""
    waits: list[int] = []

    def no_wait(attempt: int, *, base: float, cap: float) -> float:
        assert (base, cap) == (module.RETRY_BASE_SECONDS, module.RETRY_CAP_SECONDS)
        waits.append(attempt)
        return 0.0

    monkeypatch.setattr(module, "backoff_seconds", no_wait)
    away = UnavailableError("away")
    await a_reporter(*stopped(FACTS_MAX + 1)).flush(Control(away, None, away, Reported(1), away))
    assert waits == [0, 1, 2, 0]


async def test_a_flush_that_was_given_up_goes_on_with_the_next() -> None:
    """W8: a stop says its last words after the run was cancelled in the middle of a report."""
    [fact] = stopped(1)
    reporter, silent = a_reporter(fact), Control(*[None] * 1_000)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reporter.flush(silent), 0.05)
    assert reporter.pending == 1
    control = Control()
    await reporter.flush(control)
    assert (control.facts, reporter.pending) == ([fact], 0)


async def test_a_nodes_worth_of_last_words_fits_what_nats_takes() -> None:
    """W5, W8: many crashes at once, told after an outage."""
    words = ProcessExit(exit_code=1, stderr_tail=("x" * 4_096,) * 20)
    facts = [Crashed(ReplicaId(f"r-{number}"), words) for number in range(40)]
    control = Control()
    await a_reporter(*facts).flush(control)
    assert control.facts == facts
    assert max(control.sizes) < REPORT_BYTES_MAX * 1.01


async def test_the_oldest_facts_go_first_when_too_many_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """W8: and what is being told just now is none of them; each loss is said."""
    monkeypatch.setattr(module, "BUFFER_MAX", 3)
    facts, control = stopped(6), Control(None)
    reporter = a_reporter(facts[0])

    def meanwhile() -> None:
        control.on_report = lambda: None
        for fact in facts[1:]:
            reporter.tell(fact, 7)

    control.on_report = meanwhile
    with capture_logs() as said:
        await reporter.flush(control)
    assert [(entry["log_level"], entry["lost"]) for entry in said if "lost" in entry] == [("error", "Stopped")] * 2
    assert control.facts == [facts[0], facts[0], *facts[3:]]


async def test_facts_that_came_too_late_are_not_told_again() -> None:
    """W1: they were decided."""
    control = Control(Reported(1, {ReplicaId("r-0"): "has ended"}))
    await a_reporter(*stopped(1)).flush(control)
    assert len(control.reports) == 1


async def test_a_life_that_is_over_asks_who_it_is() -> None:
    """N3, X26: another incarnation has the name."""
    asked: list[bool] = []
    control = Control(Refused("stale_fact", "held by another"))
    await a_reporter(*stopped(1), on_stale=lambda: asked.append(True)).flush(control)
    assert (asked, len(control.reports)) == ([True], 1)


async def test_a_removed_nodes_worker_hears_that_it_is_gone() -> None:
    """N13."""
    with pytest.raises(NodeGoneError):
        await a_reporter(*stopped(1)).flush(Control(Refused("gone", "removed")))


async def test_a_running_reporter_tells_what_comes_later() -> None:
    """W1."""
    control, reporter = Control(), a_reporter()
    running = asyncio.create_task(reporter.run(control))
    await asyncio.sleep(0.01)
    assert control.reports == []
    [fact] = stopped(1)
    reporter.tell(fact, 7)
    await asyncio.sleep(0.01)
    running.cancel()
    assert control.facts == [fact]


async def test_each_fact_is_told_with_the_time_when_it_happened() -> None:
    """H1, W8: also when it is told long after, and told again."""
    control, reporter = Control(None), Reporter(N1, LIFE, on_stale=lambda: None)
    for number, fact in enumerate(stopped(3)):
        reporter.tell(fact, 1_000 + number)
    await reporter.flush(control)
    assert [report.occurred_ns for report in control.reports] == [(1_000, 1_001, 1_002)] * 2
