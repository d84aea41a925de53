"""Accounts: the users of this server, their passwords, and whether they are deactivated.

Spec: client-server-api/#account-registration

`homeserver.authenticate` stores the flags that affect requests (administrator, guest, locked, suspended).
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

from homeserver import authenticate
from homeserver.authenticate import AccountFlags
from homeserver.database import Schema, Step, Transaction
from homeserver.encoding import to_json
from homeserver.errors import MatrixError, bad_json, forbidden, missing_param, not_found
from homeserver.federation.identifiers import ServerName, UserID, fits, is_valid_localpart, localpart_of
from homeserver.resources import Resources
from homeserver.users.passwords import check_new_password, hash_password
from homeserver.users.profile import store_field

# deactivated_position: the stream position of the deactivation, for tails that remove the user's other data.
SCHEMA = Schema(
    "accounts",
    (
        Step(
            "create",
            """
            CREATE TABLE users (
                user_nid INTEGER PRIMARY KEY,
                password_hash TEXT,
                created_ms INTEGER NOT NULL,
                appservice TEXT,
                deactivated_ms INTEGER,
                deactivated_position INTEGER,
                erased INTEGER NOT NULL
            );
            CREATE INDEX users_deactivated ON users (deactivated_position) WHERE deactivated_position IS NOT NULL;
            """,
        ),
        Step("002_user_type", "ALTER TABLE users ADD COLUMN user_type TEXT;"),
    ),
)

NO_FLAGS = AccountFlags()
_GENERATED_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"


class User(msgspec.Struct, frozen=True):
    """An account. password_hash is None if no password can be used; appservice is the ID of its owner."""

    user_id: UserID
    password_hash: str | None
    created_ms: int
    appservice: str | None
    deactivated_ms: int | None
    erased: bool
    user_type: str | None = None

    @property
    def is_deactivated(self) -> bool:
        return self.deactivated_ms is not None


def user_id_of(server_name: ServerName, username: str) -> UserID:
    """Returns the ID of a new user who wants the name `username`. Raises M_INVALID_USERNAME."""
    localpart = username.lower()
    user_id = f"@{localpart}:{server_name}"
    if not is_valid_localpart(localpart) or not fits(user_id):
        raise MatrixError(
            400, "M_INVALID_USERNAME",
            "A username may only contain a-z, 0-9 and . _ = - / + and, with the server's name, must fit in 255 bytes.",
        )  # fmt: skip
    return UserID(user_id)


def generate_user_id(server_name: ServerName) -> UserID:
    """Returns a random user ID with 60 random bits."""
    return UserID(f"@{''.join(secrets.choice(_GENERATED_ALPHABET) for _ in range(12))}:{server_name}")


def is_local(hs: Resources, user_id: str) -> bool:
    """Returns whether the user belongs to this server."""
    return user_id.partition(":")[2] == hs.server_name


def read_identifier(server_name: ServerName, identifier: Mapping[str, Any] | None, user: str | None = None) -> UserID:
    """Returns the local user named by an identifier object, or by the older `user` key. The account need not exist.

    Raises M_FORBIDDEN if it cannot be a user of this server. Spec: client-server-api/#identifier-types
    """
    if identifier is not None:
        kind = identifier.get("type", "m.id.user" if "user" in identifier else "m.id.thirdparty")
        if kind in ("m.id.thirdparty", "m.id.phone"):
            raise forbidden("No account has that third-party identifier.")
        if kind != "m.id.user":
            raise MatrixError(400, "M_UNKNOWN", "This type of identifier is unknown.")
        user = identifier.get("user")
    if user is None:
        raise missing_param("An identifier with the user's name is required.")
    if not isinstance(user, str):
        raise bad_json("The user in the identifier must be a string.")
    localpart = user
    if user.startswith("@"):
        if user.partition(":")[2] != server_name:
            raise forbidden("The user does not belong to this server.")
        localpart = localpart_of(user)
    try:
        return user_id_of(server_name, localpart)
    except MatrixError:
        raise wrong_password() from None


def wrong_password() -> MatrixError:
    """Returns 403 M_FORBIDDEN, the same whether the account exists or not."""
    return forbidden("The username or the password is wrong.")


def find_local(hs: Resources, name: str) -> UserID:
    """Returns the ID of a local user, from "alice" or "@alice:example.org". Raises MatrixError if it cannot be one."""
    if not name.startswith("@"):
        return user_id_of(hs.server_name, name)
    if not is_local(hs, name):
        raise not_found(f"{name} is not a user of {hs.server_name}.")
    return UserID(name)


async def create_account(
    hs: Resources,
    username: str,
    password: str | None,
    *,
    admin: bool = False,
    appservice: str | None = None,
    exist_ok: bool = False,
) -> UserID:
    """Creates an account without any authentication: for administrators and embedding programs.

    Raises M_INVALID_USERNAME, M_WEAK_PASSWORD, M_INVALID_PARAM or, unless `exist_ok`, M_USER_IN_USE. An existing
    account is not changed.
    """
    user_id = user_id_of(hs.server_name, username)
    if exist_ok and await hs.database.read(find_user, user_id) is not None:
        return user_id
    password_hash = None
    if password is not None:
        check_new_password(hs, password)
        password_hash = await hash_password(hs, password)
    try:
        await hs.database.write(create_user, user_id, password_hash, AccountFlags(is_admin=admin), appservice)
    except MatrixError as error:  # another request may have just created the account
        if not exist_ok or error.errcode != "M_USER_IN_USE":
            raise
    return user_id


# --- storage ---


def create_user(
    tx: Transaction,
    user_id: UserID,
    password_hash: str | None = None,
    flags: AccountFlags = NO_FLAGS,
    appservice: str | None = None,
) -> None:
    """Stores a new account, with its localpart as display name. Names are never free again.

    Raises M_USER_IN_USE, and M_EXCLUSIVE if the name belongs to an application service other than `appservice`.
    """
    check_name_is_free(tx, user_id, appservice)
    added = tx.run(
        "INSERT INTO users (user_nid, password_hash, created_ms, appservice, erased) VALUES (?, ?, ?, ?, 0)"
        " ON CONFLICT (user_nid) DO NOTHING",
        tx.intern(user_id), password_hash, tx.now_ms, appservice,
    )  # fmt: skip
    if not added:
        raise user_in_use()
    store_field(tx, user_id, "displayname", to_json(localpart_of(user_id)))
    if flags != NO_FLAGS:
        authenticate.store_account_flags(tx, user_id, flags)


def check_name_is_free(tx: Transaction, user_id: UserID, appservice: str | None = None) -> None:
    """Raises M_EXCLUSIVE if the name belongs to an application service other than `appservice`."""
    if not tx.server.application_services.may_use(user_id, appservice):
        raise exclusive("This username is reserved for an application service.")


def check_available(tx: Transaction, user_id: UserID) -> None:
    """Raises M_USER_IN_USE or M_EXCLUSIVE if no new account can have this name."""
    check_name_is_free(tx, user_id)
    if find_user(tx, user_id) is not None:
        raise user_in_use()


def exclusive(error: str) -> MatrixError:
    """Returns 400 M_EXCLUSIVE: a name belongs, or does not belong, to an application service."""
    return MatrixError(400, "M_EXCLUSIVE", error)


def user_in_use() -> MatrixError:
    """Returns 400 M_USER_IN_USE."""
    return MatrixError(400, "M_USER_IN_USE", "This username is taken.")


def no_account(user_id: UserID) -> MatrixError:
    """Returns 404 M_NOT_FOUND."""
    return not_found(f"There is no account {user_id} on this server.")


def find_user(tx: Transaction, user_id: UserID) -> User | None:
    """Returns the account, even a deactivated one; None if there never was one."""
    nid = tx.find(user_id)
    if nid is None:
        return None
    row = tx.one(
        "SELECT password_hash, created_ms, appservice, deactivated_ms, erased, user_type FROM users WHERE user_nid = ?",
        nid,
    )
    if row is None:
        return None
    return User(user_id, row[0], row[1], row[2], row[3], bool(row[4]), row[5])


def is_active(tx: Transaction, user_id: UserID) -> bool:
    """Returns whether the account exists and is not deactivated."""
    nid = tx.find(user_id)
    return nid is not None and bool(
        tx.one("SELECT 1 FROM users WHERE user_nid = ? AND deactivated_ms IS NULL", nid)
    )  # fmt: skip


def list_active(tx: Transaction, user_ids: Collection[UserID]) -> set[UserID]:
    """Returns those of the users that have an account here which is not deactivated."""
    by_nid = {nid: UserID(user_id) for user_id, nid in tx.find_all(user_ids).items()}
    rows = tx.all_in("SELECT user_nid FROM users WHERE user_nid IN (?*) AND deactivated_ms IS NULL", by_nid)
    return {by_nid[row[0]] for row in rows}


def list_users(tx: Transaction, after: str = "", limit: int = 1000) -> list[User]:
    """Returns accounts sorted by ID, starting after `after`."""
    rows = tx.all(
        "SELECT s.value, u.password_hash, u.created_ms, u.appservice, u.deactivated_ms, u.erased, u.user_type"
        " FROM users u JOIN strings s ON s.nid = u.user_nid WHERE s.value > ? ORDER BY s.value LIMIT ?",
        after, limit,
    )  # fmt: skip
    return [User(UserID(row[0]), row[1], row[2], row[3], row[4], bool(row[5]), row[6]) for row in rows]


def list_created(tx: Transaction, begin_ms: int, end_ms: int) -> list[int]:
    """Returns when accounts were created, in begin_ms ≤ moment < end_ms."""
    return tx.values("SELECT created_ms FROM users WHERE created_ms >= ? AND created_ms < ?", begin_ms, end_ms)


def store_password_hash(tx: Transaction, user_id: UserID, password_hash: str | None) -> None:
    """Replaces the password of an account unless it is deactivated."""
    tx.run(
        "UPDATE users SET password_hash = ? WHERE user_nid = ? AND deactivated_ms IS NULL",
        password_hash, tx.find(user_id),
    )  # fmt: skip


def store_admin(tx: Transaction, user_id: UserID, is_admin: bool) -> None:
    """Makes the user an administrator of this server, or an ordinary user."""
    flags = authenticate.get_account_flags(tx, user_id)
    authenticate.store_account_flags(tx, user_id, replace(flags, is_admin=is_admin))


def set_deactivated(tx: Transaction, user_id: UserID, *, erase: bool) -> None:
    """Ends the account: no password, no tokens, no flags. The name stays taken. Repeatable only to add erasure."""
    position = tx.next_position(user_id)
    tx.run(
        "UPDATE users SET password_hash = NULL, deactivated_ms = COALESCE(deactivated_ms, ?), deactivated_position = ?,"
        " erased = ? WHERE user_nid = ? AND erased <= ?",
        tx.now_ms, position, int(erase), tx.find(user_id), int(erase),
    )  # fmt: skip
    authenticate.delete_tokens_of_user(tx, user_id, and_issued=True)
    authenticate.store_account_flags(tx, user_id, NO_FLAGS)


def set_active(tx: Transaction, user_id: UserID) -> None:
    """Opens a deactivated account again, without a password and without anything that was deleted with it."""
    tx.run(
        "UPDATE users SET deactivated_ms = NULL, deactivated_position = NULL, erased = 0 WHERE user_nid = ?",
        tx.find(user_id),
    )
    tx.next_position(user_id)


def set_user_type(tx: Transaction, user_id: UserID, user_type: str | None) -> None:
    """Says what kind of user the account is for, for tools of administrators; None for a person."""
    tx.run("UPDATE users SET user_type = ? WHERE user_nid = ?", user_type, tx.find(user_id))
