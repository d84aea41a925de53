"""Every table and every statement of the program is understood by both engines."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import homeserver
from homeserver.database import Row, Schema, Transaction
from homeserver.database.postgres import connect
from homeserver.database.schema import CORE_SCHEMA
from homeserver.database.translation import translate_statement
from tests.support.database import opened
from tests.tidy.source import walk

ROOT = Path(homeserver.__file__).parent
STATEMENT = re.compile(r"\s*(SELECT|INSERT INTO|UPDATE|DELETE FROM|WITH)\s")


@cache
def list_schemas() -> list[Schema]:
    """The schemas of all modules of the program."""
    found: dict[str, Schema] = {}
    for module in pkgutil.walk_packages([str(ROOT)], "homeserver."):
        if module.name.endswith("__main__") or module.name == "homeserver.process.worker_process":
            continue
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, Schema) and value is not CORE_SCHEMA:
                assert found.setdefault(value.name, value) is value, f"two schemas have the name {value.name}"
    return list(found.values())


@cache
def list_strings() -> list[tuple[Path, ast.Constant | ast.JoinedStr]]:
    """Returns all strings of the program, but for those of `database/`, each with its file."""
    files = [path for path in sorted(ROOT.rglob("*.py")) if path.parent.name != "database"]
    nodes = [(path, node) for path in files for node in walk(ast.parse(path.read_text()))]
    return [(path, node) for path, node in nodes if isinstance(node, (ast.Constant, ast.JoinedStr))]


def list_statements() -> Iterator[tuple[str, str]]:
    """Yields the place and the text of each SQL statement of the program."""
    for path, node in list_strings():
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and STATEMENT.match(node.value):
            yield f"{path.relative_to(ROOT)}:{node.lineno}", node.value


def test_no_statement_is_built_from_pieces() -> None:
    """The tests below see literals only."""
    built: list[str] = []
    for path, node in list_strings():
        if isinstance(node, ast.JoinedStr):
            text = "".join(str(part.value) for part in node.values if isinstance(part, ast.Constant))
            if re.search(r"\b(SELECT|WHERE|ORDER BY|INSERT INTO|DELETE FROM)\b", text):
                built.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert built == []


async def test_every_statement_runs_on_sqlite() -> None:
    def explain(tx: Transaction) -> list[str]:
        failures: list[str] = []
        for where, sql in list_statements():
            sql = sql.replace("IN (?*)", "IN (?)")
            try:
                tx.all("EXPLAIN " + sql, *[None] * translate_statement(sql).count("%s"))
            except Exception as error:
                failures.append(f"{where}: {error}\n    {sql}")
        return failures

    async with opened("sqlite::memory:", *list_schemas(), inline=True) as database:
        assert await database.write(explain) == []


async def test_every_statement_runs_on_postgresql(postgres_url: str) -> None:
    async with opened(postgres_url, *list_schemas()):
        pass
    failures: list[str] = []
    with connect(postgres_url) as connection:
        for number, (where, sql) in enumerate(list_statements()):
            try:
                connection.execute(f"PREPARE s{number} AS {number_parameters(sql)}".encode())
            except Exception as error:
                failures.append(f"{where}: {error}\n    {sql}")
    assert failures == []


def number_parameters(sql: str) -> str:
    parts = translate_statement(sql).split("%s")
    numbered = "".join(f"{part}${number}" for number, part in enumerate(parts[:-1], 1)) + parts[-1]
    return numbered.replace("%%", "%")


@pytest.mark.parametrize("first_steps", [0, 1, 2])
async def test_migrated_tables_equal_new_ones(postgres_url: str, sqlite_url: str, first_steps: int) -> None:
    """A database of the past, with the first steps of each schema, ends up with the columns of a new one."""
    schemas = list_schemas()
    tables: list[object] = []
    for url in (sqlite_url, postgres_url):
        async with opened(url, *(Schema(schema.name, schema.steps[:first_steps]) for schema in schemas)):
            pass
        async with opened(url, *schemas) as database:
            tables.append(await database.read(list_columns_sqlite if url == sqlite_url else list_columns_postgres))
    async with opened("sqlite::memory:", *schemas, inline=True) as database:
        tables.append(await database.read(list_columns_sqlite))
    assert tables[0] == tables[1] == tables[2]


def list_columns_sqlite(tx: Transaction) -> list[Row]:
    return tx.all(
        "SELECT m.name, c.name FROM sqlite_master AS m JOIN pragma_table_info(m.name) AS c"
        " WHERE m.type = 'table' ORDER BY m.name, c.name"
    )


def list_columns_postgres(tx: Transaction) -> list[Row]:
    return tx.all(
        "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public'"
        ' ORDER BY table_name COLLATE "C", column_name COLLATE "C"'
    )
