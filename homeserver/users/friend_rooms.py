"""The conversations of a pair, and what this server has to do so that one of them remains.

Theory of operation. A conversation is a direct room whose m.room.create has `"org.homeserver.friend": true`. Asking is
inviting to one, accepting is joining it, leaving it refuses, cancels or ends. So nothing but rooms is exchanged with
other servers, and what two people are to each other follows from the memberships of both in their conversations
(`derive`):

    both joined in one                                       friend
    own join, the other invited (or about to be)             outgoing
    invited (and not about to join)                          incoming
    anything else                                            none

`refresh` computes that again and stores it in `friends`. It is called in every write of this server that changes a
conversation, and by a tail for all other changes: whatever the cause, the row follows.

Both may ask at once, on two servers that cannot reach each other. Then there are two conversations, and each server
learns of the other one later. `decide` is the rule by which both servers let the same one remain, without any further
message: of two requests that cross, the one in the room with the smaller ID counts, and the invited person's server
joins it, as that person has asked for the same. Once both are joined in one, every other conversation is closed: it
gets a tombstone that names the one that remains, and is left. If both became joined in two, which happens if both
accepted at once, the smaller ID decides again. A server that decides on old information can only join a room that the
other one closes: that ends in a leave, never in a second conversation.

What needs another server, or cannot happen in the write that decided it, is a task, see `friend_tasks.py`.

Both people have the same power in their rooms, so the inviter cannot retract an invitation by a kick. A request that is
withdrawn is therefore told to the other server by an EDU (`friend_withdrawals`), upon which it drops the invitation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from homeserver.database import Transaction
from homeserver.errors import MatrixError
from homeserver.feature import JsonObject
from homeserver.federation.build import Draft
from homeserver.federation.identifiers import RoomID, ServerName, UserID, server_name_of
from homeserver.rooms.append import append_local
from homeserver.rooms.conversations import find_only_other
from homeserver.rooms.heads import find_head, state_content
from homeserver.rooms.membership import (
    Membership,
    find_join_position,
    find_membership,
    find_room_membership,
    is_server_joined,
)
from homeserver.rooms.resolve import StateAt, position_in
from homeserver.rooms.state_tree import find_key
from homeserver.rooms.storage import StoredEvent, TimelineEvent, find_stored_at, list_stored
from homeserver.users.account_data import find_account_data, store_account_data
from homeserver.users.accounts import is_active
from homeserver.users.blocking import FRIEND_MARK, ignored_users
from homeserver.users.friend_tasks import Task, TaskKind, delete_task, store_task
from homeserver.users.friends import FriendState, is_friend, list_friends, store_friend
from homeserver.users.privacy import note_other_friends

WITHDRAWALS_PER_SERVER_MAX = 1_000
"""What a server that never comes back costs. An invitation that it does not drop leads to an empty room."""


class Conversation(NamedTuple):
    """A room of a pair, with the memberships of both. is_outside: no user of this server is in it."""

    room_id: RoomID
    own: Membership | None
    others: Membership | None
    is_outside: bool
    task: TaskKind | None

    @property
    def is_shared(self) -> bool:
        """Whether both are in it."""
        return self.own == "join" and self.others == "join"

    @property
    def is_asked(self) -> bool:
        """Whether the user wants to be friends, and the other person, or their server, has yet to react."""
        if self.own == "join":
            return self.others == "invite" or self.task == "invite"
        return self.own == "invite" and self.task == "join"

    @property
    def is_offered(self) -> bool:
        """Whether the other person has asked. All that we know of a room elsewhere is the invitation."""
        return self.own == "invite" and (self.is_outside or self.others == "join")


# --- pure ---


def derive(conversations: Sequence[Conversation]) -> tuple[FriendState, RoomID | None]:
    """Returns what the other person is to the user, and the conversation in which that is so."""
    if shared := _first(each for each in conversations if each.is_shared):
        return "friend", shared
    if any(each.is_asked for each in conversations):
        return "outgoing", _first(each for each in conversations if each.is_asked or each.is_offered)
    if offered := _first(each for each in conversations if each.is_offered):
        return "incoming", offered
    return "none", None


def decide(conversations: Sequence[Conversation], *, is_blocked: bool) -> dict[RoomID, TaskKind | None]:
    """Returns the tasks to set, by room; None removes one. is_blocked: the user does not want to hear of the other."""
    state, chosen = derive(conversations)
    wanted: dict[RoomID, TaskKind | None] = {}
    for each in conversations:
        if state == "friend" and each.room_id != chosen:
            wanted[each.room_id] = "close" if each.own == "join" else None
        elif each.is_shared:
            wanted[each.room_id] = None
        elif state == "outgoing" and each.room_id == chosen and each.is_offered and not is_blocked:
            wanted[each.room_id] = "join"
    return {room_id: kind for room_id, kind in wanted.items() if kind != _task_of(conversations, room_id)}


def _task_of(conversations: Sequence[Conversation], room_id: RoomID) -> TaskKind | None:
    return next(each.task for each in conversations if each.room_id == room_id)


def _first(conversations: Iterable[Conversation]) -> RoomID | None:
    return min((each.room_id for each in conversations), default=None)


# --- a pair ---


def refresh(tx: Transaction, user_id: UserID, other: UserID) -> None:
    """Stores what the conversations of a pair amount to for one of the two, and which tasks follow.

    Does nothing unless `user_id` is a user of this server. Call it for both of a pair whose conversation has changed.
    """
    if server_name_of(user_id) != tx.server.name:
        return
    conversations = []
    for each in list_conversations(tx, user_id, other):
        if each.own in ("join", "invite"):
            conversations.append(each)
        else:
            _end(tx, user_id, other, each)
    if not is_active(tx, user_id):
        return
    for room_id, kind in decide(conversations, is_blocked=other in ignored_users(tx, user_id)).items():
        if kind is None:
            delete_task(tx, user_id, other, room_id)
        else:
            store_task(tx, Task(user_id, other, room_id, kind))
    state, chosen = derive(list_conversations(tx, user_id, other))
    was_friend = is_friend(tx, user_id, other)
    store_friend(tx, user_id, other, state, chosen)
    if (state == "friend") != was_friend:
        note_other_friends(tx, user_id)
    if state in ("friend", "outgoing") and chosen is not None:
        _note_direct(tx, user_id, other, chosen)


def _end(tx: Transaction, user_id: UserID, other: UserID, conversation: Conversation) -> None:
    """Deletes the rows of a conversation that the user is not in any more. A request in it is withdrawn."""
    withdraw(tx, user_id, other, conversation)
    delete_task(tx, user_id, other, conversation.room_id)
    _delete_room(tx, user_id, other, conversation.room_id)


def _delete_room(tx: Transaction, user_id: UserID, other: UserID, room_id: RoomID) -> None:
    tx.run(
        "DELETE FROM friend_rooms WHERE user_nid = ? AND friend_nid = ? AND room_nid = ?",
        tx.find(user_id), tx.find(other), tx.find(room_id),
    )  # fmt: skip


def withdraw(tx: Transaction, user_id: UserID, other: UserID, conversation: Conversation) -> None:
    """Ends the other person's invitation, if there is or may be one. Another server is told by an EDU."""
    if server_name_of(other) == tx.server.name:
        if conversation.others == "invite" and find_head(tx, conversation.room_id) is not None:
            leave = Draft(conversation.room_id, other, "m.room.member", {"membership": "leave"}, state_key=other)
            append_local(tx, leave)
    elif conversation.others == "invite" or conversation.task == "invite":
        _store_withdrawal(tx, user_id, other, conversation.room_id)


