"""What the registrar must be told, beyond what every process is."""

import msgspec

from modelyard_services.settings import CalloutSettings, ProcessSettings


class RegistrarSettings(msgspec.Struct, frozen=True):
    """The registrar's settings.

    `auto_approve` approves first registrations at once (N4): only while everything listens on loopback.
    `callout` is None where the NATS servers know their clients by themselves.
    """

    process: ProcessSettings
    auto_approve: bool = False
    callout: CalloutSettings | None = None
