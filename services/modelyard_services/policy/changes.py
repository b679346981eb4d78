"""What two looks at the same telemetry show differently.

Invariant: every key whose value changed, that came or that went is told exactly once.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import compress
from operator import is_, is_not
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


def changed(was: Mapping[K, V], now: Mapping[K, V]) -> Iterator[K]:
    """The keys that have another value in `now` than in `was`, or are in one alone."""
    # A look holds some ten thousand figures, most of them the very objects that the look before held: those are
    # passed over without being looked at, and without being looked up where both are copies of one mapping.
    before: Iterable[V | None] = was.values() if _has_keys_of(was, now) else map(was.get, now)
    others = compress(now, map(is_not, before, now.values()))
    yield from (key for key in others if key not in was or was[key] != now[key])
    yield from was.keys() - now.keys()


def _has_keys_of(was: Mapping[K, V], now: Mapping[K, V]) -> bool:
    """Whether both have the same keys in the same order."""
    return len(was) == len(now) and all(map(is_, was, now))
