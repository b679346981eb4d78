"""Documents point at what exists: links, decisions and their tests, rules and their ids."""

import ast
import re
from typing import Final

from tests.tidy.tree import ROOT, docstrings, texts

LINK: Final = re.compile(r"\[[^\]]*\]\((?!https?:|mailto:|#)([^)#\s]+)")
RULE: Final = re.compile(r"\b[NRPTCWSHX]\d{1,2}\b")
SECTIONS: Final = ("Problem", "Options", "Decision", "Consequences", "Confirmation")
STATUS: Final = re.compile(
    r"^Status: (proposed|accepted|rejected|superseded) · Date: \d{4}-\d\d-\d\d · Supersedes: \S+ · Superseded by: \S+$",
    re.MULTILINE,
)

MARKDOWN: Final = {path: text for path, text in texts().items() if path.endswith(".md")}
DECISIONS: Final = {path: text for path, text in MARKDOWN.items() if re.match(r"ADR/\d{4}-", path)}


def test_every_relative_link_leads_somewhere() -> None:
    assert [
        f"{path}: {target}"
        for path, text in MARKDOWN.items()
        for target in LINK.findall(text)
        if not (ROOT / path).parent.joinpath(target).exists()
    ] == []


def test_the_index_lists_every_decision_once_and_in_order() -> None:
    listed = re.findall(r"\((\d{4}-[\w-]+\.md)\)", MARKDOWN["ADR/README.md"])
    assert listed == sorted(path.removeprefix("ADR/") for path in DECISIONS)


def test_decisions_are_numbered_without_a_hole() -> None:
    assert [int(path[4:8]) for path in sorted(DECISIONS)] == list(range(1, len(DECISIONS) + 1))


def test_a_decision_has_the_house_form() -> None:
    assert [
        path
        for path, text in DECISIONS.items()
        if re.findall(r"^## (.+)$", text, re.MULTILINE) != list(SECTIONS)
        or not STATUS.search(text)
        or not text.startswith(f"# {path[4:8]} ")
    ] == []


def test_a_decision_names_tests_that_exist() -> None:
    missing = []
    for path, text in DECISIONS.items():
        named = re.findall(r"`([\w./-]+)`", text.partition("## Confirmation")[2])
        files = [name for name in named if "/" in name]
        missing += [f"{path}: {name}" for name in files if not (ROOT / name).exists()]
        if not any(name.startswith("tests/") for name in files):
            missing.append(f"{path}: names no test")
    assert missing == []


def test_every_rule_a_test_names_is_in_the_list() -> None:
    known = {line.split()[0] for line in texts()["docs/rules.txt"].splitlines() if not line.startswith("#")}
    assert [
        f"{path}:{node.lineno} {rule}"
        for path, text in texts().items()
        if re.match(r"tests/.*test_\w+\.py$", path)
        for node in docstrings(ast.parse(text))
        for rule in RULE.findall(str(node.value))
        if rule not in known
    ] == []
