"""The files that the tidy tests read: everything that belongs to the project, parsed once."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("homeserver", "federation", "search")
FOLDERS = (*PACKAGES, "tests", "docs", ".ci")
LOCKS = ("requirements.lock", "tests/requirements.lock")
TOP_FILES = ("pyproject.toml", "Makefile", "README.md", "sample_config.toml", *LOCKS)


@dataclass(frozen=True)
class Source:
    """A Python file. `name` is its path from the root."""

    path: Path

    @cached_property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    @cached_property
    def text(self) -> str:
        return self.path.read_text("utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.name)

    @cached_property
    def strings(self) -> list[tuple[int, str]]:
        """Line and value of every string, without those that are parts of f-strings."""
        parts = {id(part) for node in ast.walk(self.tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        return [
            (node.lineno, node.value)
            for node in ast.walk(self.tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts
        ]


@cache
def source_of(path: Path) -> Source:
    """The one object of a file: each is parsed once."""
    return Source(path)


def python_files(*folders: str) -> list[Source]:
    """Every Python file in these folders, sorted."""
    return [
        source_of(path)
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*.py"))
        if "__pycache__" not in path.parts
    ]


def text_files() -> list[Path]:
    """Every file of the project that people write, and the lock file."""
    suffixes = {".py", ".toml", ".md", ".html", ".json", ".lock", ".txt", ".sh", ".conf", ".service", ""}
    found = [ROOT / name for name in TOP_FILES if (ROOT / name).exists()]
    for folder in FOLDERS:
        found += [
            path
            for path in sorted((ROOT / folder).rglob("*"))
            if path.is_file() and path.suffix in suffixes and "__pycache__" not in path.parts
        ]
    return found
