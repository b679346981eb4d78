"""What a gateway process must be told: read once at the edge, frozen, passed down."""

import msgspec

from modelyard_services.router.router import WAIT_SECONDS, RouterSettings
from modelyard_services.settings import ProcessSettings


class GatewaySettings(msgspec.Struct, frozen=True):
    """`port` 0 takes a free one. `wait_seconds` is how long a request waits for a model that loads (T5)."""

    process: ProcessSettings
    host: str = "127.0.0.1"
    port: int = 0
    wait_seconds: float = WAIT_SECONDS
    router: RouterSettings = RouterSettings()
