"""Notifications as stored, and the counts of unread ones. Spec: client-server-api/#receiving-notifications

Theory of operation. Nothing is stored for each member of a room. An event that notifies by default has one row, however
many members there are (`notified_events`). A user whose rules say something else has a row that says what
(`own_notifications`): a mention, a keyword, a muted room. The count for a user is the rows of the first kind after what
the user has read, corrected by those of the second kind: ranges of two indexes, COUNTED_MAX rows at most.

What a user has read follows from receipts, from the messages that the user has sent (`written_up_to`), and from when
they joined. Own events, and events of ignored users, do not count.

A tail of the stream writes the rows, and deletes those that are too old to count from time to time. Events that it has
not reached yet when a sync is answered are judged in that read, so an answer with an event has its count. If the tail
is too far behind for that (UNREACHED_MAX), it wakes the rooms concerned once it has caught up, and `late_rooms` says
that their counts are to be told again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

import msgspec
import orjson

from homeserver.database import Schema, Step, Transaction
from homeserver.database.tail import find_position, store_position
from homeserver.encoding import to_json
from homeserver.federation.identifiers import RoomID, UserID
from homeserver.limits import DATABASE_POSITIONS_PER_WRITE
from homeserver.rooms.membership import list_join_positions, list_joined_rooms
from homeserver.rooms.storage import ORDERING_SHIFT, TimelineEvent, list_in_timeline, list_positions, list_stored
from homeserver.users.blocking import ignored_users
from homeserver.users.push.counts import COUNTED_MAX, RoomCounts
from homeserver.users.push.evaluation import Evaluated, find_redacted, is_new, is_written, judge, judge_for
from homeserver.users.push.rules import HIGHLIGHT, NOTIFY, Outcome
from homeserver.users.receipts import ReadUpTo, find_read_up_to

TAIL = "notifications"

KEPT_MAX = 2 * COUNTED_MAX
"""Notifications kept of a room, of its threads, and of a user in a room: those that can count, and as many to list."""
PRUNED_EVERY = 256
"""An event whose position follows a multiple of this makes the tail delete older notifications: some 2 ms of work.

