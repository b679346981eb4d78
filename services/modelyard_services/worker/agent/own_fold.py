"""What a worker knows of its node: the node's own events, folded as far as they can be read (rule W1, trap X20).

Invariant: an event that can't be read is never passed over. What was folded before it is an older truth, by which
nothing is started, stopped or told any more.
"""

from collections.abc import Sequence

import structlog

from modelyard_events.codec import UndecodableEventError
from modelyard_projections.fleet import Fleet, FoldError
from modelyard_services.effects.feed import recorded
from modelyard_services.effects.log.contract import Stored

_log = structlog.get_logger(__name__)


class OwnFold:
    """The fleet as this node's events show it. `registered_at` is the sequence of this life's registration."""

    def __init__(self) -> None:
        self.fleet = Fleet()
        self.registered_at: int | None = None
        self._unreadable = False

    @property
    def caught_up(self) -> bool:
        """Before its own registration is folded, the fold shows a life that is over: its claims aren't ours."""
        return not self._unreadable and self.registered_at is not None and self.fleet.sequence >= self.registered_at

    def take(self, chunk: Sequence[Stored]) -> bool:
        """Fold what comes next; False where that can't be read, and for all that follows."""
        if self._unreadable:
            return False
        try:
            for one in chunk:
                self.fleet.apply(recorded(one))
        except (UndecodableEventError, FoldError) as error:
            # Skipping it would be acting on a picture that is wrong; ending what serves well would be worse.
            self._unreadable = True
            _log.error("the node's events can't be read: nothing is started or stopped any more", problem=str(error))
            return False
        self.fleet.take_touched()
        return True
