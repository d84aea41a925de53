"""Migrations: bring the tables to the state that the program needs.

On both engines the ledger is the table of sqlite-utils' Migrations, with one set per schema.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from homeserver.database.schema import DatabaseError, Schema, is_expansion
from homeserver.database.translation import split_statements

_CREATE_LEDGER = (
    'CREATE TABLE "_sqlite_migrations" '
    '("id" INTEGER PRIMARY KEY, "migration_set" TEXT, "name" TEXT, "applied_at" TEXT)',
    'CREATE UNIQUE INDEX "idx__sqlite_migrations_migration_set_name" ON "_sqlite_migrations" ("migration_set", "name")',
)
READ_LEDGER = "SELECT migration_set, name FROM _sqlite_migrations ORDER BY id"


def list_pending(rows: Iterable[tuple[str, str]], schemas: Sequence[Schema]) -> list[Schema]:
    """Returns the schemas with a step that is missing from the ledger's `rows` (schema, step).

    Raises DatabaseError if the database is newer: the ledger has a step that the program does not know, and that does
    not only expand the tables.
    """
    applied: dict[str, set[str]] = {}
    for name, step in rows:
        applied.setdefault(name, set()).add(step)
    _check_known(applied, {schema.name: {step.name for step in schema.steps} for schema in schemas})
    return [schema for schema in schemas if any(step.name not in applied.get(schema.name, ()) for step in schema.steps)]


def _check_known(applied: Mapping[str, set[str]], known: Mapping[str, set[str]]) -> None:
    for name, steps in applied.items():
        unknown = {step for step in steps - known.get(name, set()) if not is_expansion(step)}
        if unknown:
            raise DatabaseError(
                f"The database is newer than this program, which does not know its step {name}/{min(unknown)}."
            )


def make_sqlite_tables(connection: sqlite3.Connection, schemas: Iterable[Schema]) -> None:
    """Applies all steps to a new database, within the caller's transaction: one wait for the disk instead of 80."""
    for statement in _CREATE_LEDGER:
        connection.execute(statement)
    for schema in schemas:
        for step in schema.steps:
            for statement in split_statements(step.sql):
                connection.execute(statement)
            connection.execute(
                "INSERT INTO _sqlite_migrations (migration_set, name, applied_at) VALUES (?, ?, ?)",
                (schema.name, step.name, str(datetime.now(UTC))),
            )


def migrate_sqlite(connection: sqlite3.Connection, schemas: Sequence[Schema]) -> None:
    """Applies every pending step, each in one transaction with its entry in the ledger."""
    known = connection.execute("SELECT 1 FROM sqlite_master WHERE name = '_sqlite_migrations'").fetchone()
    pending = list_pending(connection.execute(READ_LEDGER).fetchall() if known else (), schemas)
    if not pending:
        return
    # Imported only when needed: it takes a tenth of a second, which an ordinary start need not spend.
    from sqlite_utils import Database, Migrations

    database = Database(connection)
    for schema in pending:
        migrations = Migrations(schema.name)
        for step in schema.steps:
            migrations(name=step.name)(_apply(step.sql))
        migrations.apply(database)


def _apply(sql: str) -> Callable[[Any], None]:
    def apply(database: Any) -> None:  # sqlite_utils.Database
        for statement in split_statements(sql):
            database.execute(statement)

    return apply
