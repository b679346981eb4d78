"""What was found, and what to make of it: every verdict of the doctor, apart from the looking.

Invariant: pure; whatever isn't ok says in one sentence what to do.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Final, Literal

import msgspec

from modelyard_events.sizes import format_size
from modelyard_events.subjects import LOG_STREAM

Status = Literal["ok", "warning", "broken", "skipped"]

PYTHON_OLDEST: Final = (3, 11)
NATS_OLDEST: Final = (2, 12)
"""The first that appends several messages atomically."""

GIB: Final = 1024**3
DISK_FREE_LOW: Final = 5 * GIB
DISK_FREE_LEAST: Final = GIB
"""Below this a PostgreSQL that vacuums and a log that grows stop within the hour."""

DESCRIPTORS_LOW: Final = 4_096
"""The gateway holds two for each request in flight."""

FILL_WARNING: Final = 0.8
FILL_BROKEN: Final = 0.9
"""From here on the log takes only facts and ends."""

CLOCK_SECONDS_MAX: Final = 2.0
"""Times come from the log's server; a larger difference makes ages on this machine's screens wrong."""

LAG_SEQUENCES_MAX: Final = 1_000

OTHERS_MODE: Final = 0o077


class Finding(msgspec.Struct, frozen=True):
    """One check: what was seen, and what to do about it (empty when there is nothing to do)."""

    check: str
    status: Status
    found: str
    advice: str = ""


class Log(msgspec.Struct, frozen=True):
    """Which log it is, and its last sequence."""

    log_id: str
    sequence: int


def python_version(version: tuple[int, int] = sys.version_info[:2]) -> Finding:
    """Whether this interpreter is one we run on."""
    found = ".".join(map(str, version))
    if version < PYTHON_OLDEST:
        return Finding("python", "broken", found, "Run modelyard with Python 3.11 or later.")
    return Finding("python", "ok", found)


def disk(free: int, *, where: str) -> Finding:
    """Whether the data directory's disk has room."""
    found = f"{format_size(free)} free at {where}"
    if free < DISK_FREE_LEAST:
        return Finding(
            "disk", "broken", found, f"Free at least {format_size(DISK_FREE_LOW)}: the log is about to stop."
        )
    if free < DISK_FREE_LOW:
        return Finding("disk", "warning", found, f"Free at least {format_size(DISK_FREE_LOW)} soon.")
    return Finding("disk", "ok", found)


def secret_files(modes: Mapping[str, int]) -> Finding:
    """Whether files that hold secrets are closed to other users; modes by path."""
    open_to_others = [path for path, mode in modes.items() if mode & OTHERS_MODE]
    if open_to_others:
        names = " ".join(open_to_others)
        return Finding(
            "secrets", "broken", f"readable by others: {names}", f"Run `chmod 600 {names}`, then replace the tokens."
        )
    return Finding("secrets", "ok", f"{len(modes)} files are their owner's alone")


def descriptors(limit: int) -> Finding:
    """Whether a process may open enough files and connections."""
    if limit < DESCRIPTORS_LOW:
        return Finding("descriptors", "warning", f"limit {limit}", f"Raise it: `ulimit -n {DESCRIPTORS_LOW}` or more.")
    return Finding("descriptors", "ok", f"limit {limit}")


def leftovers(names: Sequence[str], *, owned: bool) -> Finding:
    """Whether servers run whose `modelyard up` is gone."""
    if names and not owned:
        return Finding(
            "processes",
            "warning",
            f"left by an `up` that is gone: {', '.join(names)}",
            "Start `modelyard up` on this directory: it ends them first.",
        )
    return Finding(
        "processes", "ok", f"{len(names)} run" if owned else "`up` is not running, and nothing is left of it"
    )


def nats_version(version: tuple[int, int, int]) -> Finding:
    """Whether the server knows what the log needs."""
    found = f"nats-server {'.'.join(map(str, version))}"
    if version[:2] < NATS_OLDEST:
        return Finding("nats", "broken", found, "Upgrade to nats-server 2.12 or later: it appends atomically.")
    return Finding("nats", "ok", found)


def log_fill(used: int, ceiling: int) -> Finding:
    """How full the log is."""
    share = used / ceiling
    found = f"{format_size(used)} of {format_size(ceiling)} ({share:.0%})"
    advice = f"Raise the ceiling: `nats stream edit {LOG_STREAM} --max-bytes {format_size(2 * ceiling)}`."
    if share >= FILL_BROKEN:
        return Finding("log", "broken", found, advice)
    if share >= FILL_WARNING:
        return Finding("log", "warning", found, advice)
    return Finding("log", "ok", found)


