"""Outboxes: the to-device messages that other servers have not acknowledged yet.

Theory of operation. An outbox is a queue with a row for each EDU that its server has still to get, at a position of the
stream. It is the `EduQueue` of m.direct_to_device: the sender reads it, and deletes what has arrived. If a server stays
away until its outbox is full, the oldest rows are dropped. Each row has running totals of its outbox (`number`,
`bytes_upto`). Rows leave at the front only, so two look-ups tell whether it is full.

Spec: server-server-api/#send-to-device-messaging
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import orjson

from homeserver import limits
from homeserver.database import Row, Schema, Step, Transaction
from homeserver.feature import OutgoingEdu
from homeserver.federation.identifiers import ServerName

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
    ),
)


def insert_edu(tx: Transaction, server: ServerName, content: bytes) -> int:
    """Appends an EDU to the outbox of a server. Returns how many of the oldest ones were dropped to make room."""
    nid = tx.intern(server)
    number, bytes_upto = tx.one(
        "SELECT number, bytes_upto FROM to_device_outbox WHERE server_nid = ? ORDER BY position DESC LIMIT 1", nid
    ) or (0, 0)
    number, bytes_upto = number + 1, bytes_upto + len(content)
    tx.run(
        "INSERT INTO to_device_outbox (position, server_nid, content, number, bytes_upto) VALUES (?, ?, ?, ?, ?)",
        tx.next_position(), nid, content, number, bytes_upto,
    )  # fmt: skip
    return _delete_excess(tx, nid, number, bytes_upto)


def _delete_excess(tx: Transaction, nid: int, number: int, bytes_upto: int) -> int:
    """Deletes the oldest EDUs of an outbox that is too full. Returns how many."""
    dropped = 0
    while True:
        position, first_number, first_bytes_upto = tx.one(
            "SELECT position, number, bytes_upto FROM to_device_outbox WHERE server_nid = ? ORDER BY position LIMIT 1",
            nid,
        ) or (0, number, bytes_upto)
        is_too_many = first_number <= number - limits.peers.OUTBOX_EDUS_MAX
        if not is_too_many and first_bytes_upto > bytes_upto - limits.peers.OUTBOX_BYTES_MAX:
            return dropped
        dropped += tx.run("DELETE FROM to_device_outbox WHERE position = ?", position)


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
    tx.run("DELETE FROM to_device_outbox WHERE server_nid = ? AND position <= ?", tx.find(server), upto)


def _outgoing(server: ServerName, row: Row) -> OutgoingEdu:
    position, content = row
    return OutgoingEdu(orjson.loads(content), destinations=(server,), position=position)
