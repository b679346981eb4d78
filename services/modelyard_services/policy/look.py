"""One look at the fleet and its telemetry: all that a pass of the reconciler decides on.

Invariant: what only repeated looks show is carried from look to look in the watch, and nowhere else.
"""

import msgspec

from modelyard_projections.demand import Demand
from modelyard_projections.fleet import Fleet
from modelyard_services.policy.actions import Moment, View, Watch
from modelyard_services.policy.breaker import count_shortfalls
from modelyard_services.policy.deadlines import observe
from modelyard_services.policy.readings import read
from modelyard_services.policy.searcher import PLAIN, Searcher


def look(before: Watch, fleet: Fleet, demand: Demand, moment: Moment, *, search: Searcher = PLAIN) -> View:
    """The view at `moment`; its watch is what the next look begins with."""
    watch = observe(before, fleet=fleet, demand=demand, now_ns=moment.log_ns)
    readings = read(fleet, demand, heard_ns=moment.heard_ns, connected_ns=moment.connected_ns)
    view = View(fleet, demand, readings, moment, watch, search)
    return msgspec.structs.replace(view, watch=count_shortfalls(view, before))
