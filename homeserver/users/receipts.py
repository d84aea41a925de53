"""Receipts as stored: how far each user has read a room, and each of its threads. Spec: client-server-api/#receipts

A user has one receipt per room, type and thread: the newest one by timeline order. It replaces the previous row, so
that storage does not grow with each message read.

A receipt of the type DELIVERED is not about reading: a device of the user has acknowledged the event. See
`homeserver.users.delivered`.

In rooms of up to `messages.delivery_members_max` members, `receipt_moves` has the last moves of each public receipt, so
that the status of a message says when it was read even if later ones have been read since.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from homeserver import limits
from homeserver.database import Row, Schema, Step, Transaction
from homeserver.federation.identifiers import EventID, RoomID, UserID
from homeserver.rooms.member_changes import has_at_most
from homeserver.rooms.membership import list_memberships
from homeserver.rooms.storage import StoredEvent, find_positions, find_stored_by_id

# thread_id "": unthreaded. ordering: that of the event, NULL while this server lacks the event.
SCHEMA = Schema(
    "receipts",
    (
        Step(
            "001_create",
            """
            CREATE TABLE receipts (
                room_nid INTEGER NOT NULL,
                user_nid INTEGER NOT NULL,
                receipt_type TEXT NOT NULL,
                thread_id TEXT NOT NULL,
                event_id TEXT NOT NULL,
                ordering INTEGER,
                ts_ms INTEGER NOT NULL,
                position INTEGER NOT NULL,
                is_local INTEGER NOT NULL,
                PRIMARY KEY (room_nid, user_nid, receipt_type, thread_id)
            ) WITHOUT ROWID;
            CREATE INDEX receipts_by_position ON receipts (position);
            """,
        ),
        Step(
            "002_moves",
            """
            CREATE TABLE receipt_moves (
                room_nid INTEGER NOT NULL,
                user_nid INTEGER NOT NULL,
                receipt_type TEXT NOT NULL,
                thread_id TEXT NOT NULL,
                ordering INTEGER NOT NULL,
                ts_ms INTEGER NOT NULL,
                PRIMARY KEY (room_nid, user_nid, receipt_type, thread_id, ordering)
            ) WITHOUT ROWID;
            """,
        ),
    ),
)

DELIVERED = "org.homeserver.delivered"
PRIVATE = "m.read.private"

# Moves kept of each receipt. Most messages that anybody asks about are among the newest.
MOVES_KEPT_MAX = 32

# How many relations to follow from an event to one in a thread. Spec: client-server-api/#threaded-read-receipts
THREAD_HOPS_MAX = 3

# Over a longer span of the stream, the receipts of all rooms outnumber those of the user's rooms.
SPAN_BY_POSITION_MAX = 1_000


def find_thread(tx: Transaction, event: StoredEvent) -> str | None:
    """Returns the root of the thread that an event is in, None if it is in the main timeline.

    Spec: client-server-api/#threaded-read-receipts
    """
    room_id: RoomID = event.room_id
    for _ in range(THREAD_HOPS_MAX):
        relation = event.content.get("m.relates_to")
        if not isinstance(relation, dict):
            return None
        parent_id = relation.get("event_id")
        if not isinstance(parent_id, str):
            return None
        parent = find_stored_by_id(tx, parent_id)
        if parent is None or parent.room_id != room_id:
            return None
        if relation.get("rel_type") == "m.thread":
            return parent_id
        event = parent
    return None


def store_receipt(
    tx: Transaction,
    room_id: RoomID,
    user_id: UserID,
    receipt_type: str,
    thread_id: str,
    event_id: EventID,
    ordering: int | None,
    ts_ms: int,
    *,
    is_local: bool,
) -> None:
    """Replaces the user's receipt of that type and thread. A private one wakes only its user."""
    if thread_id not in ("", "main"):
        _delete_oldest_receipts(tx, room_id, user_id, receipt_type, thread_id)
    wake = user_id if receipt_type == PRIVATE else room_id
    ts_ms = min(ts_ms, limits.TIMESTAMP_MS_MAX)
    if receipt_type != PRIVATE and ordering is not None and is_kept_in(tx, tx.intern(room_id)):
        _store_move(tx, room_id, user_id, receipt_type, thread_id, ordering, ts_ms)
    tx.run(
        "INSERT INTO receipts (room_nid, user_nid, receipt_type, thread_id, event_id, ordering, ts_ms, position,"
        " is_local)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (room_nid, user_nid, receipt_type, thread_id) DO UPDATE SET"
        " event_id = excluded.event_id, ordering = excluded.ordering, ts_ms = excluded.ts_ms,"
        " position = excluded.position",
        tx.intern(room_id),
        tx.intern(user_id),
        receipt_type,
        thread_id,
        event_id,
        ordering,
        ts_ms,
        tx.next_position(wake),
        int(is_local),
    )


def is_kept_in(tx: Transaction, room_nid: int) -> bool:
    """Returns whether delivered receipts, and when receipts moved, are kept in the room: it is not too large."""
    return has_at_most(tx, room_nid, tx.server.config.messages.delivery_members_max)


