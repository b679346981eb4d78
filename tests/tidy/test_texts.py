"""Nothing is left for later, nothing is silenced, and nothing names the place where it was written."""

import re
from typing import Final

import pytest

from tests.tidy.tree import texts

# Written so that this file doesn't match itself.
FORBIDDEN: Final = {
    "a package registry's host": re.compile(r"pypi\.o[r]g|pythonhoste[d]|npmjs\.o[r]g|deb\.debia[n]"),
    "a path of somebody's machine": re.compile(r"(?<![\w.:/$}])/(?:wor[k]|roo[t]|hom[e]/\w+|User[s]/\w+)/"),
    "work left for later": re.compile(r"\bTOD[O]\b|\bFIXM[E]\b|\bXX[X]\b"),
    "a stub": re.compile(r"NotImplementedErro[r]"),
    "a silenced test": re.compile(r"pytest\.(?:ski[p]|xfai[l]|importorski[p])|mark\.(?:ski[p]|xfai[l])"),
    "a swallowed exception": re.compile(r"except (?:Base)?Exception:\s*pas[s]\b"),
}

# Requirement files are hashes by the thousand; their own test follows below. Generated code is its generator's.
SEARCHED: Final = {path: text for path, text in texts().items() if path != "LICENSE" and "_pb2" not in path}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_the_tree_holds_nothing_of(what: str) -> None:
    found = [
        f"{path}:{text.count(chr(10), 0, match.start()) + 1} {match.group()}"
        for path, text in SEARCHED.items()
        for match in FORBIDDEN[what].finditer(text)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("what", "sample"),
    [
        ("a package registry's host", "--index-url https://" + "pypi." + "org/simple"),
        ("a path of somebody's machine", "open('" + "/home/" + "ann/x')"),
        ("work left for later", "# TO" + "DO: later"),
        ("a stub", "raise NotImplemented" + "Error"),
        ("a silenced test", "@pytest.mark." + "skipif(True)"),
        ("a swallowed exception", "except Exception:\n    " + "pass\n"),
    ],
)
def test_each_pattern_finds_its_like(what: str, sample: str) -> None:
    assert FORBIDDEN[what].search(sample)


@pytest.mark.parametrize("closure", ["build", "demo", "run", "test"])
def test_every_requirement_is_pinned_by_hash(closure: str) -> None:
    """What `./dev` installs is what was resolved, from wherever it comes."""
    entries = re.split(r"\n(?=\w)", texts()[f"requirements/{closure}.txt"].strip())
    pinned = re.compile(r"[\w.-]+==[^\n]+\n +--hash=sha256:")
    assert [entry.split("\n")[0] for entry in entries if not pinned.match(entry)] == []


def test_smaller_closures_are_cut_from_the_whole_one() -> None:
    pins = {
        closure: set(re.findall(r"^[\w.-]+==\S+", texts()[f"requirements/{closure}.txt"], re.MULTILINE))
        for closure in ("build", "demo", "run", "test")
    }
    assert pins["run"] <= pins["demo"] <= pins["test"]
    assert pins["build"] <= pins["test"]
