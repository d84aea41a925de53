"""What another server may do in a room of ours. Spec: server-server-api/#server-access-control-lists-acls"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from homeserver import limits
from homeserver.database import Transaction
from homeserver.errors import forbidden, not_found
from homeserver.federation.identifiers import EventID, RoomID, ServerName
from homeserver.federation.room_versions import RoomVersion
from homeserver.federation.server_acl import ServerAcl, compile_acl
from homeserver.resources import Resources
from homeserver.rooms.events import load_auth_events
from homeserver.rooms.heads import Head, find_head, state_position
from homeserver.rooms.membership import is_server_joined, list_largest_servers
from homeserver.rooms.storage import PlacedEvent, find_positions, list_stored
from homeserver.rooms.versions import find_room_version
from homeserver.rooms.visibility import servers_in

ACLS_CACHED_MAX = 1_000


class RoomAccess(msgspec.Struct, frozen=True):
    """A room as seen by a PDU from `origin`. `is_resident`: this server is in the room; `has_origin`: `origin` is."""

    version: RoomVersion
    is_resident: bool
    is_allowed: bool
    has_origin: bool


def find_access(tx: Transaction, own: ServerName, room_id: RoomID, origin: ServerName) -> RoomAccess | None:
    """Returns the access to a room, None if this server has never heard of the room."""
    version = find_room_version(tx, room_id)
    head = find_head(tx, room_id)
    if version is None or head is None:
        return None
    return RoomAccess(
        version,
        is_resident=is_resident(tx, own, room_id),
        is_allowed=is_allowed(tx, head, origin),
        has_origin=is_server_joined(tx, room_id, origin),
    )


def find_accesses(
    tx: Transaction, own: ServerName, rooms: Sequence[RoomID], origin: ServerName
) -> dict[RoomID, RoomAccess | None]:
    """Returns the access to each of the rooms; see `find_access`."""
    return {room_id: find_access(tx, own, room_id, origin) for room_id in rooms}


def is_allowed(tx: Transaction, head: Head, server: ServerName) -> bool:
    """Returns whether the room's server ACL, if it has one, allows the server to take part."""
    position = state_position(tx, head.state_root, "m.room.server_acl")
    if position is None:
        return True
    event = load_auth_events(tx, (position,))[position]
    cache = tx.cache("server_acls", ACLS_CACHED_MAX)
    acl: ServerAcl | None = cache.get(event)  # by the event, not its position: it changes when it is redacted
    if acl is None:
        acl = compile_acl(event.content)
        if not tx.is_write:
            cache.put(event, acl)
    return acl.is_allowed(server)


def is_resident(tx: Transaction, own: ServerName, room_id: RoomID) -> bool:
    """Returns whether this server is in the room, and so gets its events."""
    return is_server_joined(tx, room_id, own)


def resident_head(tx: Transaction, own: ServerName, room_id: RoomID, origin: ServerName) -> Head:
    """Returns the head of a room that this server is in. Raises MatrixError 404 if it is not, 403 by the server ACL."""
    head = find_head(tx, room_id)
    if head is None or not is_resident(tx, own, room_id):
        raise not_found("This server is not in that room.")
    if not is_allowed(tx, head, origin):
        raise forbidden("The room's server ACL does not allow your server.")
    return head


def check_may_read(
    tx: Transaction, own: ServerName, room_id: RoomID, origin: ServerName, event_ids: Collection[EventID]
) -> None:
    """Raises MatrixError 404 or 403 unless the origin may ask about these events. This server must be in the room.

    A server that is in the room may ask about all events. One that has left may ask about those from its time in the
    room; otherwise it could not even learn that it was removed.
    """
    resident_head(tx, own, room_id, origin)
    if is_server_joined(tx, room_id, origin):
        return
    positions = find_positions(tx, event_ids)
    stored = list_stored(tx, positions.values()).values()
    was_there = all(isinstance(row, PlacedEvent) and origin in servers_in(tx, row.state_before) for row in stored)
    if not stored or len(positions) < len(set(event_ids)) or not was_there:
        raise forbidden("Your server is not in that room.")


async def choose_servers(hs: Resources, room_id: RoomID, first: ServerName | None) -> list[ServerName]:
    """Returns some other servers of the room to ask one after another: `first` if it is one, then the largest.

    Servers in back-off come last.
    """
    listed = await hs.database.read(list_largest_servers, room_id, limits.peers.SERVERS_CONSIDERED_MAX)
    if first is not None and await hs.database.read(is_server_joined, room_id, first):
        listed.insert(0, first)
    now_ms = hs.now_ms()
    others = [server for server in dict.fromkeys(listed) if server != hs.server_name]
    others.sort(key=lambda server: hs.peers.is_backing_off(server, now_ms))
    return others[: limits.peers.SERVERS_ASKED_MAX]
