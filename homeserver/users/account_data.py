"""Account data: data that clients store for their user, per room or for all. Spec: client-server-api/#client-config"""

from __future__ import annotations

from collections.abc import Collection

import orjson

from homeserver import limits
from homeserver.authenticate import Requester
from homeserver.database import Row, Schema, Step, Transaction
from homeserver.encoding import is_intact, to_json
from homeserver.errors import MatrixError, forbidden, invalid_param
from homeserver.feature import JsonObject
from homeserver.federation.identifiers import RoomID, UserID

# room_nid is 0 for data that belongs to no room.
SCHEMA = Schema(
    "account_data",
    (
        Step(
            "create",
            """
            CREATE TABLE account_data (
                user_nid INTEGER NOT NULL,
                room_nid INTEGER NOT NULL,
                type_nid INTEGER NOT NULL,
                content BLOB NOT NULL,
                position INTEGER NOT NULL,
                PRIMARY KEY (user_nid, room_nid, type_nid)
            ) WITHOUT ROWID;
            CREATE INDEX account_data_position ON account_data (user_nid, position);
            """,
        ),
        Step(
            "sizes",
            """
            -- How much each user keeps, so that it need not be counted at each change. A type counts with its name.
            CREATE TABLE account_data_sizes (
                user_nid INTEGER PRIMARY KEY,
                types INTEGER NOT NULL,
                bytes INTEGER NOT NULL
            );
            INSERT INTO account_data_sizes (user_nid, types, bytes)
                SELECT user_nid, COUNT(*), SUM(LENGTH(content)) FROM account_data GROUP BY user_nid;
            """,
        ),
    ),
)


def check_own(requester: Requester, user_id: UserID) -> None:
    """Raises M_FORBIDDEN if the data belongs to another user."""
    if requester.user_id != user_id:
        raise forbidden("You can only access your own account data.")


def store_account_data(
    tx: Transaction, user_id: UserID, room_id: RoomID | None, data_type: str, content: JsonObject
) -> None:
    """Replaces the user's data of this type, and wakes the user's devices. room_id None: it belongs to no room.

    Raises MatrixError 400 or 413 if the user would store too much.
    """
    if len(data_type.encode("utf-8", "surrogatepass")) > limits.users.ACCOUNT_DATA_TYPE_BYTES_MAX:
        raise invalid_param(f"The type of account data is limited to {limits.users.ACCOUNT_DATA_TYPE_BYTES_MAX} bytes.")
    user_nid, room_nid, type_nid = tx.intern(user_id), tx.intern(room_id) if room_id else 0, tx.intern(data_type)
    data = to_json(content)
    old = tx.one(
        "SELECT LENGTH(content) FROM account_data WHERE user_nid = ? AND room_nid = ? AND type_nid = ?",
        user_nid, room_nid, type_nid,
    )  # fmt: skip
    _store_totals(tx, user_nid, 0 if old else 1, len(data) - (old[0] if old else 0))
    tx.run(
        "INSERT INTO account_data (user_nid, room_nid, type_nid, content, position) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (user_nid, room_nid, type_nid) DO UPDATE SET content = excluded.content,"
        " position = excluded.position",
        user_nid, room_nid, type_nid, data, tx.next_position(user_id),
    )  # fmt: skip


def _store_totals(tx: Transaction, user_nid: int, new_types: int, new_bytes: int) -> None:
    """Updates the stored totals of a user. Reductions are allowed even if the totals are too large."""
    types, size_bytes = tx.one("SELECT types, bytes FROM account_data_sizes WHERE user_nid = ?", user_nid) or (0, 0)
    types, size_bytes = types + new_types, size_bytes + new_bytes
    if new_types > 0 and types > limits.users.ACCOUNT_DATA_TYPES_MAX:
        raise invalid_param(f"An account may have at most {limits.users.ACCOUNT_DATA_TYPES_MAX} types of account data.")
    if new_bytes > 0 and size_bytes > limits.users.ACCOUNT_DATA_BYTES_MAX:
        most = limits.users.ACCOUNT_DATA_BYTES_MAX >> 20
        raise MatrixError(413, "M_TOO_LARGE", f"Account data is limited to {most} MiB. Make some of it smaller.")
    tx.run(
        "INSERT INTO account_data_sizes (user_nid, types, bytes) VALUES (?, ?, ?)"
        " ON CONFLICT (user_nid) DO UPDATE SET types = excluded.types, bytes = excluded.bytes",
        user_nid, types, size_bytes,
    )  # fmt: skip


