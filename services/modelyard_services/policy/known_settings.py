"""Every setting of the fleet: the rule it is a figure of, its bounds, what it is for, and what must hold between two.

Invariant: each field of `Settings` stands here once; the command line, the API and the documentation have it from here.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Final

import msgspec

from modelyard_events.errors import InvalidValueError
from modelyard_events.fleet import Settings

DAY: Final = 86_400.0
WEEK: Final = 7 * DAY


class Known(msgspec.Struct, frozen=True):
    """One setting. `least` and `most` are None where it is no figure."""

    rule: str
    told: str
    least: float | None = None
    most: float | None = None

    @property
    def span(self) -> str:
        """Its bounds as text; empty where it is no figure."""
        return "" if self.least is None or self.most is None else f"{self.least:.16g} … {self.most:.16g}"


KNOWN: Final[Mapping[str, Known]] = {
    "reconciler_frozen": Known("C1", "nothing is placed or ended of itself"),
    "evictions_frozen": Known("P3", "nobody is evicted"),
    "drain_deadline_seconds": Known("N10", "how long requests under way may go on when a replica is to end", 0, WEEK),
    "lost_after_seconds": Known("N9", "silence after which a node is lost", 1, WEEK),
    "lost_grace_seconds": Known("N9", "how long a lost node's replicas keep their places", 0, WEEK),
    "mass_loss_share": Known("N9", "more of the fleet lost in one pass is an alarm, and ends nothing", 0, 1),
    # Below a second, a replica between two requests counts as idle.
    "idle_scale_down_seconds": Known("C4", "idle for so long, a replica above the floor ends", 1, WEEK),
    "breaker_failed_passes": Known("C5", "failed passes in a row that open a model's breaker", 1, 1_000),
    "breaker_cool_down_seconds": Known("C5", "how long the breaker stays open", 1, WEEK),
    "min_residency_seconds": Known("P3", "for so long after its load nobody's memory is taken", 0, WEEK),
    "eviction_order": Known("P3", "`lru`: the least recently used go; `size`: the fewest, the largest first"),
    # A node has at most 900 replicas (rule R2); 0 is no limit.
    "max_loaded_models": Known("C8", "models a node may hold at once; 0 is no limit", 0, 900),
    "idle_timeout_seconds": Known("C8", "a replica idle for so long ends, down to the floor; 0 is off", 0, WEEK),
    "busy_timeout_seconds": Known("C8", "a replica with a request older than that ends by force; 0 is off", 0, WEEK),
    "reclaim_memory": Known("C8", "idle replicas make room on a node that is nearly full"),
    # Ten a second and node is the most that a fleet's telemetry should come to.
    "heartbeat_seconds": Known("N8", "how often a worker tells that it lives, and what it measures", 0.1, 3_600),
    "liveness_pass_seconds": Known("N9", "how often silence is judged", 0.1, 3_600),
    "ping_seconds": Known("N3", "how long the holder of a name may take to say that it lives", 0.1, 10),
    "accept_deadline_seconds": Known("C7", "how long a worker may take to accept what was placed", 1, WEEK),
    "load_deadline_seconds": Known("C7", "how long a load may take, without its size", 1, WEEK),
    "load_deadline_seconds_per_gib": Known("C7", "and beyond that for each GiB", 0, DAY),
    "load_stall_seconds": Known("C7", "how long a load past its deadline may go on after its last progress", 1, WEEK),
    "missed_heartbeats_max": Known("C6", "heartbeats without a replica after which it is gone", 1, 1_000),
    "reconciler_pass_seconds": Known("C1", "the longest between two passes", 0.1, 3_600),
    "reclaim_above_share": Known("C8", "the share of its budget above which a node is nearly full", 0, 1),
    "file_size_factor": Known("R4", "a footprint by the size of the weights alone: so many times it", 1, 100),
    "disk_headroom_share": Known("P1", "the share of a payload that stays free beside it on the disk", 0, 10),
    "disk_headroom_bytes": Known("P1", "and at least so many bytes", 0, 10**15),
    "held_up_seconds": Known("P4", "how long a load is tried again while others are in its way", 0, 3_600),
    "load_backoff_seconds": Known("T6", "rest of a model on a node after a failed load; doubles each time", 0, DAY),
    "load_backoff_max_seconds": Known("T6", "the longest such rest", 0, WEEK),
    "lease_seconds": Known("T2", "how long a lease in foreign hands lives unless renewed", 1, DAY),
    # Each report goes to every process: twenty a second and router are enough.
    "router_report_seconds": Known("T2", "how often a router tells of its leases where nothing changes", 0.15, 60),
    "router_silence_seconds": Known("T2", "silence after which a router is gone, and its leases with it", 1, 3_600),
    "retry_after_min_seconds": Known("T5", "the least that `Retry-After` asks for while a model loads", 0, 3_600),
    "retry_after_max_seconds": Known("T5", "the most that it asks for", 0, 3_600),
    "affinity_block_bytes": Known("T3", "bytes of a block, by which prompts that begin alike are known", 16, 4_096),
    "affinity_blocks_max": Known("T3", "blocks of a prompt that count; at most its first 16 KiB do", 1, 1_024),
    "affinity_match_share": Known("T3", "the share of a prompt's blocks that a replica must have seen", 0, 1),
    "affinity_slack": Known("T3", "requests that a preferred replica may have more than the least busy", 0, 1_000),
    "affinity_slack_factor": Known("T3", "and so many times as many as it", 1, 100),
    "affinity_slack_base": Known("T3", "and so many beyond that", 0, 1_000),
    # Routers look at who waits once a second.
    "held_up_retry_seconds": Known("P4", "how often such a load is tried again", 1, 60),
}


class Relation(msgspec.Struct, frozen=True):
    """The setting `large` is at least so many `times` the setting `small`; `why`, if it weren't."""

    small: str
    large: str
    times: float
    why: str

    def refusal(self, settings: Settings, given: Collection[str]) -> InvalidValueError | None:
        """What is wrong with `settings`, told of the one that was `given`; None when nothing is."""
        small, large = getattr(settings, self.small), getattr(settings, self.large)
        if self.times * small <= large:
            return None
        if self.large in given and self.small not in given:
            problem = f"is less than {self.times:g} times {self.small} ({small:g}): {self.why}"
            return InvalidValueError(self.large, large, f"{problem}; give {self.times * small:g} or more")
        problem = f"times {self.times:g} is more than {self.large} ({large:g}): {self.why}"
        return InvalidValueError(self.small, small, f"{problem}; give {large / self.times:g} or less")


RELATIONS: Final = (
    Relation("heartbeat_seconds", "lost_after_seconds", 2, "a single lost message would end a node's liveness"),
    Relation("liveness_pass_seconds", "lost_after_seconds", 1, "silence would be judged less often than it is allowed"),
    Relation("router_report_seconds", "router_silence_seconds", 4, "a few lost messages would end a router's leases"),
    Relation("load_backoff_seconds", "load_backoff_max_seconds", 1, "the first rest would be longer than the longest"),
    Relation("retry_after_min_seconds", "retry_after_max_seconds", 1, "the least would be more than the most"),
)
"""What must hold between two settings, whichever of them is changed."""


def require_sense(settings: Settings, given: Collection[str]) -> None:
    """Refuse settings that are each within their bounds and make no sense together; `given` are those just changed.

    Raises:
        InvalidValueError: with both settings and their values.
    """
    for relation in RELATIONS:
        refusal = relation.refusal(settings, given)
        if refusal is not None:
            raise refusal


def rows() -> Iterator[tuple[str, object, Known]]:
    """Each setting, its default, and what is known of it."""
    for field in msgspec.structs.fields(Settings):
        yield field.name, field.default, KNOWN[field.name]
