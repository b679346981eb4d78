"""What is asked of the supervisor and what it says is running. Plain data."""

import math
import os
from pathlib import Path
from typing import Literal, assert_never

import msgspec

from modelyard_events.ids import IncarnationId, ReplicaId, Revision
from modelyard_events.replica import Process
from modelyard_events.spec import LaunchSpec
from modelyard_events.telemetry import ReplicaActivity
from modelyard_services.settings import WorkerFigures
from modelyard_services.worker.processes.keeper import start_ticks
from modelyard_services.worker.processes.keys import ProcessKey
from modelyard_services.worker.processes.ports import PortRange
from modelyard_services.worker.processes.state import Identity


class ProcessesSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`host` is what backends bind to, `advertise` what others reach them by; `allow_commands` empty allows all.

    `at_worker_end`: `keep` lets processes run on for the next worker to adopt, `end` ends them with this one, even
    if it is killed. With `end_with_parent` a stop ends them too, but they outlive a killed worker, for the next one of
    the same parent, as long as that parent lives.
    """

    state_dir: Path
    incarnation: IncarnationId
    host: str = "127.0.0.1"
    advertise: str = "127.0.0.1"
    ports: PortRange = PortRange()
    allow_commands: tuple[str, ...] = ()
    at_worker_end: Literal["keep", "end", "end_with_parent"] = "keep"
    figures: WorkerFigures = WorkerFigures()

    @property
    def probe_host(self) -> str:
        """Where this node reaches what binds to `host`."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - compared, not bound

    def dies_with(self) -> Identity | None:
        """The process whose death ends all of ours; None if they outlive everybody."""
        match self.at_worker_end:
            case "keep":
                return None
            case "end":
                return _identity(os.getpid())
            case "end_with_parent":
                return _identity(os.getppid())
            case _ as never:
                assert_never(never)

    def address(self, port: int) -> str:
        return f"[{self.advertise}]:{port}" if ":" in self.advertise else f"{self.advertise}:{port}"


class StartRequest(msgspec.Struct, frozen=True):
    replica: ReplicaId
    model: str
    replica_index: int
    revision: Revision
    launch: LaunchSpec
    gpus: tuple[int, ...] = ()


class Running(msgspec.Struct, frozen=True):
    """A replica's process that has not exited. `address` once it is ready."""

    replica: ReplicaId
    key: ProcessKey
    model: str
    replica_index: int
    revision: Revision
    gpus: tuple[int, ...]
    incarnation: IncarnationId
    process: Process
    activity: ReplicaActivity
    address: str | None


def _identity(pid: int) -> Identity:
    return Identity(pid=pid, start_ticks=start_ticks(pid))


def ready_deadline(launch: LaunchSpec, *, started_at: float) -> float:
    """When the worker ends a load by itself, Unix seconds: after the model's own limit, never without one (X25).

    The reconciler's deadline ends any other, for it grows with the model's size and the load's progress.
    """
    return started_at + (launch.ready_timeout_seconds or math.inf)
