"""OAuth sessions: which devices of a user were logged in by which client.

A session ends with its device, and the device with the session. Its tokens are those of the device. This module is
below `homeserver.users.devices`, so that every way to end a device ends its session too.
"""

from __future__ import annotations

import msgspec

from homeserver.database import Transaction
from homeserver.federation.identifiers import UserID


class OAuthSession(msgspec.Struct, frozen=True):
    """A client that is logged in on a device of a user. scope: what it was granted."""

    user_id: UserID
    device_id: str
    client_id: str
    scope: str
    created_ms: int


def store_session(tx: Transaction, user_id: UserID, device_id: str, client_id: str, scope: str, origin: bytes) -> None:
    """Stores that a client has logged in on a new or known device. origin: the hash of the code that it had."""
    tx.run(
        "INSERT INTO oauth_sessions (user_nid, device_id, client_id, scope, origin, created_ms)"
        " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (user_nid, device_id) DO UPDATE SET client_id = excluded.client_id,"
        " scope = excluded.scope, origin = excluded.origin, created_ms = excluded.created_ms",
        tx.intern(user_id), device_id, client_id, scope, origin, tx.now_ms,
    )  # fmt: skip


def find_session(tx: Transaction, user_id: UserID, device_id: str) -> OAuthSession | None:
    """Returns the session of a device; None if it was logged in otherwise, or is not there."""
    row = tx.one(
        "SELECT client_id, scope, created_ms FROM oauth_sessions WHERE user_nid = ? AND device_id = ?",
        tx.find(user_id), device_id,
    )  # fmt: skip
    return None if row is None else OAuthSession(user_id, device_id, *row)


def find_session_of_code(tx: Transaction, origin: bytes) -> OAuthSession | None:
    """Returns the session that came from a code with this hash."""
    row = tx.one(
        "SELECT user_nid, device_id, client_id, scope, created_ms FROM oauth_sessions WHERE origin = ?", origin
    )
    return None if row is None else OAuthSession(UserID(tx.name(row[0])), *row[1:])


def list_sessions(tx: Transaction, user_id: UserID) -> list[OAuthSession]:
    """Returns all sessions of a user, by device ID."""
    rows = tx.all(
        "SELECT device_id, client_id, scope, created_ms FROM oauth_sessions WHERE user_nid = ? ORDER BY device_id",
        tx.find(user_id),
    )
    return [OAuthSession(user_id, *row) for row in rows]


def count_sessions(tx: Transaction) -> int:
    """Returns the number of sessions of all users."""
    (count,) = tx.one("SELECT COUNT(*) FROM oauth_sessions") or (0,)
    return int(count)


def delete_session(tx: Transaction, user_id: UserID, device_id: str) -> None:
    """Deletes the row of a device that ends, or that is logged in again. Its tokens are deleted by the caller."""
    tx.run("DELETE FROM oauth_sessions WHERE user_nid = ? AND device_id = ?", tx.find(user_id), device_id)
