"""Who asks: an access token becomes a Requester. Also the tables of access and refresh tokens and of account flags.

Tokens are 32 random bytes; only their SHA-256 is stored. Spec: client-server-api/#client-authentication
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from homeserver import limits
from homeserver.api.bodies import Body
from homeserver.api.routes import Operation, Request
from homeserver.database import DatabaseUnavailable, Schema, Step, Transaction
from homeserver.errors import MatrixError
from homeserver.federation.identifiers import ServerName, UserID
from homeserver.moments import is_ahead
from homeserver.process.token_cache import Seen, tokens_key
from homeserver.resources import Resources

SCHEMA = Schema(
    "authenticate",
    (
        Step(
            "tokens",
            """
            CREATE TABLE access_tokens (
                token_hash BLOB PRIMARY KEY,
                user_nid INTEGER NOT NULL,
                device_id TEXT NOT NULL,
                created_ms INTEGER NOT NULL,
                expires_ms INTEGER,
                refreshed_by BLOB
            );
            CREATE INDEX access_tokens_device ON access_tokens (user_nid, device_id);
            CREATE TABLE refresh_tokens (
                token_hash BLOB PRIMARY KEY,
                user_nid INTEGER NOT NULL,
                device_id TEXT NOT NULL,
                created_ms INTEGER NOT NULL,
                refreshed_by BLOB
            );
            CREATE INDEX refresh_tokens_device ON refresh_tokens (user_nid, device_id);
            CREATE TABLE account_flags (
                user_nid INTEGER PRIMARY KEY,
                is_admin INTEGER NOT NULL,
                is_guest INTEGER NOT NULL,
                is_locked INTEGER NOT NULL,
                is_suspended INTEGER NOT NULL
            );
            """,
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class AccountFlags:
    """What kind of account it is. A user without a row has none of these."""

    is_admin: bool = False
    is_guest: bool = False
    is_locked: bool = False
    is_suspended: bool = False


@dataclass(frozen=True, slots=True)
class Requester:
    """Who asks. `token_id` is the token's hash, `appservice` the id of the application service that asks.

    `device_id` is "" for an application service that names none.
    """

    user_id: UserID
    device_id: str
    is_guest: bool = False
    is_admin: bool = False
    token_id: bytes = b""
    appservice: str | None = None
    is_suspended: bool = False
    is_locked: bool = False


@dataclass(frozen=True, slots=True)
class TokenLookup:
    """What the database knows of an access token. `unused`: it replaces tokens that its first use revokes."""

    requester: Requester
    expires_ms: int | None
    unused: bool


@dataclass(frozen=True, slots=True)
class IssuedTokens:
    """Tokens in the clear, told once. `expires_in_ms` is None where the access token does not expire."""

    access_token: str
    refresh_token: str | None
    expires_in_ms: int | None

    def body(self) -> dict[str, Any]:
        """As `/login`, `/register` and `/refresh` answer them."""
        answer: dict[str, Any] = {"access_token": self.access_token}
        if self.refresh_token is not None:
            answer["refresh_token"] = self.refresh_token
        if self.expires_in_ms is not None:
            answer["expires_in_ms"] = self.expires_in_ms
        return answer


class OriginClaim(Protocol):
    """Who has sent a request, by its header alone: what it says is well-formed, and the key that it names is known."""

    @property
    def origin(self) -> ServerName:
        """The server that the request claims to come from."""

    async def check(self, hs: Resources, request: Request, body: Body | None) -> None:
        """Checks the signature, which covers the body. Raises 401 M_UNAUTHORIZED if it is wrong."""


IdentifyOrigin = Callable[[Resources, Request], Awaitable[OriginClaim]]
"""Reads the X-Matrix header of a request, whose body has not been read. Given by `homeserver.remote`."""

FindAppservice = Callable[[Resources, str, Request], Awaitable[Requester | None]]
"""The requester that an application service's token and its `user_id` and `device_id` parameters stand for."""


async def refuse_origin(hs: Resources, request: Request) -> OriginClaim:
    """Raises 401, if federation is off."""
    raise MatrixError(401, "M_UNAUTHORIZED", "This server does not take part in federation.")


def read_token(request: Request) -> str | None:
    """The access token of the header, else of the query. None where there is none."""
    header = request.headers.get("authorization")
    if header is not None:
        scheme, _, token = header.partition(" ")
        if scheme.lower() == "bearer":
            return token.strip()
    given = request.query.get("access_token") if "access_token" in request.query_string else None
    return given[0] if given else None


