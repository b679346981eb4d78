"""Which port each process listens on.

Invariant: a port is handed out only if nothing listens on it, no process of ours holds it, and 15 s have passed
since the last one that did has exited, so that no late request reaches the wrong model (rule W4, trap X22).
"""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from modelyard_services.effects.port_claims import Claims, claims_directory
from modelyard_services.worker.processes.launch import LaunchRefusedError

QUARANTINE_SECONDS: Final = 15.0
"""Longer than a router's view lags and a client keeps trying an address it was given."""


class PortRange(msgspec.Struct, frozen=True):
    """Ports `first` to `last`, both included.

    The default lies below Linux' ephemeral range (32768 and up), where an outgoing connection could take one first.
    """

    first: int = 20_000
    last: int = 20_999


class Ports:
    """`now` is a monotonic clock in seconds."""

    def __init__(
        self,
        ports: PortRange,
        *,
        host: str,
        now: Callable[[], float],
        quarantine_seconds: float,
        claims: Path | None = None,
    ) -> None:
        self._range = ports
        self._claims = Claims(claims or claims_directory())
        self._host = host
        self._now = now
        self._quarantine_seconds = quarantine_seconds
        self._held: set[int] = set()
        self._free_at: dict[int, float] = {}
        self._next = ports.first

    def take(self) -> int:
        """A port, held until it is released. Goes round the range, so the one used last comes last.

        Raises:
            LaunchRefusedError: none is free.
        """
        self._expire()
        count = self._range.last - self._range.first + 1
        for step in range(count):
            port = self._range.first + (self._next - self._range.first + step) % count
            if self._is_free(port) and self._claims.claim(port):
                self._next = port + 1
                self._held.add(port)
                return port
        raise LaunchRefusedError(f"no port is free in {self._range.first}-{self._range.last}; widen --port-range")

    def hold(self, port: int) -> None:
        """A port that an adopted process listens on."""
        self._held.add(port)
        self._claims.claim(port)

    def release(self, port: int, *, exited_seconds_ago: float = 0.0) -> None:
        """The process on `port` has exited."""
        self._held.discard(port)
        self._free_at[port] = self._now() + self._quarantine_seconds - exited_seconds_ago

    def put_back(self, port: int) -> None:
        """Nothing was started on `port`, so there is nothing to wait for."""
        self._held.discard(port)
        self._claims.give_up(port)

    def _expire(self) -> None:
        """Let others have what our own quarantine no longer keeps."""
        for port in [port for port, free_at in self._free_at.items() if self._now() >= free_at]:
            del self._free_at[port]
            if port not in self._held:
                self._claims.give_up(port)

    def _is_free(self, port: int) -> bool:
        if port in self._held or self._now() < self._free_at.get(port, 0.0):
            return False
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        with socket.socket(family) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # remains of old connections don't count
            try:
                trial.bind((self._host, port))
            except OSError:
                return False
        return True
