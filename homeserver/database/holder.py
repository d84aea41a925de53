"""Holder: what only one node may do at a time, by PostgreSQL's session-level advisory locks on a connection of its own.

The server gives a lock free when the connection ends, so that another node takes over from one that died.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b

import psycopg

from homeserver.database.schema import DatabaseError
from homeserver.database.session import Row


def _key(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), signed=True)


class PostgresHolder:
    """Used by one thread at a time."""

    def __init__(self, connect: Callable[[], psycopg.Connection[Row]]) -> None:
        self._connect = connect
        self._connection: psycopg.Connection[Row] | None = None
        self._held: set[str] = set()

    def try_hold(self, name: str) -> bool:
        """Whether this node holds `name` now. False also while the database cannot be reached."""
        try:
            if self._connection is None or self._connection.closed:
                self._held.clear()
                self._connection = self._connect()
            row = self._connection.execute("SELECT pg_try_advisory_lock(%s)", (_key(name),)).fetchone()
        except (psycopg.Error, DatabaseError):
            return False
        held = row is not None and bool(row[0])
        if held:
            self._held.add(name)
        return held

    def is_held(self, name: str) -> bool:
        """Whether this node still holds `name`; asks the server."""
        if name not in self._held or self._connection is None:
            return False
        try:
            self._connection.execute("SELECT 1")
        except psycopg.Error:
            self._held.clear()
            self._connection.close()
            return False
        return True

    def release(self, name: str) -> None:
        """Lets another node have `name`."""
        if name in self._held and self._connection is not None:
            self._held.discard(name)
            try:
                self._connection.execute("SELECT pg_advisory_unlock(%s)", (_key(name),))
            except psycopg.Error:
                self._connection.close()  # which releases it, and everything else

    def close(self) -> None:
        """Releases everything."""
        if self._connection is not None:
            self._connection.close()
