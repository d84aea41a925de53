"""Proof tokens: short-lived tokens by which a user shows somebody else who they are.

Each is for one purpose: logging in on another device (spec: client-server-api/#token-based), or telling another service
one's user ID (spec: client-server-api/#openid). A token ends with the device that asked for it, and only its hash is
stored.
"""

from __future__ import annotations

from enum import IntEnum

from homeserver.authenticate import get_account_flags, hash_token, new_token
from homeserver.database import Schema, Step, Transaction
from homeserver.federation.identifiers import UserID
from homeserver.moments import is_ahead
from homeserver.users.accounts import is_active
from homeserver.users.devices import find_device

# device_id: of the device that asked for the token; "" if no device did.
SCHEMA = Schema(
    "proof_tokens",
    (
        Step(
            "001_create",
            """
            CREATE TABLE proof_tokens (
                token_hash BLOB PRIMARY KEY,
                purpose INTEGER NOT NULL,
                user_nid INTEGER NOT NULL,
                device_id TEXT NOT NULL,
                expires_ms INTEGER NOT NULL
            );
            CREATE INDEX proof_tokens_of_user ON proof_tokens (user_nid, purpose);
            CREATE INDEX proof_tokens_expiry ON proof_tokens (expires_ms);
            """,
        ),
    ),
)


class Purpose(IntEnum):
    """What a token is good for."""

    LOGIN = 1
    OPENID = 2


_PREFIXES = {Purpose.LOGIN: "hslt", Purpose.OPENID: "hsoi"}
LIFETIMES_MS = {Purpose.LOGIN: 120_000, Purpose.OPENID: 3_600_000}
"""How long a token is valid. Spec: client-server-api/#post_matrixclientv1loginget_token recommends two minutes."""
# A client needs a few at a time. The oldest ones of the user end when there are more.
_TOKENS_MAX = 50


def create_proof(
    tx: Transaction, purpose: Purpose, user_id: UserID, device_id: str, lifetime_ms: int | None = None
) -> str:
    """Returns a new token. device_id: "" if no device asked for it. lifetime_ms: at most that of the purpose."""
    user_nid = tx.intern(user_id)
    tx.run("DELETE FROM proof_tokens WHERE expires_ms < ?", tx.now_ms)
    tx.run(
        "DELETE FROM proof_tokens WHERE user_nid = ? AND purpose = ? AND expires_ms <= COALESCE(("
        "SELECT expires_ms FROM proof_tokens WHERE user_nid = ? AND purpose = ?"
        " ORDER BY expires_ms DESC LIMIT 1 OFFSET ?), 0)",
        user_nid, purpose, user_nid, purpose, _TOKENS_MAX - 1,
    )  # fmt: skip
    token = new_token(_PREFIXES[purpose])
    tx.run(
        "INSERT INTO proof_tokens (token_hash, purpose, user_nid, device_id, expires_ms) VALUES (?, ?, ?, ?, ?)",
        hash_token(token), purpose, user_nid, device_id,
        tx.now_ms + min(lifetime_ms or LIFETIMES_MS[purpose], LIFETIMES_MS[purpose]),
    )  # fmt: skip
    return token


def find_proven(tx: Transaction, purpose: Purpose, token: str) -> UserID | None:
    """Returns whose token it is; None if it is not valid, or the account or the device that asked for it is gone.

    It proves nothing while the account is locked.
    """
    row = tx.one(
        "SELECT user_nid, device_id, expires_ms FROM proof_tokens WHERE token_hash = ? AND purpose = ?",
        hash_token(token), purpose,
    )  # fmt: skip
    if row is None or not is_ahead(row[2], tx.now_ms, LIFETIMES_MS[purpose]):
        return None
    user_id = UserID(tx.name(row[0]))
    if row[1] and find_device(tx, user_id, row[1]) is None:
        return None
    is_usable = is_active(tx, user_id) and not get_account_flags(tx, user_id).is_locked
    return user_id if is_usable else None


def delete_proof(tx: Transaction, token: str) -> None:
    """Deletes a token, because it has been used."""
    tx.run("DELETE FROM proof_tokens WHERE token_hash = ?", hash_token(token))
