"""TCP ports of embedded servers on one host.

Invariant: a server that once had a port gets it again whenever it is free, so addresses written down stay valid; a
port that was chosen stays ours until this process ends, since its server binds it only a while later.
"""

import secrets
from typing import Final

from modelyard_services.effects.embedded.errors import PortTakenError
from modelyard_services.effects.port_claims import Claims, claims_directory, nobody_listens, refusal
from modelyard_services.errors import UnavailableError

FREE_PORTS: Final = range(20_000, 32_768)
"""Below those that Linux gives to outgoing connections: one of these would now and then take a port between our look
at it and the server's own bind, which for PostgreSQL's first start lie a second apart."""

TRIES_MAX: Final = 1_000
"""Twelve thousand ports: a machine on which so many tries hit a used one has none left."""

_claims: Final = Claims(claims_directory())


def port_for(host: str, *, wanted: int, previous: int | None) -> int:
    """The port to listen on: `wanted`; if that is 0 the `previous` one if it is free, else any free one.

    Raises:
        PortTakenError: nothing can listen on the one that is wanted.
        UnavailableError: none is free.
    """
    if wanted:
        # Before anything starts: whoever listens there would answer in our place, and be taken for us.
        why = refusal(host, wanted)
        if why is not None:
            problem = f"nothing can listen on {address(host, wanted)}: {why}; choose another port, or 0 for a free one"
            raise PortTakenError(problem, field="port", value=wanted)
        return wanted
    if previous and nobody_listens(host, previous) and _claims.take_over(previous):
        return previous
    for _ in range(TRIES_MAX):
        # At random, so that two starts at the same time don't choose the same.
        port = secrets.choice(FREE_PORTS)
        if nobody_listens(host, port) and _claims.claim(port):
            return port
    raise UnavailableError(f"no free port from {FREE_PORTS.start} to {FREE_PORTS.stop - 1} on {host}: name one")


def address(host: str, port: int) -> str:
    """`host:port` as URLs want it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
