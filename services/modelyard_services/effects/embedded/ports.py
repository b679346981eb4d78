"""TCP ports of embedded servers on one host.

Invariant: a server that once had a port gets it again whenever it is free, so addresses written down stay valid.
"""

import socket


def port_for(host: str, *, wanted: int, previous: int | None) -> int:
    """The port to listen on: `wanted`; if that is 0 the `previous` one if it is free, else any free one."""
    if wanted:
        return wanted
    if previous and _is_free(host, previous):
        return previous
    with socket.socket(_family(host)) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def address(host: str, port: int) -> str:
    """`host:port` as URLs want it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_free(host: str, port: int) -> bool:
    with socket.socket(_family(host)) as probe:
        # As the servers do: a port in TIME_WAIT counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
