"""How one model and one schedule are written: fields, types and bounds (rules S1, S2).

Invariant: nothing here judges fields against each other; `configuration` does, so that all faults are told together.
"""

import re
from typing import Annotated, Any, Final, Literal

import msgspec

from modelyard_events.spec import CONTEXT_LENGTH_MAX, GPUS_MAX, Health, Seconds, SecretRef

REPLICAS_MAX: Final = 100_000
"""Replicas of one model: many times the largest fleet, so what is above it was meant for another field."""

Count = Annotated[int, msgspec.Meta(ge=1, le=REPLICAS_MAX)]
"""Replicas, or requests of one: at least one."""

_SURROGATE: Final = re.compile("[\ud800-\udfff]")


class ModelBody(msgspec.Struct, frozen=True, kw_only=True):
    """A model as it is written. Sizes are bytes or text (`512MiB`); what is left out has the spec's default."""

    command: list[str]
    environment: dict[str, str | SecretRef] | None = None
    working_directory: str | None = None
    health: Health | None = None
    files: list[str] | None = None
    devices: list[str] | None = None
    ready_timeout_seconds: Seconds | None = None
    stop_grace_seconds: Seconds | None = None
    vram: int | str | None = None
    file_size: int | str | None = None
    disk: int | str | None = None
    concurrency_groups: list[str] | None = None
    pinned: bool | None = None
    max_concurrency: Count | None = None
    aliases: list[str] | None = None
    context_length: Annotated[int, msgspec.Meta(ge=1, le=CONTEXT_LENGTH_MAX)] | None = None


class ScheduleBody(msgspec.Struct, frozen=True, kw_only=True):
    """A schedule as it is written: `replicas: all`, or a floor and a ceiling, plus options (rules S1, S2)."""

    node_selector: str | dict[str, str] | None = None
    replicas: str | bool | int | float | None = None
    spread_all: bool | None = None
    min_replicas: int | None = None
    max_replicas: int | None = None
    placement: Literal["spread", "binpack"] | None = None
    max_per_node: Count | None = None
    gpus: Annotated[int, msgspec.Meta(ge=1, le=GPUS_MAX)] | None = None
    idle_timeout_seconds: Seconds | None = None
    busy_timeout_seconds: Seconds | None = None
    target_in_flight: Annotated[float, msgspec.Meta(gt=0, le=REPLICAS_MAX)] | None = None
    rollout: Literal["surge", "replace"] | None = None
    affinity: Literal["none", "session", "prefix"] | None = None


def unusable(value: Any) -> str | None:
    """What no process and no log can take, anywhere in `value`."""
    match value:
        case str():
            if "\0" in value:
                return "holds the character NUL, which no process can be given"
            return "holds half a character (a lone surrogate)" if _SURROGATE.search(value) else None
        case list():
            return next((problem for each in value if (problem := unusable(each))), None)
        case dict():
            return unusable([*value, *value.values()])
        case _:
            return None
