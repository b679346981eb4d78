"""A long ordeal: `./dev ordeal --commands 1000000`, with progress; exits 1 if anything broke.

Invariant: what breaks is told with its seed and the fewest steps that break it, and the run goes on to the next seed.
"""

import argparse
import sys
import time
from typing import Final

from tests.ordeal.runs import failure, run, shortest

STEPS: Final = 300
"""Commands of one ordeal: enough for a fleet to get into trouble, few enough to be made shorter in seconds."""

TOLD_SECONDS: Final = 10.0


def main() -> int:
    """Run ordeals until so many commands were given."""
    asked = _parser().parse_args()
    began = told = time.monotonic()
    given = broken = 0
    seed = asked.seed
    while given < asked.commands:
        broken += _one(seed, asked.steps)
        given += asked.steps
        seed += 1
        if time.monotonic() - told >= TOLD_SECONDS:
            told = time.monotonic()
            _say(f"{given:,} of {asked.commands:,} commands, {given / (told - began):.0f} a second, {broken} broke")
    seconds = time.monotonic() - began
    _say(f"{given:,} commands in {seed - asked.seed:,} ordeals, {seconds:.0f} s; {broken} broke an invariant")
    return 1 if broken else 0


def _one(seed: int, steps: int) -> bool:
    if failure(seed, range(steps)) is None:
        return False
    fewest = shortest(seed, range(steps))
    _say(f"seed {seed} breaks with {len(fewest)} of {steps} steps: {fewest}")
    try:
        run(seed, fewest)
    except Exception as error:  # noqa: BLE001 - told, and counted
        _say(f"{type(error).__name__}: {error}\n" + "\n".join(getattr(error, "__notes__", ())))
    return True


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.ordeal", description=__doc__)
    parser.add_argument("--commands", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first ordeal; the next have the next")
    parser.add_argument("--steps", type=int, default=STEPS, help="commands of one ordeal")
    return parser


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
