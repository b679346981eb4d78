"""Modules are short, say what they are for, and use the house's words."""

import ast
import re
from collections.abc import Iterator
from typing import Final

from tests.tidy.tree import docstrings, modules

MODULE_LINES_MAX: Final = 400
FUNCTION_LINES_MAX: Final = 50

# Word by word what to say instead: a second name for one thing costs every reader a question.
SYNONYMS: Final = {
    "allocation": "placement",
    "helpers": "the idea's own name",
    "instance": "replica",
    "offline": "lost or departed",
    "offset": "sequence",
    "pod": "replica",
    "reducer": "fold",
    "resync": "rebuild",
    "topic": "subject",
    "utils": "the idea's own name",
}

SUBJECTS_MODULE: Final = "events/modelyard_events/subjects.py"
SUBJECT: Final = re.compile(r"^modelyard\.(log|events|cmd|telemetry)\b[.>]?(?!_)")


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """What it does: a command's options and a docstring are read for themselves."""
    first = function.body[1] if ast.get_docstring(function) and len(function.body) > 1 else function.body[0]
    return (function.end_lineno or first.lineno) - first.lineno + 1


def words_given(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """The words of every name that is given here (not of those that are merely used: libraries have their own)."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                given = name
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                given = name
            case ast.arg(arg=name):
                given = name
            case _:
                continue
        for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", given):
            yield getattr(node, "lineno", 0), word.lower()


def test_no_module_is_longer_than_what_one_reads_in_a_sitting() -> None:
    assert [f"{m.path}: {m.lines} lines" for m in modules() if m.lines > MODULE_LINES_MAX] == []


def test_no_function_does_more_than_a_screen_shows() -> None:
    assert [
        f"{m.path}:{f.lineno} {f.name}: {code_lines(f)} lines"
        for m in modules()
        for f in functions(m.tree)
        if code_lines(f) > FUNCTION_LINES_MAX
    ] == []


def test_every_module_opens_with_what_it_is_for() -> None:
    assert [m.path for m in modules() if ast.get_docstring(m.tree) is None] == []


def test_one_thing_has_one_word() -> None:
    assert [
        f"{m.path}:{line} says {word}: say {SYNONYMS[word]}"
        for m in modules()
        for line, word in words_given(m.tree)
        if word in SYNONYMS
    ] == []


def test_a_module_is_not_named_by_a_synonym() -> None:
    assert [m.path for m in modules() if set(re.split(r"[/_.]", m.path)) & set(SYNONYMS)] == []


def test_words_are_found_in_snake_and_camel_case() -> None:
    tree = ast.parse("class GpuPod: ...\ndef next_offset(inst: int) -> None: self.topicURL = isinstance")
    assert [word for _, word in words_given(tree)] == ["gpu", "pod", "next", "offset", "inst", "topic", "url"]


def test_only_one_module_holds_subject_strings() -> None:
    assert [
        f"{m.path}:{node.lineno} {node.value!r}"
        for m in modules()
        if m.path != SUBJECTS_MODULE
        for node in ast.walk(m.tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and SUBJECT.match(node.value)
        if node not in set(docstrings(m.tree))
    ] == []
