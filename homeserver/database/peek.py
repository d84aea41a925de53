"""Peek: reads a database as it is. Nothing is created, migrated or locked."""

from __future__ import annotations

import functools
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from homeserver.database.batch import Request, run_read
from homeserver.database.interning import StringCache
from homeserver.database.migrations import READ_LEDGER, list_pending
from homeserver.database.schema import CORE_SCHEMA, DatabaseError, Schema
from homeserver.database.session import Session
from homeserver.database.sqlite import SqliteSession, check_not_lost, is_served
from homeserver.database.transaction import Transaction

T = TypeVar("T")


class Seen(msgspec.Struct, Generic[T], frozen=True):
    """The result of `peek`. result: None if the database does not exist yet or must be migrated first.

    is_served: whether a server has it open.
    """

    result: T | None = None
    is_served: bool = False


def peek(url: str, schemas: Sequence[Schema], fn: Callable[[Transaction], T]) -> Seen[T]:
    """Runs fn(tx) as a read on the database at `url`. Blocks. Raises DatabaseError if the database cannot be used."""
    all_schemas = (CORE_SCHEMA, *schemas)
    engine, _, rest = url.partition(":")
    if engine == "sqlite":
        return _peek_sqlite(rest.removeprefix("//"), all_schemas, fn)
    # Imported here because psycopg takes 10 MB and a tenth of a second.
    from homeserver.database import postgres

    connection = postgres.connect(url)
    try:
        served = postgres.is_served(connection)
        pending = postgres.list_pending_schemas(connection, all_schemas)
    finally:
        connection.close()
    if pending:
        return Seen(None, served)
    session = postgres.PostgresSession(functools.partial(postgres.connect, url), "peek")
    try:
        return Seen(_read(session, fn), served)
    finally:
        session.close()


def _peek_sqlite(name: str, schemas: Sequence[Schema], fn: Callable[[Transaction], T]) -> Seen[T]:
    path = Path(name).resolve()
    try:
        if name == ":memory:" or not path.exists():
            check_not_lost(str(path))
            return Seen()
        with path.open("r+b"):
            pass
        connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, isolation_level=None)
        try:
            known = connection.execute("SELECT 1 FROM sqlite_master WHERE name = '_sqlite_migrations'").fetchone()
            pending = list_pending(connection.execute(READ_LEDGER).fetchall() if known else (), schemas)
            result = None if pending else _read(SqliteSession(connection), fn)
        finally:
            connection.close()
    except OSError as error:
        raise DatabaseError(f"The database {path} cannot be opened: {error.strerror}.") from error
    except sqlite3.Error as error:
        raise DatabaseError(f"The database {path} cannot be opened: {error}.") from error
    return Seen(result, is_served(str(path)))


def _read(session: Session, fn: Callable[[Transaction], T]) -> T:
    request = Request(fn, (), 0, None)
    run_read(session, StringCache(), request)
    assert request.result is not None
    result: T = request.result.unwrap()
    return result
