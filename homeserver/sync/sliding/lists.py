"""The rooms that a request asks for: its lists, which are windows into the user's rooms, and its subscriptions.

Rooms are sorted by their last activity, from one query that reads no room. Only filters that a room has to be looked at
for cost more. Spec: MSC4186 (Lists and subscriptions, SlidingRoomFilter)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import msgspec
import orjson

from homeserver.database import Transaction
from homeserver.federation.identifiers import RoomID, UserID
from homeserver.rooms.access import find_in_state
from homeserver.rooms.activity import RoomActivity, list_activity
from homeserver.rooms.heads import find_head
from homeserver.rooms.membership import find_membership, find_room_membership
from homeserver.rooms.resolve import StateAt, entries_of, state_after
from homeserver.rooms.storage import list_stored
from homeserver.rooms.visibility import find_leave
from homeserver.sync.sliding.request import ListConfig, RoomFilters, SlidingRequest
from homeserver.sync.sliding.required_state import RoomConfig, combine
from homeserver.users.account_data import find_account_data, list_of_type
from homeserver.users.blocking import read_invite_filter
from homeserver.users.sync_connections import ConnectionState

ROOM_KINDS_CACHED_MAX = 20_000


class Wanted(msgspec.Struct):
    """A room in the view of a request: the names of its lists, whether it is subscribed to, and what to tell of it."""

    activity: RoomActivity
    lists: list[str] = msgspec.field(default_factory=list)
    is_subscribed: bool = False
    configs: list[RoomConfig] = msgspec.field(default_factory=list)

    @property
    def config(self) -> RoomConfig:
        """What to tell of the room."""
        return self.configs[0] if len(self.configs) == 1 else combine(self.configs)


class View(msgspec.Struct, frozen=True):
    """What a request asks for: rooms by number, the number of rooms in each list, and all rooms of the user."""

    rooms: Mapping[int, Wanted]
    counts: Mapping[str, int]
    activity: Sequence[RoomActivity]


def find_view(
    tx: Transaction, request: SlidingRequest, state: ConnectionState, ignored: frozenset[str], own: OwnRooms
) -> View:
    """Returns the rooms that the request asks for. `state`: what the client has been told."""
    activity = list_activity(tx, request.requester.user_id)
    listed = [each for each in activity if each.membership == "join" or _is_listed(tx, each, request, state, ignored)]
    rooms: dict[int, Wanted] = {}
    counts: dict[str, int] = {}
    for name, config in request.lists.items():
        matching = own.list_matching(listed, config.filters)
        counts[name] = len(matching)
        for each in _list_windows(matching, config):
            wanted = rooms.setdefault(each.room_nid, Wanted(each))
            wanted.lists.append(name)
            wanted.configs.append(config.room)
    by_nid = {each.room_nid: each for each in activity} if request.subscriptions else {}
    for room_id, room in request.subscriptions.items():
        found = by_nid.get(tx.find(room_id) or 0)
        if found is not None and not (found.forgotten and not _is_told(found, state)):
            wanted = rooms.setdefault(found.room_nid, Wanted(found))
            wanted.is_subscribed = True
            wanted.configs.append(room)
    return View(rooms, counts, activity)


def _list_windows(matching: Sequence[RoomActivity], config: ListConfig) -> Iterator[RoomActivity]:
    """Yields the rooms in the windows of a list, each once."""
    if config.ranges is None:
        yield from matching
        return
    begun = 0
    for first, last in sorted(config.ranges):
        yield from matching[max(first, begun) : last + 1]
        begun = max(begun, last + 1)


def _is_told(each: RoomActivity, state: ConnectionState) -> bool:
    return each.room_nid in state.rooms


def _is_listed(
    tx: Transaction, each: RoomActivity, request: SlidingRequest, state: ConnectionState, ignored: frozenset[str]
) -> bool:
    """Returns whether a room that the user is not in belongs to their list: rooms that they left on their own do not.

    The client still has to learn that a room which it knows was left: until then the room stays in the list.
    """
    if each.membership == "knock":
        return True
    user_id = request.requester.user_id
    if each.membership == "invite":
        return not _is_blocked(tx, RoomID(tx.name(each.room_nid)), user_id, ignored)
    told = state.rooms.get(each.room_nid)
    if told is not None:
        known = request.since if told.upto is None else told.upto
        if known is None or each.changed_position > known:
            return True
    if each.forgotten or (each.membership == "leave" and each.sender_nid in (None, tx.find(user_id))):
        return False
    return find_leave(tx, RoomID(tx.name(each.room_nid)), user_id) is not None


def _is_blocked(tx: Transaction, room_id: RoomID, user_id: UserID, ignored: frozenset[str]) -> bool:
    """Returns whether the user does not want to see an invite."""
    membership = find_room_membership(tx, room_id, user_id)
    stripped = membership.stripped if membership is not None else None
    return read_invite_filter(tx, user_id, ignored).hides(tx, stripped or ())


class OwnRooms:
    """What filters ask of a user's rooms. Each is read when a filter first needs it."""

    def __init__(self, tx: Transaction, user_id: UserID) -> None:
        self._tx = tx
        self._user_id = user_id

    @cached_property
    def dms(self) -> frozenset[str]:
        """The IDs of the user's direct chats. Clients may store anything there."""
        content = find_account_data(self._tx, self._user_id, None, "m.direct") or {}
        rooms = (room_id for listed in content.values() if isinstance(listed, list) for room_id in listed)
        return frozenset(room_id for room_id in rooms if isinstance(room_id, str))

    @cached_property
    def tags(self) -> dict[int, frozenset[str]]:
        """The names of the tags of each tagged room, by room number."""
        found = {}
        for room_nid, content in list_of_type(self._tx, self._user_id, "m.tag"):
            tags = orjson.loads(content).get("tags")
            found[room_nid] = frozenset(tags) if isinstance(tags, dict) else frozenset()
        return found

    def list_matching(self, rooms: Sequence[RoomActivity], filters: RoomFilters) -> Sequence[RoomActivity]:
        """Returns the rooms that pass the filters, in the same order."""
        if filters.invited is not None:
            rooms = [each for each in rooms if (each.membership == "invite") == filters.invited]
        if filters.is_dm is not None:
            names = self._tx.names([each.room_nid for each in rooms])
            rooms = [each for each in rooms if (names[each.room_nid] in self.dms) == filters.is_dm]
        if filters.tags is not None or filters.not_tags:
            wanted, unwanted = filters.tags, frozenset(filters.not_tags or ())
            tagged = [(each, self.tags.get(each.room_nid, frozenset())) for each in rooms]
            rooms = [
                each for each, tags in tagged if not tags & unwanted and (wanted is None or not tags.isdisjoint(wanted))
            ]
        if filters.spaces is not None:
            children = self._list_children(filters.spaces)
            rooms = [each for each in rooms if each.room_nid in children]
        if filters.room_types is not None or filters.not_room_types:
            types = {each.room_nid: self._find_type(each) for each in rooms}
            if filters.room_types is not None:
                rooms = [each for each in rooms if types[each.room_nid] in filters.room_types]
            rooms = [each for each in rooms if types[each.room_nid] not in (filters.not_room_types or ())]
        if filters.is_encrypted is not None:
            rooms = [each for each in rooms if self._is_encrypted(each) == filters.is_encrypted]
        return rooms

    def _list_children(self, spaces: Sequence[str]) -> set[int]:
        """Returns the rooms that are children of any of these spaces, if the user is in the space."""
        found: set[int] = set()
        child_nid = self._tx.find("m.space.child")
        for space in set(spaces):
            head = find_head(self._tx, space)
            if head is None or find_membership(self._tx, space, self._user_id) != "join":
                continue
            entries = entries_of(self._tx, StateAt(head.state_root))
            children = {position: key for (kind, key), position in entries.items() if kind == child_nid}
            for position, event in list_stored(self._tx, children).items():
                if isinstance(event.content.get("via"), list):  # spec: a child without it has been removed
                    found.add(children[position])  # the state key is the room's ID, so its number is the room's
        return found

    def _find_type(self, each: RoomActivity) -> str | None:
        """Returns the type of a room, which never changes: None for a plain room, or if it is not known."""
        cache = self._tx.cache("room_types", ROOM_KINDS_CACHED_MAX)
        known: tuple[str | None] | None = cache.get(each.room_nid)
        if known is None:
            room_id = RoomID(self._tx.name(each.room_nid))
            head = find_head(self._tx, room_id)
            if head is None or not head.create_position:
                content = self._find_stripped(room_id, "m.room.create") or {}
            else:
                content = list_stored(self._tx, (head.create_position,))[head.create_position].content
            room_type = content.get("type")
            known = (room_type if isinstance(room_type, str) else None,)
            if head is not None and head.create_position:
                cache.put(each.room_nid, known)
        return known[0]

    def _is_encrypted(self, each: RoomActivity) -> bool:
        room_id = RoomID(self._tx.name(each.room_nid))
        if each.membership in ("invite", "knock"):
            return self._find_stripped(room_id, "m.room.encryption") is not None
        if each.membership == "join":
            head = find_head(self._tx, room_id)
            state = None if head is None else StateAt(head.state_root)
        else:
            left = find_leave(self._tx, room_id, self._user_id)
            state = None if left is None else state_after(self._tx, left)
        return state is not None and find_in_state(self._tx, state, "m.room.encryption", "") is not None

    def _find_stripped(self, room_id: RoomID, event_type: str) -> dict[str, Any] | None:
        """Returns the content of an event that an invited or knocking user was shown."""
        membership = find_room_membership(self._tx, room_id, self._user_id)
        for event in (membership.stripped or ()) if membership is not None else ():
            content = event.get("content")
            if event.get("type") == event_type and isinstance(content, dict):
                return content
        return None
