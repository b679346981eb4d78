"""What the other routers hold, replica by replica, kept up to date report by report (rule T2).

Invariant: a replica's count is the sum of the last report of each router that is there; a report costs what it holds,
however many routers there are.
"""

from collections.abc import Container, Mapping
from typing import Final

from modelyard_events.ids import ReplicaId

_NOTHING: Final[Mapping[ReplicaId, int]] = {}


class Others:
    """The other routers' leases."""

    def __init__(self) -> None:
        self._held: dict[str, Mapping[ReplicaId, int]] = {}
        self._sums: dict[ReplicaId, int] = {}

    def count(self, replica: ReplicaId) -> int:
        return self._sums.get(replica, 0)

    def hear(self, router: str, held: Mapping[ReplicaId, int]) -> set[ReplicaId]:
        """`router` holds that much; the replicas whose count changed."""
        before = self._held.pop(router, _NOTHING)
        if held:
            self._held[router] = held
        changed = {replica for replica in (*before, *held) if before.get(replica, 0) != held.get(replica, 0)}
        for replica in changed:
            count = self.count(replica) - before.get(replica, 0) + held.get(replica, 0)
            if count:
                self._sums[replica] = count
            else:
                del self._sums[replica]
        return changed

    def keep(self, routers: Container[str]) -> set[ReplicaId]:
        """Forget all but `routers`; the replicas whose count changed."""
        gone = [router for router in self._held if router not in routers]
        return {replica for router in gone for replica in self.hear(router, _NOTHING)}
