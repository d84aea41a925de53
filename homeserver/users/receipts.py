"""Receipts as stored: how far each user has read a room, and each of its threads. Spec: client-server-api/#receipts

A user has one receipt per room, type and thread: the newest one by timeline order. It replaces the previous row, so
that storage does not grow with each message read.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from homeserver import limits
from homeserver.database import Row, Schema, Step, Transaction
from homeserver.federation.identifiers import EventID, RoomID, UserID
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
    ),
)

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
    wake = user_id if receipt_type == "m.read.private" else room_id
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
        min(ts_ms, limits.TIMESTAMP_MS_MAX),
        tx.next_position(wake),
        int(is_local),
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
        tx.run(
            "DELETE FROM receipts WHERE room_nid = ? AND user_nid = ? AND receipt_type = ? AND thread_id = ?",
            tx.find(room_id),
            tx.find(user_id),
            receipt_type,
            oldest,
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
    """Returns those of these rooms in which the user has sent a receipt of any type in since < position ≤ upto."""
    user_nid = tx.find(user_id)
    if upto - since <= SPAN_BY_POSITION_MAX:
        sql = "SELECT room_nid FROM receipts WHERE position > ? AND position <= ? AND user_nid = ?"
        read = tx.names(set(tx.values(sql, since, upto, user_nid)))
        return {RoomID(room_id) for room_id in read.values()}.intersection(room_ids)
    rows = tx.all_in(
        "SELECT room_nid FROM receipts WHERE room_nid IN (?*) AND user_nid = ? AND position > ?",
        tx.find_all(room_ids).values(),
        user_nid,
        since,
    )
    return {RoomID(room_id) for room_id in tx.names({room_nid for (room_nid,) in rows}).values()}


def forget_receipts(tx: Transaction, user_id: UserID, erase: bool) -> bool:
    """Deletes all receipts of the user."""
    nid = tx.find(user_id)
    room_nids = [tx.find(each.room_id) for each in list_memberships(tx, user_id)]
    tx.many("DELETE FROM receipts WHERE room_nid = ? AND user_nid = ?", [(room_nid, nid) for room_nid in room_nids])
    return False


def list_public_receipts(tx: Transaction, since: int, upto: int) -> list[Row]:
    """Returns room, user, thread, event and time of the public receipts of local users in since < position ≤ upto."""
    return tx.all(
        "SELECT room_nid, user_nid, thread_id, event_id, ts_ms FROM receipts WHERE position > ? AND position <= ?"
        " AND is_local = 1 AND receipt_type = 'm.read'",
        since,
        upto,
    )


def list_readers(tx: Transaction, since: int, upto: int) -> set[UserID]:
    """Returns the local users who have sent a receipt of any type in since < position ≤ upto."""
    rows = tx.values("SELECT user_nid FROM receipts WHERE position > ? AND position <= ? AND is_local = 1", since, upto)
    return {UserID(user_id) for user_id in tx.names(set(rows)).values()}


@dataclass(slots=True)
class ReadUpTo:
    """How far a user has read a room: orderings in its timeline. Public and private receipts count alike.

    everywhere: by unthreaded receipts. main, threads: by receipts for the main timeline, and for each thread by the
    position of its root. Spec: client-server-api/#marking-notifications-as-read
    """

    everywhere: int = -1
    main: int = -1
    threads: dict[int, int] = field(default_factory=dict)


def find_read_up_to(tx: Transaction, user_id: UserID, room_nids: Collection[int]) -> dict[int, ReadUpTo]:
    """Returns how far a user has read these rooms, by room. Rooms without receipts are left out."""
    rows = tx.all_in(
        "SELECT room_nid, thread_id, ordering FROM receipts WHERE room_nid IN (?*) AND user_nid = ?"
        " AND ordering IS NOT NULL",
        room_nids,
        tx.find(user_id),
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
