"""What a worker is told at its start."""

from pathlib import Path
from typing import Literal

import msgspec

from modelyard_events.ids import LabelKey, NodeName
from modelyard_events.node import NodeType
from modelyard_events.sizes import VramBudget
from modelyard_services.settings import WorkerFigures
from modelyard_services.worker.processes.ports import PortRange

AtEnd = Literal["end", "end-with-parent", "keep", "depart"]


class WorkerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """One node agent.

    `vram` bytes count where there is no GPU; `gpus` names devices (`0,2`), None takes all; `share` is which part of
    how many of the machine it has. `at_end`: `end` stops the replicas and departs when the worker stops, `keep`
    leaves them to the next worker, `depart` ends them on a stop and leaves them on SIGHUP, for an upgrade. Killed with
    -9 it takes them along only with `end`; with `end-with-parent` its parent does, for whoever starts the next worker.
    """

    name: NodeName
    nats_url: str
    registration_token: str
    state_dir: Path
    tls_ca: str | None = None
    node_type: NodeType = "backend"
    host: str = "127.0.0.1"
    advertise: str = "127.0.0.1"
    labels: dict[LabelKey, str] = {}
    vram: int | None = None
    vram_budget: VramBudget | None = None
    gpus: str | None = None
    share: tuple[int, int] = (0, 1)
    max_replicas_per_model: int = 1
    ports: PortRange = PortRange()
    allow_commands: tuple[str, ...] = ()
    at_end: AtEnd = "end"
    figures: WorkerFigures = WorkerFigures()
