"""From the node's events to processes: what to start, what to stop. Pure.

Invariant: level-triggered, so no command can be lost: whatever happened before, the same events and the same
processes give the same steps (rule W1).
"""

from collections.abc import Collection
from typing import assert_never

import msgspec

from modelyard_events.ids import NodeName, ReplicaId
from modelyard_projections.fleet import Draining, Fleet, Loading, Placed, Ready, ReplicaState
from modelyard_services.worker.processes.running import StartRequest


class Start(msgspec.Struct, frozen=True):
    """Start the process of a placed replica."""

    replica: ReplicaState


class Stop(msgspec.Struct, frozen=True):
    """Stop a process: the log asks for it, or nobody believes in it."""

    replica: ReplicaId


class TellStopped(msgspec.Struct, frozen=True):
    """The log waits for the end of a process that isn't there any more."""

    replica: ReplicaId


Step = Start | Stop | TellStopped


def steps(fleet: Fleet, node: NodeName, *, running: Collection[ReplicaId]) -> list[Step]:
    """What makes `running` match the node's events; everything stops once the node is removed (rule N13)."""
    if node not in fleet.nodes:
        return [Stop(replica) for replica in running]
    wanted = {replica.id: replica for replica in fleet.replicas_on(node)}
    strays: list[Step] = [Stop(replica) for replica in running if replica not in wanted]
    needed = [_step(replica, runs=replica.id in running) for replica in wanted.values()]
    # Strays first: what nobody believes in is stopped before anything new is started there (rule C6).
    return strays + [step for step in needed if step is not None]


def request_of(state: ReplicaState) -> StartRequest:
    """What starting its process takes."""
    return StartRequest(
        replica=state.id,
        model=state.model,
        replica_index=state.replica_index,
        revision=state.revision,
        launch=state.launch,
        gpus=state.gpus,
    )


def _step(replica: ReplicaState, *, runs: bool) -> Step | None:
    match replica.phase:
        case Placed():
            return Start(replica) if not runs and not replica.waits_for else None
        case Loading() | Ready():
            # One that is gone has told so itself, or its worker's successor has by its inventory.
            return None
        case Draining(stopping=stopping):
            if not stopping:
                return None
            return Stop(replica.id) if runs else TellStopped(replica.id)
        case _:
            assert_never(replica.phase)
