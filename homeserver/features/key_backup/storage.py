"""Backups of room keys as stored: versions, and the keys in each.

Theory of operation. A user has versions, numbered from 1, and never gets the number of a deleted one again. The keys of
a version lie in a store, which has a number of its own. To delete all keys of a version, the version gets a new store
and the old one goes on a list; so it takes one short write to delete any number of keys, and the rows are deleted
afterwards, some in each write (`delete_some`), also after a restart. A version knows the number of its keys, their
bytes, and its etag, which changes with every change of its keys: nothing counts keys.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec
import orjson

from homeserver import limits
from homeserver.database import Row, Schema, Step, Transaction
from homeserver.encoding import to_json
from homeserver.errors import MatrixError
from homeserver.feature import JsonObject
from homeserver.federation.identifiers import RoomID, UserID

WAKE_KEY = "key_backup_deletions"
VERSION_MAX = 10**15 - 1

SCHEMA = Schema(
    "key_backup",
    (
        Step(
            "001_create",
            """
            -- last_version: the highest number that a version of the user ever had.
            CREATE TABLE key_backups (user_nid INTEGER PRIMARY KEY, last_version INTEGER NOT NULL);
            CREATE TABLE key_backup_versions (
                user_nid INTEGER NOT NULL,
                version INTEGER NOT NULL,
                algorithm TEXT NOT NULL,
                auth_data BLOB NOT NULL,
                store INTEGER NOT NULL,
                etag INTEGER NOT NULL,
                keys INTEGER NOT NULL,
                bytes INTEGER NOT NULL,
                PRIMARY KEY (user_nid, version)
            ) WITHOUT ROWID;
            CREATE TABLE key_backup_keys (
                store INTEGER NOT NULL,
                room_id TEXT NOT NULL,
                session_id TEXT NOT NULL,
                first_message_index INTEGER NOT NULL,
                forwarded_count INTEGER NOT NULL,
                is_verified INTEGER NOT NULL,
                session_data BLOB NOT NULL,
                PRIMARY KEY (store, room_id, session_id)
            ) WITHOUT ROWID;
            -- Stores whose keys have still to be deleted.
            CREATE TABLE key_backup_deletions (store INTEGER PRIMARY KEY);
            """,
        ),
    ),
)


class Version(msgspec.Struct, frozen=True):
    """A version of a user's backup. keys, bytes: how many keys it has, and the size of their `session_data`."""

    user_id: UserID
    version: int
    algorithm: str
    auth_data: bytes
    store: int
    etag: int
    keys: int
    bytes: int


class Key(msgspec.Struct, frozen=True):
    """The key of a session, encrypted. session_data: JSON."""

    first_message_index: int
    forwarded_count: int
    is_verified: bool
    session_data: bytes

    def is_better_than(self, other: Key) -> bool:
        """Returns whether this key replaces the other. Spec: client-server-api/#server-side-key-backups"""
        return self._rank() < other._rank()

    def _rank(self) -> tuple[bool, int, int]:
        return (not self.is_verified, self.first_message_index, self.forwarded_count)

    def body(self) -> JsonObject:
        """Returns the key as the API shows it."""
        return {**self._numbers(), "session_data": orjson.loads(self.session_data)}

    def json(self) -> bytes:
        """Returns the same as JSON."""
        return to_json({**self._numbers(), "session_data": orjson.Fragment(self.session_data)})

    def _numbers(self) -> JsonObject:
        return {
            "first_message_index": self.first_message_index,
            "forwarded_count": self.forwarded_count,
            "is_verified": self.is_verified,
        }


# --- versions ---


def find_version(tx: Transaction, user_id: UserID, version: int | None = None) -> Version | None:
    """Returns that version of the user's backup, by default the current one; None if there is none."""
    row = tx.one(
        "SELECT version, algorithm, auth_data, store, etag, keys, bytes FROM key_backup_versions"
        " WHERE user_nid = ? AND version BETWEEN ? AND ? ORDER BY version DESC LIMIT 1",
        tx.find(user_id), version or 1, version or VERSION_MAX,
    )  # fmt: skip
    return None if row is None else Version(user_id, *row)


def has_had_version(tx: Transaction, user_id: UserID, version: int) -> bool:
    """Returns whether the version exists or existed once."""
    row = tx.one("SELECT last_version FROM key_backups WHERE user_nid = ?", tx.find(user_id))
    return row is not None and version <= row[0]


