"""The repository as the tidy tests see it: its own text files, and the parsed modules of the three packages."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parents[2]
PACKAGES: Final = (
    "events/modelyard_events",
    "projections/modelyard_projections",
    "services/modelyard_services",
)

# What tools and runs leave behind; the rest of the dot-folders (.ci) is ours.
_NOT_OURS: Final = frozenset(
    {
        ".git", ".hypothesis", ".import_linter_cache", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".venv",
        "__pycache__", "build", "data", "dist",
    }
)  # fmt: skip


class Module(NamedTuple):
    """One module of the product: where it is, its lines, its syntax tree."""

    path: str
    lines: int
    tree: ast.Module


def _walk(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.name not in _NOT_OURS:
            yield from _walk(path)
        elif path.is_file() and path.name != ".git":
            yield path


@cache
def texts() -> dict[str, str]:
    """Every text file of the repository by its path from the root."""
    found = {}
    for path in _walk(ROOT):
        data = path.read_bytes()
        if b"\0" not in data:
            found[path.relative_to(ROOT).as_posix()] = data.decode()
    return found


@cache
def modules() -> tuple[Module, ...]:
    """The hand-written modules of the three packages."""
    return tuple(
        Module(path, text.count("\n"), ast.parse(text))
        for path, text in texts().items()
        if path.startswith(PACKAGES) and path.endswith(".py") and "_pb2" not in path
    )


def docstrings(tree: ast.AST) -> Iterator[ast.Constant]:
    """Every string that stands alone as a statement: docstrings, and those below constants."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value
