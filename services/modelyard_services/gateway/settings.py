"""What a gateway process must be told: read once at the edge, frozen, passed down."""

import msgspec

from modelyard_services.settings import ProcessSettings, RouterSettings


class GatewaySettings(msgspec.Struct, frozen=True):
    """`port` 0 takes a free one."""

    process: ProcessSettings
    host: str = "127.0.0.1"
    port: int = 0
    router: RouterSettings = RouterSettings()
