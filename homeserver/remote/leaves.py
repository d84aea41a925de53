"""Leaving rooms that this server is not in: rejected invites and retracted knocks.

Theory of operation
- For the user a leave takes effect at once, even if no other server can be reached.
- The servers that know of the invite or knock get the leave right away, but this takes at most LEAVE_SECONDS. If none
  of them has answered by then, the leave is stored in the same write that changes the membership.
- `deliver_later` tries each stored leave after growing delays, also after a restart. The leave is deleted when a server
  has accepted it, or has answered that the user is neither invited nor knocking, and after LEAVE_KEPT_MS. It is also
  deleted when another invite or knock replaces the one it is for, or when this server enters the room, because it must
  not take effect any more.
- Only the template of the other server says which event a leave ends. So we check whether the leave is still stored
  after we have the template, and before we deliver the leave.
- A join that a resident may have accepted, but that this server could not complete, is undone in the same way (see
  `pending_leaves`). Then the template must cite that very join, so that an invite or a later join is not ended.

Spec: server-server-api/#leaving-rooms-rejecting-invites
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import trio

from homeserver import limits
from homeserver.database import Transaction
from homeserver.database.lane import Lane
from homeserver.database.parked import RETRY_KEY
from homeserver.errors import MatrixError
from homeserver.federation.build import Draft
from homeserver.federation.event import Event
from homeserver.federation.identifiers import RoomID, ServerName, UserID
from homeserver.remote.joining import list_candidates, make, send
from homeserver.remote.outside import is_outside, store_outside_leave
from homeserver.remote.pending_leaves import (
    WAKE_KEY,
    Leave,
    delete_leave,
    is_stored,
    list_due,
    note_failed_leave,
    store_leave,
)
from homeserver.resources import Resources
from homeserver.rooms.append import append_local
from homeserver.rooms.membership import find_membership, list_largest_servers

_log = logging.getLogger("homeserver.federation")


async def leave_room(hs: Resources, user_id: UserID, room_id: RoomID, content: Mapping[str, Any]) -> None:
    """Rejects an invite or retracts a knock. If no server of the room can be reached now, one gets the leave later."""
    if not await hs.database.read(is_outside, hs.server_name, room_id):
        await hs.database.write(_leave_here, room_id, user_id, content)
        return
    leave = Leave(room_id, user_id, content, await _servers_to_tell(hs, room_id, user_id), hs.now_ms())
    event, is_settled = None, not leave.servers
    with trio.move_on_after(limits.peers.LEAVE_SECONDS):
        event, is_settled = await _tell(hs, leave)
    await hs.database.write(_leave, hs.server_name, leave, event, not is_settled)


def _leave_here(tx: Transaction, room_id: RoomID, user_id: UserID, content: Mapping[str, Any]) -> None:
    append_local(tx, Draft(room_id, user_id, "m.room.member", {**content, "membership": "leave"}, state_key=user_id))


def _leave(tx: Transaction, own: ServerName, leave: Leave, event: Event | None, tell_later: bool) -> None:
    if find_membership(tx, leave.room_id, leave.user_id) not in ("invite", "knock"):
        return  # another device of the user has left or entered the room in the meantime
    store_outside_leave(tx, own, leave.room_id, leave.user_id, event, leave.content)
    if tell_later:
        store_leave(tx, leave)


async def _servers_to_tell(hs: Resources, room_id: RoomID, user_id: UserID) -> list[ServerName]:
    try:
        residents = await hs.database.read(list_largest_servers, room_id, limits.peers.JOIN_SERVERS_MAX)
        return await list_candidates(hs, user_id, room_id, residents)
    except MatrixError:
        return []  # no server is known that may have the invite


async def _tell(hs: Resources, leave: Leave, *, was_stored: bool = False) -> tuple[Event | None, bool]:
    """Offers the leave to its servers. Returns the event if one accepted it, and whether nothing is left to do."""
    is_settled = True
    for server in leave.servers:
        try:
            event = await make(hs, "leave", server, leave.user_id, leave.room_id, leave.content)
            if was_stored and not await hs.database.read(is_stored, leave):
                return None, True
            if leave.joins and set(leave.joins).isdisjoint(event.auth_events):
                continue  # the membership there is not from the join that we undo
            return (await send(hs, "leave", server, event)).event, True
        except MatrixError as error:
            # 400, 403 or 404: for that server the user is neither invited nor knocking, nor joined.
            is_settled &= error.status < 500
            about = {"room_id": leave.room_id, "user_id": leave.user_id, "server": server, "reason": error.error}
            _log.info("leave not delivered", extra=about)
    return None, is_settled


async def deliver_later(hs: Resources) -> None:
    """Delivers stored leaves to other servers, until it is cancelled. Only one node of several does this at a time."""
    lane = Lane("leaves", hs.database, hs.metrics)
    limiter = trio.CapacityLimiter(limits.peers.LEAVES_AT_ONCE_MAX)

    async def deliver(leave: Leave) -> None:
        async with limiter:
            await lane.work([leave], lambda leaves: _deliver(hs, leaves[0]), _name_of)

    while hs.config.federation.enabled:
        async with hs.database.hold("leaves"):
            while True:
                due, next_ms, position = await hs.database.read(list_due)
                due = await lane.without_parked(due, _name_of)
                async with trio.open_nursery() as nursery:
                    for leave in due:
                        nursery.start_soon(deliver, leave)
                if not due:
                    await hs.stream.wait((WAKE_KEY, RETRY_KEY), position, trio.current_time() + next_ms / 1000)


def _name_of(leave: Leave) -> str:
    return f"{leave.user_id} {leave.room_id} {leave.since_ms}"


async def _deliver(hs: Resources, leave: Leave) -> None:
    event, is_settled = await _tell(hs, leave, was_stored=True)
    if is_settled or hs.now_ms() - leave.since_ms >= limits.peers.LEAVE_KEPT_MS:
        await hs.database.write(_settle, hs.server_name, leave, event)
    else:
        await hs.database.write(note_failed_leave, hs.server_name, leave)


def _settle(tx: Transaction, own: ServerName, leave: Leave, event: Event | None) -> None:
    if event is not None and is_stored(tx, leave):
        store_outside_leave(
            tx, own, leave.room_id, leave.user_id, event
        )  # the invite by which the user joined is used up
    delete_leave(tx, leave)
