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

    def forget(self) -> None:
        """Frees what has been parsed; it is parsed again where it is asked for."""
        for name in ("tree", "nodes", "functions", "strings"):
            self.__dict__.pop(name, None)

    @cached_property
    def nodes(self) -> list[ast.AST]:
        """All nodes of the tree."""
        return walk(self.tree)

    @cached_property
    def functions(self) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
        """All functions of the file, methods and nested ones included."""
        return [node for node in self.nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]

    @cached_property
    def strings(self) -> list[tuple[int, str]]:
        """Line and value of every string, without those that are parts of f-strings."""
        parts = {id(part) for node in self.nodes if isinstance(node, ast.JoinedStr) for part in node.values}
        return [
            (node.lineno, node.value)
            for node in self.nodes
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts
        ]


def walk(top: ast.AST) -> list[ast.AST]:
    """Returns a node and all below it. ast.walk takes three times as long, and tells of the context of every name."""
    found = [top]
    for node in found:  # which grows meanwhile
        for name in node._fields:
            value = None if name == "ctx" else getattr(node, name, None)
            if isinstance(value, ast.AST):
                found.append(value)
            elif isinstance(value, list):
                found += [each for each in value if isinstance(each, ast.AST)]
    return found


@cache
def source_of(path: Path) -> Source:
    """The one object of a file: each is parsed once."""
    return Source(path)


def python_files(*folders: str) -> list[Source]:
    """Every Python file in these folders, sorted."""
    return [source for folder in folders for source in _sources_below(folder)]


@cache
def _sources_below(folder: str) -> list[Source]:
    paths = sorted((ROOT / folder).rglob("*.py"))
    return [source_of(path) for path in paths if "__pycache__" not in path.parts]


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