On several nodes a message takes a block of positions, and uses only the first of them.
"""
UNREACHED_MAX = 500
"""Positions by which the tail may be behind while a sync judges events itself: at most 20 ms of work."""
UNREACHED_SHARED_MAX = 50
UNREACHED_CACHED_MAX = 4
"""Events that are kept for other readers of the same span, and of how many spans: 13 MB at most."""

# thread: the position of its root, 0 in the main timeline. level: 1 notifies, 2 is also a highlight; 0 does neither.
# actions: JSON, NULL for ["notify"]. late_rooms: the position at which the counts of a room changed without an event;
# that of room 0 is the one up to which the tail was behind.
SCHEMA = Schema(
    "notifications",
    (
        Step(
            "001_create",
            """
            CREATE TABLE notified_events (
                room_nid INTEGER NOT NULL,
                thread INTEGER NOT NULL,
                ordering INTEGER NOT NULL,
                level INTEGER NOT NULL,
                sender_nid INTEGER NOT NULL,
                actions TEXT,
                PRIMARY KEY (room_nid, thread, ordering)
            ) WITHOUT ROWID;
            CREATE INDEX notified_events_in_threads ON notified_events (room_nid, ordering) WHERE thread <> 0;
            CREATE TABLE own_notifications (
                user_nid INTEGER NOT NULL,
                room_nid INTEGER NOT NULL,
                ordering INTEGER NOT NULL,
                thread INTEGER NOT NULL,
                default_level INTEGER NOT NULL,
                level INTEGER NOT NULL,
                sender_nid INTEGER NOT NULL,
                actions TEXT,
                PRIMARY KEY (user_nid, room_nid, ordering)
            ) WITHOUT ROWID;
            CREATE INDEX own_notifications_of_event ON own_notifications (room_nid, ordering);
            CREATE TABLE written_up_to (
                user_nid INTEGER NOT NULL,
                room_nid INTEGER NOT NULL,
                thread INTEGER NOT NULL,
                ordering INTEGER NOT NULL,
                PRIMARY KEY (user_nid, room_nid, thread)
            ) WITHOUT ROWID;
            CREATE TABLE late_rooms (room_nid INTEGER PRIMARY KEY, position INTEGER NOT NULL);
            CREATE INDEX late_rooms_by_position ON late_rooms (position);
            """,
        ),
    ),
)


# --- what the tail writes ---


def store_notifications(tx: Transaction, found: Evaluated, since: int, upto: int) -> None:
    """Stores what a span of the stream means to users. A repeated span changes nothing."""
    tx.many(
        "INSERT INTO notified_events (room_nid, thread, ordering, level, sender_nid, actions) VALUES (?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (room_nid, thread, ordering) DO UPDATE SET level = excluded.level, actions = excluded.actions",
        [
            (
                tx.intern(each.event.room_id), each.judged.thread, each.event.ordering, each.judged.by_default.level,
                tx.intern(each.event.sender), pack_actions(each.judged.by_default),
            )
            for each in found.notified
            if each.judged.by_default.level
        ],
    )  # fmt: skip
    tx.many(
        "INSERT INTO own_notifications (user_nid, room_nid, ordering, thread, default_level, level, sender_nid,"
        " actions) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (user_nid, room_nid, ordering) DO UPDATE SET default_level = excluded.default_level,"
        " level = excluded.level, actions = excluded.actions",
        [
            (
                tx.intern(user_id), tx.intern(each.event.room_id), each.event.ordering, each.judged.thread,
                each.judged.by_default.level, outcome.level, tx.intern(each.event.sender), pack_actions(outcome),
            )
            for each in found.notified
            for user_id, outcome in each.others.items()
        ],
    )  # fmt: skip
    tx.many(
        "INSERT INTO written_up_to (user_nid, room_nid, thread, ordering) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (user_nid, room_nid, thread) DO UPDATE SET ordering = excluded.ordering"
        " WHERE excluded.ordering > written_up_to.ordering",
        [(tx.intern(user), tx.intern(room), thread, ordering) for user, room, thread, ordering in found.written],
    )
    for event in found.redacted:
        delete_notification(tx, event)
    due: dict[str, set[UserID]] = {}
    for each in found.notified:
        if each.event.position % PRUNED_EVERY < DATABASE_POSITIONS_PER_WRITE:
            due.setdefault(each.event.room_id, set()).update(each.others)
    for room_id, user_ids in due.items():
        _delete_old(tx, tx.intern(room_id), user_ids)
    _note_late(tx, found, since)
    store_position(tx, TAIL, upto)


def _delete_old(tx: Transaction, room_nid: int, user_ids: Iterable[UserID]) -> None:
    """Deletes all but the newest notifications of a room, and of these users in it."""
    tx.run(
        "DELETE FROM notified_events WHERE room_nid = ? AND thread = 0 AND ordering < (SELECT ordering"
        " FROM notified_events WHERE room_nid = ? AND thread = 0 ORDER BY ordering DESC LIMIT 1 OFFSET ?)",
        room_nid, room_nid, KEPT_MAX - 1,
    )  # fmt: skip
    tx.run(
        "DELETE FROM notified_events WHERE room_nid = ? AND thread <> 0 AND ordering < (SELECT ordering"
        " FROM notified_events WHERE room_nid = ? AND thread <> 0 ORDER BY ordering DESC LIMIT 1 OFFSET ?)",
        room_nid, room_nid, KEPT_MAX - 1,
    )  # fmt: skip
    for user_nid in tx.find_all(user_ids).values():
        tx.run(
            "DELETE FROM own_notifications WHERE user_nid = ? AND room_nid = ? AND ordering < (SELECT ordering"
            " FROM own_notifications WHERE user_nid = ? AND room_nid = ? ORDER BY ordering DESC LIMIT 1 OFFSET ?)",
            user_nid, room_nid, user_nid, room_nid, KEPT_MAX - 1,
        )  # fmt: skip


def delete_notification(tx: Transaction, event: TimelineEvent) -> None:
    """Deletes what a redacted event means to anybody."""
    room_nid = tx.find(event.room_id)
    tx.run("DELETE FROM notified_events WHERE room_nid = ? AND thread = 0 AND ordering = ?", room_nid, event.ordering)
    tx.run("DELETE FROM notified_events WHERE room_nid = ? AND thread <> 0 AND ordering = ?", room_nid, event.ordering)
    tx.run("DELETE FROM own_notifications WHERE room_nid = ? AND ordering = ?", room_nid, event.ordering)


def _note_late(tx: Transaction, found: Evaluated, since: int) -> None:
    """Wakes the rooms whose counts a sync may have told without these events, because the tail was too far behind."""
    reached = find_position(tx, TAIL) or 0
    (behind_upto,) = tx.values("SELECT position FROM late_rooms WHERE room_nid = 0") or (0,)
    if tx.position - reached > UNREACHED_MAX:
        behind_upto = tx.position
        _store_late(tx, 0, behind_upto)
    if since >= behind_upto:
        return
    for room_id in {each.event.room_id for each in found.notified} | {event.room_id for event in found.redacted}:
        _store_late(tx, tx.intern(room_id), tx.next_position(room_id))


def _store_late(tx: Transaction, room_nid: int, position: int) -> None:
    tx.run(
        "INSERT INTO late_rooms (room_nid, position) VALUES (?, ?)"
        " ON CONFLICT (room_nid) DO UPDATE SET position = excluded.position",
        room_nid, position,
    )  # fmt: skip


def pack_actions(outcome: Outcome) -> str | None:
    """Returns the actions of an outcome as they are stored, see `unpack_actions`."""
    actions = list(outcome.actions)
    return None if actions == ["notify"] else to_json(actions).decode()


def unpack_actions(packed: str | None) -> list[object]:
    """Returns the actions of a stored notification."""
    return ["notify"] if packed is None else list(orjson.loads(packed))


# --- what is read ---


def list_late_rooms(tx: Transaction, since: int) -> list[RoomID]:
    """Returns the rooms whose counts changed after position `since` without an event."""
    nids = tx.values("SELECT room_nid FROM late_rooms WHERE position > ? AND room_nid <> 0", since)
    return [RoomID(name) for name in tx.names(nids).values()]


class _Reader(NamedTuple):
    """A user, and those whose events do not count for them."""

    user_id: UserID
    user_nid: int | None
    silent: frozenset[int]


def count_unread(
    tx: Transaction, user_id: UserID, room_ids: Collection[RoomID], ignored: frozenset[str] | None = None
) -> dict[RoomID, RoomCounts]:
    """Returns the user's counts in those of these rooms that the user is in. ignored: by the user, if it is known."""
    nids = {nid: room_id for room_id in room_ids if (nid := tx.find(room_id)) is not None}
    silent = tx.find_all({user_id, *(ignored_users(tx, user_id) if ignored is None else ignored)})
    reader = _Reader(user_id, tx.find(user_id), frozenset(silent.values()))
    read = find_read(tx, user_id, nids)
    unreached = _list_unreached(tx)
    return {
        nids[nid]: _count_room(tx, reader, nid, up_to, unreached.get(nids[nid], _NO_EVENTS))
        for nid, up_to in read.items()
    }


