"""The figures of the rules, as they are where nobody chose others."""

from modelyard_events.fleet import Settings
from modelyard_events.node import NodeFacts
from modelyard_events.spec import ModelSpec, Schedule
from modelyard_projections.demand import ROUTER_GONE_NS
from modelyard_services.effects.health import PROBE_SECONDS
from modelyard_services.effects.log.streams import TELEMETRY_AGE_NS
from modelyard_services.policy import breaker, deadlines, footprint, liveness, probing, watchdog
from modelyard_services.policy.filters import BACKOFF_BASE_NS, BACKOFF_CAP_NS, REPLICAS_PER_NODE_MAX
from modelyard_services.policy.placement import HELD_UP_SECONDS
from modelyard_services.reconciler.loop import PASS_SECONDS
from modelyard_services.registrar.handlers import PING_SECONDS
from modelyard_services.router.leases import LEASE_SECONDS
from modelyard_services.router.loading import RETRY_SECONDS
from modelyard_services.settings import PROBE_FRESH_SECONDS, QUEUE_MAX, WAIT_SECONDS
from modelyard_services.worker.processes.logs import LINES_MAX, STDERR_TAIL_LINES
from modelyard_services.worker.processes.ports import QUARANTINE_SECONDS


def test_the_settings_begin_with_the_rules_figures() -> None:
    """N9, N10, P3, C4, C5, C8: what operators may change at run time."""
    settings = Settings()
    assert (settings.lost_after_seconds, settings.lost_grace_seconds, settings.mass_loss_share) == (60, 600, 0.3)
    assert settings.drain_deadline_seconds == 600
    assert (settings.min_residency_seconds, settings.eviction_order) == (60, "lru")
    assert settings.idle_scale_down_seconds == 300
    assert (settings.breaker_failed_passes, settings.breaker_cool_down_seconds) == (3, 300)
    off = (settings.idle_timeout_seconds, settings.busy_timeout_seconds, settings.max_loaded_models)
    assert (*off, settings.reclaim_memory) == (0, 0, 0, False)


def test_a_worker_a_model_and_a_schedule_begin_with_the_rules_figures() -> None:
    """N2, R6, P6, T3, C2, T7: one slot per model; no range, spread, surge, no affinity, no limit of requests."""
    assert NodeFacts(address="a:1").max_replicas_per_model == 1
    schedule = Schedule()
    assert (schedule.placement, schedule.gpus, schedule.max_per_node) == ("spread", 1, None)
    assert (schedule.rollout, schedule.affinity, schedule.min_replicas) == ("surge", "none", 0)
    assert ModelSpec(command=("x",)).max_concurrency is None


def test_the_clocks_of_the_processes_tick_as_the_rules_say() -> None:
    """N3, N8, N9, T2, T4, C1, C7, W4: in seconds."""
    assert (PING_SECONDS, TELEMETRY_AGE_NS, liveness.LIVENESS_SECONDS) == (2, 30 * 10**9, 15)
    assert (ROUTER_GONE_NS, LEASE_SECONDS) == (5 * 10**9, 60)
    assert (PROBE_SECONDS, PROBE_FRESH_SECONDS, probing.INTERVAL_SECONDS, probing.MISSES_MAX) == (2, 30, 15, 3)
    assert PASS_SECONDS == 30
    assert (footprint.LOAD_SECONDS_BASE, footprint.LOAD_SECONDS_PER_GIB, deadlines.MISSES_MAX) == (300, 20, 2)
    assert QUARANTINE_SECONDS == 15
    assert breaker.PASSES_APART_SECONDS < PASS_SECONDS


def test_the_bounds_are_the_rules() -> None:
    """R2, P4, T5, T6, T7, C8, W5, W7."""
    assert REPLICAS_PER_NODE_MAX == 900
    assert HELD_UP_SECONDS == 30
    assert (WAIT_SECONDS, RETRY_SECONDS) == (60, (5, 120))
    assert (BACKOFF_BASE_NS, BACKOFF_CAP_NS) == (10 * 10**9, 300 * 10**9)
    assert QUEUE_MAX == 1_024
    assert watchdog.RECLAIM_SHARE == 0.95
    assert (STDERR_TAIL_LINES, LINES_MAX) == (20, 1_000)