def find_account_data(tx: Transaction, user_id: UserID, room_id: RoomID | None, data_type: str) -> JsonObject | None:
    """Returns the user's data of this type, or None. room_id None: data that belongs to no room."""
    row = tx.one(
        "SELECT content FROM account_data WHERE user_nid = ? AND room_nid = ? AND type_nid = ?",
        tx.find(user_id), tx.find(room_id) if room_id else 0, tx.find(data_type),
    )  # fmt: skip
    return None if row is None else orjson.loads(row[0])


def find_change(tx: Transaction, user_id: UserID, data_type: str) -> int:
    """Returns the position of the last change of the user's data of this type that belongs to no room, 0 if none."""
    row = tx.one(
        "SELECT position FROM account_data WHERE user_nid = ? AND room_nid = 0 AND type_nid = ?",
        tx.find(user_id),
        tx.find(data_type),
    )
    return 0 if row is None else int(row[0])


def list_of_users(tx: Transaction, user_ids: Collection[UserID], data_type: str) -> dict[UserID, JsonObject | None]:
    """Returns each user's data of this type that belongs to no room, None if it is damaged.

    Users without any are left out.
    """
    nids = {nid: UserID(user_id) for user_id, nid in tx.find_all(user_ids).items()}
    rows = tx.all_in(
        "SELECT user_nid, content FROM account_data WHERE user_nid IN (?*) AND room_nid = 0 AND type_nid = ?",
        list(nids),
        tx.find(data_type),
    )
    return {
        nids[user_nid]: orjson.loads(content) if is_intact(content, "account data") else None
        for user_nid, content in rows
    }


def list_changes(tx: Transaction, user_id: UserID, since: int, upto: int) -> list[Row]:
    """Returns room_nid (0: no room), type_nid and content of changes in since < position ≤ upto, in that order.

    Damaged ones are left out.
    """
    rows = tx.all(
        "SELECT room_nid, type_nid, content FROM account_data WHERE user_nid = ? AND position > ? AND position <= ?"
        " ORDER BY position",
        tx.find(user_id), since, upto,
    )  # fmt: skip
    return [row for row in rows if is_intact(row[2], "account data")]


def list_of_rooms(tx: Transaction, user_id: UserID, room_nids: Collection[int | None]) -> list[Row]:
    """Returns the same for all data of these rooms."""
    rows = tx.all_in(
        "SELECT room_nid, type_nid, content FROM account_data WHERE room_nid IN (?*) AND user_nid = ?",
        [nid for nid in room_nids if nid is not None],
        tx.find(user_id),
    )
    return [row for row in rows if is_intact(row[2], "account data")]


def list_of_type(tx: Transaction, user_id: UserID, data_type: str) -> list[Row]:
    """Returns room_nid and content of all the user's data of this type that belongs to rooms."""
    return tx.all(
        "SELECT room_nid, content FROM account_data WHERE user_nid = ? AND type_nid = ? AND room_nid > 0",
        tx.find(user_id), tx.find(data_type),
    )  # fmt: skip


def list_all(tx: Transaction, user_id: UserID) -> list[tuple[RoomID | None, str, JsonObject]]:
    """Returns all the user's data: its room or None, its type, its content. Damaged data is left out."""
    rows = tx.all("SELECT room_nid, type_nid, content FROM account_data WHERE user_nid = ?", tx.find(user_id))
    intact = [row for row in rows if is_intact(row[2], "account data")]
    names = tx.names({nid for row in intact for nid in row[:2] if nid})
    return [
        (RoomID(names[room_nid]) if room_nid else None, names[type_nid], orjson.loads(content))
        for room_nid, type_nid, content in intact
    ]


def delete_of_room(tx: Transaction, room_id: RoomID, limit: int) -> bool:
    """Deletes some of the data that users keep for a room, tags included. Returns whether there may be more."""
    rows = tx.all(
        "SELECT user_nid, type_nid, LENGTH(content) FROM account_data WHERE room_nid = ? LIMIT ?",
        tx.find(room_id), limit,
    )  # fmt: skip
    for user_nid, type_nid, size_bytes in rows:
        tx.run(
            "DELETE FROM account_data WHERE user_nid = ? AND room_nid = ? AND type_nid = ?",
            user_nid, tx.find(room_id), type_nid,
        )  # fmt: skip
        _store_totals(tx, user_nid, -1, -size_bytes)
    return len(rows) == limit


def forget_account_data(tx: Transaction, user_id: UserID, erase: bool) -> bool:
    """Deletes the data that the user stored for their own devices, tags included. No device is left to read it."""
    tx.run("DELETE FROM account_data WHERE user_nid = ?", tx.find(user_id))
    tx.run("DELETE FROM account_data_sizes WHERE user_nid = ?", tx.find(user_id))
    return False
