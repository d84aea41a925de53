"""Holder: takes, renews and gives back the leases of this node in PostgreSQL. See `leases`."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from hashlib import blake2b

import psycopg

from homeserver.database.leases import Lease
from homeserver.database.schema import DatabaseError
from homeserver.database.session import Row
from homeserver.limits import DATABASE_LEASE_SECONDS

_LEASE_MS = int(DATABASE_LEASE_SECONDS * 1000)
_NOW_MS = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint"
_FIND = (
    # One that lasts longer than any is granted was written before the clock went back.
    f"SELECT owner, fence, until_ms BETWEEN {_NOW_MS} AND {_NOW_MS} + {_LEASE_MS} FROM leases WHERE name = %s"
)
# It changes hands only if it is still the one that was found. In one statement: a node that stands still between two
# would keep the lock.
_TAKE = (
    "WITH locked AS MATERIALIZED (SELECT pg_advisory_xact_lock(%s))"
    f" INSERT INTO leases (name, owner, fence, until_ms) SELECT %s, %s, 1, {_NOW_MS} + {_LEASE_MS} FROM locked"
    " ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, fence = leases.fence + 1, until_ms = excluded.until_ms"
    " WHERE leases.fence = %s RETURNING fence"
)
_RENEW = (
    f"UPDATE leases SET until_ms = {_NOW_MS} + {_LEASE_MS} WHERE owner = %s AND name = ANY(%s) RETURNING name, fence"
)
_SETTINGS = "SET statement_timeout = '5s'"


class PostgresHolder:
    """Used by one thread at a time. Its connection shows other nodes, by a lock, that this one lives.

    write_lock: the advisory lock under which all writes run.
    """

    def __init__(self, connect: Callable[[], psycopg.Connection[Row]], node: str, write_lock: int) -> None:
        self._connect = connect
        self._node = node
        self._write_lock = write_lock
        self._connection: psycopg.Connection[Row] | None = None

    def try_hold(self, name: str) -> Lease | None:
        """Returns the lease if this node has it now. None also while the database cannot be reached."""
        began = time.monotonic()
        try:
            fence = self._take(self._open(), name)
        except (psycopg.Error, DatabaseError):
            return None
        return None if fence is None else Lease(name, fence, began)

    def renew(self, leases: Collection[Lease]) -> None:
        """Renews the leases. Those that another node has taken are marked as expired long ago."""
        began = time.monotonic()
        try:
            rows = self._open().execute(_RENEW, (self._node, [lease.name for lease in leases])).fetchall()
        except (psycopg.Error, DatabaseError):
            return  # they expire unless this works soon
        fences: dict[str, int] = dict(rows)
        for lease in leases:
            lease.granted_at = began if fences.get(lease.name) == lease.fence else -float("inf")

    def release(self, lease: Lease) -> None:
        """Lets another node take the lease at once."""
        try:
            self._open().execute(
                "UPDATE leases SET until_ms = 0 WHERE name = %s AND owner = %s AND fence = %s",
                (lease.name, self._node, lease.fence),
            )
        except (psycopg.Error, DatabaseError):
            pass  # it expires by itself

    def close(self) -> None:
        """Ends the connection, so that other nodes take what this one has not given back."""
        if self._connection is not None:
            self._connection.close()

    def _open(self) -> psycopg.Connection[Row]:
        if self._connection is None or self._connection.closed:
            self._connection = self._connect()
            self._connection.execute(_SETTINGS)
            self._connection.execute("SELECT pg_advisory_lock(%s)", (_life_of(self._node),))
        return self._connection

    def _take(self, connection: psycopg.Connection[Row], name: str) -> int | None:
        row = connection.execute(_FIND, (name,)).fetchone()
        owner, fence, is_valid = row or (self._node, 0, False)
        if is_valid and owner != self._node and not self._is_gone(connection, owner):
            return None
        taken = connection.execute(_TAKE, (self._write_lock, name, self._node, fence)).fetchone()
        return None if taken is None else int(taken[0])

    def _is_gone(self, connection: psycopg.Connection[Row], owner: str) -> bool:
        """Returns whether the session of a node has ended: then nobody has the lock that it held."""
        life = _life_of(owner)
        (is_gone,) = connection.execute("SELECT pg_try_advisory_lock(%s)", (life,)).fetchone() or (False,)
        if is_gone:
            connection.execute("SELECT pg_advisory_unlock(%s)", (life,))
        return bool(is_gone)


def _life_of(node: str) -> int:
    """Returns the number of the lock that a node holds while it is connected."""
    return int.from_bytes(blake2b(f"life of {node}".encode(), digest_size=8).digest(), signed=True)
