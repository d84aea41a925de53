"""The status of a message: sent, delivered or read, for each of its recipients.

The recipients are the members of the room at the message who are still there, except its sender; in a conversation that
nobody else had joined by then, those who were invited. People who join later do not count, so a status does not go
back.
In a room that is too large to keep who has received what, only those who have read the message are listed.

A receipt that covers the message says that it was read or delivered, a private one says nothing. A person whose
setting `delivery` does not include the requester stays at "sent".
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import msgspec

from homeserver.database import Transaction
from homeserver.federation.identifiers import UserID
from homeserver.rooms.membership import count_members, list_entered
from homeserver.rooms.resolve import StateAt, position_in
from homeserver.rooms.state_tree import find_key
from homeserver.rooms.storage import ORDERING_SHIFT, TimelineEvent, list_stored
from homeserver.users.privacy import list_allowing
from homeserver.users.receipts import DELIVERED, find_thread, is_kept_in, list_covering, list_readers_of_room

# About 100 KB.
READERS_SHOWN_MAX = 1_000

State = Literal["sent", "delivered", "read"]


class RecipientStatus(msgspec.Struct, frozen=True):
    """The status for one recipient. delivered_ts, read_ts: when, in ms; None if not yet, or if it is not shown."""

    status: State = "sent"
    delivered_ts: int | None = None
    read_ts: int | None = None


class MessageStatus(msgspec.Struct, frozen=True):
    """status: the least of all recipients. counts: how many recipients have each."""

    status: State
    recipients: dict[UserID, RecipientStatus]
    counts: dict[State, int]


def read_message_status(tx: Transaction, asker: UserID, event: TimelineEvent) -> MessageStatus:
    """Returns the status of an event that the asker may see."""
    room_nid = tx.find(event.room_id)
    assert room_nid is not None
    threads = ("", find_thread(tx, event) or "main")
    if is_kept_in(tx, room_nid):
        recipients = _list_recipients(tx, event)
        others = 0
    else:
        nids = list_readers_of_room(tx, room_nid, threads, event.ordering, READERS_SHOWN_MAX)
        recipients = [UserID(name) for name in tx.names(nids).values() if name != event.sender]
        others = max(0, count_members(tx, event.room_id, "join") - 1 - len(recipients))
    statuses = _list_statuses(tx, asker, event, recipients, threads)
    counts: dict[State, int] = {"sent": others, "delivered": 0, "read": 0}
    for each in statuses.values():
        counts[each.status] += 1
    least: State = "sent"
    if statuses and not counts["sent"]:
        least = "delivered" if counts["delivered"] else "read"
    return MessageStatus(least, statuses, counts)


def _list_recipients(tx: Transaction, event: TimelineEvent) -> list[UserID]:
    """Returns the members who were in the room at the event, or if it was only the sender, who were invited to it."""
    later: list[UserID] = []
    recipients: list[UserID] = []
    for user_id, entered in list_entered(tx, event.room_id).items():
        if user_id == event.sender:
            continue
        # That spares most members a look at the state. It is a lower bound: a member may also have been here before.
        (recipients if entered << ORDERING_SHIFT < event.ordering else later).append(user_id)
    memberships = _list_memberships_at(tx, event, later)
    recipients += [user_id for user_id in later if memberships.get(user_id) == "join"]
    return recipients or [user_id for user_id in later if memberships.get(user_id) == "invite"]


def _list_memberships_at(tx: Transaction, event: TimelineEvent, user_ids: Collection[UserID]) -> dict[UserID, object]:
    """Returns the memberships of these users in the state before the event."""
    positions: dict[UserID, int] = {}
    state = StateAt(event.state_before)
    for user_id in user_ids:
        key = find_key(tx, "m.room.member", user_id)
        position = None if key is None else position_in(tx, state, key)
        if position is not None:
            positions[user_id] = position
    events = list_stored(tx, positions.values())
    return {user_id: events[position].content.get("membership") for user_id, position in positions.items()}


def _list_statuses(
    tx: Transaction, asker: UserID, event: TimelineEvent, recipients: Collection[UserID], threads: tuple[str, str]
) -> dict[UserID, RecipientStatus]:
    nids = {nid: UserID(user_id) for user_id, nid in tx.find_all(recipients).items()}
    times: dict[tuple[UserID, str], int] = {}
    for user_nid, receipt_type, ts_ms in list_covering(tx, event.room_id, nids, threads, event.ordering):
        key = (nids[user_nid], receipt_type)
        times[key] = min(ts_ms, times.get(key, ts_ms))
    statuses = dict.fromkeys(recipients, RecipientStatus())
    for user_id in list_allowing(tx, asker, recipients, "delivery"):
        read_ts, delivered_ts = times.get((user_id, "m.read")), times.get((user_id, DELIVERED))
        if read_ts is not None:
            statuses[user_id] = RecipientStatus("read", min(read_ts, delivered_ts or read_ts), read_ts)
        elif delivered_ts is not None:
            statuses[user_id] = RecipientStatus("delivered", delivered_ts)
    return statuses
