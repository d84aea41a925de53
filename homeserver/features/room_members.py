"""Members of a room. Spec: client-server-api/#get_matrixclientv3roomsroomidmembers"""

from __future__ import annotations

from typing import Literal

import msgspec
import orjson

from homeserver.api.routes import Routes
from homeserver.authenticate import Requester
from homeserver.database import Transaction
from homeserver.encoding import to_json
from homeserver.errors import forbidden
from homeserver.feature import Feature, JsonObject
from homeserver.federation.identifiers import RoomID
from homeserver.resources import Resources
from homeserver.rooms.access import read_access
from homeserver.rooms.heads import get_head
from homeserver.rooms.membership import check_joined, find_joined_version, list_joined_contents
from homeserver.rooms.prepared import encode_events, list_prepared_state
from homeserver.rooms.resolve import StateAt, head_at
from homeserver.rooms.timeline import START, get_point, list_backwards, list_forwards, parse_token
from homeserver.rooms.visibility import filter_visible

routes = Routes()

JOINED_MEMBERS_CACHED_BYTES_MAX = 16 << 20  # some 200,000 members

Membership = Literal["join", "invite", "knock", "leave", "ban"]


class MembersQuery(msgspec.Struct, frozen=True):
    at: str | None = None
    membership: Membership | None = None
    not_membership: Membership | None = None


@routes.get("/_matrix/client/v3/rooms/{room_id}/members", allow_guest=True)
async def get_members_by_room(hs: Resources, requester: Requester, room_id: RoomID, query: MembersQuery) -> JsonObject:
    return {"chunk": await hs.database.read(_list_members, requester, room_id, query)}


@routes.get("/_matrix/client/v3/rooms/{room_id}/joined_members", allow_guest=True)
async def get_joined_members_by_room(hs: Resources, requester: Requester, room_id: RoomID) -> JsonObject:
    return {"joined": await hs.database.read(_joined_members, requester, room_id)}


def _list_members(tx: Transaction, requester: Requester, room_id: RoomID, query: MembersQuery) -> orjson.Fragment:
    readable = read_access(tx, room_id, requester.user_id)
    state = readable.state
    at = None if query.at is None else parse_token(query.at)
    if at is not None and (point := get_point(tx, at, forwards=False)) < readable.upto:
        newest = list_backwards(tx, room_id, point, 1)
        if newest and not filter_visible(tx, requester.user_id, room_id, newest):
            raise forbidden("You may not see the room's state at that point.")
        state = head_at(tx, room_id, point) or _state_at_the_start(tx, room_id)
    events = [
        each
        for each in list_prepared_state(tx, get_head(tx, room_id), state)
        if each.event.type == "m.room.member" and _wanted(query, each.membership)
    ]
    return encode_events(tx, room_id, events, user_id=requester.user_id, device_id=requester.device_id)


def _state_at_the_start(tx: Transaction, room_id: RoomID) -> StateAt:
    """Returns the state before the first event of the timeline: empty, or the room's state when this server joined."""
    first = list_forwards(tx, room_id, START, 1)[0]
    return StateAt(first.state_before)


def _wanted(query: MembersQuery, membership: object) -> bool:
    if query.membership is None and query.not_membership is None:
        return True
    # Given both, either suffices: the spec's wording of the two together.
    return membership == query.membership or (query.not_membership is not None and membership != query.not_membership)


def _joined_members(tx: Transaction, requester: Requester, room_id: RoomID) -> orjson.Fragment:
    """Returns the joined members as encoded JSON, which stays the same until one of them changes."""
    check_joined(tx, room_id, requester.user_id)
    version = find_joined_version(tx, room_id)
    encoded = tx.sized_cache("joined_members", JOINED_MEMBERS_CACHED_BYTES_MAX)
    known = encoded.get(room_id)
    if known is None or known[0] != version:
        known = (version, to_json(_joined_profiles(tx, room_id)))
        encoded.put(room_id, known, len(known[1]))
    return orjson.Fragment(known[1])


def _joined_profiles(tx: Transaction, room_id: RoomID) -> JsonObject:
    joined: JsonObject = {}
    for user_id, content in list_joined_contents(tx, room_id):
        member = joined[user_id] = {}
        for theirs, ours in (("displayname", "display_name"), ("avatar_url", "avatar_url")):
            if isinstance(content.get(theirs), str):
                member[ours] = content[theirs]
    return joined


FEATURE = Feature(name="room_members", spec="client-server-api/#room-membership", routes=routes)
