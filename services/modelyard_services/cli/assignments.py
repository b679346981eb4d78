"""Figures as people type them: `lost_after_seconds=90`."""

from typing import Any

from modelyard_services.cli.session import CommandFailedError


def assigned(text: str) -> tuple[str, Any]:
    """Name and value of `NAME=VALUE`; whether there is such a name, and takes that value, the API knows.

    Raises:
        CommandFailedError: there is no `=`.
    """
    name, sign, value = text.partition("=")
    if not sign:
        raise CommandFailedError(f"{text!r} isn't name=value")
    if value in {"true", "false"}:
        return name, value == "true"
    try:
        return name, float(value) if "." in value else int(value)
    except ValueError:
        return name, value  # a word; whether this one takes it, the API knows