def create_version(tx: Transaction, user_id: UserID, algorithm: str, auth_data: Mapping[str, Any]) -> int:
    """Creates a version, which is the current one from then on. Raises M_USER_LIMIT_EXCEEDED if there are too many."""
    nid = tx.intern(user_id)
    (count,) = tx.one("SELECT COUNT(*) FROM key_backup_versions WHERE user_nid = ?", nid) or (0,)
    if count >= limits.users.KEY_BACKUP_VERSIONS_MAX:
        raise _limit_exceeded(tx, "There are too many versions of the key backup. Delete some of the older ones.")
    row = tx.one(
        "INSERT INTO key_backups (user_nid, last_version) VALUES (?, 1)"
        " ON CONFLICT (user_nid) DO UPDATE SET last_version = key_backups.last_version + 1 RETURNING last_version",
        nid,
    )
    assert row is not None
    tx.run(
        "INSERT INTO key_backup_versions (user_nid, version, algorithm, auth_data, store, etag, keys, bytes)"
        " VALUES (?, ?, ?, ?, ?, 0, 0, 0)",
        nid, row[0], algorithm, to_json(auth_data), tx.next_position(),
    )  # fmt: skip
    return int(row[0])


def set_auth_data(tx: Transaction, version: Version, auth_data: Mapping[str, Any]) -> None:
    """Replaces the data by which clients recognise the key of the backup."""
    tx.run(
        "UPDATE key_backup_versions SET auth_data = ? WHERE user_nid = ? AND version = ?",
        to_json(auth_data), tx.find(version.user_id), version.version,
    )  # fmt: skip


def delete_version(tx: Transaction, version: Version) -> None:
    """Deletes a version; its keys follow later."""
    tx.run(
        "DELETE FROM key_backup_versions WHERE user_nid = ? AND version = ?",
        tx.find(version.user_id), version.version,
    )  # fmt: skip
    _delete_store(tx, version.store)


def forget_key_backup(tx: Transaction, user_id: UserID, erase: bool) -> bool:
    """Deletes all backups of the user. Their keys follow later: nobody can read them any more."""
    nid = tx.find(user_id)
    for store in tx.values("SELECT store FROM key_backup_versions WHERE user_nid = ?", nid):
        _delete_store(tx, store)
    tx.run("DELETE FROM key_backup_versions WHERE user_nid = ?", nid)
    tx.run("DELETE FROM key_backups WHERE user_nid = ?", nid)
    return False


# --- keys ---


def find_key(tx: Transaction, version: Version, room_id: RoomID, session_id: str) -> Key | None:
    """Returns the key of a session, None if it is not in the backup."""
    row = tx.one(
        "SELECT first_message_index, forwarded_count, is_verified, session_data FROM key_backup_keys"
        " WHERE store = ? AND room_id = ? AND session_id = ?",
        version.store, room_id, session_id,
    )  # fmt: skip
    return None if row is None else _key(row)


def list_keys(
    tx: Transaction, store: int, room_id: RoomID | None, after: tuple[str, str], limit: int
) -> list[tuple[str, str, Key]]:
    """Returns room, session and key of the keys after a room and session, in order: of one room, or of all rooms."""
    if room_id is not None and after[0] != room_id:
        after = (room_id, "")
    rows = tx.all(
        "SELECT room_id, session_id, first_message_index, forwarded_count, is_verified, session_data"
        " FROM key_backup_keys WHERE store = ? AND room_id = ? AND session_id > ? ORDER BY session_id LIMIT ?",
        store, *after, limit,
    )  # fmt: skip
    if room_id is None and len(rows) < limit:
        rows += tx.all(
            "SELECT room_id, session_id, first_message_index, forwarded_count, is_verified, session_data"
            " FROM key_backup_keys WHERE store = ? AND room_id > ? ORDER BY room_id, session_id LIMIT ?",
            store, after[0], limit - len(rows),
        )  # fmt: skip
    return [(row[0], row[1], _key(row[2:])) for row in rows]


def store_keys(tx: Transaction, version: Version, rooms: Mapping[RoomID, Mapping[str, Key]]) -> Version:
    """Stores the keys that are new or better than those in the backup. Returns the version as it is then.

    Raises M_USER_LIMIT_EXCEEDED if the user's backups become too large.
    """
    new_keys = new_bytes = 0
    rows: list[Sequence[object]] = []
    for room_id, keys in rooms.items():
        known = _list_known(tx, version.store, room_id, keys)
        for session_id, key in keys.items():
            old = known.get(session_id)
            if old is not None and not key.is_better_than(old):
                continue
            new_keys += old is None
            new_bytes += len(key.session_data) - (0 if old is None else len(old.session_data))
            rows.append((version.store, room_id, session_id, *_columns(key)))
    if not rows:
        return version
    _check_size(tx, version.user_id, new_keys, new_bytes)
    tx.many(
        "INSERT INTO key_backup_keys (store, room_id, session_id, first_message_index, forwarded_count, is_verified,"
        " session_data) VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (store, room_id, session_id) DO UPDATE SET"
        " first_message_index = excluded.first_message_index, forwarded_count = excluded.forwarded_count,"
        " is_verified = excluded.is_verified, session_data = excluded.session_data",
        rows,
    )
    return _note_change(tx, version, new_keys, new_bytes)


