"""What a lease's cell says: who has it, and for how long that stands without a renewal.

Invariant: a body that can't be read counts as somebody's lease of the longest time there is: it is waited for, and
then replaced.
"""

import os
import socket
from typing import Annotated, Final

import msgspec

from modelyard_services.settings import LEASE_SECONDS, LEASE_SECONDS_LEAST, LEASE_SECONDS_MOST

_HOST_CHARACTERS_MAX: Final = 64


class Claim(msgspec.Struct, frozen=True):
    """`holder` has it, since `since_ns` of its own clock, unless it isn't renewed for `seconds`; None: free."""

    holder: str | None = None
    seconds: Annotated[float, msgspec.Meta(ge=LEASE_SECONDS_LEAST, le=LEASE_SECONDS_MOST)] = LEASE_SECONDS
    since_ns: int = 0


FREE: Final = Claim()
_UNREADABLE: Final = Claim("unknown", LEASE_SECONDS_MOST)
_CLAIM: Final = msgspec.json.Decoder(Claim)


def read_claim(body: bytes) -> Claim:
    """What `body` claims."""
    try:
        return _CLAIM.decode(body)
    except msgspec.MsgspecError:
        return _UNREADABLE


def holder_name(random: str) -> str:
    """This process in the eyes of an operator: host and process id. `random` tells it from those that come after."""
    return f"{socket.gethostname()[:_HOST_CHARACTERS_MAX]}/{os.getpid()}/{random}"
