"""Options that several commands share: what `up` is told reaches its children, and what makes no sense is refused."""

import msgspec
import pytest
from cyclopts import CycloptsError

from modelyard_events.errors import InvalidValueError
from modelyard_services.cli.groups import Care, Routing, router_settings, worker_figures
from modelyard_services.cli.main import app
from modelyard_services.settings import RouterSettings, WorkerFigures

ROUTER = RouterSettings(wait_seconds=7.0, queue_max=8, probe_fresh_seconds=9.0, probe_seconds=0.5)
WORKER = WorkerFigures(
    probe_seconds=0.5,
    probe_interval_seconds=4.0,
    probe_misses=5,
    port_quarantine_seconds=6.0,
    log_lines=70,
    stderr_lines=8,
)


def routing(*words: str) -> RouterSettings:
    given = app.parse_args(words, exit_on_error=False, print_error=False)[1].arguments.get("routing")
    assert given is None or isinstance(given, Routing)
    return router_settings(given)


def figures(*words: str) -> WorkerFigures:
    given = app.parse_args(words, exit_on_error=False, print_error=False)[1].arguments
    care = given.get("care")
    assert care is None or isinstance(care, Care)
    return worker_figures(care, probe_seconds=given.get("probe_seconds", WorkerFigures().probe_seconds))


def test_options_that_a_child_is_started_with_are_what_it_then_goes_by() -> None:
    """S1: the way from `up` to its API and its workers."""
    assert routing("api", "--nats-url", "nats://here", *ROUTER.options) == ROUTER
    assert figures("worker", *WORKER.options) == WORKER
    assert routing("up", *ROUTER.options) == ROUTER
    own = [word for word in WORKER.options if word not in {"--probe-seconds", "0.5"}]
    assert figures("up", *own) == msgspec.structs.replace(WORKER, probe_seconds=2.0)


def test_without_options_the_rules_figures_hold() -> None:
    """T4, T5, T7, W4, W5, W7."""
    assert routing("api", "--nats-url", "nats://here") == routing("up") == RouterSettings()
    assert figures("worker") == figures("up") == WorkerFigures()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--probe-seconds 15", ("probe_interval_seconds", "15", "more than probe_seconds (15)")),
        ("--probe-interval-seconds 1", ("probe_interval_seconds", "1", "more than probe_seconds (2)")),
    ],
)
def test_a_question_that_would_come_before_the_answer_to_the_last_is_refused(words: str, told: tuple[str, ...]) -> None:
    """S1, T4: before anything starts."""
    with pytest.raises(InvalidValueError) as refused:
        figures("worker", *words.split())
    assert all(text in str(refused.value) for text in told), refused.value


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("worker --log-lines 0", ("--log-lines", ">= 1")),
        ("worker --stderr-lines 101", ("--stderr-lines", "<= 100")),
        ("up --queue-max 0", ("--queue-max", ">= 1")),
        ("up --nats-telemetry-seconds 0", ("--nats-telemetry-seconds", ">= 1")),
    ],
)
def test_what_is_out_of_range_is_refused_with_its_name_and_what_would_be_right(
    words: str, told: tuple[str, ...]
) -> None:
    """S1: as a usage error, by the command line itself."""
    with pytest.raises(CycloptsError) as refused:
        app.parse_args(words.split(), exit_on_error=False, print_error=False)
    assert all(text in str(refused.value) for text in told), refused.value
