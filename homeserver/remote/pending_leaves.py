"""The table of leaves that other servers have yet to get. `leaves` and `joining` insert and delete its rows.

A row is one of two things. It may be a *leave* by which a user rejects an invite or retracts a knock. Or it is the
*undoing of a join*: before a resident gets our join, a row with the event (`joins`) is stored, so that the join can be
undone even if this server crashes. The row is deleted in the write that enters the room, or when the resident refuses
the join.

Spec: server-server-api/#leaving-rooms-rejecting-invites
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import orjson

from homeserver import limits
from homeserver.database import Transaction
from homeserver.encoding import to_json
from homeserver.federation.event import Event
from homeserver.federation.identifiers import EventID, RoomID, ServerName, UserID
from homeserver.moments import is_ahead
from homeserver.process.back_off import retry_delay_ms
from homeserver.rooms.keys import open_sealed, seal
from homeserver.rooms.membership import find_membership

# The key of the stream that wakes the task waiting for the next stored leave.
WAKE_KEY = "leaves"

# The failures of a join in progress: its undoing is due only after the longest delay, because joins take minutes.
_JOINING_FAILURES = 10


class Leave(msgspec.Struct, frozen=True):
    """A leave that other servers have yet to get.

    joins: if it undoes a join, the events that residents may have accepted; otherwise empty.
    """

    room_id: RoomID
    user_id: UserID
    content: Mapping[str, Any]
    servers: Sequence[ServerName]
    since_ms: int
    failures: int = 0
    joins: Sequence[EventID] = ()


def store_leave(tx: Transaction, leave: Leave) -> None:
    """Stores a leave to be delivered soon. It replaces the stored one of this user and room."""
    _store(tx, leave, tx.now_ms + limits.peers.RETRY_MS)
    tx.next_position(WAKE_KEY)


def note_join(tx: Transaction, server: ServerName, join: Event) -> None:
    """Notes that a server is about to get our join, so that the join can be undone."""
    room_id, user_id = join.room_id, UserID(join.sender)
    held = find_leave(tx, room_id, user_id)
    servers, joins = (held.servers, held.joins) if held is not None and held.joins else ((), ())
    servers = list(dict.fromkeys([server, *servers]))[: limits.peers.JOIN_SERVERS_MAX]
    joins = [join.event_id, *joins][: limits.peers.JOINS_UNDONE_MAX]
    undoing = Leave(room_id, user_id, {}, servers, tx.now_ms, _JOINING_FAILURES, joins)
    _store(tx, undoing, tx.now_ms + limits.peers.LEAVE_RETRY_MS_MAX)


def forget_join(tx: Transaction, join: Event) -> None:
    """Deletes the note of a join that the server has refused: there is nothing to undo."""
    held = find_leave(tx, join.room_id, UserID(join.sender))
    if held is None or join.event_id not in held.joins:
        return
    if len(held.joins) == 1:
        delete_leave(tx, held)
        return
    joins = to_json([event_id for event_id in held.joins if event_id != join.event_id])
    room_nid, user_nid = tx.find(held.room_id), tx.find(held.user_id)
    tx.run("UPDATE pending_leaves SET joins = ? WHERE room_nid = ? AND user_nid = ?", joins, room_nid, user_nid)


def note_failed_join(tx: Transaction, room_id: RoomID, user_id: UserID) -> None:
    """Notes that the join has failed. If another server may have accepted it, that server gets a leave soon."""
    changed = tx.run(
        "UPDATE pending_leaves SET failures = 0, retry_after_ms = ? WHERE room_nid = ? AND user_nid = ?"
        " AND joins IS NOT NULL",
        tx.now_ms + limits.peers.RETRY_MS, tx.find(room_id), tx.find(user_id),
    )  # fmt: skip
    if changed:
        tx.next_position(WAKE_KEY)


def _place(user_nid: int) -> bytes:
    return b"pending leave of user %d" % user_nid


def _store(tx: Transaction, leave: Leave, retry_after_ms: int) -> None:
    room_nid, user_nid = tx.intern(leave.room_id), tx.intern(leave.user_id)
    tx.run(
        "INSERT INTO pending_leaves (room_nid, user_nid, content, servers, since_ms, failures, retry_after_ms, joins)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (room_nid, user_nid) DO UPDATE SET content = excluded.content,"
        " servers = excluded.servers, since_ms = excluded.since_ms, failures = excluded.failures,"
        " retry_after_ms = excluded.retry_after_ms, joins = excluded.joins",
        room_nid, user_nid, seal(tx, room_nid, _place(user_nid), to_json(leave.content)), to_json(list(leave.servers)),
        leave.since_ms, leave.failures, retry_after_ms, to_json(list(leave.joins)) if leave.joins else None,
    )  # fmt: skip


def find_leave(tx: Transaction, room_id: RoomID, user_id: UserID) -> Leave | None:
    """Returns the stored leave of the user and the room, or None."""
    row = tx.one(
        "SELECT room_nid, user_nid, content, servers, since_ms, failures, joins FROM pending_leaves"
        " WHERE room_nid = ? AND user_nid = ?",
        tx.find(room_id), tx.find(user_id),
    )  # fmt: skip
    return None if row is None else _read(tx, row)


def list_due(tx: Transaction) -> tuple[list[Leave], float, int]:
    """Returns the leaves that are due, in how many milliseconds the next one is due, and the stream position."""
    due: list[Leave] = []
    next_ms: float = math.inf
    rows = tx.all(
        "SELECT room_nid, user_nid, content, servers, since_ms, failures, joins, retry_after_ms FROM pending_leaves"
    )
    for row in rows:
        failures, retry_after_ms = row[5], row[7]
        pause_ms_max = min(2 * limits.peers.RETRY_MS << failures, 2 * limits.peers.LEAVE_RETRY_MS_MAX)
        if is_ahead(retry_after_ms, tx.now_ms, pause_ms_max):
            next_ms = min(next_ms, retry_after_ms - tx.now_ms, pause_ms_max)
        else:
            due.append(_read(tx, row))
    return due, next_ms, tx.position


def _read(tx: Transaction, row: Sequence[Any]) -> Leave:
    room_nid, user_nid, sealed, servers, since_ms, failures, joins = row[:7]
    content = open_content(tx, room_nid, user_nid, bytes(sealed)) or b"{}"
    return Leave(
        RoomID(tx.name(room_nid)), UserID(tx.name(user_nid)), orjson.loads(content), orjson.loads(servers), since_ms,
        failures, orjson.loads(joins) if joins is not None else (),
    )  # fmt: skip


def open_content(tx: Transaction, room_nid: int, user_nid: int, sealed: bytes) -> bytes | None:
    """Returns the content of a row as JSON, which may have a reason; None if the room's key is forgotten."""
    return open_sealed(tx, room_nid, _place(user_nid), sealed)


