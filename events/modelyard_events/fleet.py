"""Events of the fleet as a whole: settings, and who may ask (tokens, by digest only).

Invariant: no secret is here; a token is 256 random bits, of which only the SHA-256 enters the log.
"""

from typing import Literal

import msgspec

from modelyard_events.base import FleetEvent

Role = Literal["viewer", "operator", "admin"]

EvictionOrder = Literal["lru", "size"]
"""Who makes room first: the least recently used, or the fewest and largest (rule P3)."""


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What operators change at run time; every figure is the default of its rule.

    What each is for, and its bounds, are told in `policy/known_settings.py`; a timeout of 0 is off.
    """

    reconciler_frozen: bool = False
    evictions_frozen: bool = False
    drain_deadline_seconds: float = 600.0
    lost_after_seconds: float = 60.0
    lost_grace_seconds: float = 600.0
    mass_loss_share: float = 0.3
    idle_scale_down_seconds: float = 300.0
    breaker_failed_passes: int = 3
    breaker_cool_down_seconds: float = 300.0
    min_residency_seconds: float = 60.0
    eviction_order: EvictionOrder = "lru"
    max_loaded_models: int = 0
    idle_timeout_seconds: float = 0.0
    busy_timeout_seconds: float = 0.0
    reclaim_memory: bool = False
    heartbeat_seconds: float = 10.0
    liveness_pass_seconds: float = 15.0
    ping_seconds: float = 2.0
    accept_deadline_seconds: float = 120.0
    load_deadline_seconds: float = 300.0
    load_deadline_seconds_per_gib: float = 20.0
    load_stall_seconds: float = 300.0
    missed_heartbeats_max: int = 2
    reconciler_pass_seconds: float = 30.0
    reclaim_above_share: float = 0.95
    file_size_factor: float = 1.2
    disk_headroom_share: float = 0.05
    disk_headroom_bytes: int = 2**30
    held_up_seconds: float = 30.0
    load_backoff_seconds: float = 10.0
    load_backoff_max_seconds: float = 300.0
    lease_seconds: float = 60.0
    router_report_seconds: float = 0.25
    router_silence_seconds: float = 5.0
    retry_after_min_seconds: float = 5.0
    retry_after_max_seconds: float = 120.0
    affinity_block_bytes: int = 256
    affinity_blocks_max: int = 64
    affinity_match_share: float = 0.3
    affinity_slack: int = 2
    affinity_slack_factor: float = 1.5
    affinity_slack_base: int = 1
    held_up_retry_seconds: float = 1.0


class FleetSettingsChanged(FleetEvent, frozen=True, kw_only=True, tag="fleet.settings_changed.v1"):
    """`settings` are whole; `changed` names the fields that differ from before."""

    settings: Settings
    changed: tuple[str, ...]


class FleetMassLossDeclared(FleetEvent, frozen=True, kw_only=True, tag="fleet.mass_loss_declared.v1"):
    """More nodes fell silent in one pass than the brake allows: nothing of theirs is ended until it clears (N9)."""

    nodes: tuple[str, ...]
    fleet_size: int


class FleetMassLossCleared(FleetEvent, frozen=True, kw_only=True, tag="fleet.mass_loss_cleared.v1"):
    """An operator said so, or the heartbeats came back."""

    cause: Literal["operator", "heartbeats"]


class FleetTokenCreated(FleetEvent, frozen=True, kw_only=True, tag="fleet.token_created.v1"):
    """A client may ask in this role."""

    name: str
    role: Role
    digest: str


class FleetTokenRevoked(FleetEvent, frozen=True, kw_only=True, tag="fleet.token_revoked.v1"):
    name: str


class FleetRegistrationTokenCreated(FleetEvent, frozen=True, kw_only=True, tag="fleet.registration_token_created.v1"):
    """Workers may register with it (rule N4)."""

    name: str
    digest: str


class FleetRegistrationTokenRevoked(FleetEvent, frozen=True, kw_only=True, tag="fleet.registration_token_revoked.v1"):
    name: str


FleetOwnEvent = (
    FleetSettingsChanged
    | FleetMassLossDeclared
    | FleetMassLossCleared
    | FleetTokenCreated
    | FleetTokenRevoked
    | FleetRegistrationTokenCreated
    | FleetRegistrationTokenRevoked
)
