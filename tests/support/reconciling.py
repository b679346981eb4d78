"""A reconciler whose turn it is, for tests of what it then does."""

from modelyard_services.effects.runtime import Runtime
from modelyard_services.reconciler.loop import Reconciler
from modelyard_services.reconciler.main import lease_of
from modelyard_services.settings import LEASE_SECONDS_MOST


async def reconciling(runtime: Runtime) -> Reconciler:
    """The one that has the lease, which nobody renews: it lasts for a test."""
    lease = lease_of(runtime, LEASE_SECONDS_MOST)
    await lease.turn()
    return Reconciler(runtime, lease)
