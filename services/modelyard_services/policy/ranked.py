"""Nodes in the order of one figure, as sets of bits: which are beyond a bound, and who comes first of some.

```
blocks   [ (-80, "n2", 1)  (-48, "n0", 0) ]   [ (-24, "n1", 2)  (0, "n3", 3) ]     entries, ascending
masks    [            0b0011              ]   [           0b1100             ]     the positions in each
```

Invariant: a block's mask holds exactly its entries' positions, so whole blocks are taken or skipped in one step:
for 5,000 nodes that is some 40 steps and one look inside a block, instead of 5,000 looks.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import Final

Entry = tuple[int, str, int]
"""Figure, tie-break, position."""

BLOCK_ENTRIES_MAX: Final = 192
"""Entries before a block is halved: near the square root of the largest fleet, where steps and looks cost alike."""


class Ranked:
    """A sorted list of entries that answers with sets."""

    def __init__(self) -> None:
        self._blocks: list[list[Entry]] = []
        self._masks: list[int] = []
        self._lasts: list[Entry] = []

    def add(self, entry: Entry) -> None:
        if not self._blocks:
            self._blocks, self._masks, self._lasts = [[entry]], [1 << entry[2]], [entry]
            return
        number = min(bisect_left(self._lasts, entry), len(self._blocks) - 1)
        block = self._blocks[number]
        insort(block, entry)
        self._masks[number] |= 1 << entry[2]
        self._lasts[number] = block[-1]
        if len(block) > BLOCK_ENTRIES_MAX:
            self._halve(number)

    def remove(self, entry: Entry) -> None:
        number = bisect_left(self._lasts, entry)
        block = self._blocks[number]
        del block[bisect_left(block, entry)]
        if block:
            self._masks[number] ^= 1 << entry[2]
            self._lasts[number] = block[-1]
        else:
            del self._blocks[number], self._masks[number], self._lasts[number]

    def at_least(self, figure: int) -> int:
        """The positions whose figure is `figure` or more."""
        bound = (figure, "", -1)
        number = bisect_left(self._lasts, bound)
        if number == len(self._blocks):
            return 0
        found = 0
        for mask in self._masks[number + 1 :]:
            found |= mask
        block = self._blocks[number]
        start = bisect_left(block, bound)
        if start > len(block) // 2:
            return found | _mask(block[start:])
        return found | (self._masks[number] ^ _mask(block[:start]))

    def first(self, among: int) -> Iterator[Entry]:
        """The entries whose positions are in `among`, in order."""
        for block, mask in zip(self._blocks, self._masks, strict=True):
            hits = mask & among
            if hits:
                yield from (entry for entry in block if hits >> entry[2] & 1)

    def last(self, among: int) -> Entry | None:
        """The last of the entries whose positions are in `among`."""
        for block, mask in zip(reversed(self._blocks), reversed(self._masks), strict=True):
            hits = mask & among
            if hits:
                return next(entry for entry in reversed(block) if hits >> entry[2] & 1)
        return None

    def _halve(self, number: int) -> None:
        block = self._blocks[number]
        middle = len(block) // 2
        halves = [block[:middle], block[middle:]]
        self._blocks[number : number + 1] = halves
        self._masks[number : number + 1] = [_mask(half) for half in halves]
        self._lasts[number : number + 1] = [half[-1] for half in halves]


def _mask(entries: list[Entry]) -> int:
    found = 0
    for entry in entries:
        found |= 1 << entry[2]
    return found
