"""Whom PostgreSQL runs as when we are root, which it refuses to be.

Invariant: no permission of any directory is loosened. If the way to the programs or the data leads through a
directory closed to others, the server keeps the one weakest capability that lets it pass, and nothing else.
"""

import os
import pwd
import stat
from pathlib import Path

from modelyard_services.effects.embedded.errors import PrivilegeError
from modelyard_services.effects.embedded.process import RunAs

UNPRIVILEGED_USER = "nobody"
"""initdb insists on a user that the system knows by name; this one exists everywhere."""

# linux/capability.h
_DAC_OVERRIDE = 1
_DAC_READ_SEARCH = 2
_SETGID = 6
_SETUID = 7
_SETPCAP = 8

_ADVICE = "run modelyard as an ordinary user, or give it a server by --database-url"


def unprivileged(*, programs: Path, data: Path) -> RunAs | None:
    """Whom to run `programs` as on `data`: None for ourselves if we aren't root.

    Raises:
        PrivilegeError: we are root and can't become anybody who could reach both.
    """
    if os.geteuid() != 0:
        return None
    held = _capabilities()
    if not {_SETUID, _SETGID} <= held:
        raise PrivilegeError(f"PostgreSQL refuses to run as root and this root may not change its user: {_ADVICE}")
    user = _user()
    if all(_open_to_others(directory) for place in (programs, data) for directory in place.resolve().parents):
        return RunAs(uid=user.pw_uid, gid=user.pw_gid, capability=None)
    return RunAs(uid=user.pw_uid, gid=user.pw_gid, capability=_passage(held, programs=programs, data=data))


def _passage(held: set[int], *, programs: Path, data: Path) -> int:
    """Reading everywhere is less than writing everywhere, but containers often grant root only the latter."""
    if _SETPCAP in held:
        for capability in (_DAC_READ_SEARCH, _DAC_OVERRIDE):
            if capability in held:
                return capability
    raise PrivilegeError(
        f"PostgreSQL runs as {UNPRIVILEGED_USER!r} because it refuses root, but {UNPRIVILEGED_USER!r} can't reach "
        f"{programs} or {data}, and this root holds no capability to pass on: {_ADVICE}"
    )


def _capabilities() -> set[int]:
    """Capabilities in effect for this process (Linux); root elsewhere holds none."""
    status = Path("/proc/self/status")
    if not status.exists():
        return {_SETUID, _SETGID}
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    mask = int(lines["CapEff"], 16)
    return {bit for bit in range(mask.bit_length()) if mask >> bit & 1}


def _user() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(UNPRIVILEGED_USER)
    except KeyError as error:
        raise PrivilegeError(f"no user {UNPRIVILEGED_USER!r} to run PostgreSQL as: {_ADVICE}") from error


def _open_to_others(directory: Path) -> bool:
    return bool(directory.stat().st_mode & stat.S_IXOTH)
