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

A refresh token that was revoked in this way is *spent*. Whoever presents one has a copy, or the client's tokens were
copied, so all tokens of that log-in end. To recognise spent tokens nothing is stored of them: each contains the secret
of its family and its generation, and is spent if all tokens that are left of the family are of later generations. A
token of the newest generation that is unknown is one whose answer was lost; it is refused, and nothing ends.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from homeserver import limits
from homeserver.authenticate.tokens import IssuedTokens, RefreshFamily, create_tokens, hash_token, note_token_change
from homeserver.database import Transaction
from homeserver.errors import MatrixError
from homeserver.federation.identifiers import UserID


class RefreshLookup(NamedTuple):
    """The owner of a refresh token. is_spent: it was replaced, and the client has used a token that it got for it."""

    user_id: UserID
    device_id: str
    is_spent: bool


_TOKEN = re.compile(r"hsrt_([A-Za-z0-9_-]{22})\.([1-9][0-9]{0,9})\.[A-Za-z0-9_-]{43}")


def _read_family(refresh_token: str) -> RefreshFamily | None:
    """Returns the family that a token names; None for tokens from before there were families."""
    found = _TOKEN.fullmatch(refresh_token)
    return None if found is None else RefreshFamily(found[1], int(found[2]))


def find_refresh_token(tx: Transaction, refresh_token: str) -> RefreshLookup | None:
    """Returns whose refresh token it is, a spent one too; None if it is not known."""
    if len(refresh_token) > limits.ACCESS_TOKEN_CHARACTERS_MAX:
        return None
    row = tx.one("SELECT user_nid, device_id FROM refresh_tokens WHERE token_hash = ?", hash_token(refresh_token))
    if row is not None:
        return RefreshLookup(UserID(tx.name(row[0])), row[1], False)
    family = _read_family(refresh_token)
    if family is None:
        return None
    row = tx.one(
        "SELECT user_nid, device_id, generation FROM refresh_tokens WHERE family = ? ORDER BY generation LIMIT 1",
        hash_token(family.secret),
    )
    if row is None or row[2] <= family.generation:
        return None
    return RefreshLookup(UserID(tx.name(row[0])), row[1], True)


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
    family = _read_family(refresh_token)
    if family is not None:
        family = family._replace(generation=family.generation + 1)
    return create_tokens(tx, user_id, device_id, refreshable=True, refreshed_by=token_hash, family=family)


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
