"""Files and functions that a person can read at a sitting, in folders that a person can find."""

from __future__ import annotations

import ast
import re

from tests.tidy.source import PACKAGES, ROOT, python_files, text_files

FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70
FOLDERS_DEEP_MAX = 3

ALL = python_files(*PACKAGES, ".ci", "tests")
OWN = python_files(*PACKAGES, ".ci")

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
# The exceptions, each of them once.
ALLOWED = {
    # A laptop without PostgreSQL's programs tests SQLite only; where CI=true their absence is a failure.
    ("tests/support/database.py", "pytest." + "skip"),
    # The same for Node, which runs the tests of the chat page's modules.
    ("tests/chat/test_modules.py", "pytest." + "skip"),
}
# Where the machines of those who write this would show: home folders, and places that packages are downloaded from.
MACHINE_PATHS = r"(?<![\w.])/(?:" + "|".join(("home/\\w+", "root/", "work/", "Users/\\w+", "mnt/\\w+")) + ")"
DOWNLOAD_HOSTS = r"pypi" + r"\.org|pythonhosted\.org|--(?:extra-)?index-url|--find-links|artifactory|nexus"


def test_files_are_short() -> None:
    lines = {source.name: source.text.count("\n") for source in ALL}
    assert {name: count for name, count in lines.items() if count > FILE_LINES_MAX} == {}


def test_functions_are_short() -> None:
    long = [
        f"{source.name}:{node.lineno} {node.name}: {node.end_lineno - node.lineno + 1} lines"
        for source in ALL
        if not source.name.startswith("tests/stories/")  # a dialogue is as long as people talk
        for node in source.functions
        if node.end_lineno is not None and node.end_lineno - node.lineno >= FUNCTION_LINES_MAX
    ]
    assert not long, "\n".join(long)


def test_files_have_docstrings() -> None:
    assert [source.name for source in ALL if not ast.get_docstring(source.tree)] == []


def test_annotations_are_not_evaluated() -> None:
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    assert [
        source.name
        for source in ALL
        if any(isinstance(node, definitions) for node in source.tree.body)
        and "from __future__ import annotations" not in source.text
    ] == []


def test_folders_are_at_most_three_levels_deep() -> None:
    assert [source.name for source in ALL if source.name.count("/") > FOLDERS_DEEP_MAX] == []


def test_nothing_is_left_for_later() -> None:
    matches = [
        (source, match)
        for source in ALL
        for pattern in FORBIDDEN
        for match in re.finditer(pattern, source.text, re.IGNORECASE if "now" in pattern else 0)
    ]
    found = [
        f"{source.name}:{source.text[: match.start()].count(chr(10)) + 1}: {match.group()}"
        for source, match in matches
        if (source.name, match.group()) not in ALLOWED
    ]
    assert not found, "\n".join(found)
    assert len(matches) == len(ALLOWED)


def test_no_file_mentions_the_machine_it_was_written_on() -> None:
    found = []
    for path in text_files():
        text = path.read_text("utf-8", "replace")
        found += [f"{path.relative_to(ROOT)}: {match}" for match in re.findall(MACHINE_PATHS, text)]
        if path.suffix in ("", ".lock", ".toml") or path.name == "Makefile":
            found += [f"{path.relative_to(ROOT)}: {match}" for match in re.findall(DOWNLOAD_HOSTS, text)]
    assert not found, "\n".join(found)


def test_public_functions_have_docstrings() -> None:
    """Except handlers: their name is the operationId in the spec, which says enough."""
    lacking = [
        f"{source.name}:{node.lineno} {node.name}"
        for source in OWN
        for node in source.tree.body
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
        and not any("routes." in ast.unparse(decorator) for decorator in node.decorator_list)
        and not getattr(node, "bases", ())  # what is decoded from outside is named by the spec
    ]
    assert not lacking, "\n".join(lacking)
