"""Account data: what clients keep for their user, for all rooms or for one. Spec: client-server-api/#client-config"""

from __future__ import annotations

from collections.abc import Collection

import orjson

from federation.identifiers import RoomID, UserID
from homeserver import limits
from homeserver.api import Empty, Routes
from homeserver.authenticate import Requester
from homeserver.database import Row, Schema, Step, Transaction
from homeserver.errors import MatrixError, forbidden, invalid_param, not_found
from homeserver.feature import Feature, JsonObject, SyncContext
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

# "event types that the server manages" (client-server-api/#client-config)
MANAGED_TYPES = frozenset({"m.fully_read", "m.push_rules"})

routes = Routes()


@routes.put("/_matrix/client/v3/user/{user_id}/account_data/{data_type}")
async def set_account_data(hs: Resources, requester: Requester, user_id: UserID, data_type: str, body: dict) -> Empty:
    _check_may_set(requester, user_id, data_type)
    await hs.database.write(store_account_data, user_id, None, data_type, body)
    return Empty()


@routes.get("/_matrix/client/v3/user/{user_id}/account_data/{data_type}")
async def get_account_data(hs: Resources, requester: Requester, user_id: UserID, data_type: str) -> JsonObject:
    check_own(requester, user_id)
    return _found(await hs.database.read(find_account_data, user_id, None, data_type))


@routes.put("/_matrix/client/v3/user/{user_id}/rooms/{room_id}/account_data/{data_type}")
async def set_account_data_per_room(
    hs: Resources, requester: Requester, user_id: UserID, room_id: RoomID, data_type: str, body: dict
) -> Empty:
    _check_may_set(requester, user_id, data_type)
    await hs.database.write(store_account_data, user_id, room_id, data_type, body)
    return Empty()


@routes.get("/_matrix/client/v3/user/{user_id}/rooms/{room_id}/account_data/{data_type}")
async def get_account_data_per_room(
    hs: Resources, requester: Requester, user_id: UserID, room_id: RoomID, data_type: str
) -> JsonObject:
    check_own(requester, user_id)
    return _found(await hs.database.read(find_account_data, user_id, room_id, data_type))


def check_own(requester: Requester, user_id: UserID) -> None:
    """Raises M_FORBIDDEN: nobody sees what another user keeps."""
    if requester.user_id != user_id:
        raise forbidden("Account data is for its user only.")


def _check_may_set(requester: Requester, user_id: UserID, data_type: str) -> None:
    check_own(requester, user_id)
    if data_type in MANAGED_TYPES:
        raise MatrixError(405, "M_BAD_JSON", f"{data_type} is managed by the server; it cannot be set here.")


def _found(content: JsonObject | None) -> JsonObject:
    if content is None:
        raise not_found("There is no account data of this type.")
    return content


def sync_account_data(tx: Transaction, context: SyncContext) -> None:
    """What changed, and for newly joined rooms all there is."""
    room_nids = {tx.find(room_id): room_id for room_id in context.rooms}
    rows = tx.all(
        "SELECT room_nid, type_nid, content FROM account_data WHERE user_nid = ? AND position > ? AND position <= ?"
        " ORDER BY position",
        tx.find(context.user_id), context.since, context.upto,
    )  # fmt: skip
    if context.since > 0 and context.newly_joined:
        rows = [row for row in rows if room_nids.get(row[0]) not in context.newly_joined]
        rows += _of_rooms(tx, context.user_id, [nid for nid, name in room_nids.items() if name in context.newly_joined])
    for room_nid, type_nid, content in rows:
        event = {"type": tx.name(type_nid), "content": orjson.loads(content)}
        if room_nid == 0:
            context.account_data.append(event)
        elif room_nid in room_nids:
            context.rooms[room_nids[room_nid]].account_data.append(event)


def _of_rooms(tx: Transaction, user_id: UserID, room_nids: Collection[int | None]) -> list[Row]:
    return tx.all_in(
        "SELECT room_nid, type_nid, content FROM account_data WHERE room_nid IN (?*) AND user_nid = ?",
        [nid for nid in room_nids if nid is not None],
        tx.find(user_id),
    )


# --- storage; for other features too ---


def store_account_data(
    tx: Transaction, user_id: UserID, room_id: RoomID | None, data_type: str, content: JsonObject
) -> None:
    """Replaces the user's data of this type, and tells the user's devices. room_id None: it belongs to no room."""
    user_nid, room_nid, type_nid = tx.intern(user_id), tx.intern(room_id) if room_id else 0, tx.intern(data_type)
    position = tx.next_position(user_id)
    replaced = tx.run(
        "UPDATE account_data SET content = ?, position = ? WHERE user_nid = ? AND room_nid = ? AND type_nid = ?",
        orjson.dumps(content), position, user_nid, room_nid, type_nid,
    )  # fmt: skip
    if not replaced:
        (count,) = tx.one("SELECT COUNT(*) FROM account_data WHERE user_nid = ?", user_nid) or (0,)
        if count >= limits.ACCOUNT_DATA_TYPES_MAX:
            raise invalid_param(f"There may be {limits.ACCOUNT_DATA_TYPES_MAX} types of account data.")
        tx.run(
            "INSERT INTO account_data (user_nid, room_nid, type_nid, content, position) VALUES (?, ?, ?, ?, ?)",
            user_nid, room_nid, type_nid, orjson.dumps(content), position,
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


def delete_account_data(tx: Transaction, user_id: UserID) -> None:
    """Forgets all that the user kept."""
    tx.run("DELETE FROM account_data WHERE user_nid = ?", tx.find(user_id))


FEATURE = Feature(
    name="account_data", spec="client-server-api/#client-config", schema=SCHEMA, routes=routes, sync=sync_account_data
)
