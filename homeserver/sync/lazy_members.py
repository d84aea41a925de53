"""Lazy loading: remembers which member events each device has received already.

Spec: client-server-api/#lazy-loading-room-members

The memory is not durable: after a restart, on another node, or when the cache is full, a member event is sent again,
which does no harm. An answer may be lost on its way, so its members count as known only once the device syncs from that
answer's token.
"""

from __future__ import annotations

import msgspec

from homeserver.database.cache import Cache
from homeserver.federation.identifiers import RoomID
from homeserver.limits.users import LAZY_MEMBERS_PER_ROOM_MAX, LAZY_ROOMS_REMEMBERED_MAX

# user nid → (position of the member event, position of the answer that included it)
_Members = dict[int, tuple[int, int]]


class ToldMembers:
    """The memory of one server. Entries are replaced, never changed, so readers on other threads need no lock."""

    def __init__(self) -> None:
        self._rooms = Cache(LAZY_ROOMS_REMEMBERED_MAX)

    def knows(self, device: tuple[str, str], since: int, room_id: RoomID, user_nid: int, position: int) -> bool:
        """Returns whether a device that has everything up to `since` has received this member event."""
        members: _Members = self._rooms.get((device, room_id)) or {}
        told = members.get(user_nid)
        return told is not None and told[0] == position and told[1] <= since

    def note(
        self, device: tuple[str, str], room_id: RoomID, told: dict[int, int], upto: int, *, is_first: bool
    ) -> None:
        """Remembers the members in an answer. is_first: the device knows nothing else about the room."""
        known: _Members = {} if is_first else self._rooms.get((device, room_id)) or {}
        members = {**known, **{user_nid: (position, upto) for user_nid, position in told.items()}}
        newest = list(members)[-LAZY_MEMBERS_PER_ROOM_MAX:]
        self._rooms.put((device, room_id), {user_nid: members[user_nid] for user_nid in newest})


class DeviceMembers(msgspec.Struct, frozen=True):
    """What one device knows when an answer is computed for it, and what that answer adds, by room.

    reset: rooms that the answer tells in full, so that the device forgets which members it knew.
    """

    memory: ToldMembers
    device: tuple[str, str]
    since: int | None
    told: dict[RoomID, dict[int, int]] = {}
    reset: set[RoomID] = set()

    def knows(self, room_id: RoomID, user_nid: int, position: int) -> bool:
        """Returns whether the device has this member event already. Always False for requests without a device."""
        if self.since is None or not self.device[1] or room_id in self.reset:
            return False
        return self.memory.knows(self.device, self.since, room_id, user_nid, position)

    def tell(self, room_id: RoomID, user_nid: int, position: int) -> None:
        """Notes that the answer includes this member event."""
        self.told.setdefault(room_id, {})[user_nid] = position

    def remember(self, upto: int) -> None:
        """Stores what the answer adds. Call this when the answer up to `upto` is ready to be sent."""
        for room_id, members in self.told.items():
            is_first = self.since is None or room_id in self.reset
            self.memory.note(self.device, room_id, members, upto, is_first=is_first)