def list_conversations(tx: Transaction, user_id: UserID, other: UserID) -> list[Conversation]:
    """Returns the pair's conversations as this server knows them."""
    rows = tx.all(
        "SELECT r.room_nid, t.kind FROM friend_rooms r LEFT JOIN friend_tasks t ON t.user_nid = r.user_nid"
        " AND t.friend_nid = r.friend_nid AND t.room_nid = r.room_nid WHERE r.user_nid = ? AND r.friend_nid = ?",
        tx.find(user_id), tx.find(other),
    )  # fmt: skip
    names = tx.names([row[0] for row in rows])
    found = []
    for room_nid, kind in rows:
        room_id = RoomID(names[room_nid])
        is_outside = not is_server_joined(tx, room_id, tx.server.name)
        own, others = find_membership(tx, room_id, user_id), find_membership(tx, room_id, other)
        found.append(Conversation(room_id, own, others, is_outside, kind))
    return found


def note_room(tx: Transaction, user_id: UserID, other: UserID, room_id: RoomID) -> None:
    """Notes that a room is a conversation of the pair, for those of the two who are users of this server."""
    for one, another in ((user_id, other), (other, user_id)):
        if server_name_of(one) == tx.server.name:
            tx.run(
                "INSERT INTO friend_rooms (user_nid, friend_nid, room_nid) VALUES (?, ?, ?)"
                " ON CONFLICT (user_nid, friend_nid, room_nid) DO NOTHING",
                tx.intern(one), tx.intern(another), tx.intern(room_id),
            )  # fmt: skip


