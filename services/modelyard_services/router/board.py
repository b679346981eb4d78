"""Every routable replica by model, with its load: the fleet's facts and the routers' counts in one place.

Invariant: a replica is on the board exactly while the fold says that it is routable; its counts are the lease
book's and the other routers' last words, so a replica that comes back comes back with its true load.
"""

from collections.abc import Container, Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Final

from modelyard_events.ids import LeaseId, ModelName, NodeName, ReplicaId
from modelyard_events.replica import Process
from modelyard_events.telemetry import RouterReport
from modelyard_projections.demand import Demand
from modelyard_projections.fleet import Fleet, Touched
from modelyard_services.policy.affinity import Affinities, Affinity, Hint, Pick
from modelyard_services.policy.routing import Candidate, Ranking, candidate_of
from modelyard_services.router.leases import Lease, LeaseBook
from modelyard_services.router.others import Others

_NOTHING: Final[AbstractSet[ReplicaId]] = frozenset()


class Board:
    """One ranking per model, and what is remembered for requests that belong together."""

    def __init__(self, fleet: Fleet, demand: Demand, book: LeaseBook) -> None:
        self._fleet = fleet
        self._demand = demand
        self._book = book
        self._rankings: dict[ModelName, Ranking] = {}
        self._model_of: dict[ReplicaId, ModelName] = {}
        self._others = Others()
        self._own_use_ns: dict[ReplicaId, int] = {}
        self._shut: dict[ReplicaId, Process] = {}
        self.changes = 0
        """Leases granted and ended so far: whoever tells of them knows by it whether there is news."""
        self._affinities = Affinities(fleet)
        for replica in fleet.replicas:
            self._refresh(replica)

    def best(self, model: ModelName, avoid: AbstractSet[ReplicaId] = _NOTHING) -> Candidate | None:
        """The least busy replica (rule T1)."""
        ranking = self._rankings.get(model)
        return None if ranking is None else ranking.best(avoid)

    def pick(self, model: ModelName, avoid: AbstractSet[ReplicaId], hint: Hint | None) -> Pick | None:
        """The replica for a request that says `hint` of itself (rules T1, T3), None when none is open."""
        ranking = self._rankings.get(model)
        if ranking is None:
            return None
        if hint is not None:
            return self._affinities.pick(model, self.affinity(model), ranking, hint=hint, avoid=avoid)
        least = ranking.best(avoid)
        return None if least is None else Pick(least)

    def affinity(self, model: ModelName) -> Affinity:
        """What the model's schedule asks for."""
        state = self._fleet.models.get(model)
        return "none" if state is None or state.schedule is None else state.schedule.schedule.affinity

    def candidates(self, model: ModelName) -> list[Candidate]:
        """The model's routable replicas, shut and full ones too."""
        return list(self._rankings.get(model, ()))

    def get(self, replica: ReplicaId) -> Candidate | None:
        """The replica, None once it isn't routable any more."""
        model = self._model_of.get(replica)
        return None if model is None else self._rankings[model].get(replica)

    def grant(self, pick: Pick, *, now_ns: int, seconds: float | None) -> Lease:
        """A lease on the picked replica."""
        candidate = pick.candidate
        lease = self._book.grant(candidate, now_ns=now_ns, seconds=seconds, choice=pick.choice)
        self._affinities.learn(pick)
        self.changes += 1
        candidate.own += 1
        candidate.last_used_ns = self._own_use_ns[candidate.replica] = now_ns
        self._rankings[candidate.model].moved(candidate)
        return lease

    def end(self, lease: LeaseId, *, now_ns: int) -> Lease | None:
        """The lease ended now, None when it isn't held (any more)."""
        ended = self._book.end(lease)
        if ended is None:
            return None
        self.changes += 1
        candidate = self.get(ended.replica)
        if candidate is not None:
            candidate.own -= 1
            candidate.last_used_ns = self._own_use_ns[ended.replica] = now_ns
            self._rankings[candidate.model].moved(candidate)
        return ended

    def shut(self, candidate: Candidate) -> None:
        """Take the replica out for this router: its process can't be reached (rule T4)."""
        candidate.shut = True
        self._shut[candidate.replica] = candidate.process

    def reopen(self, candidate: Candidate) -> None:
        """The process answered again."""
        candidate.shut = False
        self._shut.pop(candidate.replica, None)

    def shut_ones(self) -> list[Candidate]:
        """Every routable replica that is shut."""
        found = [self.get(replica) for replica in self._shut]
        return [candidate for candidate in found if candidate is not None and candidate.shut]

    def fold(self, touched: Iterable[Touched]) -> set[ModelName]:
        """Bring the board up to the fleet; the models that a waiting request may see differently now."""
        replicas: dict[ReplicaId, None] = {}
        models: set[ModelName] = set()
        for kind, key in touched:
            if kind == "replica":
                replicas[ReplicaId(key)] = None
            elif kind == "node" and (node := self._fleet.nodes.get(NodeName(key))):
                replicas.update(node.replicas)
            elif kind == "model":
                models.add(ModelName(key))
        for replica in replicas:
            model = self._refresh(replica)
            if model is not None:
                models.add(model)
        return models

    def hear(
        self, reports: Iterable[RouterReport], *, live: Container[str] | None = None, used: Iterable[ReplicaId] = ()
    ) -> set[ModelName]:
        """Take over what other routers report, and the last use of `used`; the models that have more room now.

        `live` names the routers that are there; what others held is free.
        """
        changed = set() if live is None else self._others.keep(live)
        for report in reports:
            changed |= self._others.hear(report.router, report.in_flight)
        freed = set()
        for replica in changed.union(used):
            candidate = self.get(replica)
            if candidate is not None:
                before = candidate.in_flight
                self._load(candidate)
                self._rankings[candidate.model].moved(candidate)
                if candidate.in_flight < before:
                    freed.add(candidate.model)
        return freed

    def used(self) -> Mapping[ReplicaId, int]:
        """When this router last used each replica."""
        return self._own_use_ns

    def _refresh(self, replica: ReplicaId) -> ModelName | None:
        fresh = candidate_of(self._fleet, replica)
        known = self._model_of.get(replica)
        if fresh is None:
            if known is not None:
                self._rankings[self._model_of.pop(replica)].drop(replica)
                self._affinities.went(known, replica)
            if replica not in self._fleet.replicas:
                self._own_use_ns.pop(replica, None)
                self._shut.pop(replica, None)
            return known
        # A new process is a new chance: only the very one that failed its probe stays shut.
        fresh.shut = self._shut.get(replica) == fresh.process
        self._load(fresh)
        if known is None:
            self._affinities.came(fresh.model, replica)
        self._model_of[replica] = fresh.model
        self._rankings.setdefault(fresh.model, Ranking()).put(fresh)
        return fresh.model

    def _load(self, candidate: Candidate) -> None:
        replica = candidate.replica
        candidate.own = self._book.count(replica)
        candidate.others = self._others.count(replica)
        candidate.last_used_ns = max(self._own_use_ns.get(replica, 0), self._demand.last_used_ns.get(replica, 0))
