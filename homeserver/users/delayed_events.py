"""Delayed events: events that a user has scheduled, and what became of them. Spec: MSC4140

Clients in calls schedule their own leaving, and put it off as long as they are there. So a restart must be cheap: it
changes one row.

A delayed event is scheduled, or finalised: sent, cancelled, or failed. Finalised ones are kept for a while, so that a
client can find out what became of them. A delayed state event is overtaken when another user has set the same state
since: then it counts as cancelled, as in Synapse. That is found out when it is next read, so state events cost nothing.

The ID of a delayed event is a secret: it lets its holder, such as the media server of a call, send or cancel the event
without an access token. It is stored with the sent event, and shown to its sender only.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

import msgspec
import orjson
from msgspec.structs import replace

from homeserver import limits
from homeserver.authenticate import Requester, check_not_suspended, get_account_flags
from homeserver.authenticate.requester import user_locked
from homeserver.database import Row, Schema, Step, Transaction
from homeserver.database.compression import compress, decompress
from homeserver.encoding import to_json
from homeserver.errors import MatrixError, StorageDamaged, bad_json, forbidden, invalid_param
from homeserver.federation.build import Draft, check_draft
from homeserver.federation.event import InvalidEvent
from homeserver.federation.identifiers import EventID, RoomID, UserID
from homeserver.limits.users import (
    DELAY_MS_MAX,
    DELAYED_EVENTS_FINALISED_MAX,
    DELAYED_EVENTS_FINALISED_MS,
    DELAYED_EVENTS_MAX,
)
from homeserver.moments import latest
from homeserver.rooms.access import find_in_state
from homeserver.rooms.heads import get_head
from homeserver.rooms.keys import open_sealed, seal
from homeserver.rooms.membership import find_membership
from homeserver.rooms.resolve import StateAt
from homeserver.rooms.transaction_ids import txn_id_of_delay
from homeserver.rooms.versions import get_room_version
from homeserver.users.accounts import find_user
from homeserver.users.sending import check_txn_id

WAKE_KEY = "delayed-events"
"""The stream key that is woken when the schedule changes."""

# position: when the event was scheduled. moved_position: when its time was last set. scheduled_ms: that time of day.
# due_ms: scheduled_ms + delay_ms. sent_as_ms: the timestamp that an application service wants; 0 if none. outcome: see
# Outcome, NULL while it is scheduled. error: the JSON of a MatrixError.
SCHEMA = Schema(
    "delayed_events",
    (
        Step(
            "001_create",
            """
            CREATE TABLE delayed_events (
                position INTEGER PRIMARY KEY,
                delay_id TEXT NOT NULL UNIQUE,
                user_nid INTEGER NOT NULL,
                device_id TEXT NOT NULL,
                txn_id TEXT,
                room_nid INTEGER NOT NULL,
                type_nid INTEGER NOT NULL,
                state_key_nid INTEGER,
                content BLOB NOT NULL,
                sent_as_ms INTEGER NOT NULL,
                delay_ms INTEGER NOT NULL,
                scheduled_ms INTEGER NOT NULL,
                due_ms INTEGER NOT NULL,
                moved_position INTEGER NOT NULL,
                finalised_ms INTEGER,
                event_id TEXT,
                error BLOB
            );
            CREATE INDEX delayed_events_due ON delayed_events (due_ms) WHERE finalised_ms IS NULL;
            CREATE INDEX delayed_events_of_user ON delayed_events (user_nid, due_ms);
            CREATE INDEX delayed_events_in_room ON delayed_events (room_nid);
            """,
        ),
    ),
)


class DelayedEvent(msgspec.Struct, frozen=True):
    """A delayed event. draft: the event as it is sent. Times in milliseconds since 1970.

    event_id: of the event, if it was sent. error: the body of the error for which it failed.
    """

    position: int
    delay_id: str
    draft: Draft
    delay_ms: int
    scheduled_ms: int
    due_ms: int
    finalised_ms: int | None
    event_id: str | None
    error: dict[str, Any] | None

    @property
    def is_scheduled(self) -> bool:
        return self.finalised_ms is None

    @property
    def is_sent(self) -> bool:
        return self.event_id is not None

    @property
    def stored_txn_id(self) -> str:
        """What is stored with the event that is sent: see `rooms/transaction_ids.py`."""
        return txn_id_of_delay(self.delay_id)


def create_delayed_event(
    tx: Transaction, requester: Requester, draft: Draft, delay_ms: int, txn_id: str | None = None
) -> str:
    """Schedules an event. Returns its delay ID; that of the first request if the device repeats one.

    Whether the user may send it is found out when it is sent. Raises MatrixError: 400 for a delay or an event that
    cannot be, 403 for a delay that is too long or a room that the user has nothing to do with, 413 for an event that
    is too large, 429 if the user has scheduled too many.
    """
    check_not_suspended(requester)
    check_txn_id(txn_id or "")
    room_id = draft.room_id
    assert room_id is not None
    if delay_ms <= 0:
        raise invalid_param("The delay must be a positive number of milliseconds.")
    if delay_ms > DELAY_MS_MAX:
        raise forbidden(f"The delay of {delay_ms} ms exceeds the maximum of {DELAY_MS_MAX} ms.")
    known = _find_repeated(tx, requester, draft, txn_id)
    if known is not None:
        return known
    if find_membership(tx, room_id, draft.sender) is None:
        raise forbidden("You are not in that room.")
    get_head(tx, room_id)
    try:
        content = check_draft(draft, get_room_version(tx, room_id))
    except InvalidEvent as error:
        too_large = "larger than" in str(error)
        raise MatrixError(413, "M_TOO_LARGE", str(error)) if too_large else bad_json(str(error)) from None
    _check_room_for_another(tx, draft.sender)
    delay_id = secrets.token_urlsafe(24)
    position, room_nid = tx.next_position(WAKE_KEY), tx.intern(room_id)
    tx.run(
        "INSERT INTO delayed_events (position, delay_id, user_nid, device_id, txn_id, room_nid, type_nid,"
        " state_key_nid, content, sent_as_ms, delay_ms, scheduled_ms, due_ms, moved_position)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        position,
        delay_id,
        tx.intern(draft.sender),
        requester.device_id,
        txn_id,
        room_nid,
        tx.intern(draft.type),
        None if draft.state_key is None else tx.intern(draft.state_key),
        seal(tx, room_nid, _where(position), compress(content)),
        draft.origin_server_ts,
        delay_ms,
        tx.now_ms,
        tx.now_ms + delay_ms,
        position,
    )
    return delay_id


def _find_repeated(tx: Transaction, requester: Requester, draft: Draft, txn_id: str | None) -> str | None:
    if txn_id is None:
        return None
    row = tx.one(
        "SELECT delay_id FROM delayed_events WHERE user_nid = ? AND device_id = ? AND txn_id = ? AND room_nid = ?"
        " AND type_nid = ?",
        tx.find(requester.user_id), requester.device_id, txn_id, tx.find(draft.room_id or ""), tx.find(draft.type),
    )  # fmt: skip
    return None if row is None else str(row[0])


def _check_room_for_another(tx: Transaction, user_id: UserID) -> None:
    """Raises M_LIMIT_EXCEEDED if the user has scheduled as many as are allowed, until the first of them is sent."""
    due = tx.values(
        "SELECT due_ms FROM delayed_events WHERE user_nid = ? AND finalised_ms IS NULL ORDER BY due_ms",
        tx.find(user_id),
    )
    if len(due) >= DELAYED_EVENTS_MAX:
        wait_ms = min(max(due[0] - tx.now_ms, 1), DELAY_MS_MAX)
        raise MatrixError(
            429, "M_LIMIT_EXCEEDED", f"You may have scheduled {DELAYED_EVENTS_MAX} events at a time.",
            retry_after_ms=wait_ms,
        )  # fmt: skip


# Reading


def find_delayed(tx: Transaction, delay_id: str) -> DelayedEvent | None:
    """Returns a delayed event, scheduled or finalised; None if there is none, or it is not kept any more."""
    row = tx.one(
        "SELECT position, delay_id, user_nid, room_nid, type_nid, state_key_nid, content, sent_as_ms, delay_ms,"
        " scheduled_ms, due_ms, finalised_ms, event_id, error FROM delayed_events WHERE delay_id = ?",
        delay_id,
    )
    return None if row is None else _read(tx, row)


def list_scheduled(tx: Transaction, user_id: UserID) -> list[DelayedEvent]:
    """Returns the user's scheduled events, in the order in which they will be sent."""
    rows = tx.all(
        "SELECT position, delay_id, user_nid, room_nid, type_nid, state_key_nid, content, sent_as_ms, delay_ms,"
        " scheduled_ms, due_ms, finalised_ms, event_id, error FROM delayed_events"
        " WHERE user_nid = ? AND finalised_ms IS NULL ORDER BY due_ms, position",
        tx.find(user_id),
    )
    found = [each for each in (_read(tx, row) for row in rows) if each is not None]
    return [each for each in found if not is_overtaken(tx, each)]