def find_read(tx: Transaction, user_id: UserID, room_nids: Iterable[int]) -> dict[int, ReadUpTo]:
    """Returns how far the user has read those of the rooms that they are in, by receipts, messages and joining."""
    joined = list_join_positions(tx, user_id, list(room_nids))
    receipts = find_read_up_to(tx, user_id, joined)
    found = {}
    for nid, position in joined.items():
        read = found[nid] = receipts.get(nid) or ReadUpTo()
        read.everywhere = max(read.everywhere, position << ORDERING_SHIFT)
    rows = tx.all_in(
        "SELECT room_nid, thread, ordering FROM written_up_to WHERE room_nid IN (?*) AND user_nid = ?",
        joined,
        tx.find(user_id),
    )
    for room_nid, thread, ordering in rows:
        _note_written(found[room_nid], thread, ordering)
    return found


def _note_written(read: ReadUpTo, thread: int, ordering: int) -> None:
    if thread:
        read.threads[thread] = max(read.threads.get(thread, -1), ordering)
    else:
        read.main = max(read.main, ordering)


def read_point(read: ReadUpTo, thread: int) -> int:
    """Returns up to which ordering a thread is read, 0 for the main timeline."""
    return max(read.everywhere, read.threads.get(thread, -1) if thread else read.main)


