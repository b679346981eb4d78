"""Figures as people type them: `lost_after_seconds=90`."""

from typing import Any

from modelyard_services.cli.session import WrongUsageError


def assigned(text: str) -> tuple[str, Any]:
    """Name and value of `NAME=VALUE`; whether there is such a name, and takes that value, the API knows.

    Raises:
        WrongUsageError: there is no `=`.
    """
    name, sign, value = text.partition("=")
    if not sign:
        raise WrongUsageError(f"{text!r} isn't NAME=VALUE")
    if value in {"true", "false"}:
        return name, value == "true"
    try:
        return name, float(value) if "." in value else int(value)
    except ValueError:
        return name, value  # a word; whether this one takes it, the API knows
