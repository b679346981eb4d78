"""What operators may have ended by itself: requests that never end, and memory that is nearly full (rule C8).

Invariant: both are off until they are set; a pinned model is exempt from the reclaimer and not from the busy timeout;
the reclaimer ends at most one replica a node at once, and none while another is on its way out there. Whose figures
hold, `limits` says.
"""

from collections.abc import Sequence
from functools import partial
from typing import Final

from modelyard_events.envelope import AnyEvent
from modelyard_events.ids import CommandId, ModelName, ReplicaId
from modelyard_projections.fleet import Alive, Draining, Fleet, NodeState, ReplicaState
from modelyard_services.policy.actions import NANOSECONDS, Action, View, why
from modelyard_services.policy.desired import is_ready
from modelyard_services.policy.ending import begin_drain
from modelyard_services.policy.filters import Scene, Wish
from modelyard_services.policy.limits import busy_timeout, reclaims_memory
from modelyard_services.policy.memory import room
from modelyard_services.policy.victims import Resident, residents

NOBODY: Final = ModelName("")
"""The reclaimer makes room for no model, so none is spared for being the one that asks."""


def watch(view: View) -> list[Action]:
    """What has been busy for too long, and who goes so that memory doesn't run out."""
    return [*_stuck(view), *_reclaim(view)]


def _stuck(view: View) -> list[Action]:
    found = []
    for replica, began_ns in _oldest_ns(view).items():
        state, seconds = view.fleet.replicas.get(replica), (view.moment.log_ns - began_ns) / NANOSECONDS
        if state is not None and is_ready(state) and _is_too_long(view.fleet, state, seconds):
            found.append(_end_busy(state, seconds))
    return found


def _is_too_long(fleet: Fleet, state: ReplicaState, seconds: float) -> bool:
    limit = busy_timeout(fleet, state).seconds
    return bool(limit) and seconds >= limit


def _oldest_ns(view: View) -> dict[ReplicaId, int]:
    """When the oldest request of each replica began, over all routers that are there."""
    found: dict[ReplicaId, int] = {}
    for report in view.demand.live_routers(view.fleet.settings, now_ns=view.moment.heard_ns):
        for replica, began_ns in report.oldest_ns.items():
            found[replica] = min(began_ns, found.get(replica, began_ns))
    return found


def _end_busy(state: ReplicaState, seconds: float) -> Action:
    return Action(
        key=f"busy/{state.id}/{state.sequence}",
        about=("replica", state.id),
        reason=f"a request has run for {seconds:.0f} s",
        decide=partial(_ended_busy, replica=state.id, seconds=round(seconds, 1)),
    )


def _ended_busy(fleet: Fleet, _command: CommandId, *, replica: ReplicaId, seconds: float) -> Sequence[AnyEvent]:
    state = fleet.replicas.get(replica)
    if state is None or not _is_too_long(fleet, state, seconds):
        return []
    limit = busy_timeout(fleet, state)
    outcome = f"a request runs for longer than busy_timeout_seconds of the {limit.setter}"
    decision = why(fleet, outcome, seconds=seconds, limit=limit.seconds)
    # No time to drain: what it would wait for is what doesn't end, so the stop that follows is forced.
    return begin_drain(fleet, [replica], reason="busy_timeout", deadline_seconds=0, decision=decision)


def _reclaim(view: View) -> list[Action]:
    return [
        _free(view, node, victim)
        for node in view.fleet.nodes.values()
        if reclaims_memory(view.fleet, node)
        and isinstance(node.liveness, Alive)
        and (victim := _victim(view, node)) is not None
    ]


def _victim(view: View, node: NodeState) -> Resident | None:
    """The least recently used of those that may go, on a node that is nearly full and where nobody goes yet."""
    states = view.fleet.replicas_on(node.name)
    share = view.fleet.settings.reclaim_above_share
    if _used_share(view, node) <= share or any(isinstance(state.phase, Draining) for state in states):
        return None
    scene = Scene(view.fleet, view.readings, Wish(NOBODY, view.moment.log_ns))
    return next((each for each in residents(scene, states) if each.goes), None)


def _used_share(view: View, node: NodeState) -> float:
    """What placement counts as taken: reserved, or measured, whichever is more."""
    if node.budget <= 0:
        return 0.0
    return 1 - room(view.fleet, node, view.readings.of(node.name)).total / node.budget


def _free(view: View, node: NodeState, victim: Resident) -> Action:
    share = round(_used_share(view, node), 3)
    return Action(
        key=f"reclaim/{victim.state.id}/{victim.state.sequence}",
        about=("node", node.name),
        reason=f"{share:.0%} of the budget of {node.name} is in use",
        decide=partial(_freed, view=view, replica=victim.state.id, share=share),
    )


def _freed(fleet: Fleet, _command: CommandId, *, view: View, replica: ReplicaId, share: float) -> Sequence[AnyEvent]:
    state = fleet.replicas.get(replica)
    if state is None or not reclaims_memory(fleet, fleet.nodes[state.node]):
        return []
    states = fleet.replicas_on(state.node)
    scene = Scene(fleet, view.readings, Wish(NOBODY, view.moment.log_ns))
    if replica not in {each.state.id for each in residents(scene, states) if each.goes}:
        return []
    decision = why(fleet, f"memory of node {state.node} is nearly full", "eviction", used_share=share)
    deadline = fleet.settings.drain_deadline_seconds
    return begin_drain(fleet, [replica], reason="evicted_memory", deadline_seconds=deadline, decision=decision)
