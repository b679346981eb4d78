"""The last part of docs/configuration.md: every number of the rules, and where it is changed.

Invariant: defaults are read from the program, and a setting, an option or a field that it doesn't have fails here.
"""

import re
from collections.abc import Iterator
from typing import Final

import msgspec

from modelyard_events.decision import DECISION_BYTES_MAX, EXAMPLES_MAX, RUNNERS_UP_MAX
from modelyard_projections.fleet.fold import IDEMPOTENT_SEQUENCES
from modelyard_services.cli.main import app
from modelyard_services.policy.affinity import PROMPT_BYTES_MAX
from modelyard_services.policy.entries import ModelBody, ScheduleBody
from modelyard_services.policy.filters import REPLICAS_PER_NODE_MAX
from modelyard_services.policy.known_settings import rows as known_settings
from modelyard_services.policy.liveness import MASS_LOSS_NODES_MIN

INTRODUCTION: Final = """## Every number of the rules

Each number of a rule is a default. Those that the whole fleet goes by are settings, those that one process goes by its
options; what differs by model or schedule is a field of these. The last column has what can't be changed, and why.

| rule | settings | options | fields | fixed |
|---|---|---|---|---|
"""

OPTIONS: Final = (
    ("N2", "worker", "--max-replicas-per-model"),
    ("N8", "up", "--nats-telemetry-seconds"),
    ("N12", "worker", "--vram-budget"),
    ("T4", "api", "--probe-seconds"),
    ("T4", "api", "--probe-fresh-seconds"),
    ("T4", "worker", "--probe-seconds"),
    ("T4", "worker", "--probe-interval-seconds"),
    ("T4", "worker", "--probe-misses"),
    ("T5", "api", "--wait-seconds"),
    ("T7", "api", "--queue-max"),
    ("C1", "reconciler", "--reconciler-lease-seconds"),
    ("W4", "worker", "--port-range"),
    ("W4", "worker", "--port-quarantine-seconds"),
    ("W5", "worker", "--stderr-lines"),
    ("W7", "worker", "--log-lines"),
)

FIELDS: Final = (
    ("R4", ModelBody, "vram"),
    ("P6", ScheduleBody, "max_per_node"),
    ("P6", ScheduleBody, "gpus"),
    ("C2", ScheduleBody, "min_replicas"),
    ("C2", ScheduleBody, "max_replicas"),
    ("C4", ScheduleBody, "target_in_flight"),
    ("C7", ModelBody, "ready_timeout_seconds"),
    ("C8", ScheduleBody, "idle_timeout_seconds"),
    ("C8", ScheduleBody, "busy_timeout_seconds"),
    ("T7", ModelBody, "max_concurrency"),
    ("W3", ModelBody, "ready_timeout_seconds"),
    ("W5", ModelBody, "stop_grace_seconds"),
)

FIXED: Final = (
    ("N6", "buckets of VRAM", "names that selectors ask for"),
    ("N9", f"{MASS_LOSS_NODES_MIN} nodes at least", "one node is no mass"),
    ("R2", f"{REPLICAS_PER_NODE_MAX} replicas a node", "all of them can end in one append of at most 1,000 events"),
    ("T3", f"{PROMPT_BYTES_MAX // 1024} KiB of a prompt", "gateways cut prompts before they know whose they are"),
    ("H1", f"{IDEMPOTENT_SEQUENCES:,} sequences of idempotency", "part of the state, which every replay must come to"),
    (
        "H2",
        f"{DECISION_BYTES_MAX // 1024} KiB, {RUNNERS_UP_MAX} runners-up and {EXAMPLES_MAX} examples a decision",
        "an event holds 64 KiB, its decision beside everything else",
    ),
)

ORDER: Final = "NRPTCWSH"
"""The parts of the rules."""


def section() -> str:
    """The whole section."""
    columns = [dict(_joined(column)) for column in (_settings(), _options(), _fields(), _fixed())]
    rules = sorted({rule for column in columns for rule in column}, key=_place)
    rows = [f"| {rule} | {' | '.join(column.get(rule, '') for column in columns)} |" for rule in rules]
    return INTRODUCTION + "\n".join(rows) + "\n"


def _joined(found: Iterator[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    by_rule: dict[str, list[str]] = {}
    for rule, text in found:
        by_rule.setdefault(rule, []).append(text)
    yield from ((rule, ", ".join(texts)) for rule, texts in by_rule.items())


def _settings() -> Iterator[tuple[str, str]]:
    for name, default, known in known_settings():
        if known.least is not None:
            yield known.rule, f"`{name}` {_figure(default)}"


def _options() -> Iterator[tuple[str, str]]:
    for rule, command, option in OPTIONS:
        arguments = app[command].assemble_argument_collection(parse_docstring=True)
        argument = next(each for each in arguments if option in each.names)
        yield rule, f"`{command} {option}` {_figure(argument.field_info.default)}".rstrip()


def _fields() -> Iterator[tuple[str, str]]:
    for rule, body, field in FIELDS:
        assert field in {known.name for known in msgspec.structs.fields(body)}
        yield rule, f"`{field}` of a {'model' if body is ModelBody else 'schedule'}"


def _fixed() -> Iterator[tuple[str, str]]:
    yield from ((rule, f"{what}: {why}") for rule, what, why in FIXED)


def _figure(default: object) -> str:
    return "" if default is None else f"{default:.15g}" if isinstance(default, float) else str(default)


def _place(rule: str) -> tuple[int, int]:
    found = re.fullmatch(r"([A-Z])(\d+)", rule)
    assert found is not None
    return ORDER.index(found[1]), int(found[2])
