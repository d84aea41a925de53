"""The sizes of queues of to-device messages, and who has to make room in a full one.

Theory of operation. A queue is the inbox of a device, or the outbox of a server (`inbox.py`, `outbox.py`). Each message
in it counts for a holder: its sender, or the sender's server if that is another one, because it can invent senders. If
a queue is full, the holder with the most of what there is too much of, messages or bytes, loses its oldest message. So
users who flood a queue drop only their own messages.

A queue has a row for each holder and one for the whole. Thus a new message takes no counting, and an index finds the
largest holder, however many there are. If the numbers are wrong, because of damage, a holder who has nothing left to
drop starts from zero again.

Spec: client-server-api/#send-to-device-messaging
"""

from __future__ import annotations

from typing import NamedTuple

from homeserver.database import Schema, Step, Transaction
from homeserver.federation.identifiers import UserID, server_name_of

# owner_nid: of the user of the inbox, or of the server of the outbox. device_id: '' for an outbox.
# holder_nid: 0 for the whole queue. Messages from before this table are not counted until their queue has been empty.
SCHEMA = Schema(
    "to_device_queue_sizes",
    (
        Step(
            "001_create",
            """
            CREATE TABLE to_device_queue_sizes (
                owner_nid INTEGER NOT NULL,
                device_id TEXT NOT NULL,
                holder_nid INTEGER NOT NULL,
                messages INTEGER NOT NULL,
                bytes INTEGER NOT NULL,
                PRIMARY KEY (owner_nid, device_id, holder_nid)
            ) WITHOUT ROWID;
            CREATE INDEX to_device_queue_sizes_by_messages ON to_device_queue_sizes (owner_nid, device_id, messages);
            CREATE INDEX to_device_queue_sizes_by_bytes ON to_device_queue_sizes (owner_nid, device_id, bytes);
            """,
        ),
    ),
)

WHOLE = 0


class Queue(NamedTuple):
    """Which queue: the inbox of a user's device, or the outbox of a server, whose device_id is empty."""

    owner_nid: int
    device_id: str = ""


def intern_holder(tx: Transaction, sender: UserID) -> int:
    """Returns the number of the party that the messages of a sender count for."""
    server_name = server_name_of(sender)
    return tx.intern(sender if server_name == tx.server.name else server_name)


def store_change(tx: Transaction, queue: Queue, holder_nid: int, messages: int, size_bytes: int) -> None:
    """Adds to what a holder has in a queue, and to the whole; negative numbers take away."""
    tx.many(
        "INSERT INTO to_device_queue_sizes (owner_nid, device_id, holder_nid, messages, bytes) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (owner_nid, device_id, holder_nid) DO UPDATE SET"
        " messages = to_device_queue_sizes.messages + excluded.messages,"
        " bytes = to_device_queue_sizes.bytes + excluded.bytes",
        [(*queue, each, messages, size_bytes) for each in (holder_nid, WHOLE)],
    )


def find_holder_to_cut(tx: Transaction, queue: Queue, messages_max: int, bytes_max: int) -> int | None:
    """Returns the holder that has to make room if the queue is too full, None if it is not."""
    messages, size_bytes = _get_size(tx, queue, WHOLE)
    if messages > messages_max:
        sql = (
            "SELECT holder_nid FROM to_device_queue_sizes WHERE owner_nid = ? AND device_id = ? AND holder_nid <> ?"
            " ORDER BY messages DESC LIMIT 1"
        )
    elif size_bytes > bytes_max:
        sql = (
            "SELECT holder_nid FROM to_device_queue_sizes WHERE owner_nid = ? AND device_id = ? AND holder_nid <> ?"
            " ORDER BY bytes DESC LIMIT 1"
        )
    else:
        return None
    row = tx.one(sql, *queue, WHOLE)
    if row is None:
        forget_sizes(tx, queue)
    return None if row is None else int(row[0])


def forget_holder(tx: Transaction, queue: Queue, holder_nid: int) -> None:
    """Notes that a holder has nothing in the queue."""
    messages, size_bytes = _get_size(tx, queue, holder_nid)
    store_change(tx, queue, holder_nid, -messages, -size_bytes)
    delete_empty(tx, queue)


def delete_empty(tx: Transaction, queue: Queue) -> None:
    """Deletes the rows of holders that have nothing in the queue any more."""
    tx.run("DELETE FROM to_device_queue_sizes WHERE owner_nid = ? AND device_id = ? AND messages <= 0", *queue)


def forget_sizes(tx: Transaction, queue: Queue) -> None:
    """Deletes everything about a queue, which is gone."""
    tx.run("DELETE FROM to_device_queue_sizes WHERE owner_nid = ? AND device_id = ?", *queue)


def _get_size(tx: Transaction, queue: Queue, holder_nid: int) -> tuple[int, int]:
    messages, size_bytes = tx.one(
        "SELECT messages, bytes FROM to_device_queue_sizes WHERE owner_nid = ? AND device_id = ? AND holder_nid = ?",
        *queue, holder_nid,
    ) or (0, 0)  # fmt: skip
    return messages, size_bytes
