"""Outboxes: the to-device messages that other servers have not acknowledged yet.

Theory of operation. An outbox is a queue with a row for each EDU that its server has still to get, at a position of the
stream. It is the `EduQueue` of m.direct_to_device: the sender reads it, and deletes what has arrived. If a server stays
away until its outbox is full, messages are dropped: the oldest ones of the user with the most, see `queue_sizes.py`.

Spec: server-server-api/#send-to-device-messaging
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import orjson

from homeserver import limits
from homeserver.database import Row, Schema, Step, Transaction
from homeserver.feature import OutgoingEdu
from homeserver.federation.identifiers import ServerName, UserID
from homeserver.users.encryption.queue_sizes import (
    Queue,
    delete_empty,
    find_holder_to_cut,
    forget_holder,
    intern_holder,
    store_change,
)

SCHEMA = Schema(
    "to_device_outbox",
    (
        Step(
            "001_create",
            """
            -- content: of the EDU, as JSON. number, bytes_upto: how many EDUs, and how many bytes, this outbox has ever
            -- got, up to this one. They begin anew when it has been empty.
            CREATE TABLE to_device_outbox (
                position INTEGER PRIMARY KEY,
                server_nid INTEGER NOT NULL,
                content BLOB NOT NULL,
                number INTEGER NOT NULL,
                bytes_upto INTEGER NOT NULL
            );
            CREATE INDEX to_device_outbox_of_server ON to_device_outbox (server_nid, position);
            """,
        ),
        Step(
            "002_holders",
            """
            -- holder_nid: of the sender; -1 for messages that came before it was noted.
            ALTER TABLE to_device_outbox ADD COLUMN holder_nid INTEGER NOT NULL DEFAULT -1;
            ALTER TABLE to_device_outbox DROP COLUMN number;
            ALTER TABLE to_device_outbox DROP COLUMN bytes_upto;
            CREATE INDEX to_device_outbox_by_holder ON to_device_outbox (server_nid, holder_nid, position);
            """,
        ),
    ),
)


def insert_edu(tx: Transaction, server: ServerName, sender: UserID, content: bytes) -> int:
    """Appends an EDU of a user to the outbox of a server. Returns how many EDUs were dropped to make room."""
    queue, holder_nid = Queue(tx.intern(server)), intern_holder(tx, sender)
    tx.run(
        "INSERT INTO to_device_outbox (position, server_nid, holder_nid, content) VALUES (?, ?, ?, ?)",
        tx.next_position(), queue.owner_nid, holder_nid, content,
    )  # fmt: skip
    store_change(tx, queue, holder_nid, 1, len(content))
    dropped = 0
    most = (limits.peers.OUTBOX_EDUS_MAX, limits.peers.OUTBOX_BYTES_MAX)
    while (cut_nid := find_holder_to_cut(tx, queue, *most)) is not None:
        dropped += _delete_oldest(tx, queue, cut_nid)
    return dropped


def _delete_oldest(tx: Transaction, queue: Queue, holder_nid: int) -> int:
    """Deletes the oldest EDU of a holder. Returns 0 if there is none, 1 otherwise."""
    row = tx.one(
        "SELECT position, LENGTH(content) FROM to_device_outbox WHERE server_nid = ? AND holder_nid = ?"
        " ORDER BY position LIMIT 1",
        queue.owner_nid, holder_nid,
    )  # fmt: skip
    if row is None:
        forget_holder(tx, queue, holder_nid)
        return 0
    position, size_bytes = row
    tx.run("DELETE FROM to_device_outbox WHERE position = ?", position)
    store_change(tx, queue, holder_nid, -1, -size_bytes)
    return 1


def count_unknown(tx: Transaction, servers: Collection[ServerName]) -> int:
    """Returns how many of the servers nothing in this database has ever been about."""
    return sum(tx.find(server) is None for server in servers)


def list_edus(tx: Transaction, since: int, upto: int) -> Iterator[OutgoingEdu]:
    """Yields the EDUs to all servers with since < position ≤ upto, in order."""
    rows = tx.all(
        "SELECT position, server_nid, content FROM to_device_outbox WHERE position > ? AND position <= ?"
        " ORDER BY position",
        since, upto,
    )  # fmt: skip
    return (_outgoing(ServerName(tx.name(nid)), (position, content)) for position, nid, content in rows)


def list_first_edus(tx: Transaction, server: ServerName, since: int, upto: int, limit: int) -> list[OutgoingEdu]:
    """Returns the first EDUs to one server with since < position ≤ upto, in order."""
    rows = tx.all(
        "SELECT position, content FROM to_device_outbox WHERE server_nid = ? AND position > ? AND position <= ?"
        " ORDER BY position LIMIT ?",
        tx.find(server), since, upto, limit,
    )  # fmt: skip
    return [_outgoing(server, row) for row in rows]


def delete_edus_upto(tx: Transaction, server: ServerName, upto: int) -> None:
    """Deletes the EDUs to a server up to a position: the server has them."""
    nid = tx.find(server)
    if nid is None:
        return
    held = tx.all(
        "SELECT holder_nid, COUNT(*), COALESCE(SUM(LENGTH(content)), 0) FROM to_device_outbox"
        " WHERE server_nid = ? AND position <= ? GROUP BY holder_nid",
        nid, upto,
    )  # fmt: skip
    if not held:
        return
    for holder_nid, messages, size_bytes in held:
        store_change(tx, Queue(nid), holder_nid, -messages, -int(size_bytes))
    tx.run("DELETE FROM to_device_outbox WHERE server_nid = ? AND position <= ?", nid, upto)
    delete_empty(tx, Queue(nid))


def _outgoing(server: ServerName, row: Row) -> OutgoingEdu:
    position, content = row
    return OutgoingEdu(orjson.loads(content), destinations=(server,), position=position)
