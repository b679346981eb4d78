"""Is the replica's process there, asked before it is used (rule T4).

Invariant: one question at a time per process, whoever waits for the answer; a success holds for a while, a failure
is never kept, and silence while requests are being served is no failure (X15).
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import assert_never

from modelyard_events.ids import ReplicaId
from modelyard_events.replica import Process
from modelyard_events.spec import Health
from modelyard_services.effects.health import Healthy, Outcome, Refused, TimedOut, Unhealthy, probe
from modelyard_services.policy.probing import Answer, usable_seconds
from modelyard_services.policy.routing import Candidate
from modelyard_services.settings import PROBE_FRESH_SECONDS

Ask = Callable[[str, Health], Awaitable[Outcome]]


def asker(seconds: float) -> Ask:
    """Asks the process at an address whether it is well, for so long at most."""

    async def ask(address: str, health: Health) -> Outcome:
        host, _, port = address.rpartition(":")
        return await probe(health, host=host.strip("[]"), port=int(port), seconds=seconds)

    return ask


class Prober:
    """What is known of each replica's process; `fresh_seconds` 0 asks before every use."""

    def __init__(self, *, fresh_seconds: float = PROBE_FRESH_SECONDS, asked: Ask) -> None:
        self._fresh_seconds = fresh_seconds
        self._ask = asked
        self._good: dict[ReplicaId, tuple[Process, int]] = {}
        self._asking: dict[tuple[ReplicaId, Process], asyncio.Task[Outcome]] = {}

    def is_good(self, candidate: Candidate, *, now_ns: int) -> bool:
        """Whether the process answered recently enough to be used unasked."""
        known = self._good.get(candidate.replica)
        return known is not None and known[1] > now_ns and known[0] == candidate.process

    async def outcome(self, candidate: Candidate, health: Health) -> Outcome:
        """The answer of the process, shared with everyone who waits for it."""
        key = (candidate.replica, candidate.process)
        task = self._asking.get(key)
        if task is None:
            task = asyncio.ensure_future(self._ask(candidate.address, health))
            self._asking[key] = task
            task.add_done_callback(lambda _task: self._asking.pop(key, None))
        # Shielded: one waiter that hangs up mustn't take the answer from the others.
        return await asyncio.shield(task)

    def note(self, candidate: Candidate, outcome: Outcome, *, serving: bool, now_ns: int) -> bool:
        """Whether `candidate` may be used after `outcome`; `serving` while requests are in flight on it."""
        seconds = usable_seconds(_answer(outcome), serving=serving, fresh_seconds=self._fresh_seconds)
        if seconds is None:
            self._good.pop(candidate.replica, None)
            return False
        self._good[candidate.replica] = (candidate.process, now_ns + round(seconds * 1e9))
        return True

    def forget(self, replica: ReplicaId) -> None:
        """What was known of `replica` holds no more."""
        self._good.pop(replica, None)


def _answer(outcome: Outcome) -> Answer:
    match outcome:
        case Healthy():
            return "healthy"
        case TimedOut():
            return "silent"
        case Refused() | Unhealthy():
            return "wrong"
        case _:
            assert_never(outcome)
