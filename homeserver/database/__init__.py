"""The database: `read(fn)`, `write(fn)`; tables by schema; SQLite or PostgreSQL behind one SQL.

`fn(tx, *args)` is a plain synchronous function. Its SQL is text, with `?` for each parameter, in the common subset of
both engines:

- Column types INTEGER (64 bit), TEXT, BLOB, REAL, in capitals. Booleans are the integers 0 and 1. `INTEGER PRIMARY KEY`
  numbers its rows by itself where no number is given; do not mix the two in one table. Text is ordered by its bytes.
  `STRICT` and `WITHOUT ROWID` may be written. Each statement of a Step ends with a semicolon. No triggers.
- `INSERT … ON CONFLICT (…) DO UPDATE SET x = excluded.x` and `… DO NOTHING`; name the old value `table.x`. `RETURNING`,
  common table expressions, window functions, partial indexes, `CASE`, `COALESCE`, `CAST(? AS INTEGER)`,
  `IS NOT DISTINCT FROM`. No `INSERT OR …`, `REPLACE`, `rowid`, `IFNULL`, `GLOB`, PRAGMA, AUTOINCREMENT, scalar
  `MAX(a, b)`, JSON, date or random functions, no `LIMIT -1`.
- Every selected column stands in GROUP BY or in an aggregate. ORDER BY a column with NULLs: say NULLS FIRST or LAST.
  Both sides of LIKE in lower case. A parameter that stands alone (`? IS NULL`, `SELECT ?`) needs a CAST.
- Identifiers unquoted, strings in single quotes.
- Lists: `tx.all_in("… WHERE x IN (?*)", values)`; not with NOT.
- An SQL error ends the write: do not catch it and go on. TEXT with NUL characters is stored by
  SQLite only: PostgreSQL answers MatrixError 400 M_INVALID_PARAM.
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
from homeserver.database.transaction import Transaction

__all__ = [
    "Database",
    "DatabaseDamaged",
    "DatabaseError",
    "DatabaseUnavailable",
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
    """The database at `url` ("sqlite:PATH", "sqlite::memory:", "postgresql://…"), with its tables brought up to date.

    A relative PATH is relative to the working directory. inline: everything runs on the trio thread (tests under a
    virtual clock; ":memory:" needs it). exclusive: refuse an SQLite file that a server has open; administration beside
    a running server gives False. DatabaseError: why it cannot be opened, in a sentence.
    """
    all_schemas = (CORE_SCHEMA, *schemas)
    engine, _, rest = url.partition(":")
    if engine == "sqlite":
        path = rest.removeprefix("//")
        opening = functools.partial(open_sqlite, path, all_schemas, inline=inline, exclusive=exclusive)
    elif engine in ("postgresql", "postgres"):
        # Imported here: psycopg takes 10 MB and a tenth of a second, which an SQLite server need not spend.
        from homeserver.database.postgres import open_postgres

        opening = functools.partial(open_postgres, url, all_schemas, inline=inline)
    else:
        raise DatabaseError(f'A database URL begins with "sqlite:" or "postgresql:", not with {engine!r}.')
    opened = opening() if inline else await trio.to_thread.run_sync(opening)
    return Database(opened, now_ms=now_ms)
