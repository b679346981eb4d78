"""The breaker: a model that nothing can hold is told unsatisfiable, and not tried again for a while (rule C5).

```
closed ── 3 failed passes in a row ──▶ open until … ── its end, success, command, change of the model or of a
   ▲                                                   node it selects ──▶ closed, counted from zero
   └────────────────────────────────────────────────────────────────────────┘
```

Invariant: it counts only what the schedule wants, so that load nobody has room for keeps no floor from being filled;
it holds back placements of the reconciler's own and nothing else; the count is the reconciler's, is never
kept over a time of being open, and no change of a node that the model doesn't select touches either.
"""

from collections.abc import Sequence
from functools import partial
from typing import Final

import msgspec

from modelyard_events.envelope import AnyEvent
from modelyard_events.ids import CommandId, ModelName
from modelyard_events.model import ModelDeclaredSatisfiable, ModelDeclaredUnsatisfiable
from modelyard_projections.fleet import Fleet, ModelState
from modelyard_services.errors import ModelUnknownError
from modelyard_services.policy.account import account, clipped
from modelyard_services.policy.actions import NANOSECONDS, Action, Eased, Shortfall, View, Watch, about_model, is_held
from modelyard_services.policy.desired import wanted_models
from modelyard_services.policy.placement import Outcome, asked_by, place, wish_of
from modelyard_services.policy.relief import Relief, mark_all, reliefs
from modelyard_services.policy.scaling import asking, lacks

PASSES_APART_SECONDS: Final = 5.0
"""Passes closer than this are one: those that events start follow each other within milliseconds and see one and the
same lack, while a drain under way is about to end it. A third of the reconciler's own rhythm."""


def count_shortfalls(view: View, before: Watch) -> Watch:
    """The view's watch with this pass counted: which models lack a replica that fits nowhere."""
    fleet = view.fleet
    if fleet.settings.reconciler_frozen:
        return view.watch
    held = {name for name, model in fleet.models.items() if model.breaker is not None}
    changes = _changes(before, fleet) if held or before.shortfalls else []
    eased = {name: found for name in held if (found := _eased(fleet.models[name], before, changes)) is not None}
    shortfalls = {
        name: shortfall
        for name in wanted_models(fleet)
        if name not in held and (shortfall := _shortfall(view, fleet.models[name], before, changes)) is not None
    }
    marks = mark_all(fleet) if held or shortfalls else None
    return msgspec.structs.replace(view.watch, shortfalls=shortfalls, eased=eased, marks=marks)


def breakers(view: View) -> list[Action]:
    """Breakers to close and to open."""
    fleet, limit = view.fleet, view.fleet.settings.breaker_failed_passes
    closing = [
        _close(model, cause)
        for model in fleet.models.values()
        if model.breaker is not None and (cause := _end_of(view, model)) is not None
    ]
    opening = [
        _open(view, fleet.models[name], shortfall.count)
        for name, shortfall in view.watch.shortfalls.items()
        if shortfall.count >= limit
    ]
    return [*closing, *opening]


def clear_breaker(fleet: Fleet, *, model: ModelName) -> list[AnyEvent]:
    """An operator says that it is worth another try; nothing where no breaker is open.

    Raises:
        ModelUnknownError: there is no such model.
    """
    state = fleet.models.get(model)
    if state is None:
        raise ModelUnknownError(f"there is no model {model!r}", field="model", value=model)
    return [] if state.breaker is None else [ModelDeclaredSatisfiable(model=model, cause="cleared by command")]


def _changes(before: Watch, fleet: Fleet) -> list[Relief]:
    return [] if before.marks is None else list(reliefs(before.marks, mark_all(fleet)))


def _eased(model: ModelState, before: Watch, changes: Sequence[Relief]) -> Eased | None:
    """Why the breaker is to close; kept until it has, for an append may have to be tried again."""
    if model.breaker is None:
        return None
    cause = _concerning(model, changes)
    if cause is not None:
        return Eased(cause, model.breaker.until_ns)
    known = before.eased.get(model.name)
    return known if known is not None and known.until_ns == model.breaker.until_ns else None


