"""The database: `read(fn)`, `write(fn)`; tables by schema; SQLite or PostgreSQL behind one SQL.

`fn(tx, *args)` is a plain synchronous function. Its SQL is text in the common subset of both engines, with `?` for each
parameter:

- Column types: INTEGER (64 bit), TEXT, BLOB, REAL, in capitals. Booleans are the integers 0 and 1. An `INTEGER PRIMARY
  KEY` numbers rows automatically if no number is given; do not mix both ways in one table. Text is ordered by its
  bytes. `STRICT` and `WITHOUT ROWID` are allowed. Each statement of a Step ends with a semicolon. No triggers.
- Allowed: `INSERT … ON CONFLICT (…) DO UPDATE SET x = excluded.x` and `… DO NOTHING` (the old value is `table.x`),
  `RETURNING`, common table expressions, window functions, partial indexes, `CASE`, `COALESCE`, `CAST(? AS INTEGER)`,
  `IS NOT DISTINCT FROM`. Not allowed: `INSERT OR …`, `REPLACE`, `rowid`, `IFNULL`, `GLOB`, PRAGMA, AUTOINCREMENT,
  scalar `MAX(a, b)`, JSON, date or random functions, `LIMIT -1`.
- Every selected column is in GROUP BY or in an aggregate. When ordering by a column with NULLs, write NULLS FIRST or
  LAST. Both sides of LIKE are in lower case. A parameter that stands alone (`? IS NULL`, `SELECT ?`) needs a CAST.
- Identifiers are unquoted, strings are in single quotes.
- Lists: `tx.all_in("… WHERE x IN (?*)", values)`; not with NOT.
- An SQL error ends the write: do not catch it and continue. Only SQLite can store TEXT with NUL characters; PostgreSQL
  raises MatrixError 400 M_INVALID_PARAM.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import trio

from homeserver.database.database import Database
from homeserver.database.peek import peek
from homeserver.database.schema import CORE_SCHEMA, DatabaseDamaged, DatabaseError, DatabaseUnavailable, Schema, Step
from homeserver.database.session import Row
from homeserver.database.sqlite import open_sqlite
from homeserver.database.transaction import Needed, Transaction

__all__ = [
    "Database",
    "DatabaseDamaged",
    "DatabaseError",
    "DatabaseUnavailable",
    "Needed",
    "Row",
    "Schema",
    "Step",
    "Transaction",
    "open_database",
    "peek",
]


async def open_database(
    url: str,
    schemas: Sequence[Schema],
    *,
    inline: bool = False,
    exclusive: bool = True,
    now_ms: Callable[[], int],
) -> Database:
    """Opens the database at `url` ("sqlite:PATH", "sqlite::memory:", "postgresql://…") and migrates its tables.

    A relative PATH is relative to the working directory. inline: everything runs on the trio thread; for tests under a
    virtual clock, and required for ":memory:". exclusive: refuse an SQLite file that a server has open; administration
    beside a running server passes False. Raises DatabaseError, which says in a sentence why it cannot be opened.
    """
    all_schemas = (CORE_SCHEMA, *schemas)
    engine, _, rest = url.partition(":")
    if engine == "sqlite":
        path = rest.removeprefix("//")
        opening = functools.partial(open_sqlite, path, all_schemas, inline=inline, exclusive=exclusive)
    elif engine in ("postgresql", "postgres"):
        # Imported here because psycopg takes 10 MB and a tenth of a second, which SQLite servers need not spend.
        from homeserver.database.postgres import open_postgres

        opening = functools.partial(open_postgres, url, all_schemas, inline=inline)
    else:
        raise DatabaseError(f'A database URL must begin with "sqlite:" or "postgresql:", not with {engine!r}.')
    opened = opening() if inline else await trio.to_thread.run_sync(opening)
    return Database(opened, now_ms=now_ms)
