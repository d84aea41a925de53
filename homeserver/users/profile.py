"""Profiles: what users say of themselves, as it is stored. Spec: client-server-api/#profiles

`member_profile` is for whoever makes member events. That rooms are still to be told of a change is stored with it.
"""

from __future__ import annotations

import orjson

from homeserver import limits
from homeserver.database import Schema, Step, Transaction
from homeserver.errors import MatrixError
from homeserver.feature import JsonObject
from homeserver.federation.identifiers import UserID

# profile_updates: users whose rooms have not all been told of their profile yet.
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
    ),
)

MEMBER_FIELDS = ("displayname", "avatar_url")
"""Those that member events repeat."""


def member_profile(tx: Transaction, user_id: UserID) -> JsonObject:
    """What a member event of the user repeats: displayname and avatar_url, those that are set."""
    rows = tx.all(
        "SELECT field, value FROM profiles WHERE user_nid = ? AND field IN ('displayname', 'avatar_url')",
        tx.find(user_id),
    )
    return {field: orjson.loads(value) for field, value in rows}


def find_profile(tx: Transaction, user_id: UserID, field: str | None = None) -> JsonObject:
    """The profile of a user of this server, or just one field of it; empty if it is not set, or nobody's."""
    nid = tx.find(user_id)
    if field is None:
        rows = tx.all("SELECT field, value FROM profiles WHERE user_nid = ? ORDER BY field", nid)
    else:
        rows = tx.all("SELECT field, value FROM profiles WHERE user_nid = ? AND field = ?", nid, field)
    return {name: orjson.loads(value) for name, value in rows}


def store_field(tx: Transaction, user_id: UserID, field: str, value: bytes | None) -> bool:
    """Sets a field to JSON, or removes it. False where nothing changes. Raises M_PROFILE_TOO_LARGE."""
    nid = tx.intern(user_id)
    row = tx.one("SELECT value FROM profiles WHERE user_nid = ? AND field = ?", nid, field)
    if (None if row is None else bytes(row[0])) == value:
        return False
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
    """The whole profile, which nobody can ask for any more. Rooms keep what they were told."""
    tx.run("DELETE FROM profiles WHERE user_nid = ?", tx.find(user_id))
    end_update(tx, user_id)
    return False


def begin_update(tx: Transaction, user_id: UserID) -> None:
    """Notes that the user's rooms are to be told of the profile."""
    tx.run("INSERT INTO profile_updates (user_nid) VALUES (?) ON CONFLICT (user_nid) DO NOTHING", tx.intern(user_id))


def end_update(tx: Transaction, user_id: UserID) -> None:
    """Notes that all rooms have been told."""
    tx.run("DELETE FROM profile_updates WHERE user_nid = ?", tx.find(user_id))


def list_unfinished(tx: Transaction) -> list[UserID]:
    """Whose rooms have not all been told."""
    return [UserID(name) for name in tx.names(tx.values("SELECT user_nid FROM profile_updates")).values()]
