"""Who is heard: nodes lost and recovered, the end of their grace, and the brake on losing many at once (rule N9).

Invariant: silence counts only while the observer could hear, and nothing of a silent node ends before its grace,
nor while the brake is on.
"""

from collections.abc import Sequence
from functools import partial
from typing import Final

import msgspec

from modelyard_events.envelope import AnyEvent
from modelyard_events.fleet import FleetMassLossCleared, FleetMassLossDeclared
from modelyard_events.ids import CommandId, IncarnationId, NodeName
from modelyard_events.node import NodeLost, NodeRecovered
from modelyard_projections.fleet import Alive, Fleet, Lost, NodeState
from modelyard_services.policy.actions import NANOSECONDS, Action, View
from modelyard_services.policy.ending import end

MASS_LOSS_NODES_MIN: Final = 2
"""One node is no mass, though it is a third of a fleet of three."""

NAMES_BYTES_MAX: Final = 32 * 1024
"""Names told in one alarm: half an event; the brake holds for all nodes, named or not."""


def judge(view: View) -> list[Action]:
    """What the heartbeats, and their absence, come to."""
    if view.moment.connected_ns is None:
        return []
    nodes = view.fleet.nodes.values()
    silent = [node for node in nodes if isinstance(node.liveness, Alive) and _timed_out(view, node)]
    heard = [node for node in nodes if isinstance(node.liveness, Lost) and _is_heard(view, node)]
    return [
        *_alarm(view, silent),
        *(_lose(view, node) for node in silent),
        *(_recover(node) for node in heard),
        *_all_clear(view),
        *_grace_ends(view, {node.name for node in heard}),
    ]


def clear_mass_loss(fleet: Fleet) -> list[AnyEvent]:
    """An operator says that the loss is real: what is lost may end."""
    return [FleetMassLossCleared(cause="operator")] if fleet.mass_loss else []


def silent_ns(view: View, node: NodeState) -> int:
    """How long nothing was heard from this incarnation, counted from when it could have been (N9)."""
    moment = view.moment
    if moment.connected_ns is None or not isinstance(node.liveness, Alive | Lost):
        return 0
    heard = view.demand.nodes.get(node.name)
    last = heard.heard_ns if heard is not None and heard.heartbeat.incarnation == node.incarnation else None
    if last is not None:
        return moment.heard_ns - max(last, moment.connected_ns)
    age_ns = moment.log_ns - node.liveness.since_ns
    return min(age_ns, moment.heard_ns - moment.connected_ns)


def _timed_out(view: View, node: NodeState) -> bool:
    return silent_ns(view, node) > view.fleet.settings.lost_after_seconds * NANOSECONDS


def _is_heard(view: View, node: NodeState) -> bool:
    heard = view.demand.nodes.get(node.name)
    if heard is None or heard.heartbeat.incarnation != node.incarnation:
        return False
    return view.moment.heard_ns - heard.heard_ns <= view.fleet.settings.lost_after_seconds * NANOSECONDS


def _lose(view: View, node: NodeState) -> Action:
    seconds = silent_ns(view, node) / NANOSECONDS
    return Action(
        key=f"lost/{node.name}/{node.incarnation}/{node.sequence}",
        about=("node", node.name),
        reason=f"no heartbeat for {seconds:.0f} s",
        decide=partial(_lost, node=node.name, incarnation=node.incarnation, seconds=seconds),
        essential=True,
    )


def _lost(
    fleet: Fleet, _command: CommandId, *, node: NodeName, incarnation: IncarnationId, seconds: float
) -> Sequence[AnyEvent]:
    state = fleet.nodes.get(node)
    if state is None or state.incarnation != incarnation or not isinstance(state.liveness, Alive):
        return []
    grace = fleet.settings.lost_grace_seconds
    return [NodeLost(node=node, incarnation=incarnation, silent_seconds=round(seconds, 1), grace_seconds=grace)]


def _recover(node: NodeState) -> Action:
    return Action(
        key=f"recovered/{node.name}/{node.incarnation}/{node.sequence}",
        about=("node", node.name),
        reason="heard again",
        decide=partial(_recovered, node=node.name, incarnation=node.incarnation),
        essential=True,
    )


