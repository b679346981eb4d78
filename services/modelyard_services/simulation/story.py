"""A story from its text to its transcript.

Invariant: a story is read wholly before it begins, ends at no failed expectation, and tells every event in log
order; the same text gives the same transcript.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from modelyard_events.codec import tag_of
from modelyard_events.envelope import AnyEvent, Recorded
from modelyard_events.ids import ReplicaId
from modelyard_events.replica import ReplicaPlaced
from modelyard_services.simulation.expectations import expect
from modelyard_services.simulation.verbs import VERBS
from modelyard_services.simulation.words import ScenarioError, Words
from modelyard_services.simulation.world import START_NS, Act, RestlessError, World

LINES_MAX: Final = 10_000
"""Of one story: a person wrote it."""

SHOWN: Final = ("reason", "detail", "changed", "removed", "max_replicas_per_model", "vram_budget", "cause", "kind")
"""Fields told beside node, model and replicas; the rest is in the log's own form, and in `--json`."""

SILENT: Final = ("reservation.", "model.replica_", "fleet.registration_token")
"""Events told by their neighbours: each replica's own event says what its reservation and its model say too."""


class Step(msgspec.Struct, frozen=True):
    """One line and what it does."""

    line: int
    text: str
    act: Act


class Told(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of the transcript: a line of the story, an event, or a note on the line above."""

    second: int
    what: str
    text: str
    failed: bool = False


class Transcript(msgspec.Struct, frozen=True):
    """What happened; `failures` counts expectations that didn't hold."""

    lines: list[Told]

    @property
    def failures(self) -> int:
        return sum(line.failed for line in self.lines)

    def __str__(self) -> str:
        return "".join(_printed(line) for line in self.lines)


def read_story(text: str, *, name: str = "story") -> list[Step]:
    """The steps of the story `name`.

    Raises:
        ScenarioError: a line can't be read; it says which, where in it, and what was expected.
    """
    lines = text.splitlines()
    if len(lines) > LINES_MAX:
        raise ScenarioError(f"the story has {len(lines)} lines; at most {LINES_MAX} are read", field="file")
    return list(_steps(lines, name))


def tell(steps: Sequence[Step]) -> Transcript:
    """Let the story happen.

    Raises:
        ScenarioError: a line speaks of a node that no line before it describes.
    """
    return _Teller().tell(steps)


def _steps(lines: Sequence[str], name: str) -> Iterator[Step]:
    for number, line in enumerate(lines, start=1):
        words = Words(name, number, line)
        if words.left:
            verb = words.one_of("expect", *VERBS)
            act = expect(words) if verb == "expect" else VERBS[verb](words)
            words.end()
            yield Step(number, words.text, act)


class _Teller:
    def __init__(self) -> None:
        self._lines: list[Told] = []
        self._names: dict[ReplicaId, str] = {}
        self._world = World(self._note, self._say)

    def tell(self, steps: Sequence[Step]) -> Transcript:
        for step in steps:
            self._lines.append(Told(self._world.seconds, "story", step.text))
            refused_before, self._world.refused = self._world.refused, ""
            try:
                wrong = self._do(step, refused_before)
            except RestlessError as error:
                wrong = str(error)
            if wrong is not None:
                self._lines.append(Told(self._world.seconds, "failed", f"line {step.line}: {wrong}", failed=True))
        return Transcript(self._lines)

    def _do(self, step: Step, refused_before: str) -> str | None:
        if step.text.startswith("expect "):
            # An expectation looks at the command before it, and so does the next one.
            self._world.refused = refused_before
            return step.act(self._world)
        wrong = step.act(self._world)
        if self._world.refused:
            self._lines.append(Told(self._world.seconds, "refused", self._world.refused))
        return wrong

    def _say(self, what: str, text: str) -> None:
        self._lines.append(Told(self._world.seconds, what, text))

    def _note(self, recorded: Sequence[Recorded]) -> None:
        for one in recorded:
            tag = tag_of(one.event)
            if isinstance(one.event, ReplicaPlaced):
                self._names[one.event.replica] = f"{one.event.model}#{one.event.replica_index}"
            if not tag.startswith(SILENT):
                second = (one.time_ns - START_NS) // 1_000_000_000
                self._lines.append(
                    Told(second, "event", f"{tag.rpartition('.')[0]:<31}{self._about(one.event)}".rstrip())
                )

    def _about(self, event: AnyEvent) -> str:
        ids = [*getattr(event, "replicas", ()), getattr(event, "replica", None)]
        names = [self._names[one] for one in ids if one in self._names]
        whose = [getattr(event, "node", None), *names] if names else [getattr(event, "node", None)]
        parts = [part for part in (*whose, None if names else getattr(event, "model", None)) if part]
        parts += [f"{field}={_value(event, field)}" for field in SHOWN if _value(event, field)]
        decision = getattr(event, "decision", None)
        return " ".join([*parts, *([f"({decision.outcome})"] if decision is not None else [])])


def _value(event: AnyEvent, field: str) -> str:
    value = getattr(event, field, None)
    if isinstance(value, dict):
        return ",".join(f"{key}={each}" for key, each in value.items())
    return ",".join(value) if isinstance(value, tuple) else "" if value is None else str(value)


def _printed(line: Told) -> str:
    match line.what:
        case "story":
            return f"> {line.text}\n"
        case "event":
            return f"  {line.second:>5} s  {line.text}\n"
        case "failed":
            return f"! {line.text}\n"
        case _:
            return f"  {line.second:>5} s  {line.what:<31}{line.text}\n"
