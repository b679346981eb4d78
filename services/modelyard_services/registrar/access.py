"""Who may connect to NATS: workers by registration token, readers of the lifecycle stream by API token (rule N4).

Invariant: nobody gets in on a fold that isn't known to be current; a revoked token opens nothing from then on.
"""

from modelyard_events.errors import InvalidValueError
from modelyard_events.names import node_name
from modelyard_services.effects.nats_access.roles import Reader, Role, Worker
from modelyard_services.effects.runtime import Runtime
from modelyard_services.policy.tokens import registration_token_of, token_of
from modelyard_services.registrar.current import current


class Access:
    """Names and tokens to roles, by the fleet that `runtime` keeps."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def verify(self, name: str, password: str) -> Role | None:
        """The role of whoever connects as `name`; None refuses.

        Raises:
            UnavailableError: the log is away.
            NotYetError: the fold is too far behind to say.
        """
        fleet = await current(self._runtime)
        try:
            node = node_name(name)
        except InvalidValueError:
            return None
        if registration_token_of(fleet, password) is not None:
            return Worker(node)
        return None if token_of(fleet, password) is None else Reader(name)
