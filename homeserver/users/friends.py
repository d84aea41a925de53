"""Friends: which people of this server are friends with which other people, as their conversations say.

A friendship is a direct room whose m.room.create has `"org.homeserver.friend": true`: asking is inviting, accepting is
joining, and leaving ends it. The rows of `friends` say what the rooms of a pair amount to for a user of this server.
"""

from __future__ import annotations

from collections.abc import Collection

from homeserver.database import Schema, Step, Transaction
from homeserver.federation.identifiers import UserID

# friends: one row for each user of this server and each person they have asked, or were asked by. state: friend,
# incoming, outgoing, or none after the end. room_nid: the conversation, 0 if there is none. position: of the last
# change of the row.
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
    ),
)


def are_friends(tx: Transaction, user_id: str, other: str) -> bool:
    """Returns whether two people are friends, at least one of whom is a user of this server. Blocking changes nothing.

    That way nobody learns from what they may see whether they have been blocked.
    """
    return is_friend(tx, user_id, other) or is_friend(tx, other, user_id)


def is_friend(tx: Transaction, user_id: str, other: str) -> bool:
    """Returns whether a user of this server has this friend."""
    row = tx.one("SELECT state FROM friends WHERE user_nid = ? AND friend_nid = ?", tx.find(user_id), tx.find(other))
    return row is not None and row[0] == "friend"


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
