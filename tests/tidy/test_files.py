"""Files and functions that a person can read at a sitting, in folders that a person can find."""

from __future__ import annotations

import ast
import re

import pytest

from tests.tidy.source import PACKAGES, ROOT, Source, python_files, text_files

FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70
FOLDERS_DEEP_MAX = 3

ALL = python_files(*PACKAGES, "tests")
OWN = python_files(*PACKAGES)

FORBIDDEN = (
    r"\bTO" + r"DO\b",
    r"\bFIX" + r"ME\b",
    r"\bXX" + r"X\b",
    r"\bfor " + r"now\b",
    r"NotImplemented" + r"Error",
    r"unittest\." + r"mock",
    r"from unittest import " + r"mock",
    r"monkeypatch\." + r"setattr",
    r"\bTYPE_" + r"CHECKING\b",
    r"pytest\.(mark\.)?(skip|xfail)\b",
    r"import" + r"orskip",
)
# Where the machines of those who write this would show: home folders, and places that packages are downloaded from.
MACHINE_PATHS = r"(?<![\w.])/(?:" + "|".join(("home/\\w+", "root/", "work/", "Users/\\w+", "mnt/\\w+")) + ")"
DOWNLOAD_HOSTS = r"pypi" + r"\.org|pythonhosted\.org|--(?:extra-)?index-url|--find-links|artifactory|nexus"


@pytest.mark.parametrize("source", ALL, ids=lambda source: source.name)
def test_files_are_short(source: Source) -> None:
    lines = source.text.count("\n")
    assert lines <= FILE_LINES_MAX


@pytest.mark.parametrize("source", ALL, ids=lambda source: source.name)
def test_functions_are_short(source: Source) -> None:
    long = [
        f"{source.name}:{node.lineno} {node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(source.tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= FUNCTION_LINES_MAX
    ]
    assert not long


@pytest.mark.parametrize("source", ALL, ids=lambda source: source.name)
def test_files_say_what_they_are(source: Source) -> None:
    assert ast.get_docstring(source.tree), f"{source.name} has no docstring"
    has_code = any(isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) for node in source.tree.body)
    assert not has_code or "from __future__ import annotations" in source.text, source.name


def test_folders_are_not_deep() -> None:
    assert [source.name for source in ALL if source.name.count("/") > FOLDERS_DEEP_MAX] == []


@pytest.mark.parametrize("source", ALL, ids=lambda source: source.name)
def test_nothing_is_left_for_later(source: Source) -> None:
    for pattern in FORBIDDEN:
        found = re.search(pattern, source.text, re.IGNORECASE if "now" in pattern else 0)
        assert found is None, f"{source.name}:{source.text[: found.start()].count(chr(10)) + 1}: {found.group()}"


def test_no_file_knows_the_machine_that_it_was_written_on() -> None:
    found = []
    for path in text_files():
        text = path.read_text("utf-8", "replace")
        found += [f"{path.relative_to(ROOT)}: {match}" for match in re.findall(MACHINE_PATHS, text)]
        if path.suffix in ("", ".lock", ".toml") or path.name == "Makefile":
            found += [f"{path.relative_to(ROOT)}: {match}" for match in re.findall(DOWNLOAD_HOSTS, text)]
    assert found == []


@pytest.mark.parametrize("source", OWN, ids=lambda source: source.name)
def test_public_functions_have_docstrings(source: Source) -> None:
    """Those of a module that others may call; a handler's name is its operationId in the spec, and that says enough."""
    lacking = [
        f"{source.name}:{node.lineno} {node.name}"
        for node in source.tree.body
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
        and not any("routes." in ast.unparse(decorator) for decorator in node.decorator_list)
        and not getattr(node, "bases", ())  # what is decoded from outside is named by the spec
    ]
    assert not lacking
