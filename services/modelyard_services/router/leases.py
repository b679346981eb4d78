"""The leases of one router incarnation: granted, then ended exactly once (rule T2, I13).

Invariant: a replica's count is the number of leases held on it, so it can neither leak nor go negative; a lease
id names the incarnation that granted it, and no other router can end it.
"""

from collections.abc import Iterator

import msgspec

from modelyard_events.ids import LeaseId, ModelName, NodeName, ReplicaId, Revision
from modelyard_services.policy.routing import LEAST_BUSY, Candidate, Choice


class Lease(msgspec.Struct, frozen=True, gc=False):
    """The right to send one request to a replica, and why it is this one.

    `expires_at_ns` is None while a connection holds it.
    """

    lease: LeaseId
    node: NodeName
    model: ModelName
    replica: ReplicaId
    replica_index: int
    address: str
    revision: Revision
    granted_ns: int
    expires_at_ns: int | None = None
    choice: Choice = LEAST_BUSY


class LeaseBook:
    """Who holds what. Times are Unix nanoseconds, given by the caller."""

    def __init__(self, incarnation: str) -> None:
        self.incarnation = incarnation
        self._leases: dict[LeaseId, Lease] = {}
        self._held: dict[ReplicaId, dict[LeaseId, Lease]] = {}
        self._expiring: dict[LeaseId, int] = {}
        self._granted = 0

    def __len__(self) -> int:
        return len(self._leases)

    def grant(self, candidate: Candidate, *, now_ns: int, seconds: float | None, choice: Choice = LEAST_BUSY) -> Lease:
        """A new lease on `candidate`, for `seconds` or for as long as its connection."""
        self._granted += 1
        identity = LeaseId(f"{self.incarnation}.{self._granted:x}")
        expires_at_ns = None if seconds is None else now_ns + round(seconds * 1e9)
        lease = self._leases[identity] = Lease(
            identity,
            candidate.node,
            candidate.model,
            candidate.replica,
            candidate.replica_index,
            candidate.address,
            candidate.revision,
            now_ns,
            expires_at_ns,
            choice,
        )
        held = self._held.get(candidate.replica)
        if held is None:
            held = self._held[candidate.replica] = {}
        held[identity] = lease
        if expires_at_ns is not None:
            self._expiring[identity] = expires_at_ns
        return lease

    def end(self, lease: LeaseId) -> Lease | None:
        """The lease that ended now; None when it isn't held here (any more)."""
        ended = self._leases.pop(lease, None)
        if ended is None:
            return None
        held = self._held[ended.replica]
        del held[lease]
        if not held:
            del self._held[ended.replica]
        self._expiring.pop(lease, None)
        return ended

    def renew(self, lease: LeaseId, *, now_ns: int, seconds: float) -> Lease | None:
        """The lease with its new end; None when it isn't held here (any more)."""
        known = self._leases.get(lease)
        if known is None or known.expires_at_ns is None:
            return known
        expires_at_ns = now_ns + round(seconds * 1e9)
        renewed = self._leases[lease] = msgspec.structs.replace(known, expires_at_ns=expires_at_ns)
        self._expiring.pop(lease)
        self._expiring[lease] = expires_at_ns
        return renewed

    def expired(self, *, now_ns: int) -> list[LeaseId]:
        """Leases past their end."""
        return [lease for lease, expires_at_ns in self._expiring.items() if expires_at_ns <= now_ns]

    def count(self, replica: ReplicaId) -> int:
        return len(self._held.get(replica, ()))

    def held(self) -> Iterator[tuple[ReplicaId, int, int]]:
        """Each leased replica, how many leases it has, and when the oldest of them began."""
        for replica, leases in self._held.items():
            yield replica, len(leases), next(iter(leases.values())).granted_ns
