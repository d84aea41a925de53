"""Stored profiles: names, pictures and other fields that users publish. Spec: client-server-api/#profiles

Code that builds member events uses `get_member_profile`. A change is stored together with a note that rooms
must get it.
"""

from __future__ import annotations

from collections.abc import Collection

import orjson

from homeserver import limits
from homeserver.database import Schema, Step, Transaction
from homeserver.errors import MatrixError
from homeserver.feature import JsonObject
from homeserver.federation.identifiers import UserID

# profile_updates: users whose rooms do not all have their new profile yet.
# profile_renames: users with a display name that the user directory does not know yet.
SCHEMA = Schema(
    "profile",
    (
        Step(
            "create",
            """
            CREATE TABLE profiles (
                user_nid INTEGER NOT NULL,
                field TEXT NOT NULL,
                value BLOB NOT NULL,
                PRIMARY KEY (user_nid, field)
            ) WITHOUT ROWID;
            CREATE TABLE profile_updates (user_nid INTEGER PRIMARY KEY);
            """,
        ),
        Step("002_renames", "CREATE TABLE profile_renames (user_nid INTEGER PRIMARY KEY);"),
    ),
)

RENAMES = "renames"  # the stream key that wakes who reads profile_renames
MEMBER_FIELDS = ("displayname", "avatar_url")
"""The fields that are copied to member events."""


def get_member_profile(tx: Transaction, user_id: UserID) -> JsonObject:
    """Returns the fields for a member event of the user: displayname and avatar_url, as far as they are set."""
    rows = tx.all(
        "SELECT field, value FROM profiles WHERE user_nid = ? AND field IN ('displayname', 'avatar_url')",
        tx.find(user_id),
    )
    return {field: orjson.loads(value) for field, value in rows}


def find_profile(tx: Transaction, user_id: UserID, field: str | None = None) -> JsonObject:
    """Returns the profile of a local user, or just one field of it; empty if it is not set or there is no such user."""
    nid = tx.find(user_id)
    if field is None:
        rows = tx.all("SELECT field, value FROM profiles WHERE user_nid = ? ORDER BY field", nid)
    else:
        rows = tx.all("SELECT field, value FROM profiles WHERE user_nid = ? AND field = ?", nid, field)
    return {name: orjson.loads(value) for name, value in rows}


def list_avatars(tx: Transaction) -> list[str]:
    """Returns the avatar URLs of all local users: about 60 bytes each."""
    values = [orjson.loads(value) for value in tx.values("SELECT value FROM profiles WHERE field = 'avatar_url'")]
    return [value for value in values if isinstance(value, str)]


def store_field(tx: Transaction, user_id: UserID, field: str, value: bytes | None) -> bool:
    """Sets a field to JSON, or removes it. Returns False if nothing changes. Raises M_PROFILE_TOO_LARGE."""
    nid = tx.intern(user_id)
    row = tx.one("SELECT value FROM profiles WHERE user_nid = ? AND field = ?", nid, field)
    if (None if row is None else bytes(row[0])) == value:
        return False
    if field == "displayname":
        tx.run("INSERT INTO profile_renames (user_nid) VALUES (?) ON CONFLICT (user_nid) DO NOTHING", nid)
        tx.wake(RENAMES)
    if value is None:
        tx.run("DELETE FROM profiles WHERE user_nid = ? AND field = ?", nid, field)
        return True
    tx.run(
        "INSERT INTO profiles (user_nid, field, value) VALUES (?, ?, ?)"
        " ON CONFLICT (user_nid, field) DO UPDATE SET value = excluded.value",
        nid, field, value,
    )  # fmt: skip
    stored = tx.all("SELECT field, value FROM profiles WHERE user_nid = ?", nid)
    # As canonical JSON: quotes and colon of each field, the commas between them, the braces.
    if sum(len(name) + len(json) + 4 for name, json in stored) + 1 > limits.users.PROFILE_BYTES_MAX:
        raise MatrixError(
            400, "M_PROFILE_TOO_LARGE", f"A profile holds {limits.users.PROFILE_BYTES_MAX} bytes, all fields together."
        )
    return True


def forget_profile(tx: Transaction, user_id: UserID, erase: bool) -> bool:
    """Deletes the whole profile, which nobody can request any more. Rooms keep their member events."""
    tx.run("DELETE FROM profiles WHERE user_nid = ?", tx.find(user_id))
    delete_unfinished(tx, user_id)
    delete_renames(tx, [user_id])
    return False


def note_unfinished(tx: Transaction, user_id: UserID) -> None:
    """Notes that not all of the user's rooms have the new member events."""
    tx.run("INSERT INTO profile_updates (user_nid) VALUES (?) ON CONFLICT (user_nid) DO NOTHING", tx.intern(user_id))


def delete_unfinished(tx: Transaction, user_id: UserID) -> None:
    """Deletes that note: all of the user's rooms have the new member events, or the account has ended."""
    tx.run("DELETE FROM profile_updates WHERE user_nid = ?", tx.find(user_id))


def list_unfinished(tx: Transaction) -> list[UserID]:
    """Returns the users whose rooms do not all have the new member events yet."""
    return [UserID(name) for name in tx.names(tx.values("SELECT user_nid FROM profile_updates")).values()]


def list_renames(tx: Transaction, limit: int) -> list[UserID]:
    """Returns users with a display name that the user directory does not know yet."""
    nids = tx.values("SELECT user_nid FROM profile_renames ORDER BY user_nid LIMIT ?", limit)
    return [UserID(name) for name in tx.names(nids).values()]


def delete_renames(tx: Transaction, user_ids: Collection[UserID]) -> None:
    """Deletes the notes of `list_renames`."""
    tx.many("DELETE FROM profile_renames WHERE user_nid = ?", [(tx.find(user_id),) for user_id in user_ids])
