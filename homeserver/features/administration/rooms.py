"""The admin API for rooms: lists, what is stored of one, and blocking. `room_changes` has what changes them."""

from __future__ import annotations

from typing import Any

import msgspec

from homeserver.api.routes import Routes
from homeserver.authenticate import Requester, check_admin
from homeserver.database import Transaction
from homeserver.errors import invalid_param
from homeserver.feature import JsonObject
from homeserver.features.administration.common import V1, Direction, check_page
from homeserver.federation.identifiers import RoomID
from homeserver.resources import Resources
from homeserver.rooms import administration
from homeserver.rooms.administration import ListedRoom, Members, Order
from homeserver.rooms.blocking import delete_block, find_blocker, store_block
from homeserver.rooms.client_event import client_event
from homeserver.rooms.heads import get_head
from homeserver.rooms.membership import list_members
from homeserver.rooms.resolve import StateAt, entries_of
from homeserver.rooms.storage import list_event_ids, list_stored, without_withheld
from homeserver.users.devices import count_devices

ROOM = f"{V1}/rooms/{{room_id}}"

routes = Routes()


class RoomsQuery(msgspec.Struct, frozen=True, rename={"start": "from", "direction": "dir"}):
    """from: how many rooms to leave out. search_term: a part of the name, of the main alias, or of the room ID."""

    start: int = 0
    limit: int = 100
    order_by: Order = "name"
    direction: Direction = "f"
    search_term: str = ""
    public_rooms: bool | None = None
    empty_rooms: bool | None = None


@routes.get(f"{V1}/rooms")
async def list_rooms_for_admin(hs: Resources, requester: Requester, query: RoomsQuery) -> JsonObject:
    check_admin(requester)
    limit = check_page(query.start, query.limit)
    if len(query.search_term) > administration.SEARCHED_CHARACTERS_MAX:
        raise invalid_param("The search_term is too long.")
    rooms = [
        room
        for room in await list_all_rooms(hs, query.search_term)
        if query.public_rooms in (None, room.is_public) and query.empty_rooms in (None, not room.members.all)
    ]
    sizes: dict[int, int] = {}
    if query.order_by == "state_events":
        sizes = await hs.database.read(administration.list_state_sizes, rooms)
    administration.sort_rooms(rooms, query.order_by, sizes, descending=query.direction == "b")
    page = rooms[query.start : query.start + limit]
    sizes = await hs.database.read(administration.list_state_sizes, page)
    answer: JsonObject = {
        "rooms": [_listed_body(room, sizes[room.room_nid]) for room in page],
        "offset": query.start,
        "total_rooms": len(rooms),
    }
    if query.start + limit < len(rooms):
        answer["next_batch"] = query.start + limit
    if query.start > 0:
        answer["prev_batch"] = max(0, query.start - limit)
    return answer


async def list_all_rooms(hs: Resources, term: str = "") -> list[ListedRoom]:
    """Returns the rooms in which a term is found. Reads some at a time, so that no other read waits for long."""
    room_nids = await hs.database.read(administration.list_known)
    members: dict[int, Members] = await hs.database.read(administration.count_all_members)
    found: list[ListedRoom] = []
    for start in range(0, len(room_nids), administration.ROOMS_PER_READ):
        some = room_nids[start : start + administration.ROOMS_PER_READ]
        found += await hs.database.read(administration.list_listed, some, members)
    return [room for room in found if administration.is_found(room, term)]


def _listed_body(room: ListedRoom, state_events: int) -> JsonObject:
    """Returns a room in the format that tools expect."""
    entry = room.entry
    return {
        "room_id": entry.room_id,
        "name": entry.name,
        "canonical_alias": entry.canonical_alias,
        "joined_members": room.members.all,
        "joined_local_members": room.members.local,
        "version": entry.version,
        "creator": entry.creator,
        "encryption": entry.encryption,
        "federatable": entry.is_federated,
        "public": room.is_public,
        "join_rules": entry.join_rules,
        "guest_access": entry.guest_access,
        "history_visibility": entry.history_visibility,
        "state_events": state_events,
        "room_type": entry.room_type,
    }


# --- one room ---


@routes.get(ROOM)
async def get_room_for_admin(hs: Resources, requester: Requester, room_id: RoomID) -> JsonObject:
    check_admin(requester)
    return await hs.database.read(get_room_body, room_id)


