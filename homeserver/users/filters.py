"""Stored filters, to which clients refer by ID. Spec: client-server-api/#filtering"""

from __future__ import annotations

import hashlib

import orjson

from homeserver import limits
from homeserver.database import Schema, Step, Transaction
from homeserver.feature import JsonObject
from homeserver.federation.identifiers import UserID

SCHEMA = Schema(
    "filters",
    (
        Step(
            "create",
            """
            CREATE TABLE filters (
                user_nid INTEGER NOT NULL,
                filter_id INTEGER NOT NULL,
                digest BLOB NOT NULL,
                content BLOB NOT NULL,
                PRIMARY KEY (user_nid, filter_id)
            ) WITHOUT ROWID;
            CREATE UNIQUE INDEX filters_digest ON filters (user_nid, digest);
            """,
        ),
    ),
)


def store_filter(tx: Transaction, user_id: UserID, content: bytes) -> str:
    """Stores a filter and returns its ID. Equal content has the same ID. If there are too many, the oldest goes."""
    nid, digest = tx.intern(user_id), hashlib.sha256(content).digest()
    found = tx.one("SELECT filter_id FROM filters WHERE user_nid = ? AND digest = ?", nid, digest)
    if found is not None:
        return str(found[0])
    (last,) = tx.one("SELECT MAX(filter_id) FROM filters WHERE user_nid = ?", nid) or (None,)
    filter_id = (last or 0) + 1
    tx.run(
        "INSERT INTO filters (user_nid, filter_id, digest, content) VALUES (?, ?, ?, ?)",
        nid, filter_id, digest, content,
    )  # fmt: skip
    tx.run(
        "DELETE FROM filters WHERE user_nid = ? AND filter_id <= ?", nid, filter_id - limits.users.FILTERS_PER_USER_MAX
    )
    return str(filter_id)


def find_filter(tx: Transaction, user_id: UserID, filter_id: str) -> JsonObject | None:
    """Returns the filter as it was stored, None if the user has none with that ID."""
    if not (filter_id.isascii() and filter_id.isdigit() and len(filter_id) <= 16):
        return None
    row = tx.one("SELECT content FROM filters WHERE user_nid = ? AND filter_id = ?", tx.find(user_id), int(filter_id))
    return None if row is None else orjson.loads(row[0])


def forget_filters(tx: Transaction, user_id: UserID, erase: bool) -> bool:
    """Deletes all filters of the user. No device is left to use them."""
    tx.run("DELETE FROM filters WHERE user_nid = ?", tx.find(user_id))
    return False
