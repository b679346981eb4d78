"""The figures of the rules, as they are where nobody chose others."""

from modelyard_events.fleet import Settings
from modelyard_events.node import NodeFacts
from modelyard_events.spec import FACTOR, ModelSpec, Schedule
from modelyard_services.effects.log.streams import TELEMETRY_AGE_NS
from modelyard_services.policy import breaker
from modelyard_services.policy.filters import REPLICAS_PER_NODE_MAX
from modelyard_services.settings import RouterSettings, WorkerFigures


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


def test_the_clocks_that_the_fleet_agrees_on_tick_as_the_rules_say() -> None:
    """N3, N8, N9, C1, C6, C7, T2: in seconds."""
    settings = Settings()
    assert (settings.ping_seconds, settings.heartbeat_seconds, settings.liveness_pass_seconds) == (2, 10, 15)
    assert (settings.reconciler_pass_seconds, settings.missed_heartbeats_max) == (30, 2)
    assert (settings.accept_deadline_seconds, settings.load_deadline_seconds) == (120, 300)
    assert settings.load_deadline_seconds_per_gib == 20
    assert (settings.router_report_seconds, settings.router_silence_seconds, settings.lease_seconds) == (0.25, 5, 60)
    assert settings.reconciler_pass_seconds > breaker.PASSES_APART_SECONDS


def test_the_bounds_that_the_fleet_agrees_on_are_the_rules() -> None:
    """P1, P4, R4, T3, T5, T6, C8."""
    settings = Settings()
    assert (settings.disk_headroom_share, settings.disk_headroom_bytes) == (0.05, 2**30)
    assert (settings.held_up_seconds, settings.reclaim_above_share) == (30, 0.95)
    assert settings.file_size_factor == FACTOR == 1.2
    assert (settings.affinity_block_bytes, settings.affinity_blocks_max) == (256, 64)
    assert (settings.affinity_match_share, settings.affinity_slack) == (0.3, 2)
    assert (settings.affinity_slack_factor, settings.affinity_slack_base) == (1.5, 1)
    assert (settings.retry_after_min_seconds, settings.retry_after_max_seconds) == (5, 120)
    assert (settings.load_backoff_seconds, settings.load_backoff_max_seconds) == (10, 300)


def test_the_figures_of_the_processes_are_the_rules() -> None:
    """N8, R2, T4, T5, T7, W4, W5, W7: times in seconds."""
    router, worker = RouterSettings(), WorkerFigures()
    assert TELEMETRY_AGE_NS == 30 * 10**9
    assert REPLICAS_PER_NODE_MAX == 900
    assert (router.wait_seconds, router.queue_max) == (60, 1_024)
    assert (router.probe_seconds, router.probe_fresh_seconds) == (2, 30)
    assert (worker.probe_seconds, worker.probe_interval_seconds, worker.probe_misses) == (2, 15, 3)
    assert worker.port_quarantine_seconds == 15
    assert (worker.stderr_lines, worker.log_lines) == (20, 1_000)
