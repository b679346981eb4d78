"""Configuration documents read from text and files, with the line of each part (rule S1).

Invariant: what can't be parsed is told with file and line, never half-read.
"""

from pathlib import Path
from typing import Any, Final

import yaml

from modelyard_events.spec import ScheduleSource
from modelyard_services.errors import InvalidEntriesError

DOCUMENT_BYTES_MAX: Final = 4 * 1024 * 1024
"""A configuration of ten thousand schedules is one mebibyte."""

PARTS_MAX: Final = 200_000
"""Values in one document, repeated ones counted each time: a few lines of YAML aliases stand for billions."""

DEPTH_MAX: Final = 32
"""Levels in one document; an entry has four, and an alias may hold itself."""

PartPath = tuple[str | int, ...]
Parsed = tuple[Any, str, ScheduleSource, dict[PartPath, int], tuple[PartPath, ...]]
"""Value, name, source, the line of each part, and the keys that are written twice."""


def read_file(path: Path, *, source: ScheduleSource) -> Parsed:
    """A YAML or JSON file.

    Raises:
        InvalidEntriesError: it can't be read or parsed.
    """
    try:
        if path.stat().st_size > DOCUMENT_BYTES_MAX:
            raise _unreadable(str(path), None, f"is over {DOCUMENT_BYTES_MAX} bytes")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(str(path), None, f"can't be read: {error}") from error
    return parse_text(text, name=str(path), source=source)


def parse_text(text: str, *, name: str, source: ScheduleSource) -> Parsed:
    """YAML or JSON text.

    Raises:
        InvalidEntriesError: it can't be parsed.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        parts = _Parts(name)
        if node is not None:
            parts.note(node, ())
        return yaml.safe_load(text), name, source, parts.lines, tuple(parts.doubled)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise _unreadable(name, mark.line + 1 if mark else None, error.problem or "can't be parsed") from error
    except yaml.YAMLError as error:
        raise _unreadable(name, None, str(error)) from error
    except RecursionError as error:
        raise _unreadable(name, None, f"is nested deeper than {DEPTH_MAX} levels") from error


class _Parts:
    """Where each part of a document stands. What it refuses would not fit into memory, or has no name."""

    def __init__(self, document: str) -> None:
        self.lines: dict[PartPath, int] = {}
        self.doubled: list[PartPath] = []
        self._document = document

    def note(self, node: yaml.Node, path: PartPath) -> None:
        line = node.start_mark.line + 1
        if len(self.lines) > PARTS_MAX:
            raise _unreadable(self._document, line, f"has over {PARTS_MAX} values, aliases counted each time")
        if len(path) > DEPTH_MAX:
            raise _unreadable(self._document, line, f"is nested deeper than {DEPTH_MAX} levels")
        self.lines.setdefault(path, line)
        if isinstance(node, yaml.MappingNode):
            self._note_mapping(node, path)
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                self.note(value, (*path, index))

    def _note_mapping(self, node: yaml.MappingNode, path: PartPath) -> None:
        own: set[str] = set()
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise _unreadable(self._document, line, "has a key that is no text")
            inner = (*path, key.value)
            self.lines[inner] = line
            # The parser would let the last one win, and nobody would know.
            if key.value in own and inner not in self.doubled:
                self.doubled.append(inner)
            own.add(key.value)
            self.note(value, inner)


def _unreadable(name: str, line: int | None, problem: str) -> InvalidEntriesError:
    where = f"{name}:{line}" if line else name
    error = {"document": name, "line": line, "field": "document", "value": None, "problem": problem}
    return InvalidEntriesError([f"{where}: {problem}"], errors=[error], field="document")
