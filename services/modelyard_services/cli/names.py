"""Names given as filters, that nobody has: an empty answer then has its reason beside it.

Invariant: it is told on stderr and refuses nothing: what a program reads stays the API's own answer.
"""

from typing import Final

from modelyard_services.cli import tables
from modelyard_services.cli.session import Session
from modelyard_services.policy.suggestion import meant

SHOWN_MAX: Final = 10
"""Names in one hint; beyond that it says where all of them are."""


def tell_unknown(session: Session, *, node: str | None, model: str | None) -> None:
    """Say which of these names nobody has."""
    if node is not None:
        _tell("node", node, [each["name"] for each in session.list("/nodes")["items"]])
    if model is not None:
        models = session.list("/models")["items"]
        _tell("model", model, [name for each in models for name in (each["name"], *_aliases(each))])


def _aliases(model: dict[str, object]) -> list[str]:
    spec = model.get("spec")
    aliases = spec.get("aliases") if isinstance(spec, dict) else None
    return [str(alias) for alias in aliases] if isinstance(aliases, list) else []


def _tell(kind: str, given: str, names: list[str]) -> None:
    if given in names:
        return
    hint = meant(given, names)
    if not names:
        hint = f"there is no {kind} yet"
    elif hint.startswith("known") and len(names) > SHOWN_MAX:
        hint = f"`modelyard {kind}s` lists all {len(names)}"
    tables.line(f"no {kind} is named {given!r}; {hint}", style="yellow", errors=True)