async def find_requester(
    hs: Resources, operation: Operation, request: Request, find_appservice: FindAppservice | None
) -> Requester | None:
    """The requester of an operation that asks for one. Raises M_MISSING_TOKEN, M_UNKNOWN_TOKEN, M_USER_LOCKED, …

    None only where the operation's requester is optional and there is no token.
    """
    token = read_token(request)
    if token is None or token == "":
        if operation.plan.requester_optional:
            return None
        raise MatrixError(401, "M_MISSING_TOKEN", "This request needs an access token.")
    if len(token) > limits.ACCESS_TOKEN_CHARACTERS_MAX:
        raise unknown_token()
    position = hs.stream.position
    requester = await _requester_of(hs, token)
    if requester is None and find_appservice is not None:
        requester = await find_appservice(hs, token, request)
    if requester is None:
        raise unknown_token()
    check_may_call(requester, operation)
    request.confirm = partial(_confirm, hs, requester, position)
    if requester.device_id:
        note_seen(hs, requester.user_id, requester.device_id, request)
    return requester


async def _confirm(hs: Resources, requester: Requester, position: int) -> None:
    """Called when the body has been read, which may have taken minutes. position: of the stream before the token was.

    Raises MatrixError 401 if the device was logged out or the account locked or deactivated meanwhile.
    """
    if hs.stream.has_news((tokens_key(requester.user_id),), position):
        await hs.database.read(check_device, requester)


def check_admin(requester: Requester) -> None:
    """Raises M_FORBIDDEN unless the requester administers this server."""
    if not requester.is_admin:
        raise MatrixError(403, "M_FORBIDDEN", "Only administrators of this server may do this.")


def check_may_call(requester: Requester, operation: Operation) -> None:
    """Raises an error if the requester's account is locked, suspended or a guest's, and the operation is not for such.

    Operations that need no access token are for suspended accounts and guests as for everybody.
    """
    if requester.is_locked and not operation.allow_locked:
        raise user_locked()
    if operation.plan.requester_optional:
        return
    if requester.is_guest and not operation.allow_guest:
        raise MatrixError(403, "M_GUEST_ACCESS_FORBIDDEN", "Guests may not do this.")
    if not operation.allow_suspended:
        check_not_suspended(requester)


def check_not_suspended(requester: Requester) -> None:
    """Raises M_USER_SUSPENDED if the requester is suspended. Spec: client-server-api/#account-suspension

    For operations that suspended accounts may use (`allow_suspended`) for some purposes only.
    """
    if requester.is_suspended:
        raise MatrixError(403, "M_USER_SUSPENDED", "Your account is suspended: you cannot do that at the moment.")


def limit_requester(hs: Resources, requester: Requester, rate_class: str, cost: float = 1) -> None:
    """Takes from the requester's bucket of a class of rate limits. Raises M_LIMIT_EXCEEDED.

    Does nothing for requesters without a token of their own: application services, and programs that embed the server.
    """
    if requester.appservice is None and requester.token_id:
        hs.rate_limits.take(rate_class, requester.user_id, hs.now_ms(), cost)


def note_seen(hs: Resources, user_id: UserID, device_id: str, request: Request) -> None:
    """Remembers when and from where a device was last heard of, for its owner."""
    seen = Seen(hs.now_ms(), request.client_ip, request.headers.get("user-agent", "")[:255])
    hs.token_cache.note_seen(user_id, device_id, seen)


async def _requester_of(hs: Resources, token: str) -> Requester | None:
    token_hash = hash_token(token)
    cache = hs.token_cache
    found = cache.get(token_hash, hs.now_ms(), hs.stream.has_news)
    if found is None:
        position = hs.stream.position
        found = await hs.database.read(get_requester, token_hash)
        if found is None:
            return None
        if found.unused:
            try:
                await hs.database.write(revoke_replaced_tokens, token_hash)
            except DatabaseUnavailable:  # reading goes on; what the token replaces ends with a later use of it
                return _unexpired(hs, found)
        cache.put(token_hash, found.requester.user_id, found, now_ms=hs.now_ms(), position=position)
    return _unexpired(hs, found)


def _unexpired(hs: Resources, found: TokenLookup) -> Requester:
    if found.expires_ms is not None and not is_ahead(found.expires_ms, hs.now_ms(), limits.ACCESS_TOKEN_LIFETIME_MS):
        raise unknown_token(soft_logout=True)
    return found.requester


