"""What operators ask for: how a model is run, and how much of it where.

Invariant: a revision is a hash over what the process runs and over nothing else (rule R6), so scheduling
fields change freely without touching a running replica.
"""

import hashlib
from operator import attrgetter
from typing import Annotated, Final, Literal

import msgspec

from modelyard_events.errors import InvalidValueError
from modelyard_events.ids import Revision
from modelyard_events.selectors import Selector

COMMAND_WORDS_MAX: Final = 256
"""Words of a command line: vLLM's longest run to some sixty."""

GPUS_MAX: Final = 64
"""GPUs of one replica or node: four times the largest machine sold."""

CONTEXT_LENGTH_MAX: Final = 100_000_000
"""Tokens of one context: a hundred times the longest there is."""

Positive = Annotated[int, msgspec.Meta(ge=1)]
NonNegative = Annotated[int, msgspec.Meta(ge=0)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400 * 7)]
"""A wait: above zero, and a week at most."""


class SecretRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A secret by reference; the worker resolves it, so no secret enters the log (rule W3)."""

    from_env: str | None = None
    from_file: str | None = None

    def __post_init__(self) -> None:
        if (self.from_env is None) == (self.from_file is None):
            raise InvalidValueError("environment", msgspec.to_builtins(self), "needs one of from_env or from_file")


class Health(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How a process says that it is ready: an HTTP path or a gRPC health service's name."""

    http: str | None = None
    grpc: str | None = None

    def __post_init__(self) -> None:
        if (self.http is None) == (self.grpc is None):
            raise InvalidValueError("health", msgspec.to_builtins(self), "needs one of http or grpc")
        if self.http is not None and not self.http.startswith("/"):
            raise InvalidValueError("health.http", self.http, "is not a path; it begins with '/'")


class LaunchSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the process runs: all that a revision covers.

    `command` and environment values may hold `{port} {host} {model} {replica} {gpu}`.
    """

    command: tuple[str, ...]
    environment: dict[str, str | SecretRef] = {}
    working_directory: str | None = None
    health: Health = Health(http="/health")
    files: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    ready_timeout_seconds: float | None = None
    stop_grace_seconds: float = 10.0


EstimateRule = Literal["gguf", "safetensors", "file_size"]

FACTOR: Final = 1.2
"""Weights plus a fifth: cache and buffers, where nothing tells how large these are (R4)."""


class Estimate(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a look at the model's files gave, and by which rule (rule R4).

    `weights` are bytes; so is `cache`, which is for `context_length` tokens.
    """

    rule: EstimateRule
    weights: NonNegative
    cache: NonNegative = 0
    context_length: Positive | None = None

    @property
    def size(self) -> int:
        """The footprint it comes to where the fleet's settings say nothing else."""
        return self.size_with(FACTOR)

    def size_with(self, factor: float) -> int:
        """The footprint it comes to; without a known cache, so many times the weights."""
        return self.weights + self.cache if self.rule == "gguf" else round(self.weights * factor)


class ModelSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A model as operators define it.

    `vram` and `disk` are bytes (None: unknown); `max_concurrency` requests per replica (None: no limit). `aliases` are
    other names that clients may ask for; `context_length` the tokens that the cache is for; `estimate` what whoever
    defined the model saw of its files.
    """

    command: tuple[str, ...]
    environment: dict[str, str | SecretRef] = {}
    working_directory: str | None = None
    health: Health = Health(http="/health")
    files: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    ready_timeout_seconds: Seconds | None = None
    stop_grace_seconds: Seconds = 10.0
    vram: NonNegative | None = None
    file_size: NonNegative | None = None
    disk: NonNegative | None = None
    concurrency_groups: tuple[str, ...] = ()
    pinned: bool = False
    max_concurrency: Positive | None = None
    aliases: tuple[str, ...] = ()
    context_length: Positive | None = None
    estimate: Estimate | None = None

    def __post_init__(self) -> None:
        if not self.command or not all(self.command):
            raise InvalidValueError("command", list(self.command), "is empty or holds an empty word")
        if len(self.command) > COMMAND_WORDS_MAX:
            raise InvalidValueError("command", f"{len(self.command)} words", f"is over {COMMAND_WORDS_MAX} words")
        msgspec.structs.force_setattr(self, "concurrency_groups", _names(self.concurrency_groups))
        msgspec.structs.force_setattr(self, "aliases", _names(self.aliases))

    def launch(self) -> LaunchSpec:
        """The part that the process runs."""
        return LaunchSpec(*_LAUNCH_FIELDS(self))


_LAUNCH_FIELDS: Final = attrgetter(*LaunchSpec.__struct_fields__)


def _names(given: tuple[str, ...]) -> tuple[str, ...]:
    """`given` trimmed, each once, in one order."""
    return tuple(sorted({name.strip() for name in given} - {""}))


def revision_of(spec: ModelSpec) -> Revision:
    """The revision of `spec`: 12 hex digits of BLAKE2b over its launch part in canonical JSON."""
    body = msgspec.json.encode(spec.launch(), order="sorted")
    return Revision(hashlib.blake2b(body, digest_size=6).hexdigest())


class Autoscale(msgspec.Struct, frozen=True, tag="autoscale"):
    """Between `min_replicas` and `max_replicas` (0: no limit up to capacity)."""

    min_replicas: NonNegative = 0
    max_replicas: NonNegative = 0


class SpreadAll(msgspec.Struct, frozen=True, tag="spread_all"):
    """Exactly one replica on every node that matches the selector."""


ScheduleMode = Autoscale | SpreadAll


class Schedule(msgspec.Struct, frozen=True, omit_defaults=True):
    """What operators want of one model (rules C2-C4, P6); defaults constrain nothing."""

    mode: ScheduleMode = Autoscale()
    node_selector: Selector = ()
    placement: Literal["spread", "binpack"] = "spread"
    max_per_node: Positive | None = None
    gpus: Positive = 1
    idle_timeout_seconds: Seconds | None = None
    busy_timeout_seconds: Seconds | None = None
    target_in_flight: Annotated[float, msgspec.Meta(gt=0)] | None = None
    rollout: Literal["surge", "replace"] = "surge"
    affinity: Literal["none", "session", "prefix"] = "none"

    @property
    def min_replicas(self) -> int:
        """The floor that eviction and scale-down respect; spread_all keeps what it placed."""
        return self.mode.min_replicas if isinstance(self.mode, Autoscale) else 1


ScheduleSource = Literal["file", "env", "flag", "api"]