def delete_key(tx: Transaction, version: Version, room_id: RoomID, session_id: str) -> Version:
    """Deletes the key of a session, if it is in the backup. Returns the version as it is then."""
    return _delete_keys(tx, version, room_id, [session_id])


def delete_keys_of_room(tx: Transaction, version: Version, room_id: RoomID, limit: int) -> tuple[Version, bool]:
    """Deletes at most `limit` keys of a room. Returns the version as it is then, and whether there may be more."""
    session_ids = tx.values(
        "SELECT session_id FROM key_backup_keys WHERE store = ? AND room_id = ? ORDER BY session_id LIMIT ?",
        version.store, room_id, limit,
    )  # fmt: skip
    return _delete_keys(tx, version, room_id, session_ids), len(session_ids) == limit


def delete_all_keys(tx: Transaction, version: Version) -> Version:
    """Empties a version. Returns it as it is then. The rows follow later."""
    if not version.keys:
        return version
    _delete_store(tx, version.store)
    tx.run(
        "UPDATE key_backup_versions SET store = ? WHERE user_nid = ? AND version = ?",
        tx.next_position(), tx.find(version.user_id), version.version,
    )  # fmt: skip
    return _note_change(tx, version, -version.keys, -version.bytes)


def _delete_keys(tx: Transaction, version: Version, room_id: RoomID, session_ids: Sequence[str]) -> Version:
    known = _list_known(tx, version.store, room_id, session_ids)
    if not known:
        return version
    tx.many(
        "DELETE FROM key_backup_keys WHERE store = ? AND room_id = ? AND session_id = ?",
        [(version.store, room_id, session_id) for session_id in known],
    )
    return _note_change(tx, version, -len(known), -sum(len(key.session_data) for key in known.values()))


def _list_known(tx: Transaction, store: int, room_id: RoomID, session_ids: Collection[str]) -> dict[str, Key]:
    rows = tx.all_in(
        "SELECT session_id, first_message_index, forwarded_count, is_verified, session_data FROM key_backup_keys"
        " WHERE session_id IN (?*) AND store = ? AND room_id = ?",
        session_ids, store, room_id,
    )  # fmt: skip
    return {row[0]: _key(row[1:]) for row in rows}


def _note_change(tx: Transaction, version: Version, new_keys: int, new_bytes: int) -> Version:
    tx.run(
        "UPDATE key_backup_versions SET etag = etag + 1, keys = keys + ?, bytes = bytes + ?"
        " WHERE user_nid = ? AND version = ?",
        new_keys, new_bytes, tx.find(version.user_id), version.version,
    )  # fmt: skip
    changed = find_version(tx, version.user_id, version.version)
    assert changed is not None
    return changed


def _check_size(tx: Transaction, user_id: UserID, new_keys: int, new_bytes: int) -> None:
    row = tx.one(
        "SELECT SUM(bytes + keys * ?) FROM key_backup_versions WHERE user_nid = ?",
        limits.users.KEY_BACKUP_ROW_BYTES, tx.find(user_id),
    )  # fmt: skip
    assert row is not None
    new_bytes += new_keys * limits.users.KEY_BACKUP_ROW_BYTES
    if new_bytes > 0 and row[0] + new_bytes > limits.users.KEY_BACKUP_BYTES_MAX:
        most = limits.users.KEY_BACKUP_BYTES_MAX >> 20
        raise _limit_exceeded(tx, f"The key backups of an account are limited to {most} MiB. Delete older versions.")


def _limit_exceeded(tx: Transaction, error: str) -> MatrixError:
    return MatrixError(403, "M_USER_LIMIT_EXCEEDED", error, info_uri=tx.server.config.base_url)


def _key(row: Row) -> Key:
    first_message_index, forwarded_count, is_verified, session_data = row
    return Key(first_message_index, forwarded_count, bool(is_verified), bytes(session_data))


def _columns(key: Key) -> tuple[int, int, int, bytes]:
    return key.first_message_index, key.forwarded_count, int(key.is_verified), key.session_data


# --- deleting afterwards ---


def _delete_store(tx: Transaction, store: int) -> None:
    tx.run("INSERT INTO key_backup_deletions (store) VALUES (?)", store)
    tx.wake(WAKE_KEY)


def list_deletions(tx: Transaction) -> list[int]:
    """Returns the stores whose keys have still to be deleted."""
    return tx.values("SELECT store FROM key_backup_deletions ORDER BY store")


def delete_some(tx: Transaction, store: int, limit: int) -> bool:
    """Deletes at most `limit` keys of a store. Returns False once nothing is left of it."""
    rows = tx.all("SELECT room_id, session_id FROM key_backup_keys WHERE store = ? LIMIT ?", store, limit)
    tx.many(
        "DELETE FROM key_backup_keys WHERE store = ? AND room_id = ? AND session_id = ?",
        [(store, *row) for row in rows],
    )
    if len(rows) < limit:
        tx.run("DELETE FROM key_backup_deletions WHERE store = ?", store)
    return len(rows) == limit
