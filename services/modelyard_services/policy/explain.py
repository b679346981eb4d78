"""A placement told to people: the account in one line, node by node, and what would unblock it (rules P5, H2).

Invariant: nothing here decides; it says what the same filters and scores found.
"""

from collections.abc import Mapping
from typing import Final

import msgspec

from modelyard_events.decision import Figure, FilterCount
from modelyard_events.ids import NodeName
from modelyard_events.selectors import format_selector
from modelyard_events.sizes import format_size
from modelyard_projections.fleet import Cordoned, Fleet, NodeState
from modelyard_services.policy.filters import Rejection, Scene, Wish, fits_in_budget, free_by_gpu, lacking, rejection
from modelyard_services.policy.readings import Readings
from modelyard_services.policy.scores import candidate
from modelyard_services.policy.survey import Survey, considered

LIFTED_BY_COMMAND: Final = ("schedulable", "admitted", "selector")
"""Filters that an operator lifts with one command that touches nothing that runs."""

NO_NODE: Final = "no node is registered yet"
"""The account of an installation that waits for its first node."""


class NodeAccount(msgspec.Struct, frozen=True, omit_defaults=True):
    """One node's part of the account: its rejection, or its scores."""

    node: NodeName
    rejection: Rejection | None = None
    scores: dict[str, Figure] | None = None


def explain(fleet: Fleet, readings: Readings, wish: Wish) -> list[NodeAccount]:
    """The full account: every node with its first rejection, or with its scores."""
    scene = Scene(fleet, readings, wish)
    return [_account(scene, node) for node in considered(fleet, wish)]


def message(found: Survey) -> str:
    """The account in one line: `0/5 nodes: 3 vram (short by 2.1-9.8 GiB), 2 selector`."""
    if not found.considered:
        return NO_NODE
    head = f"{found.candidates}/{found.considered} nodes"
    parts = sorted(found.filters, key=lambda count: -count.nodes)
    return head + (": " + ", ".join(_part(count) for count in parts) if parts else "")


def by_gpu(scene: Scene, found: Survey, node: NodeState | None) -> str:
    """What each GPU has free of `node`, or without one of the node that lacks the least memory; it may be nothing."""
    if node is None and found.nearest is not None:
        node = scene.fleet.nodes[found.nearest[0]]
    return "" if node is None else free_by_gpu(node, scene.room(node))


def unblock(fleet: Fleet, readings: Readings, wish: Wish, found: Survey) -> str | None:
    """The smallest change known to let the wish pass, looked for on the nodes that the survey names."""
    scene = Scene(fleet, readings, wish)
    examples = {count.filter: count.examples for count in found.filters}
    if not found.considered:
        return "register a node"
    for name in LIFTED_BY_COMMAND:
        for node in _named(fleet, examples.get(name, ())):
            if fits_in_budget(wish, node) and rejection(scene, node, ignoring=name) is None:
                return _command(scene, node, name)
    if found.nearest is not None:
        return f"free {format_size(found.nearest[1])} of VRAM on {lacking(wish, fleet.nodes[found.nearest[0]])}"
    return _change_of_load(scene, examples)


def _account(scene: Scene, node: NodeState) -> NodeAccount:
    rejected = rejection(scene, node)
    if rejected is not None:
        return NodeAccount(node.name, rejected)
    return NodeAccount(node.name, scores=candidate(scene, node).scores())


def _part(count: FilterCount) -> str:
    if count.unit is None or not isinstance(count.low, int | float) or not isinstance(count.high, int | float):
        return f"{count.nodes} {count.filter}"
    if count.unit == "bytes":
        return f"{count.nodes} {count.filter} (short by {_sizes(int(count.low), int(count.high))})"
    seconds = f"{count.low:g}" if count.low == count.high else f"{count.low:g}–{count.high:g}"  # noqa: RUF001
    return f"{count.nodes} {count.filter} (for {seconds} s)"


def _sizes(low: int, high: int) -> str:
    """`2.1–9.8 GiB`, the unit once where both have it."""  # noqa: RUF002 - a range's dash
    least, most = format_size(low), format_size(high)
    if least == most:
        return most
    shared = least.split()[1] == most.split()[1]
    return f"{least.split()[0] if shared else least}–{most}"  # noqa: RUF001 - a range's dash


def _named(fleet: Fleet, names: tuple[str, ...]) -> list[NodeState]:
    return [fleet.nodes[NodeName(name)] for name in names if name in fleet.nodes]


def _command(scene: Scene, node: NodeState, name: str) -> str:
    if name == "schedulable":
        return f"{'uncordon' if isinstance(node.intent, Cordoned) else 'resume'} node {node.name}"
    if name == "admitted":
        return f"approve node {node.name}"
    return f"label node {node.name} so that it matches {format_selector(scene.wish.selector)}"


def _change_of_load(scene: Scene, examples: Mapping[str, tuple[str, ...]]) -> str | None:
    for node in _named(scene.fleet, examples.get("slot", ())):
        if rejection(scene, node, ignoring="slot") is None:
            return f"raise max-replicas-per-model of node {node.name} above {node.max_replicas_per_model}"
    for node in _named(scene.fleet, examples.get("concurrency_group", ())):
        found = rejection(scene, node)
        if found is not None and rejection(scene, node, ignoring="concurrency_group") is None:
            return f"end the group's holder on node {node.name} ({found.detail})"
    if scene.wish.per_gpu is not None and (short := _named(scene.fleet, examples.get("vram", ()))):
        return _more_memory(scene.wish.per_gpu, scene.wish.gpus, short)
    return None


def _more_memory(per_gpu: int, gpus: int, short: list[NodeState]) -> str:
    """A budget is worth raising only where the devices themselves are large enough."""
    needed = format_size(per_gpu) + (f" of VRAM on each of {gpus} GPUs" if gpus > 1 else " of VRAM")
    for node in short:
        sizes = sorted((gpu.vram_total for gpu in node.facts.gpus), reverse=True) or [node.vram_total]
        if len(sizes) >= gpus and sizes[gpus - 1] >= per_gpu:
            return f"raise the budget of node {node.name} to {needed}"
    bare = next((node.name for node in short if node.vram_total == 0), None)
    started = "" if bare is None else f", or start the worker of {bare} with --vram: it has no GPU and offers no memory"
    return f"add a node with {needed}{started}"