def list_pairs(tx: Transaction, room_nid: int) -> list[tuple[UserID, UserID]]:
    """Returns the pairs whose conversation a room is, each with the user of this server first."""
    rows = tx.all("SELECT user_nid, friend_nid FROM friend_rooms WHERE room_nid = ?", room_nid)
    names = tx.names({nid for row in rows for nid in row})
    return [(UserID(names[user]), UserID(names[friend])) for user, friend in rows]


def find_partner(tx: Transaction, room_id: RoomID, user_id: UserID) -> UserID | None:
    """Returns the other person, if the room is a conversation of friends that the user is in or invited to.

    An invitation counts only if it says that it is to a direct chat: other people may be invited to the same room. For
    the same reason members count only if they made the room or have accepted such an invitation: nobody becomes a
    friend by entering a room that anybody may enter.
    """
    membership = find_room_membership(tx, room_id, user_id)
    if membership is None or membership.membership not in ("join", "invite"):
        return None
    if membership.membership == "invite":
        stripped = membership.stripped or []
        own = stripped[-1] if stripped else {}
        create = next((each for each in stripped if each.get("type") == "m.room.create"), {})
        if not _is_marked(create.get("content")) or not _is_to_direct_chat(own.get("content")):
            return None
        inviter = own.get("sender")
        return UserID(inviter) if isinstance(inviter, str) and inviter != user_id else None
    head = find_head(tx, room_id)
    if head is None or not _is_marked(state_content(tx, head.state_root, "m.room.create")):
        return None
    other = find_only_other(tx, room_id, user_id)
    if other is None or not all(_has_agreed(tx, room_id, each) for each in (user_id, other)):
        return None
    return other


def _has_agreed(tx: Transaction, room_id: RoomID, user_id: UserID) -> bool:
    """Returns whether a member of a room has made it, or was invited to it as to a direct chat."""
    head = find_head(tx, room_id)
    if head is None:
        return False
    create = _find_state(tx, head.state_root, "m.room.create", "")
    if create is not None and create.sender == user_id:
        return True
    entered = find_join_position(tx, room_id, user_id)
    invitation = None
    if entered is None:
        invitation = _find_state(tx, head.state_root, "m.room.member", user_id)
    elif isinstance(event := find_stored_at(tx, [entered]).get(entered), TimelineEvent):
        invitation = _find_state(tx, event.state_before, "m.room.member", user_id)
    content = None if invitation is None else invitation.content
    return content is not None and content.get("membership") == "invite" and _is_to_direct_chat(content)


def _find_state(tx: Transaction, root: bytes, event_type: str, state_key: str) -> StoredEvent | None:
    """Returns a state event of the state with this root."""
    key = find_key(tx, event_type, state_key)
    position = None if key is None else position_in(tx, StateAt(root), key)
    return None if position is None else list_stored(tx, [position])[position]


def _is_marked(create: object) -> bool:
    return isinstance(create, Mapping) and create.get(FRIEND_MARK) is True


