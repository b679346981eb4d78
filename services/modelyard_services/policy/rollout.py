"""Replacing replicas, of an older revision or asked to restart: a new one ready first, else the old out first (R6).

```
surge      place the newcomer elsewhere ─▶ it is ready ─▶ drain the old
in place   drain the old and place the newcomer in its slot, waiting for it: one append
```

Invariant: one replica of a model is replaced at a time, and an old one goes on serving while nothing fits.
"""

from collections.abc import Sequence
from functools import partial

from modelyard_events.envelope import AnyEvent
from modelyard_events.ids import CommandId, ReplicaId
from modelyard_events.replica import EndReason
from modelyard_events.spec import SpreadAll
from modelyard_projections.fleet import Draining, Fleet, ModelState, NodeState, ReplicaState
from modelyard_services.policy.actions import Action, View, why
from modelyard_services.policy.desired import is_ready, is_starting, serving, stale
from modelyard_services.policy.ending import begin_drain
from modelyard_services.policy.filters import (
    Scene,
    Wish,
    backing_off,
    disk_short,
    group_taken,
    not_exclusive,
    not_selected,
    vram_rejection,
)
from modelyard_services.policy.memory import Room, Space, choose_devices
from modelyard_services.policy.placement import Place, Request, claim, place, wish_of
from modelyard_services.policy.readings import Readings


def roll(view: View, model: ModelState) -> list[Action]:
    """The next step of the model's rollout, if one is due."""
    old = stale(view.fleet, model)
    unready = [state for state in old if not is_ready(state)]
    if unready:
        return [_retire(state, "of a revision that is no more in force, before it is ready") for state in unready]
    newcomers = {state.replaces: state for state in serving(view.fleet, model) if state.replaces is not None}
    done = [state for state in old if state.id in newcomers and is_ready(newcomers[state.id])]
    if done:
        return [_retire(state, "its newcomer is ready") for state in done]
    # What is still on its way out will free the place that the next newcomer needs.
    leaving = any(isinstance(state.phase, Draining) for state in view.fleet.replicas_of(model.name))
    if not old or leaving or any(is_starting(state) for state in serving(view.fleet, model)):
        return []
    return [_replace(view, old[0])]


def _retire(state: ReplicaState, reason: str) -> Action:
    return Action(
        key=f"superseded/{state.id}/{state.sequence}",
        about=("model", state.model),
        reason=reason,
        decide=partial(_retired, replica=state.id, reason=reason),
    )


def _retired(fleet: Fleet, _command: CommandId, *, replica: ReplicaId, reason: str) -> Sequence[AnyEvent]:
    state = fleet.replicas.get(replica)
    model = fleet.models.get(state.model) if state is not None else None
    if state is None or model is None or state not in stale(fleet, model):
        return []
    deadline = fleet.settings.drain_deadline_seconds
    ending = _reason(model, state)
    decision = why(fleet, f"{ending}: {reason}", revision=state.revision, in_force=model.revision)
    return begin_drain(fleet, [replica], reason=ending, deadline_seconds=deadline, decision=decision)


def _replace(view: View, state: ReplicaState) -> Action:
    return Action(
        key=f"replace/{state.id}/{view.fleet.model_sequence(state.model)}",
        about=("model", state.model),
        reason=f"replica {state.id} of revision {state.revision} is to be replaced",
        decide=partial(_replaced, view=view, replica=state.id),
        places=state.model,
    )


def _replaced(fleet: Fleet, command: CommandId, *, view: View, replica: ReplicaId) -> Sequence[AnyEvent]:
    old = fleet.replicas.get(replica)
    model = fleet.models.get(old.model) if old is not None else None
    if old is None or model is None or model.spec is None or old not in stale(fleet, model):
        return []
    if any(state.replaces == replica for state in serving(fleet, model)):
        return []
    request = Request(model=model.name, command=command, now_ns=view.moment.log_ns, replaces=replica, may_evict=False)
    surges = model.options.rollout == "surge" and not isinstance(model.options.mode, SpreadAll)
    outcome = place(fleet, view.readings, request, search=view.search) if surges else None
    if outcome is not None and outcome.replica is not None:
        return outcome.events
    in_place = _in_place(fleet, view.readings, request, old)
    # Nothing fits either way: the old one serves on, and the refusal is told.
    return in_place or (outcome.events if outcome is not None else [])


def _in_place(fleet: Fleet, readings: Readings, request: Request, old: ReplicaState) -> Sequence[AnyEvent]:
    """The newcomer takes over the old one's slot and memory once that has ended (P3's way)."""
    node = fleet.nodes[old.node]
    wish = wish_of(fleet, request)
    freed = Space(fleet, node, readings.of(node.name)).without(old).room()
    if not _could_take_over(Scene(fleet, readings, wish), node, old, freed):
        return []
    held = choose_devices(freed, gpus=wish.gpus, per_gpu=wish.per_gpu, binpack=wish.binpack)
    decision = why(fleet, f"placed on {node.name} in place of {old.id}", replaces=old.id, reserved=sum(held.values()))
    where = Place(node, held, waits_for=(old.id,), index=old.replica_index)
    deadline = fleet.settings.drain_deadline_seconds
    return [
        *begin_drain(fleet, [old.id], reason=_reason(fleet.models[old.model], old), deadline_seconds=deadline),
        *claim(fleet, request, where, decision=decision).events,
    ]


def _reason(model: ModelState, state: ReplicaState) -> EndReason:
    return "superseded" if state.revision != model.revision else "requested"


def _could_take_over(scene: Scene, node: NodeState, old: ReplicaState, freed: Room) -> bool:
    wish: Wish = scene.wish
    alone = set(node.replicas) == {old.id}
    judges = [not_selected, group_taken, disk_short, backing_off, *([] if alone else [not_exclusive])]
    return (
        node.takes_replicas
        and old.replica_index < node.max_replicas_per_model
        and all(judge(scene, node) is None for judge in judges)
        and vram_rejection(wish, node, freed.fit(wish.gpus)) is None
    )
