"""Friends: whom each user of this server has asked, was asked by, and is friends with.

The rows here follow from the pair's conversations: see `friend_rooms.py`, which keeps them up to date. So questions
about friends, such as those of privacy settings, are one lookup.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, NamedTuple

from homeserver.database import Schema, Step, Transaction
from homeserver.federation.identifiers import RoomID, UserID

LIST_TYPE = "org.homeserver.friends"
"""The type of account data by which `/sync` tells the list of ids and states."""
ENDED_KEPT_MAX = 500
"""Ended rows that each user keeps, so that `?since=` can say who is not a friend any more."""

LISTS_CACHED_BYTES_MAX = 16 << 20
"""Enough for the lists of some 500 people with hundreds of friends."""
FRIEND_BYTES = 200
"""What a friend in a cached list takes, or their counts."""

FriendState = Literal["friend", "incoming", "outgoing", "none"]

# friends: one row for each user of this server and each person they have asked, or were asked by. state: friend,
# incoming, outgoing, or none after the end. room_nid: the conversation, 0 if there is none. position: of the last
# change of the row. A row of a user with themselves says up to which position ended rows have been deleted.
# friend_rooms: the conversations of each pair that the user is in or invited to. friend_tasks: what this server still
# has to do in one of them. friend_lanes: a row for each server that has tasks; see `friend_tasks.py` for both.
# friend_withdrawals: withdrawn requests that the other server has yet to hear of.
SCHEMA = Schema(
    "friends",
    (
        Step(
            "001_create",
            """
            CREATE TABLE friends (
                user_nid INTEGER NOT NULL,
                friend_nid INTEGER NOT NULL,
                state TEXT NOT NULL,
                room_nid INTEGER NOT NULL,
                since_ms INTEGER NOT NULL,
                position INTEGER NOT NULL,
                PRIMARY KEY (user_nid, friend_nid)
            ) WITHOUT ROWID;
            CREATE INDEX friends_by_position ON friends (user_nid, position);
            """,
        ),
        Step(
            "002_rooms",
            """
            CREATE TABLE friend_rooms (
                user_nid INTEGER NOT NULL,
                friend_nid INTEGER NOT NULL,
                room_nid INTEGER NOT NULL,
                PRIMARY KEY (user_nid, friend_nid, room_nid)
            ) WITHOUT ROWID;
            CREATE INDEX friend_rooms_by_room ON friend_rooms (room_nid);
            CREATE TABLE friend_tasks (
                user_nid INTEGER NOT NULL,
                friend_nid INTEGER NOT NULL,
                room_nid INTEGER NOT NULL,
                kind TEXT NOT NULL,
                message TEXT NOT NULL,
                since_ms INTEGER NOT NULL,
                failures INTEGER NOT NULL,
                retry_after_ms INTEGER NOT NULL,
                PRIMARY KEY (user_nid, friend_nid, room_nid)
            ) WITHOUT ROWID;
            CREATE TABLE friend_withdrawals (
                position INTEGER PRIMARY KEY,
                server_nid INTEGER NOT NULL,
                user_nid INTEGER NOT NULL,
                friend_nid INTEGER NOT NULL,
                room_nid INTEGER NOT NULL
            );
            CREATE INDEX friend_withdrawals_of_server ON friend_withdrawals (server_nid, position);
            """,
        ),
        Step(
            "003_lanes",
            """
            ALTER TABLE friend_tasks ADD COLUMN server_nid INTEGER NOT NULL DEFAULT 0;
            CREATE INDEX friend_tasks_of_server ON friend_tasks (server_nid, retry_after_ms);
            CREATE TABLE friend_lanes (
                server_nid INTEGER PRIMARY KEY,
                failures INTEGER NOT NULL,
                retry_after_ms INTEGER NOT NULL
            );
            CREATE INDEX friend_lanes_by_time ON friend_lanes (retry_after_ms);
            """,
        ),
    ),
)


class Friend(NamedTuple):
    """What a person is to a user. room_id: the conversation, None after the end. since_ms: when the state began."""

    user_id: UserID
    state: FriendState
    room_id: RoomID | None
    since_ms: int
    position: int


def is_friend(tx: Transaction, user_id: str, other: str) -> bool:
    """Returns whether a user of this server has this friend."""
    row = tx.one("SELECT state FROM friends WHERE user_nid = ? AND friend_nid = ?", tx.find(user_id), tx.find(other))
    return row is not None and row[0] == "friend"


def list_confirmed(tx: Transaction, user_id: str) -> list[UserID]:
    """Returns the friends of a user of this server, without those who were only asked."""
    nids = tx.values("SELECT friend_nid FROM friends WHERE user_nid = ? AND state = 'friend'", tx.find(user_id))
    return [UserID(name) for name in tx.names(nids).values()]


def list_having_friend(tx: Transaction, user_ids: Collection[str], friend: str) -> set[UserID]:
    """Returns those of these users of this server who have this friend."""
    nids = tx.find_all(user_ids)
    rows = tx.all_in(
        "SELECT user_nid FROM friends WHERE user_nid IN (?*) AND friend_nid = ? AND state = 'friend'",
        list(nids.values()),
        tx.find(friend),
    )
    return {UserID(name) for name in tx.names([row[0] for row in rows]).values()}


def list_friends_among(tx: Transaction, user_id: str, others: Collection[str]) -> set[UserID]:
    """Returns those of `others` who are friends of a user of this server."""
    nids = tx.find_all(others)
    rows = tx.all_in(
        "SELECT friend_nid FROM friends WHERE friend_nid IN (?*) AND user_nid = ? AND state = 'friend'",
        list(nids.values()),
        tx.find(user_id),
    )
    return {UserID(name) for name in tx.names([row[0] for row in rows]).values()}


def find_friend(tx: Transaction, user_id: str, other: str) -> Friend | None:
    """Returns what the other person is to a user of this server; None if there was never anything."""
    row = tx.one(
        "SELECT state, room_nid, since_ms, position FROM friends WHERE user_nid = ? AND friend_nid = ?",
        tx.find(user_id), tx.find(other),
    )  # fmt: skip
    if row is None or user_id == other:
        return None
    room_id = RoomID(tx.name(row[1])) if row[1] else None
    return Friend(UserID(other), row[0], room_id, row[2], row[3])


def list_friends(tx: Transaction, user_id: str) -> tuple[Friend, ...]:
    """Returns everybody with whom the user has or had anything, in no order. It is kept until something changes."""
    user_nid = tx.find(user_id)
    version = tx.one("SELECT MAX(position), COUNT(*) FROM friends WHERE user_nid = ?", user_nid)
    cache = tx.sized_cache("friends", LISTS_CACHED_BYTES_MAX)
    known: tuple[object, tuple[Friend, ...]] | None = cache.get(user_id)
    if known is not None and known[0] == version:
        return known[1]
    rows = tx.all(
        "SELECT friend_nid, state, room_nid, since_ms, position FROM friends WHERE user_nid = ? AND friend_nid <> ?",
        user_nid, user_nid,
    )  # fmt: skip
    names = tx.names({nid for row in rows for nid in (row[0], row[2]) if nid})
    found = tuple(
        Friend(UserID(names[friend]), state, RoomID(names[room]) if room else None, since_ms, position)
        for friend, state, room, since_ms, position in rows
    )
    if not tx.is_write:  # what a write has stored may still be rolled back
        cache.put(user_id, (version, found), FRIEND_BYTES * (1 + len(found)))
    return found


def count_friends(tx: Transaction, user_id: str) -> int:
    """Returns how many friends and requests the user has."""
    (count,) = tx.values("SELECT COUNT(*) FROM friends WHERE user_nid = ? AND state <> 'none'", tx.find(user_id))
    return int(count)


def list_changed(tx: Transaction, user_id: str, since: int, upto: int) -> set[UserID]:
    """Returns the people who have become something else to the user in since < position ≤ upto."""
    nids = tx.values(
        "SELECT friend_nid FROM friends WHERE user_nid = ? AND position > ? AND position <= ?",
        tx.find(user_id), since, upto,
    )  # fmt: skip
    return {UserID(name) for name in tx.names(nids).values()}


def has_changed(tx: Transaction, user_id: str, since: int, upto: int) -> bool:
    """Returns whether anybody has become something else to the user in since < position ≤ upto."""
    return bool(list_changed(tx, user_id, since, upto))


def find_deleted_upto(tx: Transaction, user_id: str) -> int:
    """Returns up to which position ended rows of the user have been deleted, 0 if none were."""
    nid = tx.find(user_id)
    row = tx.one("SELECT position FROM friends WHERE user_nid = ? AND friend_nid = ?", nid, nid)
    return 0 if row is None else int(row[0])


def store_friend(tx: Transaction, user_id: UserID, other: str, state: FriendState, room_id: RoomID | None) -> None:
    """Stores what the other person is to a user of this server, and wakes the user if that is news."""
    old = find_friend(tx, user_id, other)
    if (old.state, old.room_id) == (state, room_id) if old is not None else state == "none":
        return
    since_ms = old.since_ms if old is not None and old.state == state else tx.now_ms
    _store(tx, user_id, other, state, tx.intern(room_id) if room_id else 0, since_ms, tx.next_position(user_id))
    if state == "none":
        _delete_ended(tx, user_id)


def _store(
    tx: Transaction, user_id: str, other: str, state: FriendState, room_nid: int, since_ms: int, position: int
) -> None:
    tx.run(
        "INSERT INTO friends (user_nid, friend_nid, state, room_nid, since_ms, position) VALUES (?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (user_nid, friend_nid) DO UPDATE SET state = excluded.state, room_nid = excluded.room_nid,"
        " since_ms = excluded.since_ms, position = excluded.position",
        tx.intern(user_id), tx.intern(other), state, room_nid, since_ms, position,
    )  # fmt: skip


def _delete_ended(tx: Transaction, user_id: str) -> None:
    """Deletes the oldest ended rows if there are too many, and notes up to where."""
    nid = tx.find(user_id)
    row = tx.one(
        "SELECT position FROM friends WHERE user_nid = ? AND friend_nid <> ? AND state = 'none'"
        " ORDER BY position DESC LIMIT 1 OFFSET ?",
        nid, nid, ENDED_KEPT_MAX,
    )  # fmt: skip
    if row is not None:
        tx.run(
            "DELETE FROM friends WHERE user_nid = ? AND friend_nid <> ? AND state = 'none' AND position <= ?",
            nid, nid, row[0],
        )  # fmt: skip
        _store(tx, user_id, user_id, "none", 0, 0, row[0])


def forget_friends(tx: Transaction, user_id: UserID, erase: bool) -> bool:
    """Deletes a user's own rows. Conversations end, for the friends too, when the account leaves its rooms."""
    nid = tx.find(user_id)
    tx.run("DELETE FROM friends WHERE user_nid = ?", nid)
    tx.run("DELETE FROM friend_tasks WHERE user_nid = ?", nid)
    return False