def is_unread(tx: Transaction, user_id: UserID, event: TimelineEvent) -> bool:
    """Returns whether the user is in the event's room and has not read up to the event."""
    room_nid = tx.find(event.room_id)
    read = find_read(tx, user_id, [] if room_nid is None else [room_nid])
    return any(event.ordering > read_point(each, judge(tx, event).thread) for each in read.values())


class _Unreached(msgspec.Struct):
    """Events of a room that the tail has not reached: new ones, and those that were redacted."""

    events: list[TimelineEvent] = msgspec.field(default_factory=list)
    redacted: set[int] = msgspec.field(default_factory=set)


_NO_EVENTS = _Unreached()


def _list_unreached(tx: Transaction) -> Mapping[RoomID, _Unreached]:
    """Returns what the tail has not reached, by room. Syncs that wake for the same message share it."""
    reached = find_position(tx, TAIL)
    if reached is None or not 0 < tx.position - reached <= UNREACHED_MAX:
        return {}
    cache = tx.cache("unreached_events", UNREACHED_CACHED_MAX)
    known: dict[RoomID, _Unreached] | None = cache.get((reached, tx.position))
    if known is not None:
        return known
    stored = list_stored(tx, list_positions(tx, reached, tx.position))
    found: dict[RoomID, _Unreached] = {}
    for _, event in sorted(stored.items()):
        if isinstance(event, TimelineEvent) and is_new(event):
            of_room = found.setdefault(event.room_id, _Unreached())
            of_room.events.append(event)
            if event.type == "m.room.redaction":
                of_room.redacted |= {target.ordering for target in find_redacted(tx, event)}
    if not tx.is_write and len(stored) <= UNREACHED_SHARED_MAX:
        cache.put((reached, tx.position), found)
    return found


def _count_room(tx: Transaction, reader: _Reader, room_nid: int, read: ReadUpTo, unreached: _Unreached) -> RoomCounts:
    counts = RoomCounts()
    for event in unreached.events:
        if event.sender == reader.user_id and is_written(event):
            _note_written(read, judge(tx, event).thread, event.ordering)
    window = max(_count_main(tx, reader, room_nid, read, counts), _count_threads(tx, reader, room_nid, read, counts))
    _count_deviations(tx, reader, room_nid, read, window, counts)
    for ordering in unreached.redacted:
        _count_redacted(tx, reader, room_nid, read, ordering, counts)
    for event in unreached.events:
        thread = judge(tx, event).thread
        if event.ordering > read_point(read, thread) and tx.find(event.sender) not in reader.silent:
            counts.of(thread).add(judge_for(tx, event, reader.user_id).level)
    return counts


