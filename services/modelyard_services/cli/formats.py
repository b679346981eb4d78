"""How figures look in tables."""

import json
import shlex
from datetime import datetime
from typing import Any, Final

from modelyard_events.sizes import format_size
from modelyard_services.effects.clock import Clock

SIZES: Final = frozenset({"vram", "file_size", "disk"})
"""Fields of a model that are bytes."""


def field(name: str, value: Any) -> str:
    """What a field of a model or schedule holds, as an operator would write it."""
    match value:
        case None:
            return "-"
        case bool():
            return str(value).lower()
        case int() if name in SIZES:
            return format_size(value)
        case [*parts]:
            return shlex.join(parts) if name == "command" else ", ".join(map(str, parts))
        case dict():
            return json.dumps(value, ensure_ascii=False)
        case _:
            return str(value)


def size(value: int | None) -> str:
    """Bytes for people; `-` for unknown."""
    return "-" if value is None else format_size(value)


def budget(value: str | None) -> str:
    """A VRAM budget: a share as it is written, bytes for people."""
    if value is None:
        return "none"
    return format_size(int(value)) if value.isdigit() else value


def figure(value: float) -> str:
    """A setting's figure, as an operator would write it."""
    return str(value).lower() if isinstance(value, bool) else f"{value:g}"


def age(moment: str | None) -> str:
    """How long ago `moment` (RFC 3339) was: `12s`, `5m`, `3h`, `2d`."""
    if moment is None:
        return "-"
    seconds = (Clock().now() - datetime.fromisoformat(moment)).total_seconds()
    for limit, divisor, unit in ((120, 1, "s"), (7_200, 60, "m"), (172_800, 3_600, "h")):
        if seconds < limit:
            return f"{max(0, seconds) / divisor:.0f}{unit}"
    return f"{seconds / 86_400:.0f}d"


def labels(node: dict[str, Any]) -> str:
    """A node's labels but for the system's own, `key=value` each."""
    shown = [f"{key}={label['value']}" for key, label in node["labels"].items() if label["owner"] != "system"]
    return ",".join(shown) or "-"


def node_status(node: dict[str, Any]) -> str:
    """The facets in one word each, the ordinary ones left out: `ready`, `pending`, `lost,cordoned`."""
    ordinary = {"approved", "alive", "schedulable"}
    facets = [node["admission"], node["liveness"], node["intent"]]
    return ",".join(facet for facet in facets if facet not in ordinary) or "ready"
