"""/initialSync: all rooms at once in the shape from before /sync, computed as a first sync.

Spec: client-server-api/#get_matrixclientv3initialsync
"""

from __future__ import annotations

import json
from typing import Annotated, Any

import msgspec

from homeserver.api.filters import Filter, RoomEventFilter, RoomFilter
from homeserver.api.routes import Routes
from homeserver.authenticate import Requester, limit_requester
from homeserver.database import Transaction
from homeserver.encoding import to_json
from homeserver.feature import JsonObject
from homeserver.federation.identifiers import RoomID, UserID
from homeserver.resources import Resources
from homeserver.rooms.aliases import is_published
from homeserver.rooms.membership import find_membership
from homeserver.sync.engine import Engine
from homeserver.sync.request import SyncRequest


class InitialSyncQuery(msgspec.Struct, frozen=True):
    limit: Annotated[int, msgspec.Meta(ge=0)] = 10
    archived: bool = False


def initial_sync_routes(engine: Engine) -> Routes:
    """Returns the route of /initialSync."""
    routes = Routes()

    @routes.get("/_matrix/client/v3/initialSync", rate_limit="sync")
    async def initial_sync(hs: Resources, requester: Requester, query: InitialSyncQuery) -> JsonObject:
        limit_requester(hs, requester, "initial_sync")
        timeline = RoomEventFilter(limit=query.limit)
        filter_ = Filter(room=RoomFilter(timeline=timeline, include_leave=query.archived))
        request = SyncRequest(requester, since=None, filter=filter_, use_state_after=True)
        answer = json.loads(to_json(await engine.sync(hs, request)))  # events may be encoded already
        rooms = answer.get("rooms", {})
        room_ids = [room_id for name in ("join", "leave") for room_id in rooms.get(name, ())]
        about = await hs.database.read(_read_about, requester.user_id, room_ids)
        told = [_room(room_id, entry, answer["next_batch"], about[room_id]) for room_id, entry in _entries(rooms)]
        told += [_invite(room_id, entry) for room_id, entry in rooms.get("invite", {}).items()]
        return {
            "end": answer["next_batch"],
            "rooms": told,
            "presence": answer.get("presence", {}).get("events", []),
            "account_data": answer.get("account_data", {}).get("events", []),
        }

    return routes


def _entries(rooms: JsonObject) -> list[tuple[RoomID, JsonObject]]:
    return [*rooms.get("join", {}).items(), *rooms.get("leave", {}).items()]


def _read_about(tx: Transaction, user_id: UserID, room_ids: list[RoomID]) -> dict[RoomID, JsonObject]:
    """Returns what a sync does not say of each room."""
    return {
        room_id: {
            "membership": find_membership(tx, room_id, user_id),
            "visibility": "public" if is_published(tx, room_id) else "private",
        }
        for room_id in room_ids
    }


def _room(room_id: RoomID, entry: JsonObject, end: str, about: JsonObject) -> JsonObject:
    def events(part: str) -> list[dict[str, Any]]:
        return [{**event, "room_id": room_id} for event in entry.get(part, {}).get("events", ())]

    messages: JsonObject = {"chunk": events("timeline"), "end": end}
    if "timeline" in entry:
        messages["start"] = entry["timeline"]["prev_batch"]
    account_data = entry.get("account_data", {}).get("events", [])
    shown = {"messages": messages, "state": events("state_after"), "account_data": account_data}
    return {"room_id": room_id, **about, **shown}


def _invite(room_id: RoomID, entry: JsonObject) -> JsonObject:
    shown: JsonObject = {"room_id": room_id, "membership": "invite"}
    for event in entry.get("state", {}).get("events", ()):
        shown["invite"] = {**event, "room_id": room_id}
    return shown