def _count_main(tx: Transaction, reader: _Reader, room_nid: int, read: ReadUpTo, counts: RoomCounts) -> int:
    """Counts the main timeline by default. Returns from which ordering on all is counted."""
    point = read_point(read, 0)
    groups = tx.all(
        "SELECT sender_nid, level, COUNT(*), MIN(ordering) FROM (SELECT sender_nid, level, ordering"
        " FROM notified_events WHERE room_nid = ? AND thread = 0 AND ordering > ?"
        " ORDER BY ordering DESC LIMIT ?) AS newest GROUP BY sender_nid, level",
        room_nid, point, COUNTED_MAX,
    )  # fmt: skip
    for sender_nid, level, number, _ in groups:
        if sender_nid not in reader.silent:
            counts.main.add(level, number)
    is_cut = sum(number for _, _, number, _ in groups) == COUNTED_MAX
    return min(oldest for _, _, _, oldest in groups) if is_cut else -1


def _count_threads(tx: Transaction, reader: _Reader, room_nid: int, read: ReadUpTo, counts: RoomCounts) -> int:
    rows = tx.all(
        "SELECT thread, ordering, level, sender_nid FROM notified_events"
        " WHERE room_nid = ? AND thread <> 0 AND ordering > ? ORDER BY ordering DESC LIMIT ?",
        room_nid, read.everywhere, COUNTED_MAX,
    )  # fmt: skip
    for thread, ordering, level, sender_nid in rows:
        if sender_nid not in reader.silent and ordering > read_point(read, thread):
            counts.threads[thread].add(level)
    return rows[-1][1] if len(rows) == COUNTED_MAX else -1


def _count_deviations(
    tx: Transaction, reader: _Reader, room_nid: int, read: ReadUpTo, window: int, counts: RoomCounts
) -> None:
    """Replaces what events mean by default by what they mean to the user, where that is something else."""
    oldest = min([read_point(read, 0), *(read_point(read, thread) for thread in read.threads), read.everywhere])
    rows = tx.all(
        "SELECT ordering, thread, default_level, level, sender_nid FROM own_notifications"
        " WHERE user_nid = ? AND room_nid = ? AND ordering > ? ORDER BY ordering DESC LIMIT ?",
        reader.user_nid, room_nid, max(oldest, window - 1), 2 * COUNTED_MAX,
    )  # fmt: skip
    for ordering, thread, default_level, level, sender_nid in rows:
        if sender_nid not in reader.silent and ordering > read_point(read, thread):
            counts.of(thread).add(default_level, -1)
            counts.of(thread).add(level)


def _count_redacted(
    tx: Transaction, reader: _Reader, room_nid: int, read: ReadUpTo, ordering: int, counts: RoomCounts
) -> None:
    """Takes an event that has been redacted out of the counts. The tail has not deleted its rows yet."""
    own = tx.one(
        "SELECT thread, level, sender_nid FROM own_notifications WHERE user_nid = ? AND room_nid = ? AND ordering = ?",
        reader.user_nid, room_nid, ordering,
    )  # fmt: skip
    row = own or tx.one(
        "SELECT thread, level, sender_nid FROM notified_events WHERE room_nid = ? AND thread = 0 AND ordering = ?",
        room_nid, ordering,
    ) or tx.one(
        "SELECT thread, level, sender_nid FROM notified_events WHERE room_nid = ? AND thread <> 0 AND ordering = ?",
        room_nid, ordering,
    )  # fmt: skip
    if row is not None and row[2] not in reader.silent and ordering > read_point(read, row[0]):
        counts.of(row[0]).add(row[1], -1)


class Listed(NamedTuple):
    """A notification of a user. is_read: whether the user has read the event."""

    event: TimelineEvent
    actions: list[object]
    is_read: bool


