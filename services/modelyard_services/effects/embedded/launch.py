"""The last step before a child's own program: tie its life to ours, drop root if asked, then exec.

Run as a script by `python -I -S` (about 20 ms), as no Python code is safe between fork and exec of a threaded parent:

    launch.py PARENT DEATH_SIGNAL UID GID CAPABILITY PROGRAM [ARGUMENT …]        UID, GID, CAPABILITY: -1 = as we are

Invariant: when PROGRAM starts, the kernel will signal it at the death of PARENT, it leads its own session (so a Ctrl-C
at the terminal reaches only the parent, which then stops children in order), and holds no privilege but CAPABILITY.
It imports nothing of modelyard: with `-I -S` there is nothing to import.
"""

import ctypes
import os
import sys

_SET_PDEATHSIG = 1
_CAPBSET_DROP = 24
_SET_SECUREBITS = 28
_SET_NO_NEW_PRIVS = 38
_CAP_AMBIENT = 47
_CAP_AMBIENT_RAISE = 2

# Without it access(2), by which PostgreSQL looks for its own binaries, ignores capabilities of any user but root.
_NO_SETUID_FIXUP = 1 << 2

_CAPABILITY_VERSION_3 = 0x20080522

# linux/capability.h numbers 41 of them in 6.x; asking for one too many is answered by EINVAL, which ends the loop.
_CAPABILITIES_MAX = 64


def main(arguments: list[str]) -> None:
    parent, death_signal, uid, gid, capability = (int(argument) for argument in arguments[:5])
    program = arguments[5:]
    os.setsid()
    os.umask(0o077)
    if uid >= 0:
        _become(uid, gid, capability)
    if sys.platform == "linux":
        # After the change of user, which clears it.
        _prctl(_SET_PDEATHSIG, death_signal)
        _prctl(_SET_NO_NEW_PRIVS, 1)
    if os.getppid() != parent:
        # The parent died before the kernel knew of our wish.
        sys.exit(f"launch: parent {parent} is gone, not starting {program[0]}")
    os.execvp(program[0], program)  # noqa: S606 - exec without a shell is the point


def _become(uid: int, gid: int, capability: int) -> None:
    """Give up root for good; keep `capability` (-1: none) through exec."""
    if capability >= 0:
        _prctl(_SET_SECUREBITS, _NO_SETUID_FIXUP)
        for other in range(_CAPABILITIES_MAX):
            if other != capability and not _drop_from_bounding_set(other):
                break
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    if capability >= 0:
        _set_capabilities(1 << capability)
        _prctl(_CAP_AMBIENT, _CAP_AMBIENT_RAISE, capability)


def _drop_from_bounding_set(capability: int) -> bool:
    return bool(_libc().prctl(_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0) == 0)


def _set_capabilities(mask: int) -> None:
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    data = (ctypes.c_uint32 * 6)(low, low, low, high, high, high)
    if _libc().capset(header, data) != 0:
        _fail("capset")


def _prctl(option: int, first: int, second: int = 0) -> None:
    if _libc().prctl(option, ctypes.c_ulong(first), ctypes.c_ulong(second), 0, 0) != 0:
        _fail(f"prctl {option}")


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _fail(what: str) -> None:
    sys.exit(f"launch: {what}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    main(sys.argv[1:])