def _recovered(fleet: Fleet, _command: CommandId, *, node: NodeName, incarnation: IncarnationId) -> Sequence[AnyEvent]:
    state = fleet.nodes.get(node)
    if state is None or state.incarnation != incarnation or not isinstance(state.liveness, Lost):
        return []
    return [NodeRecovered(node=node, incarnation=incarnation)]


def _alarm(view: View, silent: Sequence[NodeState]) -> list[Action]:
    alive = sum(isinstance(node.liveness, Alive) for node in view.fleet.nodes.values())
    if not _is_mass(view.fleet, len(silent), alive):
        return []
    names = _named([*view.fleet.mass_loss, *(node.name for node in silent)])
    return [
        Action(
            key=f"mass-loss/{view.fleet.settings_sequence}/{view.fleet.sequence}",
            about=("settings", "settings"),
            reason=f"{len(silent)} of {alive} nodes fell silent in one pass",
            decide=partial(_declared, nodes=names, size=alive),
            essential=True,
        )
    ]


def _declared(fleet: Fleet, _command: CommandId, *, nodes: tuple[str, ...], size: int) -> Sequence[AnyEvent]:
    return [] if set(nodes) <= set(fleet.mass_loss) else [FleetMassLossDeclared(nodes=nodes, fleet_size=size)]


def _all_clear(view: View) -> list[Action]:
    """The alarm's nodes are back, but for so few that they are no mass."""
    fleet = view.fleet
    if not fleet.mass_loss:
        return []
    states = [fleet.nodes[NodeName(name)] for name in fleet.mass_loss if name in fleet.nodes]
    gone = sum(not isinstance(node.liveness, Alive) and not _is_heard(view, node) for node in states)
    size = sum(isinstance(node.liveness, Alive | Lost) for node in fleet.nodes.values())
    if _is_mass(fleet, gone, size) or any(
        isinstance(node.liveness, Alive) and _timed_out(view, node) for node in states
    ):
        return []
    return [
        Action(
            key=f"all-clear/{fleet.settings_sequence}",
            about=("settings", "settings"),
            reason=f"{len(states) - gone} of {len(states)} silent nodes are heard again",
            decide=lambda fleet, _command: [FleetMassLossCleared(cause="heartbeats")] if fleet.mass_loss else [],
            essential=True,
        )
    ]


def _is_mass(fleet: Fleet, lost: int, size: int) -> bool:
    return lost >= MASS_LOSS_NODES_MIN and lost > fleet.settings.mass_loss_share * size


def _grace_ends(view: View, heard: set[NodeName]) -> list[Action]:
    if view.fleet.mass_loss:
        return []
    return [
        Action(
            key=f"grace/{node.name}/{node.incarnation}/{node.sequence}",
            about=("node", node.name),
            reason="the grace of a lost node ended",
            decide=partial(_grace_ended, node=node.name, now_ns=view.moment.log_ns),
            essential=True,
        )
        for node in view.fleet.nodes.values()
        if node.replicas and node.name not in heard and _grace_is_over(node, view.moment.log_ns)
    ]


def _grace_is_over(node: NodeState, now_ns: int) -> bool:
    return isinstance(node.liveness, Lost) and now_ns >= node.liveness.grace_until_ns


def _grace_ended(fleet: Fleet, _command: CommandId, *, node: NodeName, now_ns: int) -> Sequence[AnyEvent]:
    state = fleet.nodes.get(node)
    if state is None or fleet.mass_loss or not _grace_is_over(state, now_ns):
        return []
    return end(fleet, state.replicas, reason="node_lost", detail="not heard again within its grace")


def _named(names: Sequence[str]) -> tuple[str, ...]:
    kept: list[str] = []
    size = 0
    for name in dict.fromkeys(names):
        size += len(msgspec.json.encode(name)) + 1
        if size > NAMES_BYTES_MAX:
            break
        kept.append(name)
    return tuple(kept)
