"""The database of an index on FTS5: its tables, how it is opened, and what it calls damage."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from homeserver.search.documents import IndexDamaged
from homeserver.search.fts5_terms import TOKENIZER

DATABASE = "index.sqlite"
_CACHE_KIB = 32 * 1024
_BUSY_SECONDS = 30.0

SCHEMA = f"""
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS documents (
    place INTEGER PRIMARY KEY,
    number INTEGER NOT NULL,
    time INTEGER NOT NULL,
    grp INTEGER NOT NULL,
    author INTEGER NOT NULL,
    labels INTEGER NOT NULL,
    length INTEGER NOT NULL,
    repeated TEXT,
    text TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS documents_number ON documents (number);
CREATE TABLE IF NOT EXISTS groups (grp INTEGER PRIMARY KEY, documents INTEGER NOT NULL);
CREATE VIRTUAL TABLE IF NOT EXISTS terms USING fts5 (
    text, content = '', detail = none, tokenize = "{TOKENIZER}"
);
"""


@contextmanager
def damage() -> Iterator[None]:
    """Raises IndexDamaged for what SQLite calls damage."""
    try:
        yield
    except sqlite3.OperationalError:
        raise  # a full disk, or a lock: neither is damage
    except sqlite3.DatabaseError as error:
        raise IndexDamaged(f"the database is damaged: {error}") from error


def connect(folder: Path) -> sqlite3.Connection:
    """Opens the database of an index, which is created if it does not exist."""
    database = sqlite3.connect(folder / DATABASE, isolation_level=None, timeout=_BUSY_SECONDS)
    for pragma in (
        "journal_mode = WAL",
        "synchronous = NORMAL",  # a power failure may lose the last transactions: they are added again
        "secure_delete = ON",
        f"cache_size = -{_CACHE_KIB}",
        "temp_store = MEMORY",
    ):
        database.execute(f"PRAGMA {pragma}").fetchall()
    return database


def read_about(database: sqlite3.Connection, name: str, otherwise: Any) -> Any:
    """Returns what an index has noted about itself under a name."""
    row = database.execute("SELECT value FROM about WHERE name = ?", (name,)).fetchone()
    return otherwise if row is None else row[0]


def values(database: sqlite3.Connection, sql: str, *args: Any) -> list[int]:
    """Returns the first column of all rows."""
    return [row[0] for row in database.execute(sql, args)]
