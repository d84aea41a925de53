"""Leaving rooms that this server is not in: rejected invites and knocks taken back.

Theory of operation
- To the user a leave takes effect at once, whatever other servers do.
- The servers that know of the invite or knock are told right away, but for no longer than LEAVE_SECONDS. If none of
  them has answered by then, the leave is stored with the change of the membership, in one write, and told later.
- `deliver_later` tries each stored leave with growing pauses, after restarts too. It ends once a server has taken it or
  says that the user is neither invited nor knocking; when another invite or knock replaces the one that was meant, or
  this server enters the room, for then it must not take effect any more; and after LEAVE_KEPT_MS.
- A leave says at which event it is aimed only through the template of the other server, so whether it still stands is
  looked up between the template and its delivery.

Spec: server-server-api/#leaving-rooms-rejecting-invites
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import trio

from homeserver import limits
from homeserver.database import Transaction
from homeserver.database.lane import Lane
from homeserver.encoding import to_json
from homeserver.errors import MatrixError
from homeserver.federation.build import Draft
from homeserver.federation.event import Event
from homeserver.federation.identifiers import RoomID, ServerName, UserID
from homeserver.moments import is_ahead
from homeserver.process.peers import retry_delay_ms
from homeserver.remote.joining import list_candidates, make, send
from homeserver.remote.outside import is_outside, leave_outside
from homeserver.resources import Resources
from homeserver.rooms.append import append_local
from homeserver.rooms.membership import get_membership, list_largest_servers

_log = logging.getLogger("homeserver.federation")

# Of the stream: for the task that waits until the next stored leave is due.
WAKE_KEY = "leaves"


@dataclass(frozen=True, slots=True)
class _Leave:
    """A leave that other servers have still to be told of."""

    room_id: RoomID
    user_id: UserID
    content: Mapping[str, Any]
    servers: Sequence[ServerName]
    since_ms: int
    failures: int = 0


async def leave_room(hs: Resources, user_id: UserID, room_id: RoomID, content: Mapping[str, Any]) -> None:
    """Rejects an invite or takes back a knock. If no server of the room can be told now, one is told later."""
    if not await hs.database.read(is_outside, hs.server_name, room_id):
        await hs.database.write(_leave_here, room_id, user_id, content)
        return
    leave = _Leave(room_id, user_id, content, await _servers_to_tell(hs, room_id, user_id), hs.now_ms())
    event, is_settled = None, not leave.servers
    with trio.move_on_after(limits.LEAVE_SECONDS):
        event, is_settled = await _tell(hs, leave)
    await hs.database.write(_leave, hs.server_name, leave, event, not is_settled)


def _leave_here(tx: Transaction, room_id: RoomID, user_id: UserID, content: Mapping[str, Any]) -> None:
    append_local(tx, Draft(room_id, user_id, "m.room.member", {**content, "membership": "leave"}, state_key=user_id))


def _leave(tx: Transaction, own: ServerName, leave: _Leave, event: Event | None, tell_later: bool) -> None:
    if get_membership(tx, leave.room_id, leave.user_id) not in ("invite", "knock"):
        return  # the user has left or entered the room by another device meanwhile
    leave_outside(tx, own, leave.room_id, leave.user_id, event, leave.content)
    if tell_later:
        store_leave(tx, leave)


async def _servers_to_tell(hs: Resources, room_id: RoomID, user_id: UserID) -> list[ServerName]:
    try:
        residents = await hs.database.read(list_largest_servers, room_id, limits.JOIN_SERVERS_MAX)
        return await list_candidates(hs, user_id, room_id, residents)
    except MatrixError:
        return []  # no server is known that still holds the invite


async def _tell(hs: Resources, leave: _Leave, *, is_stored: bool = False) -> tuple[Event | None, bool]:
    """The event as a server took it, if one did; and whether nothing is left to be told."""
    is_settled = True
    for server in leave.servers:
        try:
            event = await make(hs, "leave", server, leave.user_id, leave.room_id, leave.content)
            if is_stored and not await hs.database.read(_is_stored, leave):
                return None, True
            return (await send(hs, "leave", server, event)).event, True
        except MatrixError as error:
            # 400, 403 or 404: for that server the user is neither invited nor knocking.
            is_settled &= error.status < 500
            about = {"room_id": leave.room_id, "user_id": leave.user_id, "server": server, "reason": error.error}
            _log.info("leave not delivered", extra=about)
    return None, is_settled


async def deliver_later(hs: Resources) -> None:
    """Tells other servers of stored leaves, for ever. One node of several does."""
    lane = Lane("leaves", hs.database, hs.metrics)
    limiter = trio.CapacityLimiter(limits.LEAVES_AT_ONCE_MAX)

    async def deliver(leave: _Leave) -> None:
        async with limiter:
            await lane.work([leave], lambda leaves: _deliver(hs, leaves[0]), _name_of)

    while hs.config.federation.enabled:
        async with hs.database.hold("leaves"):
            while True:
                due, next_ms, position = await hs.database.read(_list_due)
                due = lane.without_parked(due, _name_of)
                async with trio.open_nursery() as nursery:
                    for leave in due:
                        nursery.start_soon(deliver, leave)
                if not due:
                    await hs.stream.wait((WAKE_KEY,), position, trio.current_time() + next_ms / 1000)


def _name_of(leave: _Leave) -> str:
    return f"{leave.user_id} {leave.room_id} {leave.since_ms}"


async def _deliver(hs: Resources, leave: _Leave) -> None:
    _, is_settled = await _tell(hs, leave, is_stored=True)
    if is_settled or hs.now_ms() - leave.since_ms >= limits.LEAVE_KEPT_MS:
        await hs.database.write(_settle, leave)
    else:
        await hs.database.write(_put_off, hs.server_name, leave)


# Storage


def store_leave(tx: Transaction, leave: _Leave) -> None:
    """Stores a leave that has to be told later."""
    tx.next_position(WAKE_KEY)
    tx.run(
        "INSERT INTO pending_leaves (room_nid, user_nid, content, servers, since_ms, failures, retry_after_ms)"
        " VALUES (?, ?, ?, ?, ?, 0, ?) ON CONFLICT (room_nid, user_nid) DO UPDATE SET content = excluded.content,"
        " servers = excluded.servers, since_ms = excluded.since_ms, failures = 0,"
        " retry_after_ms = excluded.retry_after_ms",
        tx.intern(leave.room_id), tx.intern(leave.user_id), to_json(leave.content), to_json(list(leave.servers)),
        tx.now_ms, tx.now_ms + limits.RETRY_MS,
    )  # fmt: skip


def _list_due(tx: Transaction) -> tuple[list[_Leave], float, int]:
    """The leaves that are due, in how many milliseconds the next one is, and the position of the stream."""
    due: list[_Leave] = []
    next_ms: float = math.inf
    for room_nid, user_nid, content, servers, since_ms, failures, retry_after_ms in tx.all(
        "SELECT room_nid, user_nid, content, servers, since_ms, failures, retry_after_ms FROM pending_leaves"
    ):
        pause_ms_max = min(2 * limits.RETRY_MS << failures, 2 * limits.LEAVE_RETRY_MS_MAX)
        if is_ahead(retry_after_ms, tx.now_ms, pause_ms_max):
            next_ms = min(next_ms, retry_after_ms - tx.now_ms, pause_ms_max)
            continue
        room_id, user_id = RoomID(tx.name(room_nid)), UserID(tx.name(user_nid))
        due.append(_Leave(room_id, user_id, orjson.loads(content), orjson.loads(servers), since_ms, failures))
    return due, next_ms, tx.position


def _is_stored(tx: Transaction, leave: _Leave) -> bool:
    """Whether it still stands: nothing has replaced what it ends."""
    row = tx.one(
        "SELECT since_ms FROM pending_leaves WHERE room_nid = ? AND user_nid = ?",
        tx.find(leave.room_id), tx.find(leave.user_id),
    )  # fmt: skip
    return row is not None and row[0] == leave.since_ms


def _settle(tx: Transaction, leave: _Leave) -> None:
    tx.run(
        "DELETE FROM pending_leaves WHERE room_nid = ? AND user_nid = ? AND since_ms = ?",
        tx.find(leave.room_id), tx.find(leave.user_id), leave.since_ms,
    )  # fmt: skip


def _put_off(tx: Transaction, own: ServerName, leave: _Leave) -> None:
    delay_ms = min(retry_delay_ms(own, leave.servers[0], leave.failures), limits.LEAVE_RETRY_MS_MAX)
    tx.run(
        "UPDATE pending_leaves SET failures = ?, retry_after_ms = ? WHERE room_nid = ? AND user_nid = ?"
        " AND since_ms = ?",
        leave.failures + 1, tx.now_ms + delay_ms, tx.find(leave.room_id), tx.find(leave.user_id), leave.since_ms,
    )  # fmt: skip
