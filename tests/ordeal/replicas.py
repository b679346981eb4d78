"""The judge of replicas: each from its placement to its end, and every placement on the log up to it (I2-I4, R1-R8).

Invariant: a replica's turns come in order and once; a placement is judged by what is placed, not by why.
"""

from typing import Final, assert_never

from modelyard_events.envelope import Recorded
from modelyard_events.replica import (
    ReplicaAdopted,
    ReplicaCrashed,
    ReplicaDrainStarted,
    ReplicaEvent,
    ReplicaLoaded,
    ReplicaLoadFailed,
    ReplicaLoadStarted,
    ReplicaPlaced,
    ReplicaStopRequested,
    ReplicaUnloaded,
)
from tests.ordeal.leases import Leases
from tests.ordeal.ledger import Ledger, Life, holds, require

EVICTIONS: Final = frozenset({"evicted_lru", "evicted_group", "evicted_memory"})
EXPLAINED: Final = EVICTIONS | {"scaled_down", "idle", "probe_failed", "busy_timeout"}
"""Ends that somebody decided, and says why; the others say it by what went before them (I12)."""


def hear_replica(  # noqa: C901, PLR0912 - one arm per event; splitting would hide which are judged
    ledger: Ledger, leases: Leases, event: ReplicaEvent, recorded: Recorded
) -> None:
    """Keep the books of one event."""
    match event:
        case ReplicaPlaced():
            _place(ledger, event)
        case ReplicaLoadStarted():
            life = ledger.life(event.replica, event.node, "placed")
            require("P3", not life.waits_for, f"{life.id} loads before {life.waits_for} ended")
            life.stage, life.incarnation = "loading", event.incarnation
        case ReplicaLoaded():
            life = ledger.life(event.replica, event.node, "loading")
            wanted = ledger.book(life.model).revision
            require("R6", life.revision == wanted, f"{life} is published, {wanted} wanted")
            life.stage, life.ready_at = "ready", recorded.sequence
        case ReplicaAdopted():
            life = ledger.life(event.replica, event.node, "loading", "ready", "draining", "stopping")
            life.incarnation = event.incarnation
        case ReplicaLoadFailed():
            ledger.life(event.replica, event.node, "placed", "loading")
        case ReplicaCrashed():
            ledger.life(event.replica, event.node, "ready")
        case ReplicaDrainStarted():
            if event.reason in EXPLAINED:
                require("I12", event.decision is not None, f"{event.reason} without its reasons")
            for replica in event.replicas:
                life = ledger.life(replica, event.node, "loading", "ready")
                life.stage, life.leaving_at = "draining", recorded.sequence
        case ReplicaStopRequested():
            for replica in event.replicas:
                _stop(leases, ledger.life(replica, event.node, "draining", "stopping"), event, recorded.time_ns)
        case ReplicaUnloaded():
            if event.reason == "node_lost":
                place = ledger.places[event.node]
                require("N9", recorded.time_ns >= place.grace_until_ns, f"{event} before its grace ended")
                require("N9", not ledger.alarm, f"{event} while many are lost")
            for replica in event.replicas:
                _end(ledger, replica, event.node, recorded.sequence)
        case _:
            assert_never(event)


def _stop(leases: Leases, life: Life, event: ReplicaStopRequested, now_ns: int) -> None:
    """R8, I13: unless it is forced, no living router holds a lease on what stops."""
    life.stage = "stopping"
    held = leases.on(life.id, now_ns=now_ns)
    require("R8", event.forced or not held, f"{life.id} stops under {held}")


def _end(ledger: Ledger, replica: str, node: str, sequence: int) -> None:
    life = ledger.life(replica, node, "placed", "loading", "ready", "draining", "stopping")
    life.stage = "ended"
    life.leaving_at = life.leaving_at or sequence
    ledger.ended_lives[replica] = ledger.lives.pop(replica)
    for other in ledger.lives.values():
        other.waits_for.discard(replica)


def _place(ledger: Ledger, event: ReplicaPlaced) -> None:
    """I2-I4, N1, R4 on the log up to here; I1 once its reservation is granted."""
    known = event.replica in ledger.lives or event.replica in ledger.ended_lives
    require("R1", not known, f"replica {event.replica} twice")
    place, book = ledger.places[event.node], ledger.book(event.model)
    others = [life for life in ledger.on(event.node) if life.id not in event.waits_for]
    siblings = [life for life in others if life.model == event.model]
    require("I2", event.replica_index not in {life.index for life in siblings}, f"{event.replica}: {siblings}")
    require("I2", 0 <= event.replica_index < place.cap, f"slot {event.replica_index} of {place.cap}")
    rivals = [life for life in others if life.model != event.model and life.groups & set(event.groups)]
    require("I3", not rivals, f"{event.groups} beside {rivals}")
    require("I4", holds(book.selector, place.labels()), f"{book.selector} on {place.labels()}")
    facets = (place.kind, place.admission, place.liveness, place.intent)
    require("N1", facets == ("backend", "approved", "alive", "schedulable"), f"placed on {facets}")
    require("R4", not event.exclusive or not others, f"unknown footprint beside {others}")
    require("R4", not any(life.exclusive for life in others), f"beside one of unknown footprint: {others}")
    require("R5", book.spec is not None and event.groups == book.spec.concurrency_groups, f"{event.groups}")
    require("R1", book.revision == event.revision, f"{event.revision} placed, {book.revision} wanted")
    asked = (book.spec.vram or 0) if book.spec is not None else 0
    require("R3", sum(event.vram.values()) >= asked, f"{event.vram} reserved for {asked} bytes")
    gpus = 1 if book.schedule is None else book.schedule.gpus
    require("P6", len(event.vram) in {0, gpus}, f"{event.vram} on {gpus} GPUs")
    require("P6", event.exclusive or len(set(event.vram.values())) <= 1, f"{event.vram} in unequal parts")
    # The node's own is in the log it was guarded by; the fleet's is judged at the decision's basis.
    own, fleets = place.watchdog.max_loaded_models, ledger.settings_at(event.decision.basis).max_loaded_models
    limit = fleets if own is None else own
    strangers = {life.model for life in others if life.model != event.model}
    # One of a model that is there already, or goes for it, makes no more models of them.
    more = event.model not in {life.model for life in ledger.on(event.node)}
    require("C8", not limit or not more or len(strangers) < limit, f"{event.model} beside {strangers}, limit {limit}")
    victims = {str(victim) for victim in event.waits_for if victim in ledger.lives}
    require("P3", victims == set(event.waits_for), f"waits for {event.waits_for}, living are {victims}")
    ledger.lives[event.replica] = Life(
        event.replica,
        event.node,
        event.model,
        event.replica_index,
        event.revision,
        event.reservation,
        frozenset(event.groups),
        event.exclusive,
        set(victims),
    )
