"""Every NATS subject of modelyard, in one place.

Invariant: one exact subject per aggregate, and `unescape_name(escape_name(x)) == x` for every name, so a
subject token never holds a separator, a wildcard or white space whatever people call their models.
"""

import re
from functools import lru_cache
from typing import Final

from modelyard_events.errors import InvalidValueError
from modelyard_events.ids import ModelName, NodeName

LOG_STREAM: Final = "LOG"
EVENTS_STREAM: Final = "EVENTS"
TELEMETRY_STREAM: Final = "TELEMETRY"
LEASES_STREAM: Final = "LEASES"

LOG_SUBJECTS: Final = "modelyard.log.>"
EVENTS_SUBJECTS: Final = "modelyard.events.>"
TELEMETRY_SUBJECTS: Final = "modelyard.telemetry.>"
LEASES_SUBJECTS: Final = "modelyard.lease.>"

RECONCILER_LEASE: Final = "modelyard.lease.reconciler"
"""Who of several reconcilers acts; no history, so it is no address in the log."""

FLEET_SUBJECT: Final = "modelyard.log.fleet"
_NODE_PREFIX: Final = "modelyard.log.node."
_MODEL_PREFIX: Final = "modelyard.log.model."

# What NATS and people both read without surprise; everything else becomes =XX per UTF-8 byte.
_PLAIN: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_/:@+")
NAMES_MAX: Final = 65_536
"""Names whose tokens are kept: a fold asks for one at every event, and no fleet has more nodes and models at once."""

_ESCAPED: Final = re.compile(r"=([0-9A-F]{2})")


@lru_cache(maxsize=NAMES_MAX)
def escape_name(name: str) -> str:
    """`name` as one subject token: `Qwen/Qwen3-32B:q4` stays, `a b.c` becomes `a=20b=2Ec`, `*>` `=2A=3E`."""
    return "".join(character if character in _PLAIN else _hex(character) for character in name)


def unescape_name(token: str) -> str:
    """The name behind `token`.

    Raises:
        InvalidValueError: no name escapes to that token.
    """
    try:
        data = re.sub(_ESCAPED, lambda match: chr(int(match.group(1), 16)), token).encode("latin-1")
        name = data.decode()
    except UnicodeError as error:
        raise InvalidValueError("subject token", token, "is not an escaped name") from error
    if escape_name(name) != token:
        raise InvalidValueError("subject token", token, "is not an escaped name")
    return name


def node_subject(node: NodeName) -> str:
    """The log address of a node: admission, intent, capacity, its replicas and reservations."""
    return _NODE_PREFIX + escape_name(node)


def model_subject(model: ModelName) -> str:
    """The log address of a model: spec, schedule, its replicas' count, who is loading it."""
    return _MODEL_PREFIX + escape_name(model)


def node_of_subject(subject: str) -> NodeName | None:
    """The node whose log address `subject` is, None if it is no node's."""
    return NodeName(unescape_name(subject[len(_NODE_PREFIX) :])) if subject.startswith(_NODE_PREFIX) else None


def public_subject(*, kind: str, identity: str, name: str) -> str:
    """Where the lifecycle stream tells of an event: `modelyard.events.<kind>.<id>.<name>`."""
    return f"modelyard.events.{kind}.{escape_name(identity)}.{name}"


def node_command_subject(node: NodeName, verb: str) -> str:
    """Where the worker of `node` asks the registrar to decide `verb` (register, report …)."""
    return f"modelyard.cmd.node.{escape_name(node)}.{verb}"


NODE_COMMANDS: Final = "modelyard.cmd.node.{node}.{verb}"
"""FastStream's pattern for all of them."""


def node_telemetry_subject(node: NodeName) -> str:
    """Where a worker publishes its heartbeat."""
    return f"modelyard.telemetry.node.{escape_name(node)}"


def router_telemetry_subject(router: str) -> str:
    """Where a router incarnation publishes its leases and the sequence it has folded."""
    return f"modelyard.telemetry.router.{escape_name(router)}"


NODE_TELEMETRY: Final = "modelyard.telemetry.node.*"
ROUTER_TELEMETRY: Final = "modelyard.telemetry.router.*"


def worker_subject(node: NodeName, verb: str) -> str:
    """Where a worker answers questions of the control plane about itself (ping, logs)."""
    return f"modelyard.worker.{escape_name(node)}.{verb}"


def inbox_prefix(owner: str) -> str:
    """The reply address prefix of one owner, so that permissions keep inboxes apart."""
    return f"_INBOX.{escape_name(owner)}"


def _hex(character: str) -> str:
    return "".join(f"={byte:02X}" for byte in character.encode())
