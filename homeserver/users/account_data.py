"""Account data: what is kept for a user, for all rooms or for one. Spec: client-server-api/#client-config"""

from __future__ import annotations

from collections.abc import Collection

import orjson

from homeserver import limits
from homeserver.authenticate import Requester
from homeserver.database import Row, Schema, Step, Transaction
from homeserver.encoding import to_json
from homeserver.errors import forbidden, invalid_param
from homeserver.feature import JsonObject
from homeserver.federation.identifiers import RoomID, UserID
from homeserver.resources import Resources

# room_nid is 0 for what belongs to no room.
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
    ),
)


def check_own(requester: Requester, user_id: UserID) -> None:
    """Raises M_FORBIDDEN: nobody sees what another user keeps."""
    if requester.user_id != user_id:
        raise forbidden("Account data is for its user only.")


def store_account_data(
    tx: Transaction, user_id: UserID, room_id: RoomID | None, data_type: str, content: JsonObject
) -> None:
    """Replaces the user's data of this type, and tells the user's devices. room_id None: it belongs to no room."""
    user_nid, room_nid, type_nid = tx.intern(user_id), tx.intern(room_id) if room_id else 0, tx.intern(data_type)
    position = tx.next_position(user_id)
    replaced = tx.run(
        "UPDATE account_data SET content = ?, position = ? WHERE user_nid = ? AND room_nid = ? AND type_nid = ?",
        to_json(content), position, user_nid, room_nid, type_nid,
    )  # fmt: skip
    if not replaced:
        (count,) = tx.one("SELECT COUNT(*) FROM account_data WHERE user_nid = ?", user_nid) or (0,)
        if count >= limits.ACCOUNT_DATA_TYPES_MAX:
            raise invalid_param(f"There may be {limits.ACCOUNT_DATA_TYPES_MAX} types of account data.")
        tx.run(
            "INSERT INTO account_data (user_nid, room_nid, type_nid, content, position) VALUES (?, ?, ?, ?, ?)",
            user_nid, room_nid, type_nid, to_json(content), position,
        )  # fmt: skip


def find_account_data(
    tx: Transaction, user_id: UserID, room_id: RoomID | None, data_type: str
) -> JsonObject | None:
    """The user's data of this type; room_id None: what belongs to no room."""
    row = tx.one(
        "SELECT content FROM account_data WHERE user_nid = ? AND room_nid = ? AND type_nid = ?",
        tx.find(user_id), tx.find(room_id) if room_id else 0, tx.find(data_type),
    )  # fmt: skip
    return None if row is None else orjson.loads(row[0])


def list_changes(tx: Transaction, user_id: UserID, since: int, upto: int) -> list[Row]:
    """room_nid (0: of no room), type_nid and content of what changed at since < position ≤ upto, in that order."""
    return tx.all(
        "SELECT room_nid, type_nid, content FROM account_data WHERE user_nid = ? AND position > ? AND position <= ?"
        " ORDER BY position",
        tx.find(user_id), since, upto,
    )  # fmt: skip


def list_of_rooms(tx: Transaction, user_id: UserID, room_nids: Collection[int | None]) -> list[Row]:
    """The same of all there is for these rooms."""
    return tx.all_in(
        "SELECT room_nid, type_nid, content FROM account_data WHERE room_nid IN (?*) AND user_nid = ?",
        [nid for nid in room_nids if nid is not None],
        tx.find(user_id),
    )


def forget_account_data(tx: Transaction, hs: Resources, user_id: UserID, erase: bool) -> bool:
    """What the user kept for their own devices, tags included. No device is left to read it."""
    tx.run("DELETE FROM account_data WHERE user_nid = ?", tx.find(user_id))
    return False