def _is_to_direct_chat(content: object) -> bool:
    return isinstance(content, Mapping) and content.get("is_direct") is True


def _note_direct(tx: Transaction, user_id: UserID, other: UserID, room_id: RoomID) -> None:
    """Lists the conversation in the user's m.direct, without those of the pair that the user has left.

    Clients write m.direct, so it can be of any shape. An account that is full keeps what it has.
    """
    content = find_account_data(tx, user_id, None, "m.direct") or {}
    listed: Any = content.get(other)
    rooms = [each for each in listed if isinstance(each, str)] if isinstance(listed, list) else []
    kept = [each for each in rooms if find_membership(tx, each, user_id) not in ("leave", "ban")]
    if room_id not in kept:
        kept.append(room_id)
    if kept == listed:
        return
    try:
        store_account_data(tx, user_id, None, "m.direct", {**content, other: kept})
    except MatrixError as error:
        if error.errcode not in ("M_INVALID_PARAM", "M_TOO_LARGE"):
            raise


def read_states(tx: Transaction, user_id: UserID) -> JsonObject:
    """Returns the content of `LIST_TYPE`: friends and requests, except those of people whom the user blocks."""
    ignored = ignored_users(tx, user_id)
    return {
        "friends": [
            {"user_id": each.user_id, "state": each.state, "room_id": each.room_id}
            for each in sorted(list_friends(tx, user_id))
            if each.state != "none" and each.user_id not in ignored
        ]
    }


# --- withdrawals ---


class Withdrawal(NamedTuple):
    """A request that was withdrawn: by `user_id`, to `other`, in a room."""

    position: int
    user_id: UserID
    other: UserID
    room_id: RoomID


def _store_withdrawal(tx: Transaction, user_id: UserID, other: UserID, room_id: RoomID) -> None:
    server_nid = tx.intern(server_name_of(other))
    tx.run(
        "INSERT INTO friend_withdrawals (position, server_nid, user_nid, friend_nid, room_nid) VALUES (?, ?, ?, ?, ?)",
        tx.next_position(), server_nid, tx.intern(user_id), tx.intern(other), tx.intern(room_id),
    )  # fmt: skip
    oldest = tx.one(
        "SELECT position FROM friend_withdrawals WHERE server_nid = ? ORDER BY position DESC LIMIT 1 OFFSET ?",
        server_nid, WITHDRAWALS_PER_SERVER_MAX,
    )  # fmt: skip
    if oldest is not None:
        delete_withdrawals(tx, server_name_of(other), oldest[0])


def list_withdrawals(tx: Transaction, since: int, upto: int) -> Iterator[Withdrawal]:
    """Yields the withdrawals at since < position ≤ upto, in order."""
    rows = tx.all(
        "SELECT position, user_nid, friend_nid, room_nid FROM friend_withdrawals"
        " WHERE position > ? AND position <= ? ORDER BY position",
        since, upto,
    )  # fmt: skip
    return _withdrawals(tx, rows)


def list_withdrawals_for(
    tx: Transaction, server: ServerName, since: int, upto: int, limit: int
) -> Iterator[Withdrawal]:
    """Yields the first `limit` of those that one server has yet to hear of."""
    rows = tx.all(
        "SELECT position, user_nid, friend_nid, room_nid FROM friend_withdrawals"
        " WHERE server_nid = ? AND position > ? AND position <= ? ORDER BY position LIMIT ?",
        tx.find(server), since, upto, limit,
    )  # fmt: skip
    return _withdrawals(tx, rows)


def _withdrawals(tx: Transaction, rows: Sequence[Any]) -> Iterator[Withdrawal]:
    names = tx.names({nid for row in rows for nid in row[1:]})
    for position, user_nid, friend_nid, room_nid in rows:
        yield Withdrawal(position, UserID(names[user_nid]), UserID(names[friend_nid]), RoomID(names[room_nid]))


def delete_withdrawals(tx: Transaction, server: ServerName, upto: int) -> None:
    """Deletes the withdrawals that a server has got."""
    tx.run("DELETE FROM friend_withdrawals WHERE server_nid = ? AND position <= ?", tx.find(server), upto)
