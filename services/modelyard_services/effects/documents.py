"""Configuration documents read from files and from the environment, with the line of each part (rule S1).

Invariant: what can't be parsed is told with file and line, never half-read.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from modelyard_events.spec import ScheduleSource
from modelyard_services.errors import InvalidEntriesError

INLINE_VARIABLE: Final = "MODELYARD_MODEL_SCHEDULING"
FILE_VARIABLE: Final = "MODELYARD_MODEL_SCHEDULING_CONFIG"

DOCUMENT_BYTES_MAX: Final = 4 * 1024 * 1024
"""A configuration of ten thousand schedules is one mebibyte."""

PARTS_MAX: Final = 200_000
"""Values in one document, repeated ones counted each time: a few lines of YAML aliases stand for billions."""

Lines = dict[tuple[str | int, ...], int]


def read_file(path: Path, *, source: ScheduleSource) -> tuple[Any, str, ScheduleSource, Lines]:
    """Value, name, source and lines of a YAML or JSON file.

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


def read_environment(environment: Mapping[str, str]) -> list[tuple[Any, str, ScheduleSource, Lines]]:
    """The documents that the environment names, in the order in which they win: inline first, then the file."""
    found = []
    if inline := environment.get(INLINE_VARIABLE):
        found.append(parse_text(inline, name=INLINE_VARIABLE, source="env"))
    if path := environment.get(FILE_VARIABLE):
        found.append(read_file(Path(path), source="env"))
    return found


def parse_text(text: str, *, name: str, source: ScheduleSource) -> tuple[Any, str, ScheduleSource, Lines]:
    """Value, name, source and lines of YAML or JSON text.

    Raises:
        InvalidEntriesError: it can't be parsed.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        lines: Lines = {}
        if node is not None:
            _note_lines(node, (), lines)
            if len(lines) > PARTS_MAX:
                raise _unreadable(name, None, f"has over {PARTS_MAX} values, aliases counted each time")
        return yaml.safe_load(text), name, source, lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise _unreadable(name, mark.line + 1 if mark else None, error.problem or "can't be parsed") from error
    except yaml.YAMLError as error:
        raise _unreadable(name, None, str(error)) from error


def _note_lines(node: yaml.Node, path: tuple[str | int, ...], lines: Lines) -> None:
    if len(lines) > PARTS_MAX:
        return
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*path, key.value)
            lines[inner] = key.start_mark.line + 1
            _note_lines(value, inner, lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _note_lines(value, (*path, index), lines)


def _unreadable(name: str, line: int | None, problem: str) -> InvalidEntriesError:
    where = f"{name}:{line}" if line else name
    error = {"document": name, "line": line, "field": "document", "value": None, "problem": problem}
    return InvalidEntriesError([f"{where}: {problem}"], errors=[error], field="document")
