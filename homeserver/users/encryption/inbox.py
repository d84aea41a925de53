"""Inboxes: the to-device messages that devices of this server have not fetched yet.

Theory of operation. An inbox is a queue with a row for each message, in the order of the rows' positions. Rows leave it
when the device has acknowledged them. If the device stays away until its inbox is full, messages are dropped: the
oldest ones of the holder with the most, see `queue_sizes.py`.

Beside it are the IDs of the latest requests with which a device has sent messages, so that a repeated request sends
nothing. Their number is limited, instead of their age, so that no clock is needed.

Spec: client-server-api/#send-to-device-messaging
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Collection
from typing import NamedTuple

import msgspec
import orjson

from homeserver import limits
from homeserver.database import Row, Schema, Step, Transaction
from homeserver.database.interning import check_string
from homeserver.feature import JsonObject
from homeserver.federation.identifiers import UserID
from homeserver.users.encryption.queue_sizes import (
    Queue,
    delete_empty,
    find_holder_to_cut,
    forget_holder,
    forget_sizes,
    intern_holder,
    store_change,
)

_log = logging.getLogger(__name__)

SCHEMA = Schema(
    "to_device_inbox",
    (
        Step(
            "001_create",
            """
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
        Step(
            "002_sizes",
            """
            -- server_nid: of the sender's server; -1 for messages that came before it was noted.
            ALTER TABLE to_device_inbox ADD COLUMN server_nid INTEGER NOT NULL DEFAULT -1;
            ALTER TABLE to_device_inbox DROP COLUMN number;
            ALTER TABLE to_device_inbox DROP COLUMN bytes_upto;
            CREATE INDEX to_device_inbox_by_server ON to_device_inbox (user_nid, device_id, server_nid, position);
            -- What the users of each server hold of an inbox. server_nid 0: the whole inbox.
            CREATE TABLE to_device_inbox_sizes (
                user_nid INTEGER NOT NULL,
                device_id TEXT NOT NULL,
                server_nid INTEGER NOT NULL,
                messages INTEGER NOT NULL,
                bytes INTEGER NOT NULL,
                PRIMARY KEY (user_nid, device_id, server_nid)
            ) WITHOUT ROWID;
            INSERT INTO to_device_inbox_sizes (user_nid, device_id, server_nid, messages, bytes)
                SELECT user_nid, device_id, -1, COUNT(*), SUM(LENGTH(content)) FROM to_device_inbox
                GROUP BY user_nid, device_id;
            INSERT INTO to_device_inbox_sizes (user_nid, device_id, server_nid, messages, bytes)
                SELECT user_nid, device_id, 0, messages, bytes FROM to_device_inbox_sizes;
            """,
        ),
        Step(
            "003_holders",
            """
            -- holder_nid: whom the message counts for, see `queue_sizes.py`. Up to now: the sender's server.
            ALTER TABLE to_device_inbox RENAME COLUMN server_nid TO holder_nid;
            DROP TABLE to_device_inbox_sizes;
            """,
        ),
    ),
)


class Page(msgspec.Struct, frozen=True):
    """The first messages of an inbox after a position, as `/sync` has them. Up to the position `upto` these are all."""

    messages: list[JsonObject]
    upto: int


def insert_message(
    tx: Transaction, user_id: UserID, device_id: str, sender: UserID, message_type: str, content: bytes
) -> int:
    """Appends a message to the inbox of a device that exists, and wakes its user. content: JSON.

    Returns how many messages were dropped to make room.
    """
    nid, holder_nid = tx.intern(user_id), intern_holder(tx, sender)
    queue = Queue(nid, device_id)
    tx.run(
        "INSERT INTO to_device_inbox (position, user_nid, device_id, holder_nid, sender, type, content)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        tx.next_position(user_id), nid, device_id, holder_nid, sender, message_type, content,
    )  # fmt: skip
    store_change(tx, queue, holder_nid, 1, len(content))
    dropped = 0
    most = (limits.users.INBOX_MESSAGES_MAX, limits.users.INBOX_BYTES_MAX)
    while (cut_nid := find_holder_to_cut(tx, queue, *most)) is not None:
        dropped += _delete_oldest(tx, queue, cut_nid)
    return dropped


def _delete_oldest(tx: Transaction, queue: Queue, holder_nid: int) -> int:
    """Deletes the oldest message of a holder. Returns 0 if there is none, 1 otherwise."""
    row = tx.one(
        "SELECT position, COALESCE(LENGTH(content), 0) FROM to_device_inbox"
        " WHERE user_nid = ? AND device_id = ? AND holder_nid = ? ORDER BY position LIMIT 1",
        *queue, holder_nid,
    )  # fmt: skip
    if row is None:
        forget_holder(tx, queue, holder_nid)
        return 0
    position, size_bytes = row
    tx.run("DELETE FROM to_device_inbox WHERE position = ?", position)
    store_change(tx, queue, holder_nid, -1, -size_bytes)
    return 1


