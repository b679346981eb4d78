"""Fleet settings: whole, bounded, changed only by what differs."""

import pytest

from modelyard_events.errors import InvalidValueError
from modelyard_events.fleet import FleetSettingsChanged, Settings
from modelyard_services.policy.settings import freeze, patch_settings, replace_settings, thaw
from tests.support.given import given

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
