"""What comes free on a node as one replica after another ends: how far to go until so much fits (rules P3, X7).

Invariant: a bound told here is never above what a plan of `eviction` on the same node costs.
"""

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate

from modelyard_events.ids import ReplicaId
from modelyard_projections.fleet import ReplicaState
from modelyard_services.policy.eviction import Cost
from modelyard_services.policy.memory import Space

Goer = tuple[int, ReplicaId, ReplicaState]
"""Who may go, with its last use; in the order of those."""


class Climb:
    """What fits as one after another goes: never less. Found as far as it was asked for."""

    def __init__(self, climb: Iterator[int]) -> None:
        self._climb = climb
        self._fits = [next(climb)]

    def steps_to(self, needed: int) -> int:
        """How many have to go until `needed` fits; more than there are where it never does."""
        while self._fits[-1] < needed and (fit := next(self._climb, None)) is not None:
            self._fits.append(fit)
        return bisect_left(self._fits, needed)


class Steps:
    """Where the largest go first: no plan takes fewer, frees less than as many of the smallest, or takes older ones."""

    def __init__(self, space: Space, going: list[Goer], gpus: int) -> None:
        gains = [space.gain(state) for _, _, state in going]
        self._gpus = gpus
        self._devices = [
            _climb(space.level(device), [gain.most_on(device) for gain in gains]) for device in space.devices
        ]
        self._whole = _climb(space.whole, [gain.total for gain in gains])
        self._least = [0, *accumulate(sorted(gain.total for gain in gains))]
        self._used = [used for used, _, _ in going]

    def at_least(self, needed: int) -> Cost:
        """What a plan costs at least that frees `needed` bytes on each device; nothing is there below zero too."""
        if needed <= 0:
            return (0,)
        by_device = sorted(bisect_left(climb, needed) for climb in self._devices)
        on_devices = by_device[self._gpus - 1] if by_device else 0
        steps = min(max(on_devices, bisect_left(self._whole, needed * self._gpus)), len(self._used))
        return steps, self._least[steps], tuple(reversed(self._used[:steps]))


def _climb(level: int, gains: list[int]) -> list[int]:
    """`level`, and what it rises to as the largest of `gains` come on top, one after another."""
    return list(accumulate(sorted(gains, reverse=True), initial=level))
