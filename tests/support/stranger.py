"""Another worker of this machine, which has one port to use and a model of its own to serve there.

Invariant: it takes the port as every worker does, the moment it is given it, and leaves nothing running.
"""

import subprocess
import sys

from modelyard_services.effects.port_claims import Claims, claims_directory
from modelyard_services.settings import WorkerFigures
from modelyard_services.worker.processes.launch import LaunchRefusedError
from modelyard_services.worker.processes.ports import PortRange, Ports
from tests.support.background import Background

ASK_SECONDS = 0.02


class Stranger(Background):
    """Use as a context manager, for as long as it should want the port of `address`."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self._port = int(address.rpartition(":")[2])

    def run(self) -> None:
        ports = Ports(
            PortRange(self._port, self._port),
            host="127.0.0.1",
            quarantine_seconds=WorkerFigures().port_quarantine_seconds,
            claims=Claims(claims_directory()),
        )
        while not self.stop.wait(ASK_SECONDS):
            try:
                ports.take()
            except LaunchRefusedError:
                continue
            self._serve()
            ports.release(self._port)
        ports.close()

    def _serve(self) -> None:
        words = (sys.executable, "-m", "modelyard_services.worker.backends.echo", "--model", "a stranger's")
        with subprocess.Popen((*words, "--port", str(self._port))) as backend:  # noqa: S603 - our own command
            self.stop.wait()
            backend.kill()
