"""What each role may publish and hear: the whole of it, as data.

Invariant: every subject of a worker holds its own node's token, or the name of the consumer derived from it; nothing
here ends in `>` but the owner's inbox. Accounts (see `authorization.conf`) keep replies from escaping these lists.
"""

import hashlib
from typing import assert_never

import msgspec

from modelyard_events.ids import NodeName
from modelyard_events.subjects import (
    EVENTS_STREAM,
    escape_name,
    inbox_prefix,
    node_command_subject,
    node_telemetry_subject,
    worker_subject,
)
from modelyard_services.effects.nats_access.server import READERS_ACCOUNT, WORKERS_ACCOUNT

FEED_PREFIX = "modelyard.feed"
"""Where a worker asks for the next messages of its consumer: the name that `authorization.conf` maps to JetStream's."""

WORKER_SUBSCRIPTIONS_MAX = 64
"""A worker needs three: replies, its feed, questions about itself. The rest is room for versions to come."""

READER_SUBSCRIPTIONS_MAX = 1_000
"""A program may follow many kinds of events at once, yet not exhaust the server."""

ANSWERS_MAX = 10_000
"""Messages in which a worker may answer one question; logs come in many."""

ANSWER_SECONDS_MAX = 600
"""How long it may go on answering it: as long as somebody follows a log without asking again."""

_CONSUMER_DIGITS = 32


class Worker(msgspec.Struct, frozen=True):
    """The agent of one node."""

    node: NodeName


class Reader(msgspec.Struct, frozen=True):
    """A program that follows the public lifecycle stream."""

    name: str


Role = Worker | Reader


class Grant(msgspec.Struct, frozen=True):
    """What a connection may do; everything else is refused."""

    account: str
    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    subscriptions_max: int
    answers: bool


def node_consumer(node: NodeName) -> str:
    """The consumer on the log through which the worker of `node` hears of it.

    A digest, because consumer names take neither all characters nor the length of node names.
    """
    return f"node-{hashlib.sha256(node.encode()).hexdigest()[:_CONSUMER_DIGITS]}"


def node_feed_subject(node: NodeName) -> str:
    """Where the worker of `node` asks for more of it."""
    return f"{FEED_PREFIX}.{node_consumer(node)}"


def grant_of(role: Role) -> Grant:
    match role:
        case Worker(node):
            return Grant(
                account=WORKERS_ACCOUNT,
                publish=(node_command_subject(node, "*"), node_telemetry_subject(node), node_feed_subject(node)),
                subscribe=(f"{inbox_prefix(node)}.>", worker_subject(node, "*")),
                subscriptions_max=WORKER_SUBSCRIPTIONS_MAX,
                answers=True,
            )
        case Reader(name):
            return Grant(
                account=READERS_ACCOUNT,
                publish=_reading(EVENTS_STREAM),
                subscribe=(f"_INBOX.{escape_name(name)}.>",),
                subscriptions_max=READER_SUBSCRIPTIONS_MAX,
                answers=False,
            )
        case _:
            assert_never(role)


def _reading(stream: str) -> tuple[str, ...]:
    """All that a client library needs to read `stream` by consumers of its own, and nothing that changes it."""
    api = "$JS.API"
    return (
        f"{api}.INFO",
        f"{api}.STREAM.NAMES",
        f"{api}.STREAM.INFO.{stream}",
        f"{api}.STREAM.MSG.GET.{stream}",
        f"{api}.DIRECT.GET.{stream}",
        f"{api}.DIRECT.GET.{stream}.>",
        f"{api}.CONSUMER.CREATE.{stream}",
        f"{api}.CONSUMER.CREATE.{stream}.>",
        f"{api}.CONSUMER.DURABLE.CREATE.{stream}.*",
        f"{api}.CONSUMER.INFO.{stream}.*",
        f"{api}.CONSUMER.NAMES.{stream}",
        f"{api}.CONSUMER.LIST.{stream}",
        f"{api}.CONSUMER.DELETE.{stream}.*",
        f"{api}.CONSUMER.MSG.NEXT.{stream}.*",
        f"$JS.ACK.{stream}.>",
        f"$JS.FC.{stream}.>",
    )
