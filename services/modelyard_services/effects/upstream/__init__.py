"""HTTP/1.1 to the processes behind replicas: kept connections, bodies streamed as they arrive (ADR 0013).

Invariant: a connection carries one exchange at a time; one whose exchange didn't end cleanly is never used again.
"""

from modelyard_services.effects.upstream.connection import Connection, UpstreamError
from modelyard_services.effects.upstream.pool import Pool

__all__ = ["Connection", "Pool", "UpstreamError"]
