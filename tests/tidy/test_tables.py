"""Only the owner of a table touches it, and SQL is text that can be read."""

from __future__ import annotations

import ast
import re
from pathlib import PurePosixPath

from tests.tidy.source import Source, python_files

SOURCES = python_files("homeserver")
SQL = re.compile(
    r"\b(?:SELECT\s.+\sFROM|INSERT\s+INTO|UPDATE\s+\w+\s+SET|DELETE\s+FROM|CREATE\s+(?:TABLE|INDEX))\b", re.DOTALL
)
CREATED = re.compile(r"CREATE\s+(?:VIRTUAL\s+)?TABLE\s+(?:IF\s+NOT\s+EXISTS\s+)?(\w+)", re.IGNORECASE)
USED = re.compile(r"\b(?:FROM|JOIN|INTO|UPDATE)\s+(\w+)")
# The database package itself writes these for everyone.
SHARED = frozenset({"strings", "tails", "stream_position", "parked_items"})


def owner(source: Source) -> str:
    """A folder owns as a whole; a file directly in homeserver/ or features/ owns alone."""
    folder = PurePosixPath(source.name).parent.as_posix()
    return source.name if folder in ("homeserver", "homeserver/features") else folder


def owners() -> dict[str, str]:
    found: dict[str, str] = {}
    for source in SOURCES:
        for _, text in source.strings:
            for table in CREATED.findall(text):
                assert found.get(table, owner(source)) == owner(source), f"{table} is made twice"
                found[table] = owner(source)
    return found


def test_tables_are_accessed_by_their_owner_only() -> None:
    of_table = owners()
    found = [
        f"{source.name}:{line}: {table} belongs to {of_table[table]}"
        for source in SOURCES
        for line, text in source.strings
        if SQL.search(text)
        for table in USED.findall(text)
        if table in of_table and of_table[table] != owner(source) and table not in SHARED
    ]
    assert not found, "\n".join(found)


def test_sql_is_not_concatenated() -> None:
    found = []
    for source in SOURCES:
        if source.name.startswith("homeserver/database/"):
            continue  # it translates between the engines
        for node in source.nodes:
            pieces = node.values if isinstance(node, ast.JoinedStr) else []
            if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Mod)):
                pieces = [node.left, node.right]
            texts = [piece.value for piece in pieces if isinstance(piece, ast.Constant)]
            if any(isinstance(text, str) and SQL.search(text) for text in texts):
                found.append(f"{source.name}:{node.lineno}")
    assert not found, "\n".join(found)
