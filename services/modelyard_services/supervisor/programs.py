"""The processes of an installation as children: the same commands that production runs.

Invariant: secrets travel in the environment, never on a command line that others can read.
"""

import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import httpx

from modelyard_services.effects.embedded.process import Child, StopStep

READY_SECONDS: Final = 1.0
STOP_SECONDS: Final = 20.0
"""Ten for open requests, five for gRPC, two for the last spans, and some to spare."""

START_SECONDS_MAX: Final = 60.0
"""A process imports for a second or two, then folds the log: a minute covers tens of millions of events."""


def program(
    name: str,
    arguments: tuple[str, ...],
    *,
    environment: Mapping[str, str],
    log_directory: Path,
    ready_url: str | None,
    stop_seconds: float = STOP_SECONDS,
) -> Child:
    """One of our own commands as a child; ready once `ready_url` answers 200, or at once without one."""
    # One client for all looks: making one loads certificates, which costs more than the look itself.
    client = httpx.AsyncClient(timeout=READY_SECONDS, trust_env=False, verify=False)  # noqa: S501 - plain HTTP to ourselves

    async def is_ready() -> bool:
        return ready_url is None or await _answers(client, ready_url)

    return Child(
        name=name,
        argv=(sys.executable, "-m", "modelyard_services", *arguments),
        ready=is_ready,
        log_file=log_directory / f"{name}.log",
        environment=environment,
        start_seconds_max=START_SECONDS_MAX,
        stop=(StopStep(signal.SIGTERM, stop_seconds),),
    )


async def _answers(client: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await client.get(url)).is_success
    except httpx.TransportError:
        return False
