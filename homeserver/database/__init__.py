"""The database: `read(fn)`, `write(fn)`; tables by schema; SQLite or PostgreSQL behind one SQL.

`fn(tx, *args)` is a plain synchronous function. Its SQL is text, with `?` for each parameter, in the common subset of
both engines:

- Column types INTEGER (64 bit), TEXT, BLOB, REAL. Booleans are the integers 0 and 1. `INTEGER PRIMARY KEY` numbers its
  rows by itself. Text is compared by its bytes. `STRICT` and `WITHOUT ROWID` may be written.
- `INSERT … ON CONFLICT (…) DO UPDATE SET x = excluded.x` and `… DO NOTHING`, `RETURNING`, common table expressions, window
  functions. Not `INSERT OR REPLACE`, `REPLACE`, `rowid`, `IFNULL` (write COALESCE), `GLOB`, PRAGMA, AUTOINCREMENT.
- Identifiers unquoted, strings in single quotes, no `?` inside them.
- Lists: `tx.all_in("… WHERE x IN (?*)", values)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import trio

from homeserver.database import sqlite
from homeserver.database.database import Database
from homeserver.database.migrations import migrate_sqlite
from homeserver.database.schema import CORE_SCHEMA, DatabaseError, Schema, Step
from homeserver.database.session import Row, Session
from homeserver.database.transaction import Transaction
from homeserver.stream import Stream

__all__ = ["Database", "DatabaseError", "Row", "Schema", "Step", "Transaction", "open_database"]

_READERS = 2


async def open_database(
    url: str, schemas: Sequence[Schema], *, inline: bool = False, now_ms: Callable[[], int]
) -> Database:
    """The database at `url` ("sqlite:PATH", "sqlite::memory:", "postgresql://…"), with its tables brought up to date.

    inline: everything runs on the trio thread (tests under a virtual clock; ":memory:" needs it). DatabaseError: a
    sentence why it cannot be opened. A relative PATH is relative to the working directory.
    """
    return await _open_sqlite(url.removeprefix("sqlite:"), (CORE_SCHEMA, *schemas), inline, now_ms)


async def _open_sqlite(path: str, schemas: Sequence[Schema], inline: bool, now_ms: Callable[[], int]) -> Database:
    in_memory = path == ":memory:"
    if in_memory and not inline:
        raise DatabaseError("A database in memory has one connection, so it must be opened inline.")
    if path.startswith("//"):
        path = path[2:]
    lock = None if in_memory else sqlite.SqliteLock(Path(path).resolve())
    first = sqlite.connect(path, read_only=False)
    if inline:
        migrate_sqlite(first, schemas)
    else:
        await trio.to_thread.run_sync(migrate_sqlite, first, schemas)
    unused = [first]

    def open_session(read_only: bool) -> Session:
        if not read_only and unused:
            return sqlite.SqliteSession(unused.pop())
        return sqlite.SqliteSession(sqlite.connect(path, read_only=read_only))

    (position,) = first.execute("SELECT position FROM stream_position WHERE id = 1").fetchone()
    return Database(
        open_session,
        readers=0 if inline else _READERS,
        now_ms=now_ms,
        stream=Stream(position),
        on_close=lock.release if lock else lambda: None,
    )
