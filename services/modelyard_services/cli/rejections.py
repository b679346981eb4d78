"""Why a node can't take one more replica, in words: the filter's name first, as decisions and the API have it."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from modelyard_services.cli import formats

_LIMITS: Final[Mapping[str, str]] = {
    "slot": "{} of the model already, as many as the node takes (`modelyard node slots`)",
    "max_per_node": "{} of the model already, as many as its schedule allows on one node",
    "loaded_limit": "{} other models loaded already, as many as the node may hold",
    "replicas": "{} already, as many as one node runs",
}

_MISSED: Final[Mapping[str, Callable[[Any], str]]] = {
    "bytes": lambda figure: f"short by {formats.size(figure)}",
    "seconds": lambda figure: f"failed to load there, tried again in {figure} s",
}


def worded(found: Mapping[str, Any]) -> str:
    """What `found`, a node of a capacity's list, says of its rejection; `-` if one more fits."""
    name, figure, detail = found["filter"], found["figure"], found["detail"]
    if name is None:
        return "-"
    said = _told(name, figure, found["unit"])
    return f"{name}: " + "; ".join(part for part in (said, detail) if part) if said or detail else name


def _told(name: str, figure: Any, unit: str | None) -> str:
    if figure is None:
        return ""
    if name in _LIMITS:
        return _LIMITS[name].format(figure)
    missed = _MISSED.get(unit or "")
    return missed(figure) if missed else f"short by {figure} {unit or ''}".rstrip()
