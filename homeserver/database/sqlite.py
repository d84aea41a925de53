"""SQLite: one file, one server process, one writer connection and a few readers."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

from homeserver.database.schema import DatabaseError
from homeserver.database.session import Cursor, Row

# Sizes of an IN list. Lists are padded up to one of them, so that a few prepared statements serve every length.
_IN_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 500)
_STATEMENTS_CACHED = 512
_BUSY_TIMEOUT_S = 10.0


class SqliteSession:
    """A connection. Transactions are opened explicitly: the connection is in autocommit mode (isolation_level None)."""

    __slots__ = ("connection", "execute", "_in_texts")

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.execute: Callable[[str, Sequence[object]], Cursor] = connection.execute
        self._in_texts: dict[tuple[str, int], tuple[str, int]] = {}

    def execute_many(self, sql: str, rows: Iterable[Sequence[object]]) -> None:
        self.connection.executemany(sql, rows)

    def execute_in(self, sql: str, values: Sequence[object], other: Sequence[object]) -> list[Row]:
        rows: list[Row] = []
        largest = _IN_SIZES[-1]
        for start in range(0, len(values), largest):
            chunk = values[start : start + largest]
            size = next(size for size in _IN_SIZES if size >= len(chunk))
            text, before = self._in_text(sql, size)
            padding = (chunk[-1],) * (size - len(chunk))
            rows += self.connection.execute(text, (*other[:before], *chunk, *padding, *other[before:])).fetchall()
        return rows

    def _in_text(self, sql: str, size: int) -> tuple[str, int]:
        known = self._in_texts.get((sql, size))
        if known is None:
            before, marker, after = sql.partition("IN (?*)")
            assert marker and "IN (?*)" not in after, f"all_in needs the marker IN (?*) once: {sql}"
            text = f"{before}IN ({','.join('?' * size)}){after}"
            known = self._in_texts[sql, size] = (text, before.count("?"))
        return known

    def begin_read(self) -> None:
        self.connection.execute("BEGIN")

    def begin_write(self) -> int:
        self.connection.execute("BEGIN IMMEDIATE")
        row = self.connection.execute("SELECT position FROM stream_position WHERE id = 1").fetchone()
        return int(row[0])

    def commit(self, position: int | None, keys: Collection[str]) -> None:
        if position is not None:
            self.connection.execute("UPDATE stream_position SET position = ? WHERE id = 1", (position,))
        self.connection.execute("COMMIT")

    def rollback(self) -> None:
        if self.connection.in_transaction:
            self.connection.execute("ROLLBACK")

    def savepoint(self) -> None:
        self.connection.execute("SAVEPOINT w")

    def release(self) -> None:
        self.connection.execute("RELEASE w")

    def rollback_to_savepoint(self) -> None:
        self.connection.execute("ROLLBACK TO w")
        self.connection.execute("RELEASE w")

    def is_alive(self) -> bool:
        return self.connection.in_transaction

    def close(self) -> None:
        self.connection.close()


def connect(path: str, *, read_only: bool) -> sqlite3.Connection:
    """A connection with the settings that every use of the database needs."""
    connection = sqlite3.connect(
        path,
        timeout=_BUSY_TIMEOUT_S,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=_STATEMENTS_CACHED,
    )
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA cache_size = -4096")
    connection.execute("PRAGMA temp_store = MEMORY")
    if read_only:
        connection.execute("PRAGMA query_only = ON")
    return connection


class SqliteLock:
    """Held while a server has the database open, so that a second one is refused. Released when the process ends."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._file)
            raise DatabaseError(f"The database {path} is in use by another server process.") from None

    def release(self) -> None:
        os.close(self._file)
