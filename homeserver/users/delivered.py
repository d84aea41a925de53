"""Delivered receipts: the newest message of each room that one of a user's devices has acknowledged.

Theory of operation. A receipt is a pointer: one row for each user and room, which moves forward. `list_undelivered`
turns acks into the pointers that must move. For each user it needs the rooms with messages between the position that
was examined before and the ack, and rooms that the user has entered since, with their earlier messages. If that span is
short, one query for all users finds those events; otherwise the rooms of the user say when their last event came.
`delivered_upto` has the position that was examined, for after a restart; it is written only together with pointers, so
an ack without messages writes nothing.

A pointer does not move for a room that has more than `messages.delivery_members_max` members, for a person whose
setting says that nobody may know, and to a message that the user has read in public: who has read it has received it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import NamedTuple

from homeserver.database import Schema, Step, Transaction
from homeserver.federation.identifiers import EventID, RoomID, UserID
from homeserver.process.acknowledged import Ack
from homeserver.rooms.messages import (
    Placed,
    find_newest_message,
    list_joined_among,
    list_placed,
    list_rooms_active_since,
)
from homeserver.users.privacy import read_privacies
from homeserver.users.receipts import DELIVERED, is_ahead, is_kept_in, store_receipt

SCHEMA = Schema(
    "delivered",
    (
        Step(
            "create",
            """
            CREATE TABLE delivered_upto (
                user_nid INTEGER PRIMARY KEY,
                position INTEGER NOT NULL
            );
            """,
        ),
    ),
)

# A longer span of the stream is not searched for messages, as other rooms may have had most of them.
SPAN_SEARCHED_MAX = 1_000


class Pointer(NamedTuple):
    """A delivered receipt that moves: the user has the message at this place of the room's timeline."""

    user_id: UserID
    room_id: RoomID
    event_id: EventID
    ordering: int
    ts_ms: int


def list_undelivered(
    tx: Transaction, acks: Mapping[UserID, Ack], done: Mapping[UserID, int]
) -> tuple[list[Pointer], dict[UserID, int]]:
    """Returns the pointers that must move, and up to which position each user's acks have been examined now.

    done: the same from before, of the users for whom it is known.
    """
    since = {**find_delivered_upto(tx, acks.keys() - done.keys()), **done}
    reader = _Reader(tx, acks, since)
    hiding = {user_id for user_id, each in read_privacies(tx, list(acks)).items() if each.delivery == "nobody"}
    pointers = [pointer for user_id in acks if user_id not in hiding for pointer in reader.list_pointers(user_id)]
    return pointers, {user_id: max(ack.position, since.get(user_id, 0)) for user_id, ack in acks.items()}


@dataclass(slots=True)
class _Reader:
    """Finds the pointers of many users in one read. It reads the messages of a short span once for all of them."""

    tx: Transaction
    acks: Mapping[UserID, Ack]
    since: Mapping[UserID, int]
    _begin: int = field(init=False)
    _placed: Sequence[Placed] = field(init=False)  # the events after _begin
    _is_kept: dict[int, bool] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        last = max(ack.position for ack in self.acks.values())
        first = min(self.since.get(user_id, 0) for user_id in self.acks)
        self._begin = max(first, last - SPAN_SEARCHED_MAX)
        self._placed = list_placed(self.tx, self._begin, last)

    def list_pointers(self, user_id: UserID) -> list[Pointer]:
        since, ack = self.since.get(user_id, 0), self.acks[user_id]
        found = []
        for room_nid, begin in self._list_rooms(user_id, since, ack.position).items():
            if not self._keeps(room_nid):
                continue
            newest = find_newest_message(self.tx, room_nid, self.tx.find(user_id), begin, ack.position)
            if newest is None:
                continue
            room_id, (event_id, ordering) = RoomID(self.tx.name(room_nid)), newest
            if _is_news(self.tx, room_id, user_id, ordering):
                found.append(Pointer(user_id, room_id, event_id, ordering, ack.ts_ms))
        return found

    def _list_rooms(self, user_id: UserID, since: int, upto: int) -> dict[int, int]:
        """Returns the user's rooms that may have new messages, each with the position after which they are new.

        That is `since`, and 0 in a room that the user has entered meanwhile.
        """
        if since < self._begin:
            active = list_rooms_active_since(self.tx, user_id, since)
            return {room_nid: 0 if entered > since else since for room_nid, entered in active.items()}
        rooms: dict[int, int] = {}
        own_nid = self.tx.find(user_id)
        begin = bisect_right(self._placed, since, key=itemgetter(0))
        end = bisect_right(self._placed, upto, key=itemgetter(0))
        for _, room_nid, state_key_nid in self._placed[begin:end]:
            if state_key_nid is None:
                rooms.setdefault(room_nid, since)
            elif state_key_nid == own_nid:
                rooms[room_nid] = 0
        joined = list_joined_among(self.tx, user_id, rooms) if rooms else ()
        return {room_nid: rooms[room_nid] for room_nid in joined}

    def _keeps(self, room_nid: int) -> bool:
        kept = self._is_kept.get(room_nid)
        if kept is None:
            kept = self._is_kept[room_nid] = is_kept_in(self.tx, room_nid)
        return kept


def _is_news(tx: Transaction, room_id: RoomID, user_id: UserID, ordering: int) -> bool:
    """Returns whether others do not know yet that the user has the message."""
    return is_ahead(tx, room_id, user_id, DELIVERED, "", ordering) and is_ahead(
        tx, room_id, user_id, "m.read", "", ordering
    )


def store_delivered(tx: Transaction, pointers: Collection[Pointer], done: Mapping[UserID, int]) -> None:
    """Moves the pointers, unless they have moved further meanwhile.

    done: up to which position the acks of those users have been examined who have all their pointers now.
    """
    for user_id, room_id, event_id, ordering, ts_ms in pointers:
        if _is_news(tx, room_id, user_id, ordering):
            store_receipt(tx, room_id, user_id, DELIVERED, "", event_id, ordering, ts_ms, is_local=True)
    tx.many(
        "INSERT INTO delivered_upto (user_nid, position) VALUES (?, ?)"
        " ON CONFLICT (user_nid) DO UPDATE SET position = excluded.position",
        [(tx.intern(user_id), position) for user_id, position in done.items()],
    )


def find_delivered_upto(tx: Transaction, user_ids: Collection[UserID]) -> dict[UserID, int]:
    """Returns up to which position the users' acks had become receipts when that was last stored."""
    nids = {nid: UserID(user_id) for user_id, nid in tx.find_all(user_ids).items()}
    rows = tx.all_in("SELECT user_nid, position FROM delivered_upto WHERE user_nid IN (?*)", list(nids))
    return {nids[user_nid]: position for user_nid, position in rows}


def forget_delivered(tx: Transaction, user_id: UserID, erase: bool) -> bool:
    """Deletes how far the user's devices were. Their receipts are deleted with all others."""
    tx.run("DELETE FROM delivered_upto WHERE user_nid = ?", tx.find(user_id))
    return False
