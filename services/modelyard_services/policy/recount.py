"""The full account of a decision that was made earlier, each node with its filter or its scores (rule H2).

Invariant: it is computed by the very filters and scores that decided, and says itself whether it comes to the
decision's own counts; what isn't known any more is told, never guessed.
"""

import msgspec

from modelyard_events.decision import Decision
from modelyard_events.ids import CommandId, ModelName, NodeName
from modelyard_events.selectors import parse_selector
from modelyard_projections.fleet import Fleet
from modelyard_services.errors import ConflictError
from modelyard_services.policy.account import POLICY, runners_up
from modelyard_services.policy.explain import NodeAccount, explain
from modelyard_services.policy.filters import Wish
from modelyard_services.policy.placement import Request, wish_of
from modelyard_services.policy.readings import Readings, expand
from modelyard_services.policy.survey import survey


class Recount(msgspec.Struct, frozen=True):
    """A decision's full account.

    `measured` tells whether the measurements it used are known: in a large fleet they don't fit into a decision, and
    then free memory is what the budgets left. `agrees` whether nodes, counts and runners-up are the decision's own.
    """

    nodes: tuple[NodeAccount, ...]
    measured: bool
    agrees: bool


def recount(fleet: Fleet, decision: Decision, model: ModelName) -> Recount:
    """The account of `decision` about `model`, on the `fleet` of its `basis`.

    Raises:
        ConflictError: no node was judged for it, another version of the policy decided, or its telemetry can't be read.
    """
    if fleet.sequence != decision.basis:
        raise AssertionError(f"decided on sequence {decision.basis}, not on {fleet.sequence}")
    if decision.policy != POLICY:
        raise ConflictError(
            f"it was decided by policy {decision.policy}, and this is {POLICY}: ask the release that decided it",
            field="policy",
            value=decision.policy,
        )
    wish, measurements = _wished(fleet, decision, model), _measurements(decision)
    readings = measurements or Readings()
    return Recount(
        tuple(explain(fleet, readings, wish)), measurements is not None, _agrees(fleet, readings, wish, decision)
    )


def _wished(fleet: Fleet, decision: Decision, model: ModelName) -> Wish:
    asked = decision.asked
    if asked is None:
        raise ConflictError(
            f"a decision about {decision.kind} judges no nodes one by one: its figures are all of it",
            field="kind",
            value=decision.kind,
        )
    request = Request(
        model=model,
        command=CommandId("recount"),
        now_ns=asked.at_ns,
        node=None if asked.node is None else NodeName(asked.node),
        selector=parse_selector(asked.selector),
    )
    return wish_of(fleet, request)


def _measurements(decision: Decision) -> Readings | None:
    if decision.telemetry is None:
        return None
    try:
        return expand(decision.telemetry)
    except ValueError as error:
        raise ConflictError(str(error), field="telemetry") from error


def _agrees(fleet: Fleet, readings: Readings, wish: Wish, decision: Decision) -> bool:
    found = survey(fleet, readings, wish)
    counts = [(count.filter, count.nodes, count.low, count.high) for count in found.filters]
    told = [(count.filter, count.nodes, count.low, count.high) for count in decision.filters]
    # Of a decision with long names the runners-up may have been left out.
    same = not decision.runners_up or runners_up(found) == decision.runners_up
    return found.considered == decision.considered and counts == told and same
