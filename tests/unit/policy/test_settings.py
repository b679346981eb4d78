"""Fleet settings: whole, bounded, changed only by what differs."""

import pytest

from modelyard_events.envelope import Recorded
from modelyard_events.errors import InvalidValueError
from modelyard_events.fleet import FleetSettingsChanged, Settings
from modelyard_events.ids import EventId
from modelyard_projections.fleet import Fleet
from modelyard_services.policy.known_settings import KNOWN, require_sense, rows
from modelyard_services.policy.settings import checked_setting, freeze, patch_settings, replace_settings, thaw
from tests.support.given import given
from tests.support.samples import EARLIER, ENVELOPE

QUICK = Settings(drain_deadline_seconds=60.0, reconciler_frozen=True)
CHANGED = FleetSettingsChanged(settings=QUICK, changed=("reconciler_frozen", "drain_deadline_seconds"))


def test_a_patch_changes_the_fields_it_names() -> None:
    given().when(
        lambda fleet: patch_settings(fleet, patch={"drain_deadline_seconds": 60, "reconciler_frozen": True})
    ).then(CHANGED)


def test_a_patch_that_changes_nothing_is_no_event() -> None:
    """I11."""
    given(CHANGED).when(lambda fleet: patch_settings(fleet, patch={"drain_deadline_seconds": 60.0})).then_nothing()
    given().when(lambda fleet: patch_settings(fleet, patch={})).then_nothing()


def test_none_puts_a_field_back_to_its_default() -> None:
    given(CHANGED).when(lambda fleet: patch_settings(fleet, patch={"drain_deadline_seconds": None})).then(
        FleetSettingsChanged(settings=Settings(reconciler_frozen=True), changed=("drain_deadline_seconds",))
    )


def test_replacing_takes_defaults_for_what_is_not_named() -> None:
    given(CHANGED).when(lambda fleet: replace_settings(fleet, settings={"reconciler_frozen": True})).then(
        FleetSettingsChanged(settings=Settings(reconciler_frozen=True), changed=("drain_deadline_seconds",))
    )


def test_an_unknown_field_is_refused_by_name() -> None:
    given().when(lambda fleet: patch_settings(fleet, patch={"drain_deadline": 60})).then_raises(
        InvalidValueError, "drain_deadline:", "drain_deadline_seconds"
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("drain_deadline_seconds", -1),
        ("drain_deadline_seconds", "60"),
        ("drain_deadline_seconds", True),
        ("lost_after_seconds", 5),
        ("mass_loss_share", 1.5),
        ("breaker_failed_passes", 2.5),
        ("breaker_failed_passes", 0),
        ("reconciler_frozen", 1),
        ("idle_scale_down_seconds", float("nan")),
        ("heartbeat_seconds", 0),
        ("affinity_blocks_max", 0),
    ],
)
def test_a_value_that_cannot_be_names_its_field(field: str, value: object) -> None:
    given().when(lambda fleet: patch_settings(fleet, patch={field: value})).then_raises(InvalidValueError, field)


def test_freeze_and_thaw_are_settings_too() -> None:
    frozen = FleetSettingsChanged(
        settings=Settings(reconciler_frozen=True, evictions_frozen=True),
        changed=("reconciler_frozen", "evictions_frozen"),
    )
    history = given()
    history.when(lambda fleet: freeze(fleet, parts=["reconciler", "evictions"])).then(frozen)
    history.when(lambda fleet: freeze(fleet, parts=["evictions"])).then_nothing()
    history.when(lambda fleet: thaw(fleet, parts=["evictions"])).then(
        FleetSettingsChanged(settings=Settings(reconciler_frozen=True), changed=("evictions_frozen",))
    )


@pytest.mark.parametrize(
    ("patch", "told"),
    [
        ({"heartbeat_seconds": 60}, ("heartbeat_seconds:", "60", "lost_after_seconds", "30 or less")),
        ({"lost_after_seconds": 19}, ("lost_after_seconds:", "19", "heartbeat_seconds", "20 or more")),
        ({"liveness_pass_seconds": 61}, ("liveness_pass_seconds:", "61", "lost_after_seconds", "60 or less")),
        ({"router_report_seconds": 2}, ("router_report_seconds:", "2", "router_silence_seconds", "1.25 or less")),
        ({"load_backoff_max_seconds": 9}, ("load_backoff_max_seconds:", "9", "load_backoff_seconds", "10 or more")),
        (
            {"retry_after_min_seconds": 121},
            ("retry_after_min_seconds:", "121", "retry_after_max_seconds", "120 or less"),
        ),
    ],
)
def test_settings_that_make_no_sense_together_are_refused_with_both(
    patch: dict[str, object], told: tuple[str, ...]
) -> None:
    """N8, N9, T2, T5, T6: of the two, the one that was given is named, and what it may be."""
    given().when(lambda fleet: patch_settings(fleet, patch=patch)).then_raises(InvalidValueError, *told)


def test_two_settings_that_make_sense_together_are_changed_together() -> None:
    """N8, N9."""
    slow = Settings(heartbeat_seconds=60.0, lost_after_seconds=300.0)
    given().when(lambda fleet: patch_settings(fleet, patch={"heartbeat_seconds": 60, "lost_after_seconds": 300})).then(
        FleetSettingsChanged(settings=slow, changed=("lost_after_seconds", "heartbeat_seconds"))
    )


def test_every_setting_is_known_and_its_default_is_in_bounds_and_makes_sense() -> None:
    """S1: what the command line, the API and the documentation tell of it."""
    assert tuple(KNOWN) == Settings.__struct_fields__
    for field, default, known in rows():
        assert checked_setting(field, default) == default
        assert known.told
        assert (known.least is None) == isinstance(default, bool | str)
    require_sense(Settings(), ())


def test_what_was_set_before_a_setting_was_known_replays_to_its_default() -> None:
    """S1: an old log comes to the same state."""
    old = Recorded(1, 0, EventId("e"), EARLIER["fleet.settings_changed.v1.1"], ENVELOPE, batch_end=True)
    fleet = Fleet()
    fleet.apply(old)
    assert fleet.settings.breaker_failed_passes == 5
    assert fleet.settings.load_backoff_seconds == Settings().load_backoff_seconds