def is_stored(tx: Transaction, leave: Leave) -> bool:
    """Returns whether the leave must still be delivered: it was not replaced, and the user has not joined."""
    row = tx.one(
        "SELECT since_ms FROM pending_leaves WHERE room_nid = ? AND user_nid = ?",
        tx.find(leave.room_id), tx.find(leave.user_id),
    )  # fmt: skip
    is_same = row is not None and row[0] == leave.since_ms
    return is_same and find_membership(tx, leave.room_id, leave.user_id) != "join"


def delete_leave(tx: Transaction, leave: Leave) -> None:
    """Deletes this leave, but not one that has replaced it."""
    tx.run(
        "DELETE FROM pending_leaves WHERE room_nid = ? AND user_nid = ? AND since_ms = ?",
        tx.find(leave.room_id), tx.find(leave.user_id), leave.since_ms,
    )  # fmt: skip


def delete_leaves(tx: Transaction, room_id: RoomID, user_id: UserID | None = None) -> None:
    """Deletes all leaves of the room, or of one user there, so that they do not take effect any more."""
    if user_id is None:
        tx.run("DELETE FROM pending_leaves WHERE room_nid = ?", tx.find(room_id))
    else:
        tx.run("DELETE FROM pending_leaves WHERE room_nid = ? AND user_nid = ?", tx.find(room_id), tx.find(user_id))


def note_failed_leave(tx: Transaction, own: ServerName, leave: Leave) -> None:
    """Notes that no server could be reached. The next attempt comes after a growing delay."""
    delay_ms = min(retry_delay_ms(own, leave.servers[0], leave.failures), limits.peers.LEAVE_RETRY_MS_MAX)
    tx.run(
        "UPDATE pending_leaves SET failures = ?, retry_after_ms = ? WHERE room_nid = ? AND user_nid = ?"
        " AND since_ms = ?",
        leave.failures + 1, tx.now_ms + delay_ms, tx.find(leave.room_id), tx.find(leave.user_id), leave.since_ms,
    )  # fmt: skip
