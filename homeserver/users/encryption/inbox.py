"""Inboxes: the to-device messages that devices of this server have not fetched yet.

Theory of operation. An inbox is a queue with a row for each message, in the order of the rows' positions. Rows are
added at the end. They leave at the front: when the device has acknowledged them, or, if it stays away until the inbox
is full, the oldest ones first. Each row has running totals of its inbox (`number`, `bytes_upto`), so that it takes two
look-ups, not a count, to find out whether the inbox is full.

Beside it are the IDs of the latest requests with which a device has sent messages, so that a repeated request sends
nothing. Their number is limited, instead of their age, so that no clock is needed.

Spec: client-server-api/#send-to-device-messaging
"""

from __future__ import annotations

from dataclasses import dataclass

import orjson

from homeserver import limits
from homeserver.database import Schema, Step, Transaction
from homeserver.database.interning import check_string
from homeserver.feature import JsonObject
from homeserver.federation.identifiers import UserID

SCHEMA = Schema(
    "to_device_inbox",
    (
        Step(
            "001_create",
            """
            -- number, bytes_upto: how many messages, and how many bytes, this inbox has ever got, up to this one. They
            -- begin anew when the inbox has been empty.
            CREATE TABLE to_device_inbox (
                position INTEGER PRIMARY KEY,
                user_nid INTEGER NOT NULL,
                device_id TEXT NOT NULL,
                sender TEXT NOT NULL,
                type TEXT NOT NULL,
                content BLOB NOT NULL,
                number INTEGER NOT NULL,
                bytes_upto INTEGER NOT NULL
            );
            CREATE INDEX to_device_inbox_of_device ON to_device_inbox (user_nid, device_id, position);
            CREATE TABLE to_device_requests (
                user_nid INTEGER NOT NULL,
                device_id TEXT NOT NULL,
                request TEXT NOT NULL,
                number INTEGER NOT NULL,
                PRIMARY KEY (user_nid, device_id, request)
            ) WITHOUT ROWID;
            CREATE INDEX to_device_requests_by_number ON to_device_requests (user_nid, device_id, number);
            """,
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class Page:
    """The first messages of an inbox after a position, as `/sync` has them. Up to the position `upto` these are all."""

    messages: list[JsonObject]
    upto: int


def insert_message(
    tx: Transaction, user_id: UserID, device_id: str, sender: UserID, message_type: str, content: bytes
) -> int:
    """Appends a message to the inbox of a device that exists, and wakes its user. content: JSON.

    Returns how many of the oldest messages were dropped to make room.
    """
    nid = tx.intern(user_id)
    number, bytes_upto = tx.one(
        "SELECT number, bytes_upto FROM to_device_inbox WHERE user_nid = ? AND device_id = ?"
        " ORDER BY position DESC LIMIT 1",
        nid, device_id,
    ) or (0, 0)  # fmt: skip
    number, bytes_upto = number + 1, bytes_upto + len(content)
    tx.run(
        "INSERT INTO to_device_inbox (position, user_nid, device_id, sender, type, content, number, bytes_upto)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        tx.next_position(user_id), nid, device_id, sender, message_type, content, number, bytes_upto,
    )  # fmt: skip
    return _delete_excess(tx, nid, device_id, number, bytes_upto)


def _delete_excess(tx: Transaction, nid: int, device_id: str, number: int, bytes_upto: int) -> int:
    """Deletes the oldest messages of an inbox that is too full. Returns how many."""
    dropped = 0
    while True:
        position, first_number, first_bytes_upto = tx.one(
            "SELECT position, number, bytes_upto FROM to_device_inbox WHERE user_nid = ? AND device_id = ?"
            " ORDER BY position LIMIT 1",
            nid, device_id,
        ) or (0, number, bytes_upto)  # fmt: skip
        is_too_many = first_number <= number - limits.users.INBOX_MESSAGES_MAX
        if not is_too_many and first_bytes_upto > bytes_upto - limits.users.INBOX_BYTES_MAX:
            return dropped
        dropped += tx.run("DELETE FROM to_device_inbox WHERE position = ?", position)


def list_inbox(tx: Transaction, user_id: UserID, device_id: str, since: int, upto: int) -> Page:
    """Returns the first messages with since < position ≤ upto: as many as one answer may have, at least one."""
    nid = tx.find(user_id)
    rows = tx.all(
        "SELECT position, bytes_upto FROM to_device_inbox WHERE user_nid = ? AND device_id = ? AND position > ?"
        " AND position <= ? ORDER BY position LIMIT ?",
        nid, device_id, since, upto, limits.users.TO_DEVICE_PER_ANSWER_MAX + 1,
    )  # fmt: skip
    if not rows:
        return Page([], upto)
    fitting = [row for row in rows if row[1] - rows[0][1] <= limits.users.TO_DEVICE_ANSWER_BYTES_MAX]
    fitting = fitting[: limits.users.TO_DEVICE_PER_ANSWER_MAX]
    last: int = fitting[-1][0]
    found = tx.all(
        "SELECT sender, type, content FROM to_device_inbox WHERE user_nid = ? AND device_id = ? AND position > ?"
        " AND position <= ? ORDER BY position",
        nid, device_id, since, last,
    )  # fmt: skip
    messages = [{"sender": sender, "type": type_, "content": orjson.loads(content)} for sender, type_, content in found]
    return Page(messages, upto if len(fitting) == len(rows) else last)


def has_inbox_upto(tx: Transaction, user_id: UserID, device_id: str, upto: int) -> bool:
    """Returns whether the device's inbox has messages up to a position."""
    found = tx.one(
        "SELECT 1 FROM to_device_inbox WHERE user_nid = ? AND device_id = ? AND position <= ? LIMIT 1",
        tx.find(user_id), device_id, upto,
    )  # fmt: skip
    return found is not None


def delete_inbox_upto(tx: Transaction, user_id: UserID, device_id: str, upto: int) -> None:
    """Deletes the messages up to a position: the device has them."""
    tx.run(
        "DELETE FROM to_device_inbox WHERE user_nid = ? AND device_id = ? AND position <= ?",
        tx.find(user_id), device_id, upto,
    )  # fmt: skip


def forget_inbox(tx: Transaction, user_id: UserID, device_id: str) -> None:
    """Deletes everything that is kept here for a device, which is gone."""
    nid = tx.find(user_id)
    tx.run("DELETE FROM to_device_inbox WHERE user_nid = ? AND device_id = ?", nid, device_id)
    tx.run("DELETE FROM to_device_requests WHERE user_nid = ? AND device_id = ?", nid, device_id)


def note_request(tx: Transaction, user_id: UserID, device_id: str, request: str) -> bool:
    """Records that the device has sent this request. Returns False if it has sent it before.

    Raises MatrixError 400 if the text cannot be stored.
    """
    check_string(request)
    nid = tx.intern(user_id)
    (number,) = tx.one(
        "SELECT number FROM to_device_requests WHERE user_nid = ? AND device_id = ? ORDER BY number DESC LIMIT 1",
        nid, device_id,
    ) or (0,)  # fmt: skip
    is_new = tx.run(
        "INSERT INTO to_device_requests (user_nid, device_id, request, number) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (user_nid, device_id, request) DO NOTHING",
        nid, device_id, request, number + 1,
    )  # fmt: skip
    tx.run(
        "DELETE FROM to_device_requests WHERE user_nid = ? AND device_id = ? AND number <= ?",
        nid, device_id, number + 1 - limits.users.TO_DEVICE_REQUESTS_KEPT,
    )  # fmt: skip
    return bool(is_new)
