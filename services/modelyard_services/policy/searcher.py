"""How nodes are searched: the plain way, which looks at each, and whatever answers the same sooner (rules P1-P5).

Invariant: all searchers give equal answers; a caller chooses by speed alone.
"""

from typing import Final, Protocol

from modelyard_projections.fleet import Fleet
from modelyard_services.policy import eviction
from modelyard_services.policy import survey as plain
from modelyard_services.policy.eviction import Search
from modelyard_services.policy.filters import Scene, Wish
from modelyard_services.policy.readings import Readings
from modelyard_services.policy.survey import Survey, considered


class Searcher(Protocol):
    """Looks for a node, as it is or with room made on it."""

    def survey(self, fleet: Fleet, readings: Readings, wish: Wish) -> Survey:
        """The nodes that can take the wish as they are, and the others by what rejects them."""

    def make_room(self, fleet: Fleet, readings: Readings, wish: Wish) -> Search:
        """The cheapest eviction plan, or who is in the way of the closest one."""


class Plain:
    """Node by node: the definition that any faster searcher is held to."""

    def survey(self, fleet: Fleet, readings: Readings, wish: Wish) -> Survey:
        """As `survey.survey`."""
        return plain.survey(fleet, readings, wish)

    def make_room(self, fleet: Fleet, readings: Readings, wish: Wish) -> Search:
        """As `eviction.make_room`, over all that the wish is about."""
        return eviction.make_room(Scene(fleet, readings, wish), considered(fleet, wish))


PLAIN: Final = Plain()
