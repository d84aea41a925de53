"""Account data: what clients keep for their user, for all rooms or for one. Spec: client-server-api/#client-config"""

from __future__ import annotations

import orjson

from homeserver.api.routes import Empty, Routes
from homeserver.authenticate import Requester
from homeserver.database import Transaction
from homeserver.errors import MatrixError, not_found
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
from homeserver.users.push_rules import find_ruleset

# "event types that the server manages" (client-server-api/#client-config)
MANAGED_TYPES = frozenset({"m.fully_read", "m.push_rules"})

routes = Routes()


@routes.put("/_matrix/client/v3/user/{user_id}/account_data/{data_type}", allow_guest=True, allow_suspended=True)
async def set_account_data(hs: Resources, requester: Requester, user_id: UserID, data_type: str, body: dict) -> Empty:
    _check_may_set(requester, user_id, data_type)
    await hs.database.write(store_account_data, user_id, None, data_type, body)
    return Empty()


@routes.get("/_matrix/client/v3/user/{user_id}/account_data/{data_type}", allow_guest=True)
async def get_account_data(hs: Resources, requester: Requester, user_id: UserID, data_type: str) -> JsonObject:
    check_own(requester, user_id)
    if data_type == "m.push_rules":
        return {"global": await hs.database.read(find_ruleset, user_id)}
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
        raise MatrixError(405, "M_BAD_JSON", f"{data_type} is managed by the server; it cannot be set here.")


def _found(content: JsonObject | None) -> JsonObject:
    if content is None:
        raise not_found("There is no account data of this type.")
    return content


def sync_account_data(tx: Transaction, context: SyncContext) -> None:
    """What changed, and for newly joined rooms all there is."""
    room_nids = {tx.find(room_id): room_id for room_id in context.rooms}
    rows = list_changes(tx, context.user_id, context.since, context.upto)
    if context.since > 0 and context.newly_joined:
        rows = [row for row in rows if room_nids.get(row[0]) not in context.newly_joined]
        rows += list_of_rooms(
            tx, context.user_id, [nid for nid, name in room_nids.items() if name in context.newly_joined]
        )
    for room_nid, type_nid, content in rows:
        event = {"type": tx.name(type_nid), "content": orjson.Fragment(content)}
        if room_nid == 0:
            context.account_data.append(event)
        elif room_nid in room_nids:
            context.rooms[room_nids[room_nid]].account_data.append(event)


FEATURE = Feature(
    name="account_data", spec="client-server-api/#client-config", routes=routes, sync=sync_account_data,
    forget_user=forget_account_data,
)  # fmt: skip