def _store_move(
    tx: Transaction, room_id: RoomID, user_id: UserID, receipt_type: str, thread_id: str, ordering: int, ts_ms: int
) -> None:
    """Adds a move, and deletes the oldest one if there are too many."""
    of_receipt = (tx.intern(room_id), tx.intern(user_id), receipt_type, thread_id)
    tx.run(
        "INSERT INTO receipt_moves (room_nid, user_nid, receipt_type, thread_id, ordering, ts_ms)"
        " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (room_nid, user_nid, receipt_type, thread_id, ordering) DO NOTHING",
        *of_receipt,
        ordering,
        ts_ms,
    )
    tx.run(
        "DELETE FROM receipt_moves WHERE room_nid = ? AND user_nid = ? AND receipt_type = ? AND thread_id = ?"
        " AND ordering <= (SELECT ordering FROM receipt_moves WHERE room_nid = ? AND user_nid = ?"
        " AND receipt_type = ? AND thread_id = ? ORDER BY ordering DESC LIMIT 1 OFFSET ?)",
        *of_receipt,
        *of_receipt,
        MOVES_KEPT_MAX,
    )


def _delete_oldest_receipts(
    tx: Transaction, room_id: RoomID, user_id: UserID, receipt_type: str, thread_id: str
) -> None:
    """Deletes the user's oldest threaded receipts in the room if there are too many for another one."""
    threads = tx.values(
        "SELECT thread_id FROM receipts WHERE room_nid = ? AND user_nid = ? AND receipt_type = ?"
        " AND thread_id NOT IN ('', 'main') AND thread_id <> ? ORDER BY position DESC",
        tx.find(room_id),
        tx.find(user_id),
        receipt_type,
        thread_id,
    )
    for oldest in threads[limits.users.RECEIPT_THREADS_MAX - 1 :]:
        of_receipt = (tx.find(room_id), tx.find(user_id), receipt_type, oldest)
        tx.run(
            "DELETE FROM receipts WHERE room_nid = ? AND user_nid = ? AND receipt_type = ? AND thread_id = ?",
            *of_receipt,
        )
        tx.run(
            "DELETE FROM receipt_moves WHERE room_nid = ? AND user_nid = ? AND receipt_type = ? AND thread_id = ?",
            *of_receipt,
        )


def is_ahead(
    tx: Transaction, room_id: RoomID, user_id: UserID, receipt_type: str, thread_id: str, ordering: int | None
) -> bool:
    """Returns whether a receipt at `ordering` is newer than the user's current one."""
    row = tx.one(
        "SELECT ordering FROM receipts WHERE room_nid = ? AND user_nid = ? AND receipt_type = ? AND thread_id = ?",
        tx.find(room_id),
        tx.find(user_id),
        receipt_type,
        thread_id,
    )
    return row is None or row[0] is None or (ordering is not None and ordering > row[0])


def list_receipts_between(tx: Transaction, since: int, upto: int) -> list[Row]:
    """Returns room, user, type, thread, event and time of all receipts in since < position ≤ upto."""
    return tx.all(
        "SELECT room_nid, user_nid, receipt_type, thread_id, event_id, ts_ms FROM receipts"
        " WHERE position > ? AND position <= ?",
        since,
        upto,
    )


def list_receipts_of_rooms(tx: Transaction, room_nids: Collection[int], since: int) -> list[Row]:
    """Returns the same of the receipts in these rooms after position `since`."""
    return tx.all_in(
        "SELECT room_nid, user_nid, receipt_type, thread_id, event_id, ts_ms FROM receipts"
        " WHERE room_nid IN (?*) AND position > ?",
        room_nids,
        since,
    )


def list_read_rooms(
    tx: Transaction, user_id: UserID, room_ids: Collection[RoomID], since: int, upto: int
) -> set[RoomID]:
    """Returns those of these rooms in which the user has read something in since < position ≤ upto."""
    user_nid = tx.find(user_id)
    if upto - since <= SPAN_BY_POSITION_MAX:
        sql = (
            "SELECT room_nid FROM receipts WHERE position > ? AND position <= ? AND user_nid = ? AND receipt_type <> ?"
        )
        read = tx.names(set(tx.values(sql, since, upto, user_nid, DELIVERED)))
        return {RoomID(room_id) for room_id in read.values()}.intersection(room_ids)
    rows = tx.all_in(
        "SELECT room_nid FROM receipts WHERE room_nid IN (?*) AND user_nid = ? AND position > ? AND receipt_type <> ?",
        tx.find_all(room_ids).values(),
        user_nid,
        since,
        DELIVERED,
    )
    return {RoomID(room_id) for room_id in tx.names({room_nid for (room_nid,) in rows}).values()}


def forget_receipts(tx: Transaction, user_id: UserID, erase: bool) -> bool:
    """Deletes all receipts of the user."""
    nid = tx.find(user_id)
    room_nids = [tx.find(each.room_id) for each in list_memberships(tx, user_id)]
    rows = [(room_nid, nid) for room_nid in room_nids]
    tx.many("DELETE FROM receipts WHERE room_nid = ? AND user_nid = ?", rows)
    tx.many("DELETE FROM receipt_moves WHERE room_nid = ? AND user_nid = ?", rows)
    return False


