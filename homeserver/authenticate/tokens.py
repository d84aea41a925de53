"""Access tokens, and the storage of refresh tokens. Each has 32 random bytes; only its SHA-256 is stored.

A refresh token names its family too, which is another secret, and its generation: see `refresh`.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import Any, NamedTuple

import msgspec

from homeserver import limits
from homeserver.authenticate.requester import Requester
from homeserver.database import Transaction
from homeserver.errors import MatrixError
from homeserver.federation.identifiers import UserID
from homeserver.limits import Bucket
from homeserver.process.token_cache import tokens_key


class TokenLookup(msgspec.Struct, frozen=True):
    """A stored access token. `unused`: its first use will revoke other tokens (`refresh`).

    lifetime_ms_max: how far ahead `expires_ms` can have been set.
    """

    requester: Requester
    expires_ms: int | None
    unused: bool
    lifetime_ms_max: int = limits.ACCESS_TOKEN_LIFETIME_MS


class IssuedTokens(msgspec.Struct, frozen=True):
    """New tokens as the client gets them, once. `expires_in_ms` is None if the access token does not expire."""

    access_token: str
    refresh_token: str | None
    expires_in_ms: int | None

    def body(self) -> dict[str, Any]:
        """Returns the fields of the responses of `/login`, `/register` and `/refresh`."""
        answer: dict[str, Any] = {"access_token": self.access_token}
        if self.refresh_token is not None:
            answer["refresh_token"] = self.refresh_token
        if self.expires_in_ms is not None:
            answer["expires_in_ms"] = self.expires_in_ms
        return answer


class RefreshFamily(NamedTuple):
    """The refresh tokens that come from one log-in share a secret, and each exchange makes a new generation."""

    secret: str
    generation: int


def unknown_token(*, soft_logout: bool = False) -> MatrixError:
    """Returns 401 M_UNKNOWN_TOKEN. With `soft_logout` the client keeps its keys and gets a new token."""
    return MatrixError(401, "M_UNKNOWN_TOKEN", "This access token is not known.", soft_logout=soft_logout)


def new_token(kind: str) -> str:
    """Returns a new token. `kind` is a short prefix by which people and secret scanners recognize it."""
    return f"{kind}_{secrets.token_urlsafe(32)}"


def hash_token(token: str) -> bytes:
    """Returns the hash that is stored instead of a token."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def create_tokens(
    tx: Transaction,
    user_id: UserID,
    device_id: str,
    *,
    refreshable: bool = False,
    lifetime_ms: int | None = None,
    refreshed_by: bytes | None = None,
    family: RefreshFamily | None = None,
) -> IssuedTokens:
    """Creates and stores an access token, and a refresh token if the client can use one (`refreshable`).

    lifetime_ms: None stands for `limits.ACCESS_TOKEN_LIFETIME_MS` if refreshable, and for no limit otherwise.
    refreshed_by: the hash of the refresh token that these tokens replace. family: that of the new refresh token; None
    begins a new one.
    """
    if lifetime_ms is None and refreshable:
        lifetime_ms = limits.ACCESS_TOKEN_LIFETIME_MS
    access_token = new_token("hsat")
    expires_ms = None if lifetime_ms is None else tx.now_ms + lifetime_ms
    store_access_token(tx, hash_token(access_token), user_id, device_id, expires_ms, refreshed_by)
    refresh_token = None
    if refreshable:
        family = family or RefreshFamily(secrets.token_urlsafe(16), 1)
        refresh_token = f"hsrt_{family.secret}.{family.generation}.{secrets.token_urlsafe(32)}"
        tx.run(
            "INSERT INTO refresh_tokens (token_hash, user_nid, device_id, created_ms, refreshed_by, family, generation)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            hash_token(refresh_token),
            tx.intern(user_id),
            device_id,
            tx.now_ms,
            refreshed_by,
            hash_token(family.secret),
            family.generation,
        )
    return IssuedTokens(access_token, refresh_token, lifetime_ms)


def store_access_token(
    tx: Transaction,
    token_hash: bytes,
    user_id: UserID,
    device_id: str,
    expires_ms: int | None = None,
    refreshed_by: bytes | None = None,
) -> None:
    """Stores an access token. refreshed_by: the hash of the refresh token that its first use revokes."""
    tx.run(
        "INSERT INTO access_tokens (token_hash, user_nid, device_id, created_ms, expires_ms, refreshed_by)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        token_hash,
        tx.intern(user_id),
        device_id,
        tx.now_ms,
        expires_ms,
        refreshed_by,
    )


