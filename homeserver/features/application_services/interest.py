"""What concerns an application service: its users, its rooms, and the rooms that its users are in.

Spec: application-service-api/#registration

Theory of operation
- Whether an event concerns a service is decided as of the event, not as of now: a service that lags gets nothing from
  before its users came, and everything from before they left. So a transaction that is read again is the same.
- Since when a service has had users in a room without interruption is one position. It is cached until a member of the
  service comes or goes, so a message costs no more than a look at it. Only for events before that position, which lie
  in the past of the room's members, the state before the event is asked.
- Namespaces of rooms and aliases have no past: what matches now concerns the service.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from homeserver.config import ApplicationService
from homeserver.database import Transaction
from homeserver.federation.identifiers import RoomID, UserID
from homeserver.rooms.aliases import list_aliases
from homeserver.rooms.member_changes import list_entries
from homeserver.rooms.membership import find_members_position, list_joined_rooms
from homeserver.rooms.resolve import StateAt, positions_in
from homeserver.rooms.storage import TimelineEvent, list_stored

_ROOMS_CACHED_MAX = 10_000


class Interest:
    """What concerns one service, during one read of the database."""

    def __init__(self, tx: Transaction, service: ApplicationService, since: int) -> None:
        """since: no event that is asked about is older than this position."""
        self._tx = tx
        self._service = service
        self._since = since
        self._named: dict[RoomID, bool] = {}
        self._moved: dict[RoomID, list[UserID]] = {}
        self._users: dict[UserID, bool] = {}

    def has_event(self, event: TimelineEvent) -> bool:
        """Returns whether an event concerns the service: by its sender, by the member it is about, or by its room."""
        if self._service.covers(event.sender):
            return True
        if event.type == "m.room.member" and event.state_key is not None:
            if self._service.covers(UserID(event.state_key)):
                return True
        if self._is_named(event.room_id):
            return True
        members = self._members(event.room_id)
        if members.begun is not None and members.begun <= event.position:
            return True
        return members.version > event.position and self._had_members(event)

    def has_room(self, room_id: RoomID) -> bool:
        """Returns whether a room is in a namespace of the service, or one of the service's users is in it now."""
        return self._is_named(room_id) or self._members(room_id).begun is not None

    def has_user(self, user_id: UserID) -> bool:
        """Returns whether a user is the service's, or is in a room that concerns it."""
        known = self._users.get(user_id)
        if known is None:
            known = self._service.covers(user_id) or any(map(self.has_room, list_joined_rooms(self._tx, user_id)))
            self._users[user_id] = known
        return known

    def is_first_in(self, event: TimelineEvent) -> bool:
        """Returns whether nothing but this event, a join of one of the service's users, makes its room concern it."""
        begun = self._members(event.room_id).begun
        return not self._is_named(event.room_id) and (begun is None or begun >= event.position)

    def _is_named(self, room_id: RoomID) -> bool:
        known = self._named.get(room_id)
        if known is None:
            aliases = self._service.aliases
            known = room_id in self._service.rooms or (
                bool(aliases) and any(alias in aliases for alias in list_aliases(self._tx, room_id))
            )
            self._named[room_id] = known
        return known

    def _members(self, room_id: RoomID) -> _Members:
        version = find_members_position(self._tx, room_id)
        cache = self._tx.cache("application_service_members", _ROOMS_CACHED_MAX)
        key = (self._service.id, room_id)
        known: _Members | None = cache.get(key)
        if known is None or known.version > version:
            members = self._read_members(room_id, version)
        elif known.version == version:
            return known
        elif any(
            self._service.covers(entry.user_id)
            for entry in list_entries(self._tx, room_id, self._tx.server.name, known.version)
        ):
            members = self._read_members(room_id, version)
        else:
            members = _Members(version, known.begun)
        if known is None or known.version < version:
            cache.put(key, members)
        return members

    def _read_members(self, room_id: RoomID, version: int) -> _Members:
        entries = list_entries(self._tx, room_id, self._tx.server.name)
        begun = [
            entry.entered_position
            for entry in entries
            if entry.membership == "join" and self._service.covers(entry.user_id)
        ]
        return _Members(version, min(begun, default=None))

    def _had_members(self, event: TimelineEvent) -> bool:
        """Returns whether a user of the service who has come or gone since was in the room at the event."""
        moved = self._moved.get(event.room_id)
        if moved is None:
            entries = list_entries(self._tx, event.room_id, self._tx.server.name, self._since)
            moved = [entry.user_id for entry in entries if self._service.covers(entry.user_id)]
            self._moved[event.room_id] = moved
        return any(True for _ in list_joined_before(self._tx, event, moved))


class _Members(NamedTuple):
    """A service's users in a room. version: of the room's members. begun: since when at least one of them is in it."""

    version: int
    begun: int | None


def list_joined_before(tx: Transaction, event: TimelineEvent, user_ids: Iterable[UserID]) -> Iterable[UserID]:
    """Yields those of the users who were in the room just before an event."""
    keys = [("m.room.member", user_id) for user_id in user_ids]
    positions = positions_in(tx, StateAt(event.state_before), keys)
    members = list_stored(tx, set(positions.values()))
    for (_, user_id), position in positions.items():
        if members[position].content.get("membership") == "join":
            yield UserID(user_id)
