"""What a worker asks the registrar to decide, and what it is answered.

Invariant: every request carries the worker's incarnation, and the registrar alone decides; a worker never
appends (rule W1).
"""

from itertools import zip_longest
from typing import Annotated

import msgspec

from modelyard_events.ids import IncarnationId, NodeName, ReplicaId
from modelyard_events.node import Gpu, NodeFacts, NodeType
from modelyard_events.replica import Process, ProcessExit
from modelyard_events.telemetry import ReplicaReading

FACTS_MAX = 1_000
"""Facts in one report: what a worker buffers while the log is away (rule W8) arrives in slices of this size."""

REGISTER = "register"
REPORT = "report"
OFFER = "offer"
PING = "ping"
LOGS = "logs"
RENEW = "renew"
USED = "used"
BEAT = "beat"

LOGS_RENEW_SECONDS = 10.0
"""How often somebody who follows logs says that they still listen."""

LOGS_LEASE_SECONDS = 30.0
"""How long a worker follows for somebody who doesn't say so: three renewals, so that one may get lost."""


class Register(msgspec.Struct, frozen=True, omit_defaults=True):
    """A worker's first request of each life and each reconnection (rule N2).

    `secret` proves the state directory (N3); `token` is the registration token; `inventory` what runs there.
    """

    node: NodeName
    node_type: NodeType
    incarnation: IncarnationId
    facts: NodeFacts
    secret: str
    token: str
    inventory: tuple[ReplicaReading, ...] = ()


class Registered(msgspec.Struct, frozen=True, omit_defaults=True, tag="registered"):
    """`admission` as the fleet has it; a pending node sees nothing else.

    `sequence` is its node's last event: a worker that has folded it sees its own life, and may act on what it sees.
    """

    admission: str
    sequence: int
    heartbeat_seconds: float


class Refused(msgspec.Struct, frozen=True, omit_defaults=True, tag="refused"):
    """`code` is an error code of DESIGN's errors: name_taken, unauthorized, gone, stale_fact, and others."""

    code: str
    detail: str


class LoadStarted(msgspec.Struct, frozen=True, tag="load_started"):
    replica: ReplicaId
    process: Process


class Loaded(msgspec.Struct, frozen=True, omit_defaults=True, tag="loaded"):
    """`memory` is the measured footprint, bytes per device; None where it can't be measured."""

    replica: ReplicaId
    address: str
    memory: dict[int, int] | None = None


class LoadFailed(msgspec.Struct, frozen=True, omit_defaults=True, tag="load_failed"):
    replica: ReplicaId
    detail: str
    exit: ProcessExit = ProcessExit()


class Crashed(msgspec.Struct, frozen=True, tag="crashed"):
    """A ready process ended though nobody asked it to."""

    replica: ReplicaId
    exit: ProcessExit


class Stopped(msgspec.Struct, frozen=True, omit_defaults=True, tag="stopped"):
    """The process and its group have exited, as asked."""

    replica: ReplicaId
    exit: ProcessExit = ProcessExit()


class ProbeFailed(msgspec.Struct, frozen=True, tag="probe_failed"):
    """Three background probes in a row missed while the replica was idle (rule T4)."""

    replica: ReplicaId
    detail: str


class Measured(msgspec.Struct, frozen=True, tag="measured"):
    """A footprint measured later, or anew; bytes per device."""

    replica: ReplicaId
    memory: dict[int, int]


class CapacityChanged(msgspec.Struct, frozen=True, omit_defaults=True, tag="capacity_changed"):
    gpus: tuple[Gpu, ...] = ()
    vram_total: int | None = None
    ram_total: int | None = None
    disk_total: int | None = None


class Departing(msgspec.Struct, frozen=True, tag="departing"):
    """A graceful stop: what the worker runs ends now, and no successor begins before it has."""


Fact = LoadStarted | Loaded | LoadFailed | Crashed | Stopped | ProbeFailed | Measured | CapacityChanged | Departing


UnixNs = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""A time in nanoseconds since 1970: until the year 2262."""


class Report(msgspec.Struct, frozen=True, omit_defaults=True):
    """Facts in the order they happened. `report` numbers them within an incarnation, so that a resend is harmless.

    `occurred_ns` tells of each fact when it happened, by the worker's own clock: many are told late (rules W8, H1).
    """

    node: NodeName
    incarnation: IncarnationId
    report: int
    facts: tuple[Fact, ...]
    occurred_ns: tuple[UnixNs, ...] = ()

    def timed(self) -> list[tuple[Fact, int | None]]:
        """Each fact with its time; None where it isn't told."""
        return list(zip_longest(self.facts, self.occurred_ns[: len(self.facts)]))


class Reported(msgspec.Struct, frozen=True, omit_defaults=True, tag="reported"):
    """All facts were decided by `sequence`; `stale` names the replicas whose facts came too late, and why."""

    sequence: int
    stale: dict[ReplicaId, str] = {}


class Offer(msgspec.Struct, frozen=True):
    """Asks for the node's events after sequence `after`; the worker pulls them then (it may make no consumer)."""

    node: NodeName
    incarnation: IncarnationId
    after: int


class Offered(msgspec.Struct, frozen=True, tag="offered"):
    """The events can be pulled now."""


class LogsRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """Lines of one replica (`model#index` or id), or of all replicas of a model, merged by time (rule W7).

    `lease` is the asker's own name for this request: what it follows ends unless `renew` tells that name in time.
    """

    key: str
    lines: int = 100
    follow: bool = False
    lease: str = ""


class LogLine(msgspec.Struct, frozen=True):
    """One line of a process; `time_ns` is the worker's own clock."""

    time_ns: int
    replica: ReplicaId
    key: str
    stream: str
    text: str


class LogsReply(msgspec.Struct, frozen=True, omit_defaults=True):
    """A slice of lines, oldest first; `end` once no more will come."""

    lines: tuple[LogLine, ...] = ()
    end: bool = False


RegisterReply = Registered | Refused
ReportReply = Reported | Refused
OfferReply = Offered | Refused
