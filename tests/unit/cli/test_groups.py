"""Options that several commands share: what `up` is told reaches its children, and what makes no sense is refused."""

import msgspec
import pytest

from modelyard_services.cli.groups import Care, Routing, router_settings, worker_figures
from modelyard_services.cli.main import app, run
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
        ("worker --probe-seconds 15", ("probe_interval_seconds", "15", "more than probe_seconds (15)")),
        ("worker --probe-interval-seconds 1", ("probe_interval_seconds", "1", "more than probe_seconds (2)")),
        ("up --probe-seconds 20", ("probe_interval_seconds", "15", "more than probe_seconds (20)")),
        ("worker --log-lines 0", ("--log-lines", ">= 1")),
        ("worker --stderr-lines 101", ("--stderr-lines", "<= 100")),
        ("up --queue-max 0", ("--queue-max", ">= 1")),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_name_and_what_would_be_right(
    words: str, told: tuple[str, ...], tmp_path: object, capsys: pytest.CaptureFixture[str]
) -> None:
    """S1: before anything starts."""
    reached = ["--nats-url", "nats://nowhere", "--registration-token", "x"] if words.startswith("worker") else []
    data = ["--data-dir", str(tmp_path)] if words.startswith("up") else []
    assert run([*words.split(), *reached, *data]) != 0
    shown = capsys.readouterr().err
    assert all(text in shown for text in told), shown
