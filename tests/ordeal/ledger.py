"""What the log says, read a second time: the judge's own books, kept from raw events alone.

Invariant: nothing here is shared with the fold or the policy but the events' types; a mistake there is not made here
by the same hand.
"""

from collections.abc import Mapping
from typing import Final, Literal, assert_never

import msgspec

from modelyard_events.envelope import AnyEvent
from modelyard_events.fleet import Settings
from modelyard_events.node import Gpu, NodeFacts, WatchdogOverrides
from modelyard_events.selectors import Absent, Equals, Exists, In, NotEquals, NotIn, Selector
from modelyard_events.sizes import Bytes, Fraction, VramBudget
from modelyard_events.spec import Autoscale, ModelSpec, Schedule

RAM: Final = -1
"""The device index of a node without GPUs."""

Stage = Literal["placed", "loading", "ready", "draining", "stopping", "ended"]


class BrokenError(AssertionError):
    """An invariant doesn't hold: which, and what was seen."""

    def __init__(self, rule: str, seen: str) -> None:
        self.rule = rule
        super().__init__(f"{rule}: {seen}")


def require(rule: str, condition: object, seen: object) -> None:
    """Fail unless `condition` holds."""
    if not condition:
        raise BrokenError(rule, str(seen))


class Life(msgspec.Struct):
    """A replica from its placement to its end; sequences of its turns, None before them."""

    id: str
    node: str
    model: str
    index: int
    revision: str
    reservation: str
    groups: frozenset[str]
    exclusive: bool
    waits_for: set[str]
    stage: Stage = "placed"
    incarnation: str | None = None
    ready_at: int | None = None
    leaving_at: int | None = None
    told: Literal["", "added", "ready", "draining"] = ""
    """What its model's own events say of it."""


class Place(msgspec.Struct):
    """A node."""

    name: str
    kind: str
    admission: Literal["pending", "approved", "rejected"] = "pending"
    liveness: Literal["alive", "lost", "departed"] = "alive"
    grace_until_ns: int = 0
    intent: Literal["schedulable", "cordoned", "draining", "drained"] = "schedulable"
    incarnation: str = ""
    gpus: tuple[Gpu, ...] = ()
    ram: int | None = None
    facts: NodeFacts | None = None
    operator_labels: dict[str, str] = {}
    cap_override: int | None = None
    budget_override: tuple[VramBudget | None] | None = None
    watchdog: WatchdogOverrides = WatchdogOverrides()

    @property
    def cap(self) -> int:
        """Replicas of one model that it may have (N11)."""
        if self.cap_override is not None:
            return self.cap_override
        return self.facts.max_replicas_per_model if self.facts is not None else 0

    @property
    def limit(self) -> VramBudget | None:
        if self.budget_override is not None:
            return self.budget_override[0]
        return self.facts.vram_budget if self.facts is not None else None

    def totals(self) -> dict[int, int]:
        """Bytes by device, of which a share may be used where the budget is one (N12)."""
        whole = {gpu.index: gpu.vram_total for gpu in self.gpus} or ({RAM: self.ram} if self.ram else {})
        limit = self.limit
        if isinstance(limit, Fraction):
            return {device: int(size * limit.value) for device, size in whole.items()}
        return whole

    def budget(self) -> int:
        """Bytes that all of it may hold."""
        whole = sum(gpu.vram_total for gpu in self.gpus) if self.gpus else self.ram or 0
        match self.limit:
            case None:
                return whole
            case Bytes(value=value):
                return min(value, whole)
            case Fraction(value=value):
                return int(whole * value)
            case never:
                assert_never(never)

    def labels(self) -> dict[str, str]:
        """What selectors see (N5, N6)."""
        seen: dict[str, str] = {str(k): v for k, v in (self.facts.labels if self.facts else {}).items()}
        seen.update(self.operator_labels)
        seen.update({"node.name": self.name, "node.type": self.kind, "node.replica-slots": str(self.cap)})
        if self.gpus:
            best = min(self.gpus, key=lambda gpu: (-gpu.vram_total, gpu.index))
            gib = round(best.vram_total / 1024**3)
            buckets = [
                name for least, name in ((80, "80GB+"), (48, "48GB"), (24, "24GB"), (16, "16GB")) if gib >= least
            ]
            seen["gpu.vendor"] = best.vendor
            seen["gpu.vram"] = [*buckets, "8GB" if gib >= 8 else f"{gib}GB"][0]
        return seen


