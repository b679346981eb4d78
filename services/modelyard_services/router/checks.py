"""Replicas asked whether they are there: before a lease is handed out, and again while they are out (rules T4, T9).

Invariant: what one replica's process answers concerns that replica alone, in the very life that was asked; a drain,
an end or a restart that came meanwhile wins over the answer.
"""

import asyncio
from collections.abc import Callable

import structlog

from modelyard_events.ids import ReplicaId
from modelyard_services.effects.health import Outcome, describe
from modelyard_services.effects.runtime import Runtime
from modelyard_services.policy.routing import Candidate
from modelyard_services.router.board import Board
from modelyard_services.router.leases import Lease
from modelyard_services.router.probes import Prober

_log = structlog.get_logger(__name__)


class Checks:
    """The board's candidates, probed. `reopened(candidate)` is called when one that was out answers again."""

    def __init__(
        self, runtime: Runtime, board: Board, prober: Prober, *, reopened: Callable[[Candidate], None]
    ) -> None:
        self._runtime = runtime
        self._board = board
        self._prober = prober
        self._reopened = reopened
        self._checking: dict[ReplicaId, int] = {}
        self._trying: set[asyncio.Task[None]] = set()

    def is_good(self, candidate: Candidate) -> bool:
        """Whether its process answered lately."""
        return self._prober.is_good(candidate, now_ns=self._runtime.clock.now_ns())

    def checking(self, replica: ReplicaId) -> int:
        """Leases that wait for a probe of `replica`: they are in nobody's hands yet."""
        return self._checking.get(replica, 0)

    async def confirm(self, candidate: Candidate) -> bool:
        """Ask the process of `candidate`, on which a lease is held; if it isn't there, it is out."""
        replica = candidate.replica
        state = self._runtime.fleet.replicas.get(replica)
        if state is None:
            return False
        self._checking[replica] = self.checking(replica) + 1
        try:
            outcome = await self._prober.outcome(candidate, state.launch.health)
            return self._judge(candidate, outcome)
        finally:
            left = self._checking.pop(replica) - 1
            if left:
                self._checking[replica] = left

    def failed(self, lease: Lease, detail: str) -> None:
        """The lease's replica couldn't be reached: it alone is out, until it answers a probe."""
        candidate = self._board.get(lease.replica)
        if candidate is not None and candidate.address == lease.address:
            self._shut(candidate, detail)
            self._try_later(candidate)

    def try_shut_ones(self) -> None:
        """Ask each replica that is out."""
        for candidate in self._board.shut_ones():
            self._try_later(candidate)

    def forget(self, replica: ReplicaId) -> None:
        """`replica` ended."""
        self._prober.forget(replica)

    def cancel(self) -> list[asyncio.Task[None]]:
        """End what is under way; the tasks to wait for."""
        for task in self._trying:
            task.cancel()
        return list(self._trying)

    def _judge(self, asked: Candidate, outcome: Outcome) -> bool:
        candidate = self._still(asked)
        if candidate is None:
            return False
        serving = candidate.in_flight > self.checking(candidate.replica)
        if self._prober.note(candidate, outcome, serving=serving, now_ns=self._runtime.clock.now_ns()):
            return True
        self._shut(candidate, describe(outcome))
        return False

    def _shut(self, candidate: Candidate, detail: str) -> None:
        if not candidate.shut:
            _log.warning("replica is out", replica=candidate.replica, node=candidate.node, problem=detail)
        self._prober.forget(candidate.replica)
        self._board.shut(candidate)

    def _try_later(self, candidate: Candidate) -> None:
        task = asyncio.create_task(self._try_again(candidate))
        self._trying.add(task)
        task.add_done_callback(self._trying.discard)

    async def _try_again(self, asked: Candidate) -> None:
        state = self._runtime.fleet.replicas.get(asked.replica)
        if state is None:
            return
        outcome = await self._prober.outcome(asked, state.launch.health)
        candidate = self._still(asked)
        if candidate is None:
            return
        serving = candidate.in_flight > 0
        if self._prober.note(candidate, outcome, serving=serving, now_ns=self._runtime.clock.now_ns()):
            _log.info("replica is back", replica=candidate.replica, node=candidate.node)
            self._board.reopen(candidate)
            self._reopened(candidate)

    def _still(self, asked: Candidate) -> Candidate | None:
        """The replica as it is now; None if it drained, ended or was restarted since it was asked."""
        candidate = self._board.get(asked.replica)
        return candidate if candidate is not None and candidate.process == asked.process else None
