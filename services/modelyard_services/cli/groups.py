"""Options that several commands share: of whoever routes requests, and of whoever runs replicas.

Invariant: an option has one name, one default and one range, whichever command it is given to.
"""

from typing import Annotated

import msgspec
from cyclopts import Parameter, validators

from modelyard_services.settings import (
    LOG_LINES_MOST,
    PROBE_FRESH_SECONDS,
    PROBE_SECONDS,
    QUEUE_MAX,
    STDERR_LINES_MOST,
    WAIT_SECONDS,
    RouterSettings,
    WorkerFigures,
)

HOUR = 3_600.0


ProbeSeconds = Annotated[float, Parameter(validator=validators.Number(gte=0.1, lte=60))]
"""How long a replica may take to answer whether it is well, whoever asks."""


TelemetrySeconds = Annotated[float, Parameter(validator=validators.Number(gte=1, lte=HOUR))]
"""How long NATS keeps the last heartbeat of a node."""


@Parameter(name="*")
class Routing:
    """Options of every process that routes requests.

    Parameters
    ----------
    wait_seconds
        How long a request waits for a model that loads.
    queue_max
        Requests that may wait per model; those beyond get 429.
    probe_fresh_seconds
        How long a replica that answered its probe is used unasked; 0 probes before every use.
    probe_seconds
        How long a replica may take to answer whether it is well.
    """

    def __init__(
        self,
        *,
        wait_seconds: Annotated[float, Parameter(validator=validators.Number(gte=0))] = WAIT_SECONDS,
        queue_max: Annotated[int, Parameter(validator=validators.Number(gte=1))] = QUEUE_MAX,
        probe_fresh_seconds: Annotated[float, Parameter(validator=validators.Number(gte=0))] = PROBE_FRESH_SECONDS,
        probe_seconds: ProbeSeconds = PROBE_SECONDS,
    ) -> None:
        """Take the options."""
        self.settings = RouterSettings(wait_seconds, queue_max, probe_fresh_seconds, probe_seconds)


@Parameter(name="*")
class Care:
    """Options of every worker: how it looks after the processes of its replicas.

    Parameters
    ----------
    probe_interval_seconds
        How often it asks each of its replicas whether it is well; more than --probe-seconds.
    probe_misses
        Answers that an idle replica may fail to give in a row before it is ended.
    port_quarantine_seconds
        How long a port rests after its process has exited.
    log_lines
        Last lines kept of each replica.
    stderr_lines
        Last lines of stderr told with the end of a process; of all, at most 10,000 characters.
    """

    def __init__(
        self,
        *,
        probe_interval_seconds: Annotated[float, Parameter(validator=validators.Number(gte=0.2, lte=HOUR))] = 15.0,
        probe_misses: Annotated[int, Parameter(validator=validators.Number(gte=1, lte=1_000))] = 3,
        port_quarantine_seconds: Annotated[float, Parameter(validator=validators.Number(gte=0, lte=HOUR))] = 15.0,
        log_lines: Annotated[int, Parameter(validator=validators.Number(gte=1, lte=LOG_LINES_MOST))] = 1_000,
        stderr_lines: Annotated[int, Parameter(validator=validators.Number(gte=0, lte=STDERR_LINES_MOST))] = 20,
    ) -> None:
        """Take the options."""
        self.figures = WorkerFigures(
            probe_interval_seconds=probe_interval_seconds,
            probe_misses=probe_misses,
            port_quarantine_seconds=port_quarantine_seconds,
            log_lines=log_lines,
            stderr_lines=stderr_lines,
        )


def router_settings(routing: Routing | None) -> RouterSettings:
    """What a router is told; by default as the rules say."""
    return RouterSettings() if routing is None else routing.settings


def worker_figures(care: Care | None, *, probe_seconds: float) -> WorkerFigures:
    """What a worker is told; by default as the rules say.

    Raises:
        InvalidValueError: the next question would come before the answer to the last.
    """
    given = WorkerFigures() if care is None else care.figures
    return msgspec.structs.replace(given, probe_seconds=probe_seconds).checked()
