"""Real operating-system processes, each under a keeper of its own. Knows nothing of NATS.

    Processes (the worker) ──order──▶ keeper ──fork/exec──▶ backend and whatever it starts
        ▲  pidfd, exit.json             │ stdout, stderr ──▶ log, log.1

Invariant: a process is ended only by identity (pidfd, lock, mark), never by a bare pid; and no stop is
acknowledged before the last descendant has exited (rules W4, W5, trap X22).
"""

from modelyard_services.worker.processes.kept import ProcessFact
from modelyard_services.worker.processes.keys import ProcessKey, process_key, reaches
from modelyard_services.worker.processes.ports import PortRange
from modelyard_services.worker.processes.running import ProcessesSettings, Running, StartRequest
from modelyard_services.worker.processes.supervisor import (
    Processes,
    StillAliveError,
)

__all__ = [
    "PortRange",
    "ProcessFact",
    "ProcessKey",
    "Processes",
    "ProcessesSettings",
    "Running",
    "StartRequest",
    "StillAliveError",
    "process_key",
    "reaches",
]
