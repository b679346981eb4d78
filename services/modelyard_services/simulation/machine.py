"""A simulated machine: what its worker says of itself, and of each replica that its events tell it to run.

Invariant: a worker tells facts and decides nothing; the same machine, life and replica give the same process.
"""

from typing import Final, Literal

import msgspec

from modelyard_events.ids import IncarnationId, NodeName
from modelyard_events.node import NodeFacts
from modelyard_events.replica import Process, ProcessExit
from modelyard_events.requests import Crashed, Fact, Loaded, LoadFailed, LoadStarted, Register, Report, Stopped
from modelyard_events.telemetry import ReplicaReading
from modelyard_projections.fleet import Draining, Loading, Placed, Ready, ReplicaState

TOKEN: Final = "simulation"  # noqa: S105 - of a fleet that exists in memory only
"""The registration token that every simulated worker has."""

PORT: Final = 20_000
"""Where simulated processes listen; nobody connects."""

LoadsAs = Literal["work", "fail", "hang"]
"""What becomes of a model's loads."""


class Machine(msgspec.Struct):
    """`life` counts the worker's starts. It is heard only while `up`; a silent one is cut off and does nothing."""

    name: NodeName
    facts: NodeFacts
    life: int = 0
    state: Literal["off", "up", "silent"] = "off"

    @property
    def incarnation(self) -> IncarnationId:
        return IncarnationId(f"life-{self.life}")


def request_of(machine: Machine, inventory: tuple[ReplicaReading, ...]) -> Register:
    """What the worker says at its start."""
    return Register(
        machine.name, "backend", machine.incarnation, machine.facts, f"secret-of-{machine.name}", TOKEN, inventory
    )


def fact_of(state: ReplicaState, *, loading: LoadsAs) -> Fact | None:
    """What the worker has to tell next of the replica, None when nothing changes."""
    match state.phase:
        case Placed() if not state.waits_for and loading != "hang":
            return LoadStarted(state.id, Process(state.sequence, float(state.sequence), PORT))
        case Loading() if loading == "fail":
            return LoadFailed(state.id, "it was told to fail", ProcessExit(exit_code=1))
        case Loading() if loading == "work":
            return Loaded(state.id, f"{state.node}:{PORT}")
        case Draining(stopping=True):
            return Stopped(state.id)
        case Placed() | Loading() | Ready() | Draining():
            return None


def crash_of(state: ReplicaState) -> Fact:
    """The replica's process was killed."""
    return Crashed(state.id, ProcessExit(exit_code=137, signal="SIGKILL"))


def report_of(machine: Machine, *facts: Fact) -> Report:
    """The worker's report; numbers matter to the registrar's transport only."""
    return Report(machine.name, machine.incarnation, 0, facts)
