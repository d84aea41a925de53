"""Account data: what clients store for their user, globally or for a room. Spec: client-server-api/#client-config"""

from __future__ import annotations

import orjson

from homeserver.api.routes import Empty, Routes
from homeserver.authenticate import Requester
from homeserver.database import Transaction
from homeserver.errors import MatrixError, bad_json, not_found
from homeserver.feature import Feature, JsonObject, SyncContext
from homeserver.federation.identifiers import RoomID, UserID
from homeserver.resources import Resources
from homeserver.users.account_data import (
    check_own,
    find_account_data,
    forget_account_data,
    list_changes,
    list_of_rooms,
    store_account_data,
)
from homeserver.users.friend_rooms import read_states
from homeserver.users.friends import LIST_TYPE
from homeserver.users.privacy import DATA_TYPE as PRIVACY_TYPE
from homeserver.users.privacy import set_privacy
from homeserver.users.push_rules import get_ruleset

# "event types that the server manages" (client-server-api/#client-config)
MANAGED_TYPES = frozenset({"m.fully_read", "m.push_rules", LIST_TYPE})

routes = Routes()


@routes.put("/_matrix/client/v3/user/{user_id}/account_data/{data_type}", allow_guest=True, allow_suspended=True)
async def set_account_data(hs: Resources, requester: Requester, user_id: UserID, data_type: str, body: dict) -> Empty:
    _check_may_set(requester, user_id, data_type)
    if data_type == PRIVACY_TYPE:
        await hs.database.write(_set_privacy, user_id, body)
    else:
        await hs.database.write(store_account_data, user_id, None, data_type, body)
    return Empty()


@routes.get("/_matrix/client/v3/user/{user_id}/account_data/{data_type}", allow_guest=True)
async def get_account_data(hs: Resources, requester: Requester, user_id: UserID, data_type: str) -> JsonObject:
    check_own(requester, user_id)
    if data_type == "m.push_rules":
        return {"global": await hs.database.read(get_ruleset, user_id)}
    if data_type == LIST_TYPE:
        return await hs.database.read(read_states, user_id)
    return _found(await hs.database.read(find_account_data, user_id, None, data_type))


@routes.put(
    "/_matrix/client/v3/user/{user_id}/rooms/{room_id}/account_data/{data_type}", allow_guest=True, allow_suspended=True
)
async def set_account_data_per_room(
    hs: Resources, requester: Requester, user_id: UserID, room_id: RoomID, data_type: str, body: dict
) -> Empty:
    _check_may_set(requester, user_id, data_type)
    await hs.database.write(store_account_data, user_id, room_id, data_type, body)
    return Empty()


@routes.get("/_matrix/client/v3/user/{user_id}/rooms/{room_id}/account_data/{data_type}", allow_guest=True)
async def get_account_data_per_room(
    hs: Resources, requester: Requester, user_id: UserID, room_id: RoomID, data_type: str
) -> JsonObject:
    check_own(requester, user_id)
    return _found(await hs.database.read(find_account_data, user_id, room_id, data_type))


def _check_may_set(requester: Requester, user_id: UserID, data_type: str) -> None:
    check_own(requester, user_id)
    if data_type in MANAGED_TYPES:
        raise MatrixError(405, "M_BAD_JSON", f"{data_type} is managed by the server; it cannot be set as account data.")


def _set_privacy(tx: Transaction, user_id: UserID, body: JsonObject) -> None:
    """Raises M_BAD_JSON for settings that the server does not understand, because it could not enforce them."""
    try:
        set_privacy(tx, user_id, body)
    except ValueError as error:
        raise bad_json(f"{error}.") from None


def _found(content: JsonObject | None) -> JsonObject:
    if content is None:
        raise not_found("There is no account data of this type.")
    return content


def sync_account_data(tx: Transaction, context: SyncContext) -> None:
    """Adds the changes, and for rooms that are new to the client all account data."""
    changes = list_changes(tx, context.user_id, context.since, context.upto)
    context.account_data += [_event(tx, type_nid, content) for room_nid, type_nid, content in changes if room_nid == 0]
    for since, room_ids in context.rooms_by_since.items():
        nids = {tx.find(room_id): room_id for room_id in room_ids}
        if since == context.since:
            rows = changes
        elif since == 0:
            rows = list_of_rooms(tx, context.user_id, nids)
        else:
            rows = list_changes(tx, context.user_id, since, context.upto)
        for room_nid, type_nid, content in rows:
            if room_nid in nids:
                context.rooms[nids[room_nid]].account_data.append(_event(tx, type_nid, content))
    left = {tx.find(room_id): section for room_id, section in context.left.items()}
    for room_nid, type_nid, content in changes if context.since else list_of_rooms(tx, context.user_id, left):
        if room_nid in left:
            left[room_nid].account_data.append(_event(tx, type_nid, content))


def _event(tx: Transaction, type_nid: int, content: bytes) -> JsonObject:
    return {"type": tx.name(type_nid), "content": orjson.Fragment(content)}


FEATURE = Feature(
    name="account_data", spec="client-server-api/#client-config", routes=routes, sync=sync_account_data,
    forget_user=forget_account_data,
)  # fmt: skip