def list_inbox(tx: Transaction, user_id: UserID, device_id: str, since: int, upto: int) -> Page:
    """Returns the first messages with since < position ≤ upto: as many as one answer may have, without damaged ones."""
    nid = tx.find(user_id)
    rows = tx.all(
        "SELECT position, COALESCE(LENGTH(content), 0) FROM to_device_inbox"
        " WHERE user_nid = ? AND device_id = ? AND position > ?"
        " AND position <= ? ORDER BY position LIMIT ?",
        nid, device_id, since, upto, limits.users.TO_DEVICE_PER_ANSWER_MAX + 1,
    )  # fmt: skip
    if not rows:
        return Page([], upto)
    sizes = itertools.accumulate(size_bytes for _, size_bytes in rows)
    count = max(1, sum(total <= limits.users.TO_DEVICE_ANSWER_BYTES_MAX for total in sizes))
    fitting = rows[: min(count, limits.users.TO_DEVICE_PER_ANSWER_MAX)]
    last: int = fitting[-1][0]
    found = tx.all(
        "SELECT sender, type, content FROM to_device_inbox WHERE user_nid = ? AND device_id = ? AND position > ?"
        " AND position <= ? ORDER BY position",
        nid, device_id, since, last,
    )  # fmt: skip
    messages = [message for row in found if (message := _read_message(row)) is not None]
    return Page(messages, upto if len(fitting) == len(rows) else last)


def _read_message(row: Row) -> JsonObject | None:
    """Returns a message as devices get it. None if it is damaged, so that the device gets the others."""
    sender, message_type, content = row
    try:
        content = orjson.loads(content)
    except ValueError:
        content = None
    if not (isinstance(sender, str) and isinstance(message_type, str) and isinstance(content, dict)):
        _log.error("a to-device message is damaged and is left out", extra={"sender": f"{sender!r:.100}"})
        return None
    return {"sender": sender, "type": message_type, "content": content}


class Received(NamedTuple):
    """Where a message is: the device, and the position at which it came."""

    position: int
    user_id: UserID
    device_id: str


def list_received(tx: Transaction, since: int, upto: int) -> list[Received]:
    """Returns the messages for all devices in since < position ≤ upto that are in their inboxes, in order."""
    rows = tx.all(
        "SELECT position, user_nid, device_id FROM to_device_inbox WHERE position > ? AND position <= ?"
        " ORDER BY position",
        since, upto,
    )  # fmt: skip
    names = tx.names({nid for _, nid, _ in rows})
    return [Received(position, UserID(names[nid]), device_id) for position, nid, device_id in rows]


def list_contents(tx: Transaction, positions: Collection[int]) -> dict[int, JsonObject]:
    """Returns the messages at these positions, as `/sync` has them. Leaves out those that are damaged or gone."""
    rows = tx.all_in("SELECT sender, type, content, position FROM to_device_inbox WHERE position IN (?*)", positions)
    found = {position: _read_message((sender, kind, content)) for sender, kind, content, position in rows}
    return {position: message for position, message in found.items() if message is not None}


def has_inbox_upto(tx: Transaction, user_id: UserID, device_id: str, upto: int) -> bool:
    """Returns whether the device's inbox has messages up to a position."""
    found = tx.one(
        "SELECT 1 FROM to_device_inbox WHERE user_nid = ? AND device_id = ? AND position <= ? LIMIT 1",
        tx.find(user_id), device_id, upto,
    )  # fmt: skip
    return found is not None


def delete_inbox_upto(tx: Transaction, user_id: UserID, device_id: str, upto: int) -> None:
    """Deletes the messages up to a position: the device has them."""
    nid = tx.find(user_id)
    if nid is None:
        return
    queue = Queue(nid, device_id)
    held = tx.all(
        "SELECT holder_nid, COUNT(*), COALESCE(SUM(LENGTH(content)), 0) FROM to_device_inbox"
        " WHERE user_nid = ? AND device_id = ? AND position <= ? GROUP BY holder_nid",
        *queue, upto,
    )  # fmt: skip
    for holder_nid, messages, size_bytes in held:
        store_change(tx, queue, holder_nid, -messages, -int(size_bytes))
    tx.run("DELETE FROM to_device_inbox WHERE user_nid = ? AND device_id = ? AND position <= ?", *queue, upto)
    delete_empty(tx, queue)


def forget_inbox(tx: Transaction, user_id: UserID, device_id: str) -> None:
    """Deletes everything that is kept here for a device, which is gone."""
    nid = tx.find(user_id)
    if nid is None:
        return
    tx.run("DELETE FROM to_device_inbox WHERE user_nid = ? AND device_id = ?", nid, device_id)
    forget_sizes(tx, Queue(nid, device_id))
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