def unknown_token(*, soft_logout: bool = False) -> MatrixError:
    """401 M_UNKNOWN_TOKEN; with `soft_logout` the client keeps its keys and asks for a new token."""
    return MatrixError(401, "M_UNKNOWN_TOKEN", "This access token is not known.", soft_logout=soft_logout)


def user_locked() -> MatrixError:
    """401 M_USER_LOCKED: the client keeps its keys, for the account may be unlocked again."""
    return MatrixError(401, "M_USER_LOCKED", "This account has been locked.", soft_logout=True)


# --- storage: functions of a transaction ---


def new_token(kind: str) -> str:
    """A fresh token. `kind` is a short prefix by which people and secret scanners know it."""
    return f"{kind}_{secrets.token_urlsafe(32)}"


def hash_token(token: str) -> bytes:
    """What is stored in place of a token."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def issue_tokens(
    tx: Transaction,
    user_id: UserID,
    device_id: str,
    *,
    refreshable: bool = False,
    lifetime_ms: int | None = None,
    refreshed_by: bytes | None = None,
) -> IssuedTokens:
    """Makes and stores an access token, and a refresh token where the client can use one.

    lifetime_ms: None for `limits.ACCESS_TOKEN_LIFETIME_MS` of a refreshable token and no end of any other.
    """
    if lifetime_ms is None and refreshable:
        lifetime_ms = limits.ACCESS_TOKEN_LIFETIME_MS
    access_token = new_token("hsat")
    expires_ms = None if lifetime_ms is None else tx.now_ms + lifetime_ms
    store_access_token(tx, hash_token(access_token), user_id, device_id, expires_ms, refreshed_by)
    refresh_token = None
    if refreshable:
        refresh_token = new_token("hsrt")
        tx.run(
            "INSERT INTO refresh_tokens (token_hash, user_nid, device_id, created_ms, refreshed_by)"
            " VALUES (?, ?, ?, ?, ?)",
            hash_token(refresh_token),
            tx.intern(user_id),
            device_id,
            tx.now_ms,
            refreshed_by,
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


def get_requester(tx: Transaction, token_hash: bytes) -> TokenLookup | None:
    """Who holds the access token. Expired tokens are found too."""
    row = tx.one(
        "SELECT t.user_nid, t.device_id, t.expires_ms, t.refreshed_by,"
        " f.is_admin, f.is_guest, f.is_locked, f.is_suspended"
        " FROM access_tokens t LEFT JOIN account_flags f ON f.user_nid = t.user_nid WHERE t.token_hash = ?",
        token_hash,
    )
    if row is None:
        return None
    user_nid, device_id, expires_ms, refreshed_by, is_admin, is_guest, is_locked, is_suspended = row
    requester = Requester(
        user_id=UserID(tx.name(user_nid)),
        device_id=device_id,
        is_guest=bool(is_guest),
        is_admin=bool(is_admin),
        token_id=token_hash,
        is_suspended=bool(is_suspended),
        is_locked=bool(is_locked),
    )
    return TokenLookup(requester, expires_ms, refreshed_by is not None)


def check_token(tx: Transaction, requester: Requester) -> None:
    """Raises MatrixError 401 if the requester's token was revoked, or their account locked, since the request began.

    Where the device has another token by now, the client can go on with that, and is told to keep its keys.
    """
    if not requester.token_id:
        return
    found = get_requester(tx, requester.token_id)
    if found is None:
        raise unknown_token(soft_logout=_is_logged_in(tx, requester))
    if found.requester.is_locked and not requester.is_locked:
        raise user_locked()


def check_device(tx: Transaction, requester: Requester) -> None:
    """Raises MatrixError 401 if the device was logged out, or the account locked, since the request began.

    A token that was replaced meanwhile is good enough: a long upload may outlive it.
    """
    if not requester.token_id:
        return
    if not _is_logged_in(tx, requester):
        raise unknown_token()
    if get_account_flags(tx, requester.user_id).is_locked and not requester.is_locked:
        raise user_locked()


def _is_logged_in(tx: Transaction, requester: Requester) -> bool:
    row = tx.one(
        "SELECT 1 FROM access_tokens WHERE user_nid = ? AND device_id = ? LIMIT 1",
        tx.find(requester.user_id),
        requester.device_id,
    )
    return row is not None


def refresh_tokens(tx: Transaction, refresh_token: str) -> IssuedTokens:
    """New tokens for a refresh token, which stays good until one of them is used. Raises M_UNKNOWN_TOKEN."""
    token_hash = hash_token(refresh_token)
    row = tx.one("SELECT user_nid, device_id, refreshed_by FROM refresh_tokens WHERE token_hash = ?", token_hash)
    if row is None:
        raise MatrixError(401, "M_UNKNOWN_TOKEN", "This refresh token is not known.")
    user_nid, device_id, refreshed_by = row
    user_id = UserID(tx.name(user_nid))
    if refreshed_by is not None:  # this is the first use of a new refresh token: the one before it ends
        tx.run("DELETE FROM refresh_tokens WHERE token_hash = ?", refreshed_by)
        tx.run("UPDATE refresh_tokens SET refreshed_by = NULL WHERE token_hash = ?", token_hash)
        tx.run("UPDATE access_tokens SET refreshed_by = NULL WHERE refreshed_by = ?", refreshed_by)
    # Tokens of an earlier answer to the same refresh token: the client cannot have received it.
    tx.run("DELETE FROM access_tokens WHERE refreshed_by = ?", token_hash)
    tx.run("DELETE FROM refresh_tokens WHERE refreshed_by = ?", token_hash)
    forget_tokens(tx, user_id)
    return issue_tokens(tx, user_id, device_id, refreshable=True, refreshed_by=token_hash)


def revoke_replaced_tokens(tx: Transaction, token_hash: bytes) -> None:
    """The first use of a new access token: what it replaces ends."""
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
    forget_tokens(tx, UserID(tx.name(user_nid)))


def delete_token(tx: Transaction, user_id: UserID, token_hash: bytes) -> None:
    """Ends one access token, for those that belong to no device."""
    tx.run("DELETE FROM access_tokens WHERE token_hash = ?", token_hash)
    end_waiting(tx, user_id)


def delete_tokens_of_device(tx: Transaction, user_id: UserID, device_id: str) -> None:
    """Ends every access and refresh token of a device."""
    user_nid = tx.find(user_id)
    tx.run("DELETE FROM access_tokens WHERE user_nid = ? AND device_id = ?", user_nid, device_id)
    tx.run("DELETE FROM refresh_tokens WHERE user_nid = ? AND device_id = ?", user_nid, device_id)
    end_waiting(tx, user_id)


def delete_tokens_of_user(tx: Transaction, user_id: UserID, *, except_device_id: str | None = None) -> None:
    """Ends every access and refresh token of a user, but those of one device where it is given."""
    user_nid = tx.find(user_id)
    kept = "" if except_device_id is None else except_device_id
    every = 1 if except_device_id is None else 0
    tx.run("DELETE FROM access_tokens WHERE user_nid = ? AND (? = 1 OR device_id <> ?)", user_nid, every, kept)
    tx.run("DELETE FROM refresh_tokens WHERE user_nid = ? AND (? = 1 OR device_id <> ?)", user_nid, every, kept)
    end_waiting(tx, user_id)


def forget_tokens(tx: Transaction, user_id: UserID) -> None:
    """After the commit, every node looks up the user's tokens again."""
    tx.wake(tokens_key(user_id))


