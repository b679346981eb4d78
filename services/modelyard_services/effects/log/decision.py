"""What may be appended, judged before anything is sent.

Invariant: a decision that passes `check` can be refused by a log only for what the log holds, never for its form.
"""

from collections.abc import Sequence

from modelyard_events.subjects import LOG_SUBJECTS
from modelyard_services.effects.log.contract import (
    DECISION_BYTES_MAX,
    DECISION_MESSAGES_MAX,
    EVENT_BYTES_MAX,
    EVENT_ID_CHARACTERS_MAX,
    DecisionMalformed,
    DecisionTooLarge,
    Message,
)

_ROOT = LOG_SUBJECTS.removesuffix(">")


def check(decision: Sequence[Message]) -> None:
    """Refuse what no log may take.

    Raises:
        DecisionMalformed: a foreign subject, an unusable or repeated id, a negative guard.
        DecisionTooLarge: a named limit is passed.
    """
    if len(decision) > DECISION_MESSAGES_MAX:
        raise DecisionTooLarge(f"a decision of {len(decision)} events; {DECISION_MESSAGES_MAX} is the most")
    if (size := body_bytes(decision)) > DECISION_BYTES_MAX:
        raise DecisionTooLarge(f"a decision of {size} bytes; {DECISION_BYTES_MAX} is the most")
    for message in decision:
        _check_message(message)
    if len({message.event_id for message in decision}) != len(decision):
        raise DecisionMalformed("an event id stands twice in one decision")


def guards(decision: Sequence[Message]) -> dict[str, int]:
    """The guard of each subject: what its first message expects."""
    found: dict[str, int] = {}
    for message in decision:
        found.setdefault(message.subject, message.expected)
    return found


def body_bytes(decision: Sequence[Message]) -> int:
    """The size of all bodies."""
    return sum(len(message.body) for message in decision)


def _check_message(message: Message) -> None:
    if len(message.body) > EVENT_BYTES_MAX:
        raise DecisionTooLarge(
            f"event {message.event_id} has {len(message.body)} bytes; {EVENT_BYTES_MAX} is the most", field="body"
        )
    if not _is_one_address(message.subject):
        raise DecisionMalformed(f"{message.subject!r} is not an address in the log", field="subject")
    if not _fits_a_header(message.event_id):
        raise DecisionMalformed(f"{message.event_id!r} can't be an event id", field="event_id")
    if message.expected < 0:
        raise DecisionMalformed(f"event {message.event_id} expects a negative sequence", field="expected")


def _is_one_address(subject: str) -> bool:
    if not subject.startswith(_ROOT) or not _is_graphic(subject):
        return False
    tokens = subject.split(".")
    return all(tokens) and "*" not in tokens and ">" not in tokens


def _fits_a_header(event_id: str) -> bool:
    return 0 < len(event_id) <= EVENT_ID_CHARACTERS_MAX and _is_graphic(event_id)


def _is_graphic(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text