def create_token_for(tx: Transaction, user_id: UserID, admin: UserID, lifetime_ms: int | None) -> str:
    """Creates and returns a token with which an administrator acts for a user. It belongs to no device.

    The user's own log-outs do not end it. It ends with the account, with the administrator's rights, when the
    administrator logs out everywhere, and when the user becomes an administrator: nobody acts for those.
    """
    access_token = new_token("hsat")
    expires_ms = None if lifetime_ms is None else tx.now_ms + lifetime_ms
    tx.run(
        "INSERT INTO access_tokens (token_hash, user_nid, device_id, created_ms, expires_ms, issued_by_nid)"
        " VALUES (?, ?, '', ?, ?, ?)",
        hash_token(access_token),
        tx.intern(user_id),
        tx.now_ms,
        expires_ms,
        tx.intern(admin),
    )
    return access_token


def delete_tokens_issued_by(tx: Transaction, admin: UserID) -> None:
    """Revokes the tokens with which an administrator acts for others."""
    nids = set(tx.values("SELECT user_nid FROM access_tokens WHERE issued_by_nid = ?", tx.find(admin)))
    tx.run("DELETE FROM access_tokens WHERE issued_by_nid = ?", tx.find(admin))
    for name in tx.names(nids).values():
        end_waiting(tx, UserID(name))


def delete_tokens_issued_for(tx: Transaction, user_id: UserID) -> None:
    """Revokes the tokens with which administrators act for a user."""
    tx.run("DELETE FROM access_tokens WHERE user_nid = ? AND issued_by_nid IS NOT NULL", tx.find(user_id))
    end_waiting(tx, user_id)


def find_token(tx: Transaction, token_hash: bytes) -> TokenLookup | None:
    """Returns the access token with its requester, even if it has expired, or None if there is no such token."""
    row = tx.one(
        "SELECT t.user_nid, t.device_id, t.expires_ms, t.refreshed_by,"
        " f.is_admin, f.is_guest, f.is_locked, f.is_suspended, f.is_shadow_banned, f.rate_burst, f.rate_per_second,"
        " t.issued_by_nid"
        " FROM access_tokens t LEFT JOIN account_flags f ON f.user_nid = t.user_nid WHERE t.token_hash = ?",
        token_hash,
    )
    if row is None:
        return None
    user_nid, device_id, expires_ms, refreshed_by, is_admin, is_guest, is_locked, is_suspended, *rest = row
    is_shadow_banned, rate_burst, rate_per_second, issued_by_nid = rest
    requester = Requester(
        user_id=UserID(tx.name(user_nid)),
        device_id=device_id,
        is_guest=bool(is_guest),
        is_admin=bool(is_admin),
        token_id=token_hash,
        is_suspended=bool(is_suspended),
        is_locked=bool(is_locked),
        is_shadow_banned=bool(is_shadow_banned),
        rate_limit=None if rate_per_second is None else Bucket(rate_burst, rate_per_second),
    )
    lifetime_ms_max = limits.ACCESS_TOKEN_LIFETIME_MS if issued_by_nid is None else limits.ISSUED_TOKEN_LIFETIME_MS_MAX
    return TokenLookup(requester, expires_ms, refreshed_by is not None, lifetime_ms_max)


def delete_token(tx: Transaction, user_id: UserID, token_hash: bytes) -> None:
    """Revokes one access token that belongs to no device."""
    tx.run("DELETE FROM access_tokens WHERE token_hash = ?", token_hash)
    end_waiting(tx, user_id)


def delete_tokens_of_device(tx: Transaction, user_id: UserID, device_id: str) -> None:
    """Revokes all access and refresh tokens of a device."""
    user_nid = tx.find(user_id)
    tx.run("DELETE FROM access_tokens WHERE user_nid = ? AND device_id = ?", user_nid, device_id)
    tx.run("DELETE FROM refresh_tokens WHERE user_nid = ? AND device_id = ?", user_nid, device_id)
    end_waiting(tx, user_id)


def delete_tokens_of_user(
    tx: Transaction, user_id: UserID, *, except_device_id: str | None = None, and_issued: bool = False
) -> None:
    """Revokes all access and refresh tokens of a user, except those of one device if it is given.

    and_issued: also those with which administrators act for the user, as when the account ends.
    """
    user_nid = tx.find(user_id)
    kept = "" if except_device_id is None else except_device_id
    every = 1 if except_device_id is None else 0
    tx.run(
        "DELETE FROM access_tokens WHERE user_nid = ? AND (? = 1 OR device_id <> ?)"
        " AND (? = 1 OR issued_by_nid IS NULL)",
        user_nid, every, kept, int(and_issued),
    )  # fmt: skip
    tx.run("DELETE FROM refresh_tokens WHERE user_nid = ? AND (? = 1 OR device_id <> ?)", user_nid, every, kept)
    end_waiting(tx, user_id)


def note_token_change(tx: Transaction, user_id: UserID) -> None:
    """Notes that the user's tokens have changed: after the commit every node reads them again."""
    tx.wake(tokens_key(user_id))


def end_waiting(tx: Transaction, user_id: UserID) -> None:
    """Does the same as `note_token_change`, and wakes the user's syncs, because no sync may outlive its token."""
    note_token_change(tx, user_id)
    tx.wake(user_id)