def list_public_receipts(tx: Transaction, since: int, upto: int) -> list[Row]:
    """Returns room, user, type, thread, event and time of local users' public receipts in since < position ≤ upto."""
    return tx.all(
        "SELECT room_nid, user_nid, receipt_type, thread_id, event_id, ts_ms FROM receipts"
        " WHERE position > ? AND position <= ? AND is_local = 1 AND receipt_type <> ?",
        since,
        upto,
        PRIVATE,
    )


def list_readers(tx: Transaction, since: int, upto: int) -> set[UserID]:
    """Returns the local users who have read something in since < position ≤ upto."""
    rows = tx.values(
        "SELECT user_nid FROM receipts WHERE position > ? AND position <= ? AND is_local = 1 AND receipt_type <> ?",
        since,
        upto,
        DELIVERED,
    )
    return {UserID(user_id) for user_id in tx.names(set(rows)).values()}


class ReadUpTo(msgspec.Struct):
    """How far a user has read a room: orderings in its timeline. Public and private receipts count alike.

    everywhere: by unthreaded receipts. main, threads: by receipts for the main timeline, and for each thread by the
    position of its root. Spec: client-server-api/#marking-notifications-as-read
    """

    everywhere: int = -1
    main: int = -1
    threads: dict[int, int] = msgspec.field(default_factory=dict)


def find_read_up_to(tx: Transaction, user_id: UserID, room_nids: Collection[int]) -> dict[int, ReadUpTo]:
    """Returns how far a user has read these rooms, by room. Rooms without receipts are left out."""
    rows = tx.all_in(
        "SELECT room_nid, thread_id, ordering FROM receipts WHERE room_nid IN (?*) AND user_nid = ?"
        " AND ordering IS NOT NULL AND receipt_type <> ?",
        room_nids,
        tx.find(user_id),
        DELIVERED,
    )
    roots = {thread_id for _, thread_id, _ in rows if thread_id not in ("", "main")}
    positions = find_positions(tx, roots) if roots else {}
    found: dict[int, ReadUpTo] = {}
    for room_nid, thread_id, ordering in rows:
        read = found.setdefault(room_nid, ReadUpTo())
        if thread_id == "":
            read.everywhere = max(read.everywhere, ordering)
        elif thread_id == "main":
            read.main = max(read.main, ordering)
        elif (root := positions.get(EventID(thread_id))) is not None:
            read.threads[root] = max(read.threads.get(root, -1), ordering)
    return found


def list_covering(
    tx: Transaction, room_id: RoomID, user_nids: Collection[int], thread_ids: tuple[str, str], ordering: int
) -> list[tuple[int, str, int]]:
    """Returns user, type and time of the first public receipts of these users that cover a place of the timeline.

    thread_ids: receipts for which threads count. A user may have several rows of a type, of which the earliest is the
    one that counts. If the moves of the receipt go back far enough, that is when the user got there; otherwise the
    time of a later move.
    """
    room_nid = tx.find(room_id)
    rows = tx.all_in(
        "SELECT user_nid, receipt_type, MIN(ts_ms) FROM receipt_moves WHERE user_nid IN (?*) AND room_nid = ?"
        " AND receipt_type <> ? AND thread_id IN (?, ?) AND ordering >= ? GROUP BY user_nid, receipt_type",
        user_nids,
        room_nid,
        PRIVATE,
        *thread_ids,
        ordering,
    )
    current = tx.all_in(
        "SELECT user_nid, receipt_type, ts_ms, ordering, event_id FROM receipts WHERE user_nid IN (?*) AND room_nid = ?"
        " AND receipt_type <> ? AND thread_id IN (?, ?) AND (ordering >= ? OR ordering IS NULL)",
        user_nids,
        room_nid,
        PRIVATE,
        *thread_ids,
        ordering,
    )
    found = [(user_nid, receipt_type, ts_ms) for user_nid, receipt_type, ts_ms in rows]
    for user_nid, receipt_type, ts_ms, place, event_id in current:
        if place is not None or _is_at_least(tx, event_id, ordering):
            found.append((user_nid, receipt_type, ts_ms))
    return found


def _is_at_least(tx: Transaction, event_id: str, ordering: int) -> bool:
    """Returns whether an event that came after its receipt is at a place of the timeline or behind it."""
    event = find_stored_by_id(tx, event_id)
    return event is not None and event.ordering is not None and event.ordering >= ordering


def list_readers_of_room(
    tx: Transaction, room_nid: int, thread_ids: tuple[str, str], ordering: int, limit: int
) -> list[int]:
    """Returns some of the users whose public read receipts cover a place of the timeline."""
    return tx.values(
        "SELECT DISTINCT user_nid FROM receipts WHERE room_nid = ? AND receipt_type = 'm.read'"
        " AND thread_id IN (?, ?) AND ordering >= ? LIMIT ?",
        room_nid,
        *thread_ids,
        ordering,
        limit,
    )
