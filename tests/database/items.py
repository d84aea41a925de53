"""A table for the tests of the database, and writes to it."""

from __future__ import annotations

from homeserver.database import Schema, Step, Transaction
from homeserver.errors import MatrixError

SCHEMA = Schema(
    "items",
    (
        Step(
            "create",
            """
            CREATE TABLE items (
                position INTEGER PRIMARY KEY,
                name TEXT NOT NULL UNIQUE,
                size INTEGER,
                body BLOB,
                weight REAL
            );
            CREATE INDEX items_by_size ON items (size) WHERE size IS NOT NULL;
            """,
        ),
    ),
)


def store(tx: Transaction, name: str) -> int:
    """Stores an item, answers its position, and wakes who waits for `name`."""
    position = tx.next_position(name)
    tx.run("INSERT INTO items (position, name) VALUES (?, ?)", position, name)
    return position


def store_and_fail(tx: Transaction, name: str) -> int:
    """Stores an item, and then refuses."""
    store(tx, name)
    raise MatrixError(403, "M_FORBIDDEN", name)


def list_names(tx: Transaction) -> list[str]:
    """The names in the order of their positions."""
    return tx.values("SELECT name FROM items ORDER BY position")
