"""The copy of the lifecycle stream that readers read, in an account of their own.

Readers make consumers as they like, and whoever makes a consumer chooses where its messages go: in the account of the
control plane that could be the log. The copy is a mirror, which takes messages from its origin only, under the
origin's sequences, so that nothing readers do can change what others read.
Invariant: sequence n of the copy is sequence n of the lifecycle stream, which is sequence n of the log.
"""

from typing import Final

import nats.js.errors
from nats.js import JetStreamManager
from nats.js.api import ExternalStream, StreamConfig, StreamSource

from modelyard_events.subjects import EVENTS_STREAM
from modelyard_services.effects.log.streams import Layout

ORIGIN_API: Final = "$JS.MODELYARD.API"
ORIGIN_DELIVERY: Final = "modelyard.copy"
"""As `authorization.conf` names what the account of readers may use of the control plane's."""

_NANOSECONDS = 1_000_000_000


async def keep_copy(manager: JetStreamManager, layout: Layout) -> None:
    """Make the copy if it isn't there, as big as its origin; `manager` is of a client connected as `copier`."""
    try:
        await manager.stream_info(EVENTS_STREAM)
    except nats.js.errors.NotFoundError:
        external = ExternalStream(api=ORIGIN_API, deliver=ORIGIN_DELIVERY)
        config = StreamConfig(
            name=EVENTS_STREAM,
            mirror=StreamSource(name=EVENTS_STREAM, external=external),
            max_age=layout.events_age_ns / _NANOSECONDS,
            max_bytes=layout.events_bytes_max,
            num_replicas=layout.replicas,
            allow_direct=True,
        )
        await manager.add_stream(config)
