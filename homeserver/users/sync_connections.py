"""Connections of sliding sync: what each client has been told of each room, so that it gets only what it lacks.

Theory of operation. A client keeps one connection for each `conn_id` of a device, and repeats the `pos` of the last
answer that it has processed. An answer may be lost, so until its `pos` comes back the client may have received it or
not. Therefore a connection has two states, each with a serial number that is part of `pos`:

- the *acknowledged* state: what the client has certainly received (rows of `sync_connection_rooms` with serial 0);
- the *pending* state: the acknowledged one, with the changes of the last answer (rows with the serial of that answer).

A request with the acknowledged serial did not receive the last answer: its changes are dropped. A request with the
pending serial has received it: its rows become acknowledged. Both happen in the write that stores the next answer, so
requests that change nothing cost no write. Any other serial is unknown, and the client starts again.

What is stored of a room says nothing about the time: a room that was in the client's view at the last answer is known
up to the position in `pos` (`upto` is NULL), and a room that has left the view up to the position stored in `upto`.

Spec: MSC4186 (connections)
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping

import msgspec

from homeserver import limits
from homeserver.database import Schema, Step, Transaction
from homeserver.federation.identifiers import UserID

SCHEMA = Schema(
    "sync_connections",
    (
        Step(
            "001_create",
            """
            -- acknowledged, pending: serials, see above; pending is 0 if there is none. begun_position: of the stream,
            -- when the connection began. used_position: when it was last written.
            CREATE TABLE sync_connections (
                connection INTEGER PRIMARY KEY,
                user_nid INTEGER NOT NULL,
                device_id TEXT NOT NULL,
                conn_id TEXT NOT NULL,
                acknowledged INTEGER NOT NULL,
                pending INTEGER NOT NULL,
                begun_position INTEGER NOT NULL,
                used_position INTEGER NOT NULL
            );
            CREATE UNIQUE INDEX sync_connections_of_device ON sync_connections (user_nid, device_id, conn_id);
            -- upto: the position up to which the client knows the room; NULL: up to that of its `pos`. timeline_limit:
            -- how many of the newest events it has. config: a digest of the required state that it has.
            CREATE TABLE sync_connection_rooms (
                connection INTEGER NOT NULL,
                room_nid INTEGER NOT NULL,
                serial INTEGER NOT NULL,
                upto INTEGER,
                timeline_limit INTEGER NOT NULL,
                config BLOB NOT NULL,
                is_dm INTEGER NOT NULL,
                PRIMARY KEY (connection, room_nid, serial)
            ) WITHOUT ROWID;
            CREATE INDEX sync_connection_rooms_pending ON sync_connection_rooms (connection, serial) WHERE serial > 0;
            CREATE TABLE sync_connection_configs (
                connection INTEGER NOT NULL,
                digest BLOB NOT NULL,
                config BLOB NOT NULL,
                PRIMARY KEY (connection, digest)
            ) WITHOUT ROWID;
            """,
        ),
    ),
)

_STATES_CACHED_MAX = 500
_FIRST_SERIAL_BITS = 40  # so that a `pos` of a connection that was deleted is not taken for one of its successor


class ToldRoom(msgspec.Struct, frozen=True):
    """What a client knows of a room, see the columns of `sync_connection_rooms`."""

    upto: int | None
    timeline_limit: int
    config: bytes
    is_dm: bool = False


class ConnectionKey(msgspec.Struct, frozen=True):
    """Names a connection: `conn_id` is the client's, and may be empty."""

    user_id: UserID
    device_id: str
    conn_id: str


class ConnectionState(msgspec.Struct, frozen=True):
    """What a client has been told when it holds the `pos` with this serial: rooms by number, configs by digest."""

    serial: int = 0
    begun_position: int = 0
    rooms: Mapping[int, ToldRoom] = msgspec.field(default_factory=dict)
    configs: Mapping[bytes, bytes] = msgspec.field(default_factory=dict)


BEGINNING = ConnectionState()
"""The state of a connection that has no answer yet."""


def find_connection_state(tx: Transaction, key: ConnectionKey, serial: int) -> ConnectionState | None:
    """Returns the state of a connection at that serial, None if the serial is not of this connection or outdated."""
    row = tx.one(
        "SELECT connection, acknowledged, pending, begun_position FROM sync_connections"
        " WHERE user_nid = ? AND device_id = ? AND conn_id = ?",
        tx.find(key.user_id), key.device_id, key.conn_id,
    )  # fmt: skip
    if row is None or serial not in (row[1], row[2]) or serial == 0:
        return None
    connection, acknowledged, _, begun_position = row
    cache = tx.cache("sync_connections", _STATES_CACHED_MAX)
    state: ConnectionState | None = cache.get((connection, serial))
    if state is None:
        rooms = {
            room_nid: ToldRoom(upto, timeline_limit, bytes(config), bool(is_dm))
            for room_nid, upto, timeline_limit, config, is_dm in tx.all(
                "SELECT room_nid, upto, timeline_limit, config, is_dm FROM sync_connection_rooms"
                " WHERE connection = ? AND serial IN (0, ?) ORDER BY serial",
                connection, 0 if serial == acknowledged else serial,
            )
        }  # fmt: skip
        configs = {
            bytes(digest): bytes(config)
            for digest, config in tx.all(
                "SELECT digest, config FROM sync_connection_configs WHERE connection = ?", connection
            )
        }
        state = ConnectionState(serial, begun_position, rooms, configs)
        if not tx.is_write:
            cache.put((connection, serial), state)
    return state