def list_due(tx: Transaction, limit: int) -> tuple[list[DelayedEvent], list[int]]:
    """Returns the first scheduled events whose time has come, of all users, in order; and those that cannot be read.

    The latter are positions. Their rows are damaged, or their keys are gone.
    """
    rows = tx.all(
        "SELECT position, delay_id, user_nid, room_nid, type_nid, state_key_nid, content, sent_as_ms, delay_ms,"
        " scheduled_ms, due_ms, finalised_ms, event_id, error FROM delayed_events"
        " WHERE finalised_ms IS NULL AND due_ms <= ? ORDER BY due_ms, position LIMIT ?",
        tx.now_ms, limit,
    )  # fmt: skip
    due: list[DelayedEvent] = []
    unreadable: list[int] = []
    for row in rows:
        try:
            delayed = _read(tx, row)
        except (StorageDamaged, ValueError):
            delayed = None
        if delayed is None:
            unreadable.append(row[0])
        else:
            due.append(delayed)
    return due, unreadable


def delete_unreadable(tx: Transaction, positions: Sequence[int]) -> None:
    """Deletes scheduled events that nobody can send or show any more."""
    for position in positions:
        tx.run("DELETE FROM delayed_events WHERE position = ?", position)


def find_next_due_ms(tx: Transaction) -> int | None:
    """Returns when the next event is to be sent, None if none is scheduled."""
    row = tx.one("SELECT MIN(due_ms) FROM delayed_events WHERE finalised_ms IS NULL")
    return None if row is None or row[0] is None else int(row[0])