def end_waiting(tx: Transaction, user_id: UserID) -> None:
    """As `forget_tokens`; also wakes the user's syncs, so that none outlives its token."""
    forget_tokens(tx, user_id)
    tx.wake(user_id)


def get_account_flags(tx: Transaction, user_id: UserID) -> AccountFlags:
    """What kind of account the user has."""
    row = tx.one(
        "SELECT is_admin, is_guest, is_locked, is_suspended FROM account_flags WHERE user_nid = ?", tx.find(user_id)
    )
    return AccountFlags(*map(bool, row)) if row else AccountFlags()


def delete_account_flags(tx: Transaction, user_id: UserID) -> None:
    """Makes it an ordinary account, of which nothing is kept here."""
    tx.run("DELETE FROM account_flags WHERE user_nid = ?", tx.find(user_id))
    forget_tokens(tx, user_id)


def store_account_flags(tx: Transaction, user_id: UserID, flags: AccountFlags) -> None:
    """Replaces the account's flags."""
    tx.run(
        "INSERT INTO account_flags (user_nid, is_admin, is_guest, is_locked, is_suspended) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (user_nid) DO UPDATE SET is_admin = excluded.is_admin, is_guest = excluded.is_guest,"
        " is_locked = excluded.is_locked, is_suspended = excluded.is_suspended",
        tx.intern(user_id),
        int(flags.is_admin),
        int(flags.is_guest),
        int(flags.is_locked),
        int(flags.is_suspended),
    )
    end_waiting(tx, user_id)
