"""A fleet as bytes, and back: what a replay may start from instead of the log's beginning. Pure.

Invariant: the fleet read back has the same canonical hash and folds on as the one that was written (I9). The bytes are
for this version of the fold alone: they are kept in memory, never stored.
"""

from typing import Final

import msgspec

from modelyard_projections.fleet import Fleet

_DECODER: Final = msgspec.msgpack.Decoder(Fleet)


def encode_fleet(fleet: Fleet) -> bytes:
    """All of `fleet`; it must stand on the end of a batch."""
    return msgspec.msgpack.encode(fleet)


def decode_fleet(body: bytes) -> Fleet:
    """The fleet of those bytes."""
    return _DECODER.decode(body)