def is_overtaken(tx: Transaction, delayed: DelayedEvent) -> bool:
    """Returns whether another user has set the state that the event would set, since it was scheduled."""
    draft = delayed.draft
    if draft.state_key is None or not delayed.is_scheduled:
        return False
    assert draft.room_id is not None
    current = find_in_state(tx, StateAt(get_head(tx, draft.room_id).state_root), draft.type, draft.state_key)
    return current is not None and current.position > delayed.position and current.sender != draft.sender


def find_sender(tx: Transaction, user_id: UserID) -> Requester | None:
    """Returns for whom a delayed event is sent, as the account is now; None if there is none any more.

    Raises M_USER_LOCKED. Rate limits apply, except to users of application services.
    """
    user = find_user(tx, user_id)
    if user is None or user.is_deactivated:
        return None
    flags = get_account_flags(tx, user_id)
    if flags.is_locked:
        raise user_locked()
    return Requester(
        user_id=user_id,
        device_id="",
        is_guest=flags.is_guest,
        is_admin=flags.is_admin,
        is_suspended=flags.is_suspended,
        is_shadow_banned=flags.is_shadow_banned,
        appservice=user.appservice,
        is_limited=user.appservice is None,
    )


def open_content(tx: Transaction, room_nid: int, position: int, sealed: bytes) -> bytes | None:
    """Returns the compressed content of a row; None if the room's key is forgotten."""
    return open_sealed(tx, room_nid, _where(position), sealed)


def _read(tx: Transaction, row: Row) -> DelayedEvent | None:
    """Returns the delayed event; None if the room's key was forgotten, so that nobody knows any more what to send."""
    position, delay_id, user_nid, room_nid, type_nid, state_key_nid, content, sent_as_ms, *times = row
    delay_ms, scheduled_ms, due_ms, finalised_ms, event_id, error = times
    opened = open_content(tx, room_nid, position, bytes(content))
    if opened is None:
        return None
    names = tx.names({user_nid, room_nid, type_nid, *(() if state_key_nid is None else (state_key_nid,))})
    draft = Draft(
        RoomID(names[room_nid]),
        UserID(names[user_nid]),
        names[type_nid],
        orjson.loads(decompress(opened, limits.EVENT_CONTENT_BYTES_MAX)),
        state_key=None if state_key_nid is None else names[state_key_nid],
        origin_server_ts=sent_as_ms,
    )
    told = None if error is None else orjson.loads(bytes(error))
    return DelayedEvent(position, delay_id, draft, delay_ms, scheduled_ms, due_ms, finalised_ms, event_id, told)