def store_connection_answer(
    tx: Transaction,
    key: ConnectionKey,
    base: int,
    rooms: Mapping[int, ToldRoom],
    configs: Mapping[bytes, bytes],
    upto: int,
) -> int | None:
    """Stores what an answer changes in the state with the serial `base` (0: a new connection). Returns its serial.

    upto: the position that the answer covers. Returns None if `base` is outdated by now, or if the connection has too
    many different configs and was deleted for that: then the client starts again.
    """
    row = tx.one(
        "SELECT connection, acknowledged, pending FROM sync_connections"
        " WHERE user_nid = ? AND device_id = ? AND conn_id = ?",
        tx.find(key.user_id), key.device_id, key.conn_id,
    )  # fmt: skip
    if base and (row is None or base not in row[1:]):
        return None
    if row is None:
        connection, last = _insert_connection(tx, key, upto), secrets.randbits(_FIRST_SERIAL_BITS) + 1
    else:
        connection, last = row[0], max(row[1:])
        if not base:
            _delete_state(tx, connection)
        elif base == row[2]:
            _set_acknowledged(tx, connection, base)
        else:
            tx.run("DELETE FROM sync_connection_rooms WHERE connection = ? AND serial > 0", connection)
    serial = last + 1
    tx.run(
        "UPDATE sync_connections SET acknowledged = ?, pending = ?, used_position = ?,"
        " begun_position = CASE WHEN CAST(? AS INTEGER) = 0 THEN CAST(? AS INTEGER) ELSE begun_position END"
        " WHERE connection = ?",
        base, serial, upto, base, upto, connection,
    )  # fmt: skip
    tx.many(
        "INSERT INTO sync_connection_rooms (connection, room_nid, serial, upto, timeline_limit, config, is_dm)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        [
            (connection, room_nid, serial, told.upto, told.timeline_limit, told.config, int(told.is_dm))
            for room_nid, told in rooms.items()
        ],
    )
    if configs and not _store_configs(tx, connection, configs):
        delete_connection(tx, connection)
        return None
    return serial


def _set_acknowledged(tx: Transaction, connection: int, serial: int) -> None:
    """Makes the pending rows with this serial the acknowledged ones of their rooms."""
    tx.run(
        "DELETE FROM sync_connection_rooms WHERE connection = ? AND serial = 0 AND room_nid IN"
        " (SELECT p.room_nid FROM sync_connection_rooms p WHERE p.connection = ? AND p.serial = ?)",
        connection, connection, serial,
    )  # fmt: skip
    tx.run("UPDATE sync_connection_rooms SET serial = 0 WHERE connection = ? AND serial = ?", connection, serial)


def _store_configs(tx: Transaction, connection: int, configs: Mapping[bytes, bytes]) -> bool:
    """Stores new configs, after deleting unused ones if there are many. Returns False if there are too many."""
    tx.many(
        "INSERT INTO sync_connection_configs (connection, digest, config) VALUES (?, ?, ?)"
        " ON CONFLICT (connection, digest) DO NOTHING",
        [(connection, digest, config) for digest, config in configs.items()],
    )
    count = "SELECT count(*) FROM sync_connection_configs WHERE connection = ?"
    if tx.values(count, connection)[0] <= limits.users.SYNC_CONFIGS_MAX:
        return True
    tx.run(
        "DELETE FROM sync_connection_configs WHERE connection = ? AND digest NOT IN"
        " (SELECT config FROM sync_connection_rooms WHERE connection = ?)",
        connection, connection,
    )  # fmt: skip
    return bool(tx.values(count, connection)[0] <= limits.users.SYNC_CONFIGS_MAX)


def _insert_connection(tx: Transaction, key: ConnectionKey, position: int) -> int:
    """Adds a connection. The device's connections beyond the limit are deleted, the longest unused ones first."""
    user_nid = tx.intern(key.user_id)
    known = tx.values(
        "SELECT connection FROM sync_connections WHERE user_nid = ? AND device_id = ?"
        " ORDER BY used_position DESC, connection DESC",
        user_nid, key.device_id,
    )  # fmt: skip
    for connection in known[limits.users.SYNC_CONNECTIONS_MAX - 1 :]:
        delete_connection(tx, connection)
    row = tx.one(
        "INSERT INTO sync_connections (user_nid, device_id, conn_id, acknowledged, pending, begun_position,"
        " used_position) VALUES (?, ?, ?, 0, 0, ?, ?) RETURNING connection",
        user_nid, key.device_id, key.conn_id, position, position,
    )  # fmt: skip
    assert row is not None
    return int(row[0])


def _delete_state(tx: Transaction, connection: int) -> None:
    tx.run("DELETE FROM sync_connection_rooms WHERE connection = ?", connection)
    tx.run("DELETE FROM sync_connection_configs WHERE connection = ?", connection)


def delete_connection(tx: Transaction, connection: int) -> None:
    """Deletes a connection. Its client is told that the `pos` is unknown, and starts again."""
    _delete_state(tx, connection)
    tx.run("DELETE FROM sync_connections WHERE connection = ?", connection)


def forget_connections(tx: Transaction, user_id: UserID, device_id: str) -> None:
    """Deletes the connections of a device that is gone."""
    for connection in tx.values(
        "SELECT connection FROM sync_connections WHERE user_nid = ? AND device_id = ?", tx.find(user_id), device_id
    ):
        delete_connection(tx, connection)
