"""What a name may be: nodes, models and label keys.

Invariant: a name that passes here survives every path, subject and command unchanged.
"""

from modelyard_events.errors import InvalidValueError
from modelyard_events.ids import NAME_LENGTH_MAX, LabelKey, ModelName, NodeName

LABEL_VALUE_LENGTH_MAX = 255
"""Characters in a label value; the reference system's limit, so that its labels can be carried over."""

SYSTEM_LABEL_PREFIXES = ("gpu.", "node.")
"""Label keys that the system derives; setting one by hand is refused (rule N5)."""

_SELECTOR_CHARACTERS = frozenset("=!,() \t")


def node_name(text: str, *, field: str = "node") -> NodeName:
    """`text` as a node's name: 1-253 printable characters without white space.

    Raises:
        InvalidValueError: it can't be one.
    """
    return NodeName(_printable(text, field=field))


def model_name(text: str, *, field: str = "model") -> ModelName:
    """`text` as a model's name: as a node's, and without `#`, which separates a replica index (rule W2).

    Raises:
        InvalidValueError: it can't be one.
    """
    if "#" in text:
        raise InvalidValueError(field, text, "holds '#', which separates the replica index")
    return ModelName(_printable(text, field=field))


def label_key(text: str, *, field: str = "label") -> LabelKey:
    """`text` as a label's key: printable, without white space and the selector's own signs `=!,()`.

    Raises:
        InvalidValueError: it can't be one.
    """
    if _SELECTOR_CHARACTERS & set(text):
        raise InvalidValueError(field, text, "holds one of '=!,()' or a space, which selectors use")
    return LabelKey(_printable(text, field=field))


def operator_label_key(text: str, *, field: str = "label") -> LabelKey:
    """A label key that a worker or an operator may set: not one of the system's (rule N5).

    Raises:
        InvalidValueError: it can't be one.
    """
    if text.startswith(SYSTEM_LABEL_PREFIXES):
        raise InvalidValueError(field, text, "is derived by the system; keys under 'gpu.' and 'node.' can't be set")
    return label_key(text, field=field)


def label_value(text: str, *, field: str = "label value") -> str:
    """`text` as a label's value: at most 255 printable characters, without white space and the selector's `,()`.

    Raises:
        InvalidValueError: it can't be one.
    """
    if len(text) > LABEL_VALUE_LENGTH_MAX:
        raise InvalidValueError(field, f"{text[:20]}…", f"is longer than {LABEL_VALUE_LENGTH_MAX} characters")
    if not text.isprintable() or set(",()") & set(text) or any(character.isspace() for character in text):
        raise InvalidValueError(field, text, "holds white space, an unprintable character or one of ',()'")
    return text


def _printable(text: str, *, field: str) -> str:
    if not text:
        raise InvalidValueError(field, text, "is empty")
    if len(text) > NAME_LENGTH_MAX:
        raise InvalidValueError(field, f"{text[:20]}…", f"is longer than {NAME_LENGTH_MAX} characters ({len(text)})")
    if not text.isprintable() or any(character.isspace() for character in text):
        raise InvalidValueError(field, text, "holds white space or an unprintable character")
    return text
