"""The fold against the judge's books: two readings of one log must agree (I8, I9).

Invariant: it looks at what both have and changes neither.
"""

from modelyard_projections.fleet import Alive, Draining, Fleet, NodeDraining, Ready, ReplicaState
from modelyard_projections.fleet.state import NodeState
from tests.ordeal.ledger import Ledger, Place, require


def compare(fleet: Fleet, ledger: Ledger) -> None:
    """Fail where they differ."""
    require("I9", set(fleet.nodes) == set(ledger.places), f"{set(fleet.nodes)} and {set(ledger.places)}")
    require("I9", set(fleet.replicas) == set(ledger.lives), f"{set(fleet.replicas)} and {set(ledger.lives)}")
    require("I9", set(fleet.reservations) == set(ledger.claims), f"{set(fleet.reservations)}, {set(ledger.claims)}")
    for name, node in fleet.nodes.items():
        place = ledger.places[name]
        _same(f"facets of {name}", _facets(node), (place.admission, place.liveness, place.intent))
        _same(f"labels of {name}", node.labels, place.labels())
        _same(f"budget of {name}", (node.devices, node.budget), (place.totals(), place.budget()))
        _same(f"cap of {name}", node.max_replicas_per_model, place.cap)
        _same(f"reserved on {name}", _sums(node.reserved), _held(ledger, place))
        for model, slots in node.slots.items():
            taken = {life.index for life in ledger.on(name) if life.model == model}
            _same(f"slots of {model} on {name}", set(slots), taken)
    for identity, state in fleet.replicas.items():
        life = ledger.lives[identity]
        _same(f"phase of {identity}", _stage(state), life.stage)
        _same(f"victims of {identity}", set(state.waits_for), life.waits_for)
    for book in fleet.models.values():
        told = {life.id: life.told for life in ledger.of(book.name)}
        _same(f"replicas of {book.name}", {key: each.phase for key, each in book.replicas.items()}, told)
        until_ns = book.breaker.until_ns if book.breaker is not None else None
        _same(f"breaker of {book.name}", until_ns, ledger.book(book.name).unsatisfiable_until_ns)


def _same(what: str, folded: object, booked: object) -> None:
    require("I9", folded == booked, f"{what}: the fold has {folded}, the books {booked}")


def _facets(node: NodeState) -> tuple[str, str, str]:
    drained = isinstance(node.intent, NodeDraining) and node.intent.finished
    return node.admission, node.liveness_name, "drained" if drained else node.intent_name


def _sums(reserved: dict[int, int]) -> dict[int, int]:
    return {device: size for device, size in reserved.items() if size}


def _held(ledger: Ledger, place: Place) -> dict[int, int]:
    """As the fold counts: every claim in full, a newcomer's and its victims' too."""
    sums: dict[int, int] = {}
    for claim in ledger.held(place.name):
        for device, size in claim.vram.items():
            sums[device] = sums.get(device, 0) + size
    return _sums(sums)


def _stage(state: ReplicaState) -> str:
    stopping = isinstance(state.phase, Draining) and state.phase.stopping
    return "stopping" if stopping else state.phase_name


def is_settled(fleet: Fleet, state: ReplicaState) -> bool:
    """Whether nothing is left to happen to the replica."""
    return isinstance(state.phase, Ready) or not isinstance(fleet.nodes[state.node].liveness, Alive)
