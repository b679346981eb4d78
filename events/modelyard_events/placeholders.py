r"""What a command line and an environment leave to the node: `{port} {host} {model} {replica} {gpu}`.

Grammar: a name in braces is a placeholder, and `\{name}` is that text itself. Any other brace is left alone: JSON
(`{"a": 1}`), `${HOME}` of a shell, `{{name}}` of a template, `{}`.

Invariant: text is filled once, so a value that looks like a placeholder stays what it is.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Final

from modelyard_events.errors import InvalidValueError

PLACEHOLDERS: Final = ("port", "host", "model", "replica", "gpu")

_ESCAPED_OR_KNOWN: Final = re.compile(rf"\\(?P<literal>\{{[A-Za-z_]\w*\}})|\{{(?P<name>{'|'.join(PLACEHOLDERS)})\}}")
_MEANT: Final = re.compile(r"(?<![\\${])\{(?P<name>[A-Za-z_]\w*)\}(?!\})")


def filled(text: str, values: Mapping[str, str]) -> str:
    """`text` with its placeholders replaced; a name that isn't one stays, for logs hold such from before."""
    return _ESCAPED_OR_KNOWN.sub(lambda match: match["literal"] or values[match["name"]], text)


def check_placeholders(text: str, *, field: str) -> str:
    """`text`, if all that it leaves to the node is something that the node knows.

    Raises:
        InvalidValueError: a name in braces is no placeholder.
    """
    for name in _unknown(text):
        known = " ".join(f"{{{one}}}" for one in PLACEHOLDERS)
        problem = f"holds {{{name}}}, which no node fills in; known are {known}; "
        raise InvalidValueError(field, text, problem + f"for the text itself write \\{{{name}}}")
    return text


def _unknown(text: str) -> Iterator[str]:
    return (match["name"] for match in _MEANT.finditer(text) if match["name"] not in PLACEHOLDERS)
