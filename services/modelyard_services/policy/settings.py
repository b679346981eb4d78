"""Settings of the whole fleet, changed at run time: patched, replaced, frozen, thawed.

Invariant: settings are whole and within their bounds after every change; a change that changes nothing is no event.
"""

from collections.abc import Collection, Mapping
from typing import Final, Literal, get_type_hints

import msgspec

from modelyard_events.envelope import AnyEvent
from modelyard_events.errors import InvalidValueError
from modelyard_events.fleet import FleetSettingsChanged, Settings
from modelyard_projections.fleet import Fleet
from modelyard_services.policy.known_settings import KNOWN, require_sense
from modelyard_services.policy.misfit import misfit

Freezable = Literal["reconciler", "evictions"]

_TYPES: Final = get_type_hints(Settings)


def patch_settings(fleet: Fleet, *, patch: Mapping[str, object]) -> list[AnyEvent]:
    """Change the fields named; None puts one back to its default."""
    refuse_unknown(patch, Settings.__struct_fields__, what="setting")
    defaults = _as_fields(Settings())
    given = {field: defaults[field] if value is None else value for field, value in patch.items()}
    return _become(fleet, _checked({**_as_fields(fleet.settings), **given}, given=patch))


def replace_settings(fleet: Fleet, *, settings: Mapping[str, object]) -> list[AnyEvent]:
    """The settings are these, and the default where a field isn't named."""
    refuse_unknown(settings, Settings.__struct_fields__, what="setting")
    return _become(fleet, _checked({**_as_fields(Settings()), **settings}, given=settings))


def freeze(fleet: Fleet, *, parts: Collection[Freezable]) -> list[AnyEvent]:
    """`parts` decide nothing until they are thawed; what runs keeps serving."""
    return patch_settings(fleet, patch={f"{part}_frozen": True for part in parts})


def thaw(fleet: Fleet, *, parts: Collection[Freezable]) -> list[AnyEvent]:
    """`parts` decide again."""
    return patch_settings(fleet, patch={f"{part}_frozen": False for part in parts})


def refuse_unknown(given: Mapping[str, object], known: tuple[str, ...], *, what: str) -> None:
    """Refuse the first name that isn't `known`.

    Raises:
        InvalidValueError: there is no such `what`.
    """
    for field in given:
        if field not in known:
            raise InvalidValueError(field, field, f"is no {what}; give {', '.join(known)}")


def checked_setting(field: str, value: object) -> object:
    """`value` as the setting `field` holds it.

    Raises:
        InvalidValueError: it is of another kind, or out of range.
    """
    typed = _typed(field, value)
    known = KNOWN[field]
    low, high = known.least, known.most
    if low is not None and high is not None and not low <= typed <= high:  # type: ignore[operator]
        raise InvalidValueError(field, value, f"is out of range; give {known.span}")
    return typed


def _become(fleet: Fleet, wanted: Settings) -> list[AnyEvent]:
    before = fleet.settings
    changed = tuple(field for field in Settings.__struct_fields__ if getattr(before, field) != getattr(wanted, field))
    return [FleetSettingsChanged(settings=wanted, changed=changed)] if changed else []


def _as_fields(settings: Settings) -> dict[str, object]:
    return msgspec.structs.asdict(settings)


def _checked(fields: Mapping[str, object], *, given: Collection[str]) -> Settings:
    settings = msgspec.convert({field: checked_setting(field, value) for field, value in fields.items()}, Settings)
    require_sense(settings, given)
    return settings


def _typed(field: str, value: object) -> object:
    try:
        return msgspec.convert(value, _TYPES[field])
    except msgspec.ValidationError as error:
        raise InvalidValueError(field, value, misfit(error, _TYPES[field])) from error
