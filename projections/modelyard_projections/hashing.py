"""The canonical hash of a state: equal for the live fold, a replay of the log, and the rows in PostgreSQL (I9). Pure.

Invariant: the hash is the sum of the hashes of all rows modulo 2¹²⁸, so neither the order of entities nor the way
to them matters; kept incrementally it equals the one computed from scratch.
"""

import hashlib
import re
from collections.abc import Iterable
from typing import Final, Self

import msgspec

from modelyard_projections.fleet.picture import FleetState, Touched
from modelyard_projections.rows import Key, Row, entities_of, rows_of

HASH_BYTES: Final = 16
"""128 bits: rows don't collide by chance in any fleet's life."""

_MODULUS: Final = 1 << (8 * HASH_BYTES)
_ENCODER: Final = msgspec.json.Encoder()

# An odd number of backslashes escapes a NUL; an even one is a text that reads `\u0000`.
_NUL: Final = re.compile(rb"(\\+)u0000")
_REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}".encode()

Address = tuple[str, Key]
"""Where a row stands: its table and its primary key."""


class Changes(msgspec.Struct):
    """What became of the rows of some entities: the changed as JSON, the vanished by primary key, by table."""

    changed: dict[str, list[bytes]] = {}
    vanished: dict[str, list[Key]] = {}


class StateHash:
    """The hash of one fleet, brought up to date entity by entity. It begins as the hash of no rows."""

    def __init__(self) -> None:
        self.total = 0
        self._rows: dict[Touched, dict[Address, int]] = {}

    @classmethod
    def of(cls, fleet: FleetState) -> Self:
        """The hash of `fleet`, from scratch."""
        whole = cls()
        whole.update(fleet, entities_of(fleet))
        return whole

    @property
    def text(self) -> str:
        """32 hex digits."""
        return hash_text(self.total)

    def update(self, fleet: FleetState, touched: Iterable[Touched]) -> Changes:
        """Take the `touched` entities as they stand in `fleet`; say which of their rows differ from before."""
        changes = Changes()
        for entity in touched:
            self._update(fleet, entity, changes)
        return changes

    def _update(self, fleet: FleetState, entity: Touched, changes: Changes) -> None:
        before = self._rows.pop(entity, {})
        after: dict[Address, int] = {}
        for row in rows_of(fleet, entity):
            body = encode_row(row)
            address = (row.table, row.identity)
            after[address] = hashed = row_hash(row.table, body)
            if before.get(address) != hashed:
                changes.changed.setdefault(row.table, []).append(body)
        for table, key in before.keys() - after.keys():
            changes.vanished.setdefault(table, []).append(key)
        if after:
            self._rows[entity] = after
        self.total = (self.total + sum(after.values()) - sum(before.values())) % _MODULUS


def encode_row(row: Row) -> bytes:
    """The row as canonical JSON: keys sorted, so that the order in which a state was reached leaves no trace.

    PostgreSQL's text can't hold NUL, which a process may well print before it dies; it becomes U+FFFD, here, so that
    the fold's hash and the database's agree.
    """
    # Two steps: the encoder itself refuses to sort keys that aren't text.
    body = _ENCODER.encode(msgspec.to_builtins(row, str_keys=True, order="sorted"))
    return without_nul(body) if b"\\u0000" in body else body


def without_nul(body: bytes) -> bytes:
    """JSON with every NUL in its texts replaced by U+FFFD."""
    return _NUL.sub(_replaced, body)


def _replaced(found: re.Match[bytes]) -> bytes:
    backslashes = found[1]
    return backslashes[:-1] + _REPLACEMENT if len(backslashes) % 2 else found[0]


def row_hash(table: str, body: bytes) -> int:
    """The hash of one row in its canonical form."""
    digest = hashlib.blake2b(body, digest_size=HASH_BYTES, person=table.encode()).digest()
    return int.from_bytes(digest, "big")


def hash_of_rows(rows: Iterable[Row]) -> str:
    """The hash of rows read back from a database."""
    return hash_text(sum(row_hash(row.table, encode_row(row)) for row in rows) % _MODULUS)


def hash_text(total: int) -> str:
    """A hash as people and columns hold it: 32 hex digits."""
    return f"{total:0{2 * HASH_BYTES}x}"
