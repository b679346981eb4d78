"""An ordeal from a seed to its rest; a failing one made short.

Invariant: the seed and the numbers of the steps taken give the same ordeal, so a failing one is found again, and
made shorter by leaving steps out.
"""

from collections.abc import Sequence
from random import Random

from tests.ordeal.compare import compare
from tests.ordeal.ledger import BrokenError
from tests.ordeal.ordeal import Ordeal
from tests.ordeal.steps import begin, take


def run(seed: int, steps: Sequence[int]) -> Ordeal:
    """One ordeal from its beginning to its rest.

    Raises:
        BrokenError: an invariant doesn't hold; its notes tell what happened.
    """
    ordeal = Ordeal()
    begin(ordeal, _dice(f"{seed}"))
    try:
        for number in steps:
            before = len(ordeal.log)
            ordeal.say(f"step {number}: {take(ordeal, _dice(f'{seed}/{number}'))}")
            if len(ordeal.log) > before:
                compare(ordeal.world.fleet, ordeal.judge.ledger)
        ordeal.rest()
        ordeal.replay()
    except Exception as error:
        error.add_note(ordeal.story)
        raise
    return ordeal


def failure(seed: int, steps: Sequence[int]) -> str | None:
    """What breaks in that ordeal, by its rule; None when nothing does."""
    try:
        run(seed, steps)
    except BrokenError as error:
        return error.rule
    except Exception as error:  # noqa: BLE001 - any fault of the core is a finding
        return type(error).__name__
    return None


def shortest(seed: int, steps: Sequence[int]) -> list[int]:
    """Fewer steps that fail in the same way: chunks are left out while it does."""
    kept, wanted = list(steps), failure(seed, steps)
    size = len(kept) // 2
    while size:
        start = 0
        while start < len(kept):
            fewer = kept[:start] + kept[start + size :]
            if failure(seed, fewer) == wanted:
                kept = fewer
            else:
                start += size
        size //= 2
    return kept


def _dice(seed: str) -> Random:
    return Random(seed)  # noqa: S311 - to be thrown again the same way