class Claim(msgspec.Struct):
    """A reservation that is held."""

    id: str
    node: str
    vram: dict[int, int]
    replica: str | None


class Book(msgspec.Struct):
    """A model."""

    name: str
    spec: ModelSpec | None = None
    revision: str | None = None
    schedule: Schedule | None = None
    unsatisfiable_until_ns: int | None = None

    @property
    def selector(self) -> Selector:
        return self.schedule.node_selector if self.schedule is not None else ()

    @property
    def floor(self) -> int:
        mode = self.schedule.mode if self.schedule is not None else None
        return mode.min_replicas if isinstance(mode, Autoscale) else 0


class Ledger:
    """All that is, by the events so far. `alarm` while many nodes are lost at once."""

    def __init__(self) -> None:
        self.places: dict[str, Place] = {}
        self.lives: dict[str, Life] = {}
        self.claims: dict[str, Claim] = {}
        self.books: dict[str, Book] = {}
        self.ended_lives: dict[str, Life] = {}
        self.released: set[str] = set()
        self.subjects: dict[tuple[str, str], int] = {}
        self.settings: list[tuple[int, Settings]] = [(0, Settings())]
        self.alarm = False

    def settings_at(self, sequence: int) -> Settings:
        """What was set there: a limit lowered while somebody places ends nothing, whichever comes first."""
        return next(each for since, each in reversed(self.settings) if since <= sequence)

    def book(self, name: str) -> Book:
        return self.books.setdefault(name, Book(name))

    def on(self, node: str) -> list[Life]:
        """The living replicas on `node`."""
        return [life for life in self.lives.values() if life.node == node]

    def of(self, model: str) -> list[Life]:
        """The living replicas of `model`."""
        return [life for life in self.lives.values() if life.model == model]

    def life(self, replica: str, node: str, *stages: str) -> Life:
        """The living replica, on that node and in one of `stages`."""
        life = self.lives.get(replica)
        if life is None:
            raise BrokenError("R1", f"{replica} lives no more")
        require("R1", life.node == node and life.stage in stages, f"{life} on {node}, wanted {stages}")
        return life

    def held(self, node: str) -> list[Claim]:
        return [claim for claim in self.claims.values() if claim.node == node]

    def serves(self, life: Life) -> bool:
        """Whether it counts towards its model's floor as a ready replica."""
        place = self.places[life.node]
        stays = place.liveness == "alive" and place.intent not in {"draining", "drained"}
        return life.stage == "ready" and stays and holds(self.book(life.model).selector, place.labels())


def subject(event: AnyEvent) -> tuple[str, str]:
    """The aggregate that the event is written to."""
    node, tag = getattr(event, "node", None), str(event.__struct_config__.tag)
    if tag.startswith("model."):
        return ("model", str(event.model))  # type: ignore[union-attr]  # every model event has it
    return ("fleet", "") if tag.startswith("fleet.") else ("node", str(node))


def holds(selector: Selector, labels: Mapping[str, str]) -> bool:
    """Whether every term of `selector` holds (N7)."""
    return all(_holds(term, labels) for term in selector)


def _holds(term: object, labels: Mapping[str, str]) -> bool:
    match term:
        case Equals(key=key, value=value):
            return labels.get(key) == value
        case NotEquals(key=key, value=value):
            return labels.get(key) != value
        case In(key=key, values=values):
            return labels.get(key) in values
        case NotIn(key=key, values=values):
            return labels.get(key) not in values
        case Exists(key=key):
            return key in labels
        case Absent(key=key):
            return key not in labels
        case _:
            raise AssertionError(f"unknown term {term}")
