"""Which port each process listens on.

Invariant: a port is handed out only if nothing listens on it, nobody of ours on this machine has it, and the
quarantine has passed since the last one that did has exited: longer than a router's view lags and a client keeps
trying an address it was given, so that no late request reaches the wrong model (rule W4, trap X22).
"""

import msgspec

from modelyard_services.effects.port_claims import Claims, nobody_listens
from modelyard_services.worker.processes.launch import LaunchRefusedError


class PortRange(msgspec.Struct, frozen=True):
    """Ports `first` to `last`, both included.

    The default lies below Linux' ephemeral range (32768 and up), where an outgoing connection could take one first.
    """

    first: int = 20_000
    last: int = 20_999


class Ports:
    """One worker's; `claims` are those of the machine, which outlive the worker."""

    def __init__(self, ports: PortRange, *, host: str, quarantine_seconds: float, claims: Claims) -> None:
        self._range = ports
        self._claims = claims
        self._host = host
        self._quarantine_seconds = quarantine_seconds
        self._held: set[int] = set()
        self._next = ports.first

    def take(self) -> int:
        """A port, held until it is released. Goes round the range, so the one used last comes last.

        Raises:
            LaunchRefusedError: none is free.
        """
        count = self._range.last - self._range.first + 1
        for step in range(count):
            port = self._range.first + (self._next - self._range.first + step) % count
            if port not in self._held and nobody_listens(self._host, port) and self._claims.claim(port):
                self._next = port + 1
                self._held.add(port)
                return port
        raise LaunchRefusedError(f"no port is free in {self._range.first}-{self._range.last}; widen --port-range")

    def hold(self, port: int) -> None:
        """A port that an adopted process listens on."""
        self._held.add(port)
        self._claims.take_over(port)

    def release(self, port: int, *, exited_seconds_ago: float = 0.0) -> None:
        """The process on `port` has exited."""
        self._held.discard(port)
        self._claims.rest(port, seconds=self._quarantine_seconds, exited_seconds_ago=exited_seconds_ago)

    def put_back(self, port: int) -> None:
        """Nothing was started on `port`, so there is nothing to wait for."""
        self._held.discard(port)
        self._claims.give_back(port)

    def close(self) -> None:
        """The worker ends; what it leaves running keeps its port for the next one."""
        self._claims.close()