def _where(position: int) -> bytes:
    return b"delayed event at %d" % position


# Changing the schedule


def note_restarted(tx: Transaction, delayed: DelayedEvent) -> None:
    """Lets the delay begin again, from now."""
    tx.run(
        "UPDATE delayed_events SET scheduled_ms = ?, due_ms = ?, moved_position = ? WHERE position = ?",
        tx.now_ms, tx.now_ms + delayed.delay_ms, tx.next_position(WAKE_KEY), delayed.position,
    )  # fmt: skip


def note_sent(tx: Transaction, delayed: DelayedEvent, event_id: EventID) -> None:
    """Notes that the event was sent, in the write that sends it. Raises M_NOT_FOUND if it is not scheduled as before.

    Then it was cancelled, restarted or sent in the meantime, and that write must not happen.
    """
    if not _note_finalised(tx, replace(delayed, event_id=event_id)):
        raise not_scheduled()


def note_cancelled(tx: Transaction, delayed: DelayedEvent, error: MatrixError | None = None) -> None:
    """Notes that the event will not be sent, unless it is not scheduled as before. error: why it could not be."""
    _note_finalised(tx, delayed if error is None else replace(delayed, error=error.body()))


def not_scheduled() -> MatrixError:
    """Returns 404 M_NOT_FOUND."""
    return MatrixError(404, "M_NOT_FOUND", "No such delayed event is scheduled.")


def _note_finalised(tx: Transaction, delayed: DelayedEvent) -> bool:
    changed = tx.run(
        "UPDATE delayed_events SET finalised_ms = ?, event_id = ?, error = ? WHERE position = ?"
        " AND finalised_ms IS NULL AND due_ms = ?",
        tx.now_ms,
        delayed.event_id,
        None if delayed.error is None else to_json(delayed.error),
        delayed.position,
        delayed.due_ms,
    )
    if changed:
        _delete_old(tx, delayed.draft.sender)
    return bool(changed)


def _delete_old(tx: Transaction, user_id: UserID) -> None:
    """Deletes the user's finalised events that are not kept any more."""
    user_nid = tx.find(user_id)
    tx.run(
        "DELETE FROM delayed_events WHERE user_nid = ? AND (finalised_ms < ? OR position IN (SELECT position FROM"
        " delayed_events WHERE user_nid = ? AND finalised_ms IS NOT NULL ORDER BY finalised_ms DESC, position DESC"
        " LIMIT ? OFFSET ?))",
        user_nid, tx.now_ms - DELAYED_EVENTS_FINALISED_MS, user_nid, DELAYED_EVENTS_MAX, DELAYED_EVENTS_FINALISED_MAX,
    )  # fmt: skip


def note_clock_change(tx: Transaction, jump_ms: int, upto: int) -> None:
    """Moves the schedule as it was at a position along with the clock, which has jumped by so much."""
    tx.run(
        "UPDATE delayed_events SET scheduled_ms = scheduled_ms + ?, due_ms = due_ms + ?"
        " WHERE finalised_ms IS NULL AND moved_position <= ?",
        jump_ms, jump_ms, upto,
    )  # fmt: skip


def note_wrong_times(tx: Transaction) -> bool:
    """Lets delays that began in the future begin now: a wrong clock has set them. Returns whether there are any."""
    future_ms = latest(tx.now_ms, 0)
    return bool(
        tx.run(
            "UPDATE delayed_events SET scheduled_ms = ?, due_ms = ? + delay_ms"
            " WHERE finalised_ms IS NULL AND scheduled_ms > ?",
            tx.now_ms, tx.now_ms, future_ms,
        )
    )  # fmt: skip


# Forgetting


def forget_delayed_events(tx: Transaction, user_id: UserID, erase: bool) -> bool:
    """Cancels and deletes all delayed events of a user whose account ends: some hundred rows at most."""
    tx.run("DELETE FROM delayed_events WHERE user_nid = ?", tx.find(user_id))
    return False


def forget_delayed_events_in(tx: Transaction, room_id: RoomID) -> None:
    """Cancels and deletes the delayed events of a room that is forgotten."""
    tx.run("DELETE FROM delayed_events WHERE room_nid = ?", tx.find(room_id))
