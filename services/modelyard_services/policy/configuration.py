"""What operators write, judged whole: models and schedules from a file, the environment or a request (S1-S3).

Invariant: every fault is found and told together, with file, line and field; of a faulty document nothing is used.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, get_type_hints

import msgspec

from modelyard_events.errors import InvalidValueError
from modelyard_events.ids import ModelName
from modelyard_events.names import model_name
from modelyard_events.placeholders import check_placeholders
from modelyard_events.selectors import parse_selector
from modelyard_events.sizes import parse_size
from modelyard_events.spec import (
    Autoscale,
    ModelSpec,
    Schedule,
    ScheduleMode,
    ScheduleSource,
    SpreadAll,
)
from modelyard_services.errors import InvalidEntriesError
from modelyard_services.policy.entries import REPLICAS_MAX, ModelBody, ScheduleBody, unusable
from modelyard_services.policy.faults import Fault, raise_for
from modelyard_services.policy.misfit import misfit
from modelyard_services.policy.suggestion import meant

Path = tuple[str | int, ...]
Lines = Mapping[Path, int]

FAULTS_MAX: Final = 100
"""Faults told of one document; a file with more has one cause."""


VALUE_SHOWN_MAX: Final = 40
"""Characters of a value told with its fault: enough to recognise it by."""


class Document(msgspec.Struct, frozen=True):
    """A parsed document and where its parts stood; both are empty for JSON bodies.

    `lines` maps paths to 1-based lines; `doubled` are the keys that are written twice in one place.
    """

    value: Any
    name: str
    source: ScheduleSource
    lines: dict[Path, int] = {}
    doubled: tuple[Path, ...] = ()


class Written(msgspec.Struct, frozen=True):
    """Where an entry is written."""

    document: str | None = None
    line: int | None = None


class ScheduleEntry(msgspec.Struct, frozen=True):
    schedule: Schedule
    source: ScheduleSource
    written: Written = Written()


class Configuration(msgspec.Struct, frozen=True):
    """What the documents ask for, and what to tell about it.

    `places` tells where each model is written; `sections` what the documents speak of at all: `models`, `schedules`.
    """

    models: dict[ModelName, ModelSpec] = {}
    schedules: dict[ModelName, ScheduleEntry] = {}
    warnings: tuple[str, ...] = ()
    places: dict[ModelName, Written] = {}
    sections: frozenset[str] = frozenset()


def read_parsed(parsers: Iterable[Callable[[], tuple[Any, ...]]]) -> Configuration:
    """`read_documents` of what the parsers give; one that raises leaves the faults of the others to be told.

    Raises:
        InvalidEntriesError: with every fault of every document.
    """
    documents: list[Document] = []
    unread: list[InvalidEntriesError] = []
    for parse in parsers:
        try:
            documents.append(Document(*parse()))
        except InvalidEntriesError as fault:
            unread.append(fault)
    return read_documents(documents, unread=unread)


def read_documents(documents: Sequence[Document], *, unread: Sequence[InvalidEntriesError] = ()) -> Configuration:
    """All of `documents`; where an entry stands in two, the later wins, with a warning (rule S3).

    `unread` are the faults of documents that couldn't even be parsed, to be told with those of the others.

    Raises:
        InvalidEntriesError: with every fault of every document.
    """
    reader = _Reader()
    for document in documents:
        reader.read(document)
    reader.check_aliases()
    unparsed = [msgspec.convert(error, Fault) for fault in unread for error in fault.errors]
    raise_for([*unparsed, *reader.faults])
    return Configuration(
        reader.models, reader.schedules, tuple(reader.warnings), reader.places, frozenset(reader.sections)
    )


def read_model(body: Any, *, name: str) -> ModelSpec:
    """The spec in a request's body.

    Raises:
        InvalidEntriesError: with every fault.
    """
    reader = _Reader()
    spec = reader.model_spec(body, (), Document(body, name, "api"))
    raise_for(reader.faults)
    if spec is None:
        raise AssertionError("a body without faults gives a spec")
    return spec


def read_schedule(body: Any, *, name: str) -> Schedule:
    """The schedule in a request's body.

    Raises:
        InvalidEntriesError: with every fault.
    """
    reader = _Reader()
    schedule = reader.schedule(body, (), Document(body, name, "api"))
    raise_for(reader.faults)
    if schedule is None:
        raise AssertionError("a body without faults gives a schedule")
    return schedule


class _Reader:
    """Collects what the documents hold, and every fault on the way."""

    def __init__(self) -> None:
        self.defaults: dict[str, Any] = {}
        self.models: dict[ModelName, ModelSpec] = {}
        self.schedules: dict[ModelName, ScheduleEntry] = {}
        self.places: dict[ModelName, Written] = {}
        self.sections: set[str] = set()
        self.warnings: list[str] = []
        self.faults: list[Fault] = []

    def read(self, document: Document) -> None:
        value = document.value
        for path in document.doubled:
            self._fault(document, path, str(path[-1]), None, "is written twice; one of them would be lost")
        if value is None:
            return
        if isinstance(value, list):
            self.sections.add("schedules")
            self._entries(value, (), document, self._schedule_entry)
            return
        if not isinstance(value, dict):
            self._fault(document, (), "document", value, "is neither a mapping nor a list of schedule entries")
            return
        self._read_defaults(value.get("defaults"), document)
        for key, entries in value.items():
            if key == "defaults":
                continue
            read_entry = {"models": self._model_entry, "schedules": self._schedule_entry}.get(str(key))
            if read_entry is None:
                self._unknown(document, (key,), str(key), ["defaults", "models", "schedules"])
            elif entries is not None:
                self.sections.add(str(key))
                self._entries(entries, (key,), document, read_entry)

    def _read_defaults(self, defaults: Any, document: Document) -> None:
        """What every model of this document has, unless its entry says otherwise."""
        before = len(self.faults)
        if defaults is not None:
            self._fields(defaults, ("defaults",), document, ModelBody, complete=False)
        # Faults are told where they stand, once, and not again for each model.
        self.defaults = {} if defaults is None or len(self.faults) > before else dict(defaults)

    def check_aliases(self) -> None:
        """No two models answer to one name."""
        holders: dict[str, ModelName] = {}
        for name, spec in self.models.items():
            for alias in spec.aliases:
                other = ModelName(alias) if alias in self.models else holders.setdefault(alias, name)
                if other != name or alias == name:
                    place = self.places[name]
                    problem = f"{alias!r} is {'a name' if alias == other else 'an alias'} of model {other!r}"
                    self.faults.append(Fault(place.document or "", place.line, "aliases", alias, problem))

    def model_spec(self, entry: Any, path: Path, document: Document) -> ModelSpec | None:
        before = len(self.faults)
        fields = self._fields(entry, path, document, ModelBody)
        for size in ("vram", "file_size", "disk"):
            if fields.get(size) is not None:
                fields[size] = self._checked(document, (*path, size), size, fields[size], parse_size)
        for alias in fields.get("aliases") or ():
            self._checked(document, (*path, "aliases"), "aliases", alias.strip(), model_name)
        for variable in fields.get("environment") or ():
            if not variable or "=" in variable:
                self._fault(document, (*path, "environment"), "environment", variable, "is no variable's name")
        if len(self.faults) > before:
            return None
        spec: ModelSpec | None = self._built(document, path, lambda: msgspec.convert(fields, ModelSpec))
        return spec

    def schedule(self, entry: Any, path: Path, document: Document) -> Schedule | None:
        before = len(self.faults)
        fields = self._fields(entry, path, document, ScheduleBody)
        selector = fields.pop("node_selector", None)
        terms = self._checked(document, (*path, "node_selector"), "node_selector", selector, parse_selector)
        mode = self._mode(fields, path, document)
        if len(self.faults) > before:
            return None
        options = {key: value for key, value in fields.items() if key not in _MODE_FIELDS}
        built = Schedule(mode=mode or Autoscale(), node_selector=terms, **options)
        # Held against its own type once more: what the log would not read again must not be written.
        checked: Schedule | None = self._built(
            document, path, lambda: msgspec.json.decode(msgspec.json.encode(built), type=Schedule)
        )
        return checked

    def _entries(
        self, entries: Any, path: Path, document: Document, read_entry: Callable[[Any, Path, Document], None]
    ) -> None:
        if not isinstance(entries, list):
            self._fault(document, path, str(path[-1]), entries, "is not a list of entries")
            return
        for index, entry in enumerate(entries):
            read_entry(entry, (*path, index), document)

    def _model_entry(self, entry: Any, path: Path, document: Document) -> None:
        name, rest = self._named(entry, path, document, "name")
        before = len(self.faults)
        spec = self.model_spec(self._with_defaults(rest), path, document)
        if name is None or spec is None or len(self.faults) > before:
            return
        if name in self.models:
            self.warnings.append(f"{document.name}: model {name!r} was defined before; this entry wins")
        self.models[name] = spec
        self.places[name] = Written(document.name, _line(document, path))

    def _with_defaults(self, entry: Any) -> Any:
        if not isinstance(entry, dict):
            return entry
        merged = {**self.defaults, **entry}
        common, own = self.defaults.get("environment"), entry.get("environment")
        if isinstance(common, dict) and isinstance(own, dict):
            merged["environment"] = {**common, **own}
        return merged

    def _schedule_entry(self, entry: Any, path: Path, document: Document) -> None:
        name, rest = self._named(entry, path, document, "model_name")
        before = len(self.faults)
        schedule = self.schedule(rest, path, document)
        if name is None or schedule is None or len(self.faults) > before:
            return
        if name in self.schedules:
            self.warnings.append(f"{document.name}: {name!r} was scheduled before; this entry wins")
        self.schedules[name] = ScheduleEntry(schedule, document.source, Written(document.name, _line(document, path)))

    def _named(self, entry: Any, path: Path, document: Document, key: str) -> tuple[ModelName | None, Any]:
        if not isinstance(entry, dict):
            return None, entry
        rest = {field: value for field, value in entry.items() if field != key}
        if not isinstance(entry.get(key), str):
            self._fault(document, (*path, key), key, entry.get(key), "is required, and is a text")
            return None, rest
        return self._checked(document, (*path, key), key, entry[key], model_name), rest

    def _fields(
        self, entry: Any, path: Path, document: Document, body: type, *, complete: bool = True
    ) -> dict[str, Any]:
        """The fields of `entry` that `body` knows and could be converted to their types."""
        if not isinstance(entry, dict):
            self._fault(document, path, str(path[-1]) if path else "body", entry, "is not a mapping")
            return {}
        hints = get_type_hints(body, include_extras=True)
        fields: dict[str, Any] = {}
        for key, value in entry.items():
            if key not in hints:
                self._unknown(document, (*path, key), str(key), list(hints))
            elif value is not None:
                self._convert(fields, str(key), value, hints[key], document=document, path=(*path, key))
        for place, field, text in _filled_by_nodes(fields):
            self._checked(document, (*path, *place), field, text, check_placeholders)
        if complete and body is ModelBody and "command" not in entry:
            self._fault(document, path, "command", None, "is required: the words of the command line")
        return fields

    def _mode(self, fields: Mapping[str, Any], path: Path, document: Document) -> ScheduleMode | None:
        """Rule S2: `replicas: all` or a range, never both."""
        before = len(self.faults)
        everywhere = self._everywhere(fields.get("replicas"), path, document) or fields.get("spread_all") is True
        minimum, maximum = fields.get("min_replicas", 0), fields.get("max_replicas", 0)
        for field, value in (("min_replicas", minimum), ("max_replicas", maximum)):
            if value < 0:
                self._fault(document, (*path, field), field, value, "is negative")
            elif value > REPLICAS_MAX:
                self._fault(document, (*path, field), field, value, f"is above {REPLICAS_MAX}")
        field = "spread_all" if fields.get("spread_all") else "replicas"
        if everywhere and (minimum or maximum):
            problem = "excludes min_replicas and max_replicas: one replica on every node, or a range"
            self._fault(document, (*path, field), field, fields[field], problem)
        elif everywhere and fields.get("spread_all") is False:
            self._fault(document, (*path, "spread_all"), "spread_all", False, "contradicts replicas: all")
        elif 0 < maximum < minimum:
            problem = f"is above max_replicas ({maximum}); 0 there means no limit"
            self._fault(document, (*path, "min_replicas"), "min_replicas", minimum, problem)
        if len(self.faults) > before:
            return None
        return SpreadAll() if everywhere else Autoscale(minimum, maximum)

    def _everywhere(self, replicas: object, path: Path, document: Document) -> bool:
        if isinstance(replicas, bool) or replicas is None:
            return replicas is True
        text = str(replicas).strip().lower() if isinstance(replicas, str) else None
        if text in {"all", "auto", ""}:
            return text == "all"
        problem = 'is not "all"; use min_replicas and max_replicas for a count'
        self._fault(document, (*path, "replicas"), "replicas", replicas, problem)
        return False

    def _convert(
        self, fields: dict[str, Any], field: str, value: Any, hint: Any, *, document: Document, path: Path
    ) -> None:
        if (problem := unusable(value)) is not None:
            self._fault(document, path, field, None, problem)
            return
        try:
            fields[field] = msgspec.convert(value, hint)
        except msgspec.ValidationError as error:
            judged = error.__cause__
            # What a type says of itself is told in its own words; the converter would wrap them.
            problem = judged.problem if isinstance(judged, InvalidValueError) else misfit(error, hint)
            self._fault(document, path, field, value, problem)

    def _checked(self, document: Document, path: Path, field: str, value: Any, check: Any) -> Any:
        try:
            return check(value, field=field)
        except InvalidValueError as error:
            self._fault(document, path, error.field, error.value, error.problem)
            return None

    def _built(self, document: Document, path: Path, build: Callable[[], Any]) -> Any:
        try:
            return build()
        except msgspec.ValidationError as error:
            judged = error.__cause__
            if isinstance(judged, InvalidValueError):
                self._fault(document, (*path, judged.field), judged.field, judged.value, judged.problem)
            else:
                self._fault(document, path, "entry", None, misfit(error, None))
        return None

    def _unknown(self, document: Document, path: Path, field: str, known: Sequence[str]) -> None:
        self._fault(document, path, field, None, f"is unknown; {meant(field, known)}")

    def _fault(self, document: Document, path: Path, field: str, value: Any, problem: str) -> None:
        self.faults.append(Fault(document.name, _line(document, path), field, value, problem))


_MODE_FIELDS: Final = frozenset({"replicas", "spread_all", "min_replicas", "max_replicas"})


def _filled_by_nodes(fields: Mapping[str, Any]) -> Iterator[tuple[Path, str, str]]:
    """Where a model's entry may hold placeholders, each with its field and its text."""
    yield from ((("command", index), "command", word) for index, word in enumerate(fields.get("command") or ()))
    for variable, value in (fields.get("environment") or {}).items():
        if isinstance(value, str):
            yield ("environment", variable), f"environment.{variable}", value


def _line(document: Document, path: Path) -> int | None:
    """The line of the part at `path`, or of the nearest part around it."""
    return next((document.lines[path[:end]] for end in range(len(path), -1, -1) if path[:end] in document.lines), None)