def list_notifications(
    tx: Transaction, user_id: UserID, before: int, limit: int, *, only_highlights: bool
) -> list[Listed]:
    """Returns at most `limit` notifications of events before this ordering, newest first, of rooms the user is in."""
    user_nid = tx.find(user_id)
    silent = frozenset(tx.find_all({user_id, *ignored_users(tx, user_id)}).values())
    rooms = tx.find_all(list_joined_rooms(tx, user_id))
    read = find_read(tx, user_id, rooms.values())
    joined = list_join_positions(tx, user_id, rooms.values())
    lowest = HIGHLIGHT if only_highlights else NOTIFY
    found: list[tuple[int, str | None, int, int]] = []
    for room_nid in read:
        found += _list_of_room(
            tx, user_nid, room_nid, silent, joined[room_nid] << ORDERING_SHIFT, before, limit, lowest
        )
    found += _list_unreached_notifications(tx, user_id, rooms, silent, before, lowest)
    found = sorted(found, key=lambda each: each[0], reverse=True)[:limit]
    events = list_in_timeline(tx, {ordering >> ORDERING_SHIFT for ordering, _, _, _ in found})
    return [
        Listed(
            events[ordering >> ORDERING_SHIFT],
            unpack_actions(actions),
            ordering <= read_point(read[room_nid], thread),
        )
        for ordering, actions, room_nid, thread in found
    ]


def _list_unreached_notifications(
    tx: Transaction, user_id: UserID, rooms: Mapping[str, int], silent: Collection[int], before: int, lowest: int
) -> Iterator[tuple[int, str | None, int, int]]:
    """Yields ordering, actions, room and thread of the notifications that the tail has not stored yet."""
    for room_id, unreached in _list_unreached(tx).items():
        for event in unreached.events if room_id in rooms else ():
            outcome = judge_for(tx, event, user_id)
            if outcome.level >= lowest and event.ordering < before and tx.find(event.sender) not in silent:
                yield event.ordering, pack_actions(outcome), rooms[room_id], judge(tx, event).thread


def _list_of_room(
    tx: Transaction,
    user_nid: int | None,
    room_nid: int,
    silent: frozenset[int],
    after: int,
    before: int,
    limit: int,
    lowest: int,
) -> list[tuple[int, str | None, int, int]]:
    """Returns ordering, actions, room and thread of the newest notifications of a room."""
    own = tx.all(
        "SELECT ordering, thread, level, sender_nid, actions FROM own_notifications WHERE user_nid = ?"
        " AND room_nid = ? AND ordering > ? AND ordering < ? ORDER BY ordering DESC LIMIT ?",
        user_nid, room_nid, after, before, 2 * COUNTED_MAX,
    )  # fmt: skip
    enough = limit + len(own)  # so many of those by default may not be what the user is told
    by_default = [
        *tx.all(
            "SELECT ordering, thread, level, sender_nid, actions FROM notified_events WHERE room_nid = ? AND thread = 0"
            " AND ordering > ? AND ordering < ? AND level >= ? AND sender_nid <> ? ORDER BY ordering DESC LIMIT ?",
            room_nid, after, before, lowest, user_nid, enough,
        ),
        *tx.all(
            "SELECT ordering, thread, level, sender_nid, actions FROM notified_events WHERE room_nid = ?"
            " AND thread <> 0 AND ordering > ? AND ordering < ? AND level >= ? AND sender_nid <> ?"
            " ORDER BY ordering DESC LIMIT ?",
            room_nid, after, before, lowest, user_nid, enough,
        ),
    ]  # fmt: skip
    rows = {row[0]: row for row in (*by_default, *own)}
    kept = [row for row in rows.values() if row[2] >= lowest and row[3] not in silent]
    kept.sort(key=lambda row: row[0], reverse=True)
    return [(ordering, actions, room_nid, thread) for ordering, thread, _, _, actions in kept[:limit]]


def forget_notifications(tx: Transaction, user_id: UserID, erase: bool) -> bool:
    """Deletes what is stored for the user alone."""
    nid = tx.find(user_id)
    tx.run("DELETE FROM own_notifications WHERE user_nid = ?", nid)
    tx.run("DELETE FROM written_up_to WHERE user_nid = ?", nid)
    return False
