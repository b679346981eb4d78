"""Where the configuration of a start comes from: variables, options and files, read whole (rules S1, S3).

Invariant: every fault of every document is told together, and nothing of them is used then; each schedule knows
whether a file, the environment or an option asked for it.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

from modelyard_services.effects.documents import Parsed, parse_text, read_file
from modelyard_services.policy.configuration import Configuration, read_parsed
from modelyard_services.settings import ConfigurationSettings, Given

INLINE: Final = "MODELYARD_MODEL_SCHEDULING"
FILE: Final = "MODELYARD_MODEL_SCHEDULING_CONFIG"

VARIABLES: Final = (INLINE, FILE)
"""What only the reconciler applies; the others ignore it and say so."""


def configuration_settings(
    scheduling: str | None, scheduling_config: Path | None, files: tuple[Path, ...], *, environment: Mapping[str, str]
) -> ConfigurationSettings:
    """The settings in the values of three options, which come from their variables where those say the same."""
    path = environment.get(FILE)
    return ConfigurationSettings(
        _given(scheduling, environment.get(INLINE)),
        _given(None if scheduling_config is None else str(scheduling_config), path and str(Path(path))),
        tuple(str(file) for file in files),
    )


def read_configuration(settings: ConfigurationSettings) -> Configuration:
    """All that the settings ask for; the later source wins.

    Raises:
        InvalidEntriesError: with every fault of every document.
    """
    inline, file = settings.scheduling, settings.scheduling_config
    parsers: list[Callable[[], Parsed]] = []
    if inline is not None:
        name = INLINE if inline.source == "env" else "--model-scheduling"
        parsers.append(partial(parse_text, inline.value, name=name, source=inline.source))
    if file is not None:
        parsers.append(partial(read_file, Path(file.value), source=file.source))
    parsers += [partial(read_file, Path(each), source="file") for each in settings.files]
    return read_parsed(parsers)


def options_of(settings: ConfigurationSettings) -> tuple[str, ...]:
    """The configuration for the reconciler, but for what came from variables and goes on in them."""
    inline, file = settings.scheduling, settings.scheduling_config
    words = [word for each in settings.files for word in ("--config", str(Path(each).resolve()))]
    words += ["--model-scheduling", inline.value] if inline is not None and inline.source == "flag" else []
    if file is not None and file.source == "flag":
        words += ["--model-scheduling-config", str(Path(file.value).resolve())]
    return tuple(words)


def variables_of(settings: ConfigurationSettings) -> dict[str, str]:
    """The part of the configuration that came from variables, for the reconciler's environment."""
    inline, file = settings.scheduling, settings.scheduling_config
    found = {INLINE: inline.value} if inline is not None and inline.source == "env" else {}
    if file is not None and file.source == "env":
        found[FILE] = str(Path(file.value).resolve())
    return found


def _given(value: str | None, variable: str | None) -> Given | None:
    # An empty variable is as good as none.
    return Given(value, "env" if value == variable else "flag") if value else None
