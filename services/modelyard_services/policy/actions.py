"""What one pass of the reconciler looks at, and what it wants done.

Invariant: an action is decided again on the fleet it is appended to, and its command id names what it is about
and since when, so doing it twice, by two processes or after a crash, changes nothing (C1).
"""

import hashlib
from collections.abc import Callable, Sequence

import msgspec

from modelyard_events.decision import Decision, DecisionKind, Figure
from modelyard_events.envelope import AnyEvent
from modelyard_events.ids import CommandId, ModelName, ReplicaId
from modelyard_events.spec import ModelSpec
from modelyard_projections.demand import Demand
from modelyard_projections.fleet import Fleet, ModelState, ScheduleState, Touched
from modelyard_services.policy.account import POLICY, clipped
from modelyard_services.policy.readings import Readings
from modelyard_services.policy.relief import Marks
from modelyard_services.policy.searcher import PLAIN, Searcher

NANOSECONDS = 1_000_000_000


class Moment(msgspec.Struct, frozen=True):
    """Now, on the clocks there are: the log's, for deadlines, and the one telemetry was heard by.

    `connected_ns` is when the observer's connection began, on the latter; None while there is none.
    """

    log_ns: int
    heard_ns: int
    connected_ns: int | None


class Progress(msgspec.Struct, frozen=True):
    """How far a load is, and when that last moved, on the log's clock."""

    share: float
    moved_ns: int


class Miss(msgspec.Struct, frozen=True):
    """Heartbeats in a row that didn't report a replica, and when the last of them was heard."""

    count: int
    heard_ns: int


class Shortfall(msgspec.Struct, frozen=True):
    """Passes in a row in which a model lacked a replica that fitted nowhere.

    `counted_ns` is the last one's time, on the log's clock; `asked` the spec and schedule that it was about.
    """

    count: int
    counted_ns: int
    asked: tuple[ModelSpec | None, ScheduleState | None]


class Eased(msgspec.Struct, frozen=True):
    """What may have made room for a model whose breaker is open until `until_ns`."""

    cause: str
    until_ns: int


class Watch(msgspec.Struct, frozen=True):
    """What only a repeated look shows. Kept by one reconciler; lost with it, which only delays.

    `marks` are the nodes as the last look saw them, kept only while a model lacks room.
    """

    progress: dict[ReplicaId, Progress] = {}
    misses: dict[ReplicaId, Miss] = {}
    shortfalls: dict[ModelName, Shortfall] = {}
    eased: dict[ModelName, Eased] = {}
    marks: Marks | None = None


class View(msgspec.Struct, frozen=True):
    """All that a pass decides on."""

    fleet: Fleet
    demand: Demand
    readings: Readings
    moment: Moment
    watch: Watch = Watch()
    search: Searcher = PLAIN

    def in_flight(self, replica: ReplicaId) -> int:
        return self.readings.in_flight.get(replica, 0)


Decide = Callable[[Fleet, CommandId], Sequence[AnyEvent]]


class Action(msgspec.Struct, frozen=True):
    """One thing to do: `decide` it on the newest fleet.

    `key` is unique for ever: it holds the sequence of what the action is about. `about` finds the event that
    led to it. `essential` actions are appended even to a log that is nearly full. `places` is the model that one more
    replica is to be placed of.
    """

    key: str
    about: Touched
    reason: str
    decide: Decide
    essential: bool = False
    places: ModelName | None = None

    @property
    def command(self) -> CommandId:
        return CommandId("reconcile-" + hashlib.blake2b(self.key.encode(), digest_size=12).hexdigest())


def is_held(model: ModelState, now_ns: int) -> bool:
    """Whether the model's breaker holds the reconciler's placements back (rule C5)."""
    return model.breaker is not None and now_ns < model.breaker.until_ns


def about_model(model: ModelName) -> Touched:
    return ("model", model)


def why(fleet: Fleet, outcome: str, kind: DecisionKind = "end", **figures: Figure) -> Decision:
    """The decision behind an end that no search led to."""
    return Decision(kind=kind, outcome=clipped(outcome), policy=POLICY, basis=fleet.sequence, figures=figures)