def _concerning(model: ModelState, changes: Sequence[Relief]) -> str | None:
    selector = model.options.node_selector
    return next((change.cause for change in changes if change.concerns(selector)), None)


def _shortfall(view: View, model: ModelState, before: Watch, changes: Sequence[Relief]) -> Shortfall | None:
    """The failed passes in a row with this one; None where it doesn't fail."""
    if lacks(view.fleet, model) is None:
        return None
    last, asked = before.shortfalls.get(model.name), (model.spec, model.schedule)
    if last is not None and (last.asked != asked or _concerning(model, changes) is not None):
        last = None
    now_ns = view.moment.log_ns
    if last is not None and now_ns - last.counted_ns < PASSES_APART_SECONDS * NANOSECONDS:
        return last
    if _refusal(view.fleet, view, model.name) is None:
        return None
    return Shortfall(1 if last is None else last.count + 1, now_ns, asked)


def _refusal(fleet: Fleet, view: View, model: ModelName) -> Outcome | None:
    """What placing one more comes to where it fails for lack of capacity; None where it doesn't."""
    if not fleet.nodes:
        # An installation that waits for its first node lacks no capacity yet: nobody knows what it will have.
        return None
    request = asking(fleet, fleet.models[model], CommandId("breaker"), view.moment.log_ns)
    found = view.search.survey(fleet, view.readings, wish_of(fleet, request))
    # A node that would take it once its back-off is over lacks no capacity, only patience (T6).
    if found.best or any(count.filter == "backoff" for count in found.filters):
        return None
    outcome = place(fleet, view.readings, request, search=view.search)
    # Nor does one whose residents only have to get older, or to be heard of.
    return outcome if outcome.refused is not None and not outcome.refused.passing else None


def _end_of(view: View, model: ModelState) -> str | None:
    if not is_held(model, view.moment.log_ns):
        return "its time is over"
    eased = view.watch.eased.get(model.name)
    return eased.cause if eased is not None else None


def _close(model: ModelState, cause: str) -> Action:
    return Action(
        key=f"breaker-closed/{model.name}/{model.sequence}",
        about=about_model(model.name),
        reason=cause,
        decide=partial(_closed, model=model.name, cause=clipped(cause), basis=model.breaker),
    )


def _closed(fleet: Fleet, _command: CommandId, *, model: ModelName, cause: str, basis: object) -> Sequence[AnyEvent]:
    state = fleet.models.get(model)
    if state is None or state.breaker is None or state.breaker != basis:
        return []
    return [ModelDeclaredSatisfiable(model=model, cause=cause)]


def _open(view: View, model: ModelState, passes: int) -> Action:
    return Action(
        key=f"breaker-opened/{model.name}/{view.fleet.model_sequence(model.name)}",
        about=about_model(model.name),
        reason=f"{passes} failed passes in a row",
        decide=partial(_opened, view=view, model=model.name, passes=passes),
    )


def _opened(fleet: Fleet, _command: CommandId, *, view: View, model: ModelName, passes: int) -> Sequence[AnyEvent]:
    state = fleet.models.get(model)
    if state is None or state.breaker is not None:
        return []
    lack = lacks(fleet, state)
    outcome = _refusal(fleet, view, model) if lack is not None else None
    if lack is None or outcome is None or outcome.refused is None:
        return []
    request = asking(fleet, state, CommandId("breaker"), view.moment.log_ns)
    found = view.search.survey(fleet, view.readings, wish_of(fleet, request))
    told = f"{lack}: {outcome.refused.message}"
    decision = account(fleet, view.readings, found, kind="breaker", outcome=told, asked=asked_by(request))
    figures = {"failed_passes": passes, "lack": clipped(lack)}
    unblock = outcome.refused.unblock
    return [
        ModelDeclaredUnsatisfiable(
            model=model,
            reason=clipped(outcome.refused.message),
            failed_passes=passes,
            cool_down_seconds=fleet.settings.breaker_cool_down_seconds,
            decision=msgspec.structs.replace(decision, figures=figures, unblock=unblock),
        )
    ]
