"""The reconciler's figures for Prometheus.

Invariant: over all reconcilers of an installation the sum of the first is one, but for moments in which it is none.
"""

from prometheus_client import Counter, Gauge

from modelyard_services.effects.lease.lease import Lease

_ACTIVE = Gauge("modelyard_reconciler_active", "1 while this process is the one that acts, 0 while it stands by.")
_TERMS = Counter("modelyard_reconciler_terms", "How many times this process became the one that acts.")


def tell(lease: Lease) -> None:
    """Tell of `lease` from now on."""
    _ACTIVE.set_function(lambda: float(lease.term is not None))
    lease.on_taken(_TERMS.inc)
