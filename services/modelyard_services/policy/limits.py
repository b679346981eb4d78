"""The watchdog's figures in force, and who set them: the model's schedule, else the node, else the fleet (rule C8).

```
                         schedule ──▶ node ──▶ fleet
  idle_timeout_seconds       ●          ●        ●
  busy_timeout_seconds       ●          ●        ●
  max_loaded_models                     ●        ●
  reclaim_memory                        ●        ●
```

Invariant: the most specific that is set holds alone; a node's 0 or false is set, and turns it off there.
"""

from typing import Literal

import msgspec

from modelyard_events.ids import ModelName, NodeName
from modelyard_projections.fleet import Fleet, NodeState, ReplicaState

Setter = Literal["schedule", "node", "fleet"]


class Timeout(msgspec.Struct, frozen=True):
    """Seconds that hold, 0 for no limit, and who set them."""

    seconds: float
    setter: Setter


def idle_timeout(fleet: Fleet, replica: ReplicaState) -> Timeout:
    """How long the replica may go without a request."""
    schedule, node = fleet.models[replica.model].options, fleet.nodes[replica.node].watchdog
    fleets = fleet.settings.idle_timeout_seconds
    return _most_specific(schedule.idle_timeout_seconds, node.idle_timeout_seconds, fleets)


def busy_timeout(fleet: Fleet, replica: ReplicaState) -> Timeout:
    """How long one request may keep the replica."""
    return busy_timeout_on(fleet, model=replica.model, node=replica.node)


def busy_timeout_on(fleet: Fleet, *, model: ModelName, node: NodeName) -> Timeout:
    """How long one request may keep a replica of the model on the node, whether or not either is still there."""
    schedule = fleet.models[model].options.busy_timeout_seconds if model in fleet.models else None
    own = fleet.nodes[node].watchdog.busy_timeout_seconds if node in fleet.nodes else None
    return _most_specific(schedule, own, fleet.settings.busy_timeout_seconds)


def max_loaded_models(fleet: Fleet, node: NodeState) -> int:
    """How many models the node may hold, loads under way included; 0 is no limit."""
    own = node.watchdog.max_loaded_models
    return fleet.settings.max_loaded_models if own is None else own


def reclaims_memory(fleet: Fleet, node: NodeState) -> bool:
    """Whether replicas end where the node's memory is nearly full, before anybody asks for it."""
    own = node.watchdog.reclaim_memory
    return fleet.settings.reclaim_memory if own is None else own


def _most_specific(schedule: float | None, node: float | None, fleet: float) -> Timeout:
    if schedule is not None:
        return Timeout(schedule, "schedule")
    return Timeout(fleet, "fleet") if node is None else Timeout(node, "node")
