"""Storage that fails: a full disk, a database that takes no writes, data that is damaged."""

from __future__ import annotations

import resource
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg

from homeserver.database import Transaction
from tests.support.engine import ENGINE
from tests.support.homeservers import Server


@contextmanager
def full_disk() -> Iterator[None]:
    """No file of this process can grow, nor be overwritten beyond its first byte: the kernel refuses it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def read_only(url: str) -> Iterator[None]:
    """A PostgreSQL database that takes no writes, as a standby does, and that has just dropped all connections."""
    _set_read_only(url, "on")
    try:
        yield
    finally:
        _set_read_only(url, "off")


@contextmanager
def unwritable(server: Server) -> Iterator[None]:
    """The server's database takes no writes, whatever its engine; nor, on SQLite, do other files."""
    with full_disk() if ENGINE == "sqlite" else read_only(server.hs.config.database.url):
        yield


def damage_pages(path: Path, table: str, needle: bytes) -> int:
    """Overwrites the pages of an SQLite file that hold rows of a table with these bytes in them; returns how many.

    Nobody may have the file open. Indexes stay as they are.
    """
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
        sql = "SELECT pageno FROM dbstat WHERE name = ? AND pagetype = 'leaf'"
        numbers = [row[0] for row in connection.execute(sql, (table,))]
    damaged = 0
    with path.open("r+b") as file:
        for number in numbers:
            file.seek((number - 1) * page_bytes)
            if needle in file.read(page_bytes):
                file.seek((number - 1) * page_bytes)
                file.write(b"\xff" * page_bytes)
                damaged += 1
    return damaged


def list_parked(tx: Transaction) -> list[tuple[str, str, str, int]]:
    """Lane, item, reason and time (ms) of all parked items, the newest first."""
    return [
        (lane, item, reason, parked_ms)
        for lane, item, reason, parked_ms in tx.all(
            "SELECT lane, item, reason, parked_ms FROM parked_items ORDER BY parked_ms DESC, lane, item"
        )
    ]


def _set_read_only(url: str, value: str) -> None:
    with psycopg.connect(url, autocommit=True, options="-c default_transaction_read_only=off") as connection:
        name = connection.info.dbname
        connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = {value}".encode())
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE pid <> pg_backend_pid() AND datname = current_database()"
        )
