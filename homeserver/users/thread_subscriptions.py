"""Thread subscriptions: which threads a user wants to hear of. Spec: MSC4306

A subscription is made by the user, or automatically by a client that has seen the user mentioned. A user who
unsubscribes is not subscribed automatically again by an event that was there already: the stream's positions say which
came first.

The first subscription of a user turns on the two push rules about threads. For everybody else they are off: users whose
clients know no subscriptions would not hear of threads any more.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from homeserver.database import Schema, Step, Transaction
from homeserver.errors import MatrixError, forbidden, not_found
from homeserver.federation.identifiers import EventID, RoomID, UserID
from homeserver.limits.users import THREAD_SUBSCRIPTIONS_MAX
from homeserver.rooms.access import get_visible_event
from homeserver.rooms.membership import check_joined
from homeserver.rooms.storage import list_event_ids
from homeserver.users.push_rules import store_thread_rules
from homeserver.users.receipts import find_thread

# root: the position of the event that the thread is about. position: of the last change. state: see State.
SCHEMA = Schema(
    "thread_subscriptions",
    (
        Step(
            "001_create",
            """
            CREATE TABLE thread_subscriptions (
                user_nid INTEGER NOT NULL,
                root INTEGER NOT NULL,
                room_nid INTEGER NOT NULL,
                position INTEGER NOT NULL,
                state INTEGER NOT NULL,
                PRIMARY KEY (user_nid, root)
            ) WITHOUT ROWID;
            CREATE INDEX thread_subscriptions_by_position ON thread_subscriptions (user_nid, position);
            CREATE INDEX thread_subscriptions_in_room ON thread_subscriptions (room_nid);
            """,
        ),
    ),
)


class State(IntEnum):
    """Whether a user is subscribed to a thread, and whether a client did so on its own."""

    UNSUBSCRIBED = 0
    AUTOMATIC = 1
    MANUAL = 2


class Change(NamedTuple):
    """The last change of a subscription. position: in the stream; the later change of a thread has the higher one."""

    room_id: RoomID
    root_id: EventID
    state: State
    position: int


def subscribe(tx: Transaction, user_id: UserID, room_id: RoomID, root_id: EventID, cause_id: EventID | None) -> None:
    """Subscribes to a thread. cause_id: the event for which a client does so on its own; None if the user does.

    Raises MatrixError: 404 if the user does not see the thread, 400 if the cause is not part of it, 409 if the user has
    unsubscribed since, 403 for too many subscriptions.
    """
    root = _get_root(tx, user_id, room_id, root_id)
    state = State.MANUAL if cause_id is None else State.AUTOMATIC
    known = _find(tx, user_id, root)
    if cause_id is not None:
        cause = get_visible_event(tx, room_id, cause_id, user_id)
        if find_thread(tx, cause) != root_id:
            raise MatrixError(400, "IO.ELEMENT.MSC4306.M_NOT_IN_THREAD", "The event is not part of that thread.")
        if known is not None and known[0] == State.UNSUBSCRIBED and cause.position <= known[1]:
            raise MatrixError(
                409, "IO.ELEMENT.MSC4306.M_CONFLICTING_UNSUBSCRIPTION", "You have unsubscribed after that event."
            )  # fmt: skip
    if known is not None and known[0] >= state:
        return
    if known is None:
        _check_may_subscribe(tx, user_id)
    _store(tx, user_id, room_id, root, state)
    store_thread_rules(tx, user_id)


def unsubscribe(tx: Transaction, user_id: UserID, room_id: RoomID, root_id: EventID) -> None:
    """Ends a subscription, if there is one. Raises M_NOT_FOUND if the user does not see the thread."""
    root = _get_root(tx, user_id, room_id, root_id)
    known = _find(tx, user_id, root)
    if known is not None and known[0] != State.UNSUBSCRIBED:
        _store(tx, user_id, room_id, root, State.UNSUBSCRIBED)


def get_state(tx: Transaction, user_id: UserID, room_id: RoomID, root_id: EventID) -> State:
    """Returns how the user is subscribed to a thread. Raises M_NOT_FOUND if they are not."""
    known = _find(tx, user_id, _get_root(tx, user_id, room_id, root_id))
    if known is None or known[0] == State.UNSUBSCRIBED:
        raise not_found("You are not subscribed to that thread.")
    return State(known[0])


def is_subscribed(tx: Transaction, user_id: UserID, root: int) -> bool:
    """Returns whether a user is subscribed to the thread of the event at this position."""
    known = _find(tx, user_id, root)
    return known is not None and known[0] != State.UNSUBSCRIBED


def list_changes(tx: Transaction, user_id: UserID, since: int, upto: int, limit: int) -> list[Change]:
    """Returns the newest changes with since < position ≤ upto, the newest first. Each thread has one at most."""
    rows = tx.all(
        "SELECT room_nid, root, state, position FROM thread_subscriptions WHERE user_nid = ? AND position > ?"
        " AND position <= ? ORDER BY position DESC LIMIT ?",
        tx.find(user_id), since, upto, limit,
    )  # fmt: skip
    names, ids = tx.names({row[0] for row in rows}), list_event_ids(tx, [row[1] for row in rows])
    return [Change(RoomID(names[room]), ids[root], State(state), at) for room, root, state, at in rows if root in ids]


def forget_thread_subscriptions(tx: Transaction, user_id: UserID, erase: bool) -> bool:
    """Deletes the subscriptions of a user whose account ends."""
    tx.run("DELETE FROM thread_subscriptions WHERE user_nid = ?", tx.find(user_id))
    return False


def forget_thread_subscriptions_in(tx: Transaction, room_id: RoomID) -> None:
    """Deletes the subscriptions to threads of a room that is forgotten."""
    tx.run("DELETE FROM thread_subscriptions WHERE room_nid = ?", tx.find(room_id))


def _get_root(tx: Transaction, user_id: UserID, room_id: RoomID, root_id: EventID) -> int:
    _check_is_in(tx, room_id, user_id)
    return get_visible_event(tx, room_id, root_id, user_id).position


def _check_is_in(tx: Transaction, room_id: RoomID, user_id: UserID) -> None:
    """Raises M_NOT_FOUND unless the user is in the room: nothing else is said about threads of other rooms."""
    try:
        check_joined(tx, room_id, user_id)
    except MatrixError:
        raise not_found("There is no such thread, or none that you may see.") from None


def _find(tx: Transaction, user_id: UserID, root: int) -> tuple[int, int] | None:
    row = tx.one(
        "SELECT state, position FROM thread_subscriptions WHERE user_nid = ? AND root = ?", tx.find(user_id), root
    )
    return None if row is None else (int(row[0]), int(row[1]))


def _check_may_subscribe(tx: Transaction, user_id: UserID) -> None:
    (count,) = tx.values("SELECT COUNT(*) FROM thread_subscriptions WHERE user_nid = ?", tx.find(user_id))
    if count >= THREAD_SUBSCRIPTIONS_MAX:
        raise forbidden(f"You may follow at most {THREAD_SUBSCRIPTIONS_MAX} threads.")


def _store(tx: Transaction, user_id: UserID, room_id: RoomID, root: int, state: State) -> None:
    tx.run(
        "INSERT INTO thread_subscriptions (user_nid, root, room_nid, position, state) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (user_nid, root) DO UPDATE SET position = excluded.position, state = excluded.state",
        tx.intern(user_id), root, tx.intern(room_id), tx.next_position(user_id), int(state),
    )  # fmt: skip
