"""What a router process must be told: read once at the edge, frozen, passed down."""

import msgspec

from modelyard_services.settings import ProcessSettings, RouterSettings


class RouterProcessSettings(msgspec.Struct, frozen=True):
    """`grpc_port` 0 takes a free one."""

    process: ProcessSettings
    grpc_host: str = "127.0.0.1"
    grpc_port: int = 0
    router: RouterSettings = RouterSettings()