def get_room_body(tx: Transaction, room_id: RoomID) -> JsonObject:
    """Returns all details of a room. Raises MatrixError 404 if this server is not and was not in it."""
    room_nid = get_head(tx, room_id).room_nid
    members = administration.count_members_of(tx, room_nid)
    (room,) = administration.list_listed(tx, [room_nid], {room_nid: members})
    local = [each for each in list_members(tx, room_id, "join") if each.endswith(f":{tx.server.name}")]
    return {
        **_listed_body(room, administration.count_state_events(tx, room.state_root)),
        "topic": room.entry.topic,
        "avatar": room.entry.avatar,
        "joined_local_devices": count_devices(tx, local),
        "forgotten": administration.is_forgotten_by_all(tx, room_nid),
        "tombstoned": room.entry.is_tombstoned,
        "replacement_room": room.entry.replacement_room,
    }


@routes.get(f"{ROOM}/members")
async def list_members_for_admin(hs: Resources, requester: Requester, room_id: RoomID) -> JsonObject:
    check_admin(requester)
    members = await hs.database.read(_list_members, room_id)
    return {"members": members, "total": len(members)}


def _list_members(tx: Transaction, room_id: RoomID) -> list[str]:
    get_head(tx, room_id)
    return sorted(list_members(tx, room_id, "join"))


class StateQuery(msgspec.Struct, frozen=True):
    """type: only state events of this type."""

    type: str | None = None


@routes.get(f"{ROOM}/state")
async def get_room_state_for_admin(
    hs: Resources, requester: Requester, room_id: RoomID, query: StateQuery
) -> JsonObject:
    check_admin(requester)
    return {"state": await hs.database.read(_list_state, room_id, query.type)}


def _list_state(tx: Transaction, room_id: RoomID, event_type: str | None) -> list[JsonObject]:
    entries = entries_of(tx, StateAt(get_head(tx, room_id).state_root))
    type_nid = None if event_type is None else tx.find(event_type)
    positions = {at for key, at in entries.items() if event_type is None or key[0] == type_nid}
    events = without_withheld(tx, list(list_stored(tx, positions).values()))
    return [client_event(tx, event, {"age": tx.now_ms - event.origin_server_ts}) for event in events]


@routes.get(f"{ROOM}/forward_extremities")
async def list_forward_extremities(hs: Resources, requester: Requester, room_id: RoomID) -> JsonObject:
    check_admin(requester)
    results = await hs.database.read(_list_extremities, room_id)
    return {"count": len(results), "results": results}


def _list_extremities(tx: Transaction, room_id: RoomID) -> list[JsonObject]:
    head = get_head(tx, room_id)
    ids = list_event_ids(tx, head.extremities)
    events = list_stored(tx, head.extremities)
    return [
        {"event_id": ids[position], "state_group": position, "depth": head.depth,
         "received_ts": events[position].origin_server_ts}
        for position in head.extremities
    ]  # fmt: skip


@routes.delete(f"{ROOM}/forward_extremities")
async def delete_forward_extremities(hs: Resources, requester: Requester, room_id: RoomID) -> JsonObject:
    """Deletes none: without one of them, what it says could be pushed out of the room, such as a ban.

    The next event of this server follows all of them, or as many as the specification allows, so they go by themselves.
    """
    check_admin(requester)
    await hs.database.read(get_head, room_id)
    return {"deleted": 0}


# --- blocking ---


class BlockBody(msgspec.Struct, frozen=True):
    block: bool


@routes.get(f"{ROOM}/block")
async def get_block_of_room(hs: Resources, requester: Requester, room_id: RoomID) -> JsonObject:
    check_admin(requester)
    blocker = await hs.database.read(find_blocker, room_id)
    by: dict[str, Any] = {} if blocker is None else {"user_id": blocker}
    return {"block": blocker is not None, **by}


@routes.put(f"{ROOM}/block")
async def set_block_of_room(hs: Resources, requester: Requester, room_id: RoomID, body: BlockBody) -> JsonObject:
    """The server need not know the room."""
    check_admin(requester)
    if body.block:
        await hs.database.write(store_block, room_id, requester.user_id)
    else:
        await hs.database.write(delete_block, room_id)
    return {"block": body.block}
