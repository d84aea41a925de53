"""Migrations: brings the tables to what the program needs. The ledger is sqlite-utils' `_sqlite_migrations`."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence

from homeserver.database.schema import DatabaseError, Schema


def check_ledger(applied: Mapping[str, Sequence[str]], schemas: Sequence[Schema]) -> list[Schema]:
    """The schemas that have a step which is not applied. DatabaseError if the database is newer than the program."""
    known = {schema.name: [step.name for step in schema.steps] for schema in schemas}
    for name, steps in applied.items():
        for step in steps:
            if step not in known.get(name, ()):
                raise DatabaseError(
                    f"The database was made by a newer program (it has the step {name}/{step}): run that version or later."
                )
    return [schema for schema in schemas if len(applied.get(schema.name, ())) < len(schema.steps)]


def split_statements(sql: str) -> Iterator[str]:
    """The single statements of `sql`, each with its semicolon."""
    statement = ""
    for piece in sql.split(";"):
        statement += piece + ";"
        if sqlite3.complete_statement(statement):
            if statement.strip() != ";":
                yield statement.strip()
            statement = ""


def read_ledger(rows: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """The applied steps of each schema, from rows (schema, step)."""
    applied: dict[str, list[str]] = {}
    for name, step in rows:
        applied.setdefault(name, []).append(step)
    return applied


def migrate_sqlite(connection: sqlite3.Connection, schemas: Sequence[Schema]) -> None:
    """Applies every pending step, each in a transaction together with its line in the ledger."""
    exists = connection.execute("SELECT 1 FROM sqlite_master WHERE name = '_sqlite_migrations'").fetchone()
    rows = connection.execute("SELECT migration_set, name FROM _sqlite_migrations").fetchall() if exists else []
    pending = check_ledger(read_ledger(rows), schemas)
    if not pending:
        return
    # Imported only when there is something to do: it costs a tenth of a second, which a plain start need not pay.
    from sqlite_utils import Database as SqliteUtils
    from sqlite_utils import Migrations

    database = SqliteUtils(connection)
    for schema in pending:
        migrations = Migrations(schema.name)
        for step in schema.steps:
            migrations(name=step.name)(_apply(step.sql))
        migrations.apply(database)


def _apply(sql: str):  # type: ignore[no-untyped-def]
    def apply(database) -> None:  # type: ignore[no-untyped-def]
        for statement in split_statements(sql):
            database.execute(statement)

    return apply
