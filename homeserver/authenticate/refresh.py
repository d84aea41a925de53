"""Refresh tokens. Spec: client-server-api/#refreshing-access-tokens

Theory of operation. A refresh token is exchanged for a new pair of tokens. An answer may be lost, so the old tokens
stay valid until the client uses one of the new pair, which shows that it has received them. Until then `refreshed_by`
of both is the hash of the refresh token that they replace; afterwards it is NULL.

- Exchange of a refresh token: revokes the pair of an earlier exchange of the same token, which the client cannot have
  received. The token itself, and the access token in use, stay valid.
- First use of a new access token: revokes the refresh token that it replaces, and the device's other access tokens.
- First use of a new refresh token, which is an exchange as well: revokes the refresh token that it replaces. Access
  tokens stay valid until one of the next pair is used.

Each of these is one write, so after a crash the tokens are as they were before it or after it.
"""

from __future__ import annotations

from homeserver.authenticate.tokens import IssuedTokens, create_tokens, hash_token, note_token_change
from homeserver.database import Transaction
from homeserver.errors import MatrixError
from homeserver.federation.identifiers import UserID


def replace_tokens(tx: Transaction, refresh_token: str) -> IssuedTokens:
    """Exchanges a refresh token, which stays valid until one of the new tokens is used. Raises M_UNKNOWN_TOKEN."""
    token_hash = hash_token(refresh_token)
    row = tx.one("SELECT user_nid, device_id, refreshed_by FROM refresh_tokens WHERE token_hash = ?", token_hash)
    if row is None:
        raise MatrixError(401, "M_UNKNOWN_TOKEN", "This refresh token is not known.")
    user_nid, device_id, refreshed_by = row
    user_id = UserID(tx.name(user_nid))
    if refreshed_by is not None:  # the first use of a new refresh token
        tx.run("DELETE FROM refresh_tokens WHERE token_hash = ?", refreshed_by)
        tx.run("UPDATE refresh_tokens SET refreshed_by = NULL WHERE token_hash = ?", token_hash)
        tx.run("UPDATE access_tokens SET refreshed_by = NULL WHERE refreshed_by = ?", refreshed_by)
    # The pair of an earlier exchange of the same token.
    tx.run("DELETE FROM access_tokens WHERE refreshed_by = ?", token_hash)
    tx.run("DELETE FROM refresh_tokens WHERE refreshed_by = ?", token_hash)
    note_token_change(tx, user_id)
    return create_tokens(tx, user_id, device_id, refreshable=True, refreshed_by=token_hash)


def delete_replaced_tokens(tx: Transaction, token_hash: bytes) -> None:
    """Revokes what a new access token replaces. For its first use."""
    row = tx.one("SELECT user_nid, device_id, refreshed_by FROM access_tokens WHERE token_hash = ?", token_hash)
    if row is None or row[2] is None:
        return
    user_nid, device_id, refreshed_by = row
    tx.run("DELETE FROM refresh_tokens WHERE token_hash = ?", refreshed_by)
    tx.run("UPDATE refresh_tokens SET refreshed_by = NULL WHERE refreshed_by = ?", refreshed_by)
    tx.run("UPDATE access_tokens SET refreshed_by = NULL WHERE token_hash = ?", token_hash)
    tx.run(
        "DELETE FROM access_tokens WHERE user_nid = ? AND device_id = ? AND token_hash <> ?",
        user_nid,
        device_id,
        token_hash,
    )
    note_token_change(tx, UserID(tx.name(user_nid)))
