"""All checks at once, each within a limit of its own.

Invariant: a check that can't be made is told as what it is, with its reason, and keeps no other from being made.
"""

import asyncio
import subprocess
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import msgspec

from modelyard_services.errors import ModelyardError
from modelyard_services.supervisor.doctor import findings, machine, services
from modelyard_services.supervisor.doctor.findings import Finding
from modelyard_services.supervisor.doctor.target import Asked, Target, target_of

CHECK_SECONDS_MAX: Final = 20.0
"""Longer than the longest wait inside one: JetStream is asked for 15 s, through a change of its leader."""

Seen = TypeVar("Seen")
Sayer = Callable[[Finding], None]


class Report(msgspec.Struct, frozen=True):
    """Every finding; `ok` unless one is broken."""

    ok: bool
    findings: tuple[Finding, ...]


async def examine(asked: Asked) -> Report:
    """Look at everything."""
    target = await asyncio.to_thread(target_of, asked)
    looks = [_guarded(name, asyncio.to_thread(probe, target)) for name, probe in machine.PROBES.items()]
    looks += [_stores(target), _api(target)]
    looks += [_guarded(name, services.process(name, port)) for name, port in target.processes.items()]
    found = [finding for seen in await asyncio.gather(*looks) for finding in seen]
    return Report(all(finding.status != "broken" for finding in found), tuple(found))


async def _stores(target: Target) -> list[Finding]:
    """Log and read model, and whether the one shows the other."""
    logs, rows = await asyncio.gather(
        _told("log", services.log, target.nats_url, missing=_missing(target, "--nats-url")),
        _told("postgresql", services.read_model, target.database_url, missing=_missing(target, "--database-url")),
    )
    found = [*logs[0], *rows[0]]
    if rows[1] is not None:
        found.append(findings.read_model(rows[1][0], None if logs[1] is None else logs[1][0]))
    return found


async def _told(
    check: str, look: Callable[[str], Awaitable[tuple[list[Finding], Seen]]], url: str | None, *, missing: str
) -> tuple[list[Finding], tuple[Seen] | None]:
    """The findings of `look`, and what it saw besides in a tuple of one; None if it couldn't look."""
    if url is None:
        return [Finding(check, "skipped", missing)], None
    seen: list[Seen] = []

    async def looking() -> list[Finding]:
        found, saw = await look(url)
        seen.append(saw)
        return found

    return await _guarded(check, looking()), (seen[0],) if seen else None


async def _api(target: Target) -> list[Finding]:
    if target.api_url is None:
        return [Finding("api", "skipped", _missing(target, "--api"))]
    return await _guarded("api", services.api(target.api_url, target.token))


async def _guarded(check: str, look: Awaitable[list[Finding]]) -> list[Finding]:
    try:
        async with asyncio.timeout(CHECK_SECONDS_MAX):
            return await look
    except ModelyardError as error:
        return [Finding(check, "broken", f"{error.code}: {error.detail}", _ADVICE.get(check, _LOOK))]
    except TimeoutError:
        return [Finding(check, "broken", f"no answer within {CHECK_SECONDS_MAX:g} s", _ADVICE.get(check, _LOOK))]
    except (OSError, subprocess.SubprocessError) as error:
        return [Finding(check, "broken", str(error), _ADVICE.get(check, _LOOK))]


def _missing(target: Target, option: str) -> str:
    if target.up_runs is False:
        return f"`modelyard up` on {target.data_dir} does not run; start it, or give {option}"
    return f"not asked: give {option}, or the --data-dir of a `modelyard up`"


_LOOK: Final = "Mend what it names."
_ADVICE: Final = {
    "configuration": "Correct these lines; nothing of a bad file is applied.",
    "log": "See whether nats-server runs and is reachable; its log says why it doesn't let us in.",
    "postgresql": "See whether PostgreSQL runs and --database-url names it; its log says more.",
    "api": "See whether `modelyard api` or `modelyard up` runs there.",
    "programs": "Install modelyard again, with its dependencies.",
}
