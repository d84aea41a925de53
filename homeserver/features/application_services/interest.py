"""What concerns an application service: its users, its rooms, and the rooms that its users are in.

Spec: application-service-api/#registration

Which application services a room interests is remembered until its memberships change: a message costs them no more
than a look at the sender and at the room's version.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from homeserver.config import ApplicationService, RegisteredServices
from homeserver.database import Transaction
from homeserver.federation.identifiers import RoomID, UserID
from homeserver.rooms.aliases import list_aliases
from homeserver.rooms.membership import find_members_position, list_joined_from, list_joined_rooms
from homeserver.rooms.storage import StoredEvent

_ROOMS_REMEMBERED_MAX = 10_000


class Interests:
    """Which application services are interested in what. Used by one node, for as long as that delivers."""

    def __init__(self, services: RegisteredServices) -> None:
        self._services = services
        self._rooms: OrderedDict[RoomID, tuple[int, frozenset[str]]] = OrderedDict()

    def has_event(self, tx: Transaction, service: ApplicationService, event: StoredEvent) -> bool:
        """Returns whether an event concerns the service: by its sender, by the member it is about, or by its room."""
        if service.covers(event.sender):
            return True
        if event.type == "m.room.member" and event.state_key is not None and service.covers(UserID(event.state_key)):
            return True
        return self.has_room(tx, service, event.room_id)

    def has_room(self, tx: Transaction, service: ApplicationService, room_id: RoomID) -> bool:
        """Returns whether a room is in a namespace of the service, or one of the service's users is in the room."""
        if service.id in self._with_members(tx, room_id) or room_id in service.rooms:
            return True
        return bool(service.aliases) and any(alias in service.aliases for alias in list_aliases(tx, room_id))

    def has_user(self, tx: Transaction, service: ApplicationService, user_id: UserID) -> bool:
        """Returns whether a user is the service's, or is in a room that interests it."""
        return service.covers(user_id) or any(
            self.has_room(tx, service, room_id) for room_id in list_joined_rooms(tx, user_id)
        )

    def _with_members(self, tx: Transaction, room_id: RoomID) -> frozenset[str]:
        """Returns the services, by ID, of which a user is in the room."""
        version = find_members_position(tx, room_id)
        known = self._rooms.get(room_id)
        if known is None or known[0] != version:
            known = version, frozenset(self._list_with_members(list_joined_from(tx, room_id, tx.server.name)))
            self._rooms[room_id] = known
            while len(self._rooms) > _ROOMS_REMEMBERED_MAX:
                self._rooms.popitem(last=False)
        return known[1]

    def _list_with_members(self, members: list[UserID]) -> Iterator[str]:
        for service in self._services:
            if any(service.covers(user_id) for user_id in members):
                yield service.id
