"""One pass from what operators want to what must be done next (rules C1-C8, N9, N10, R6).

Invariant: level-triggered: a pass looks at the fleet as it is and never at how it came to be, so a missed event
costs time only; and a model is never scaled up and down in one pass.
"""

from modelyard_services.policy.actions import Action, View
from modelyard_services.policy.breaker import breakers
from modelyard_services.policy.deadlines import missing, overdue
from modelyard_services.policy.desired import wanted_models
from modelyard_services.policy.draining import empty_nodes
from modelyard_services.policy.rollout import roll
from modelyard_services.policy.scaling import scale
from modelyard_services.policy.watchdog import watch


def reconcile(view: View) -> list[Action]:
    """All that is due now, in the order in which it is best done: ends first, for they make room."""
    due = [*overdue(view), *missing(view)]
    if view.fleet.settings.reconciler_frozen:
        return due
    due += [*breakers(view), *empty_nodes(view), *watch(view)]
    for name in wanted_models(view.fleet):
        model = view.fleet.models[name]
        due += [*scale(view, model), *roll(view, model)]
    return due