def peers(wanted: int, *, away: Sequence[str], behind: Sequence[str]) -> Finding:
    """Whether every copy of the log is there; `wanted` copies, those of `away` and `behind` by server name."""
    if away:
        return Finding(
            "log copies",
            "broken" if 2 * len(away) >= wanted - 1 else "warning",
            f"{wanted} copies, away: {', '.join(away)}",
            "Start these servers again: one more away, and nothing is accepted.",
        )
    if behind:
        return Finding("log copies", "warning", f"{wanted} copies, behind: {', '.join(behind)}", "Watch them catch up.")
    if wanted == 1:
        return Finding("log copies", "ok", "1: whoever loses that disk loses the log; a cluster of three keeps 3")
    return Finding("log copies", "ok", f"{wanted}, all current")


def lease(holder: str | None, *, seconds: float, age_seconds: float | None) -> Finding:
    """Whether one of the reconcilers acts: who has their lease, for how long that stands, how old the last sign is."""
    if holder is None:
        return Finding("lease", "warning", "no reconciler acts", "Start `modelyard reconciler`.")
    if age_seconds is None:
        return Finding("lease", "ok", f"{holder} reconciles")
    found = f"{holder} reconciles, heard of {age_seconds:.1f} s ago"
    if age_seconds > seconds:
        return Finding(
            "lease",
            "broken",
            f"nobody acts: {found}",
            "Start `modelyard reconciler`, or read the log of one that runs.",
        )
    return Finding("lease", "ok", found)


def clock(ahead_seconds: float) -> Finding:
    """How far this machine's clock is from that of the log's server."""
    found = f"{ahead_seconds:+.3f} s from the log's server"
    if abs(ahead_seconds) > CLOCK_SECONDS_MAX:
        return Finding("clock", "warning", found, "Let both machines keep time by NTP.")
    return Finding("clock", "ok", found)


class Projected(msgspec.Struct, frozen=True):
    """What a read model says of itself: which log it shows, up to where, and why it stands still if it does."""

    log_id: str
    sequence: int
    problem: str | None = None


def read_model(projected: Projected | None, log: Log | None) -> Finding:
    """Whether PostgreSQL shows this log, and how far behind it is; `log` None where the log couldn't be asked."""
    if projected is None:
        return Finding("read model", "warning", "nothing was projected yet", "Start `modelyard projector`.")
    if log is not None and projected.log_id != log.log_id:
        return Finding(
            "read model",
            "broken",
            f"it shows log {projected.log_id}, this is log {log.log_id}",
            "Give the projector an empty database, or the database that belongs to this log.",
        )
    if projected.problem is not None:
        return Finding(
            "read model",
            "broken",
            f"stopped at sequence {projected.sequence}: {projected.problem}",
            "Mend what it names, then start `modelyard projector` again.",
        )
    if log is None:
        return Finding("read model", "ok", f"at sequence {projected.sequence}")
    behind = max(0, log.sequence - projected.sequence)
    if behind > LAG_SEQUENCES_MAX:
        return Finding("read model", "warning", f"{behind} sequences behind", "See whether `modelyard projector` runs.")
    return Finding("read model", "ok", f"{behind} sequences behind")


def fleet(admissions: Mapping[str, str], liveness: Mapping[str, str]) -> Finding:
    """What waits for an operator; facets by node."""
    pending = sorted(node for node, admission in admissions.items() if admission == "pending")
    lost = sorted(node for node, state in liveness.items() if state == "lost")
    said = [f"pending: {', '.join(pending)}"] * bool(pending) + [f"lost: {', '.join(lost)}"] * bool(lost)
    advice = ["Approve or reject them: `modelyard node approve NODE`."] * bool(pending)
    advice += ["Look at the machines that are lost, or remove them: `modelyard node remove NODE`."] * bool(lost)
    if said:
        return Finding("nodes", "warning", "; ".join(said), " ".join(advice))
    if not admissions:
        return Finding("nodes", "warning", "no node has registered", "Start `modelyard worker` on a machine.")
    return Finding("nodes", "ok", f"{len(admissions)} registered")


def readiness(check: str, problems: Sequence[str]) -> Finding:
    """What a process says of itself."""
    if problems:
        return Finding(check, "broken", "; ".join(problems), "Mend what it names; it goes on by itself.")
    return Finding(check, "ok", "ready")
