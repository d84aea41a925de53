"""What ends by itself: expired codes, clients that nobody uses, and what belongs to an account that ends."""

from __future__ import annotations

from homeserver import limits
from homeserver.database import Transaction
from homeserver.federation.identifiers import UserID
from homeserver.moments import latest
from homeserver.users.oauth.clients import delete_unused_clients
from homeserver.users.oauth.cross_signing import delete_approval

# Rows deleted by one write, so that others wait for at most some milliseconds.
_CLIENTS_PER_WRITE = 500


def delete_expired(tx: Transaction) -> None:
    """Deletes expired codes, and clients that have not been used for long."""
    tx.run(
        "DELETE FROM oauth_codes WHERE expires_ms <= ? OR expires_ms > ?",
        tx.now_ms, latest(tx.now_ms, limits.users.OAUTH_CODE_LIFETIME_MS),
    )  # fmt: skip
    tx.run(
        "DELETE FROM oauth_device_grants WHERE expires_ms <= ? OR expires_ms > ?",
        tx.now_ms, latest(tx.now_ms, limits.users.OAUTH_DEVICE_CODE_LIFETIME_MS),
    )  # fmt: skip
    since_ms = tx.now_ms - limits.users.OAUTH_CLIENT_UNUSED_MS
    delete_unused_clients(tx, at_most=_CLIENTS_PER_WRITE, since_ms=since_ms)


def forget_oauth(tx: Transaction, user_id: UserID, erase: bool) -> bool:
    """Deletes the codes and sessions of a user whose account ends. The devices of the sessions end with it."""
    user_nid = tx.find(user_id)
    tx.run("DELETE FROM oauth_codes WHERE user_nid = ?", user_nid)
    tx.run("DELETE FROM oauth_device_grants WHERE user_nid = ?", user_nid)
    tx.run("DELETE FROM oauth_sessions WHERE user_nid = ?", user_nid)
    delete_approval(tx, user_id)
    return False
