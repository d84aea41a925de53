"""Holder: makes sure that only one node at a time does a thing. It uses PostgreSQL's session-level advisory locks.

The locks belong to a connection of their own. PostgreSQL releases them when that connection ends, so another node takes
over from one that died.
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
    """Holds locks by name. Used by one thread at a time."""

    def __init__(self, connect: Callable[[], psycopg.Connection[Row]]) -> None:
        self._connect = connect
        self._connection: psycopg.Connection[Row] | None = None
        self._held: set[str] = set()

    def try_hold(self, name: str) -> bool:
        """Returns whether this node now holds `name`. False also while the database cannot be reached."""
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
        """Returns whether this node still holds `name`; asks PostgreSQL."""
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
        """Lets another node take `name`."""
        if name in self._held and self._connection is not None:
            self._held.discard(name)
            try:
                self._connection.execute("SELECT pg_advisory_unlock(%s)", (_key(name),))
            except psycopg.Error:
                self._connection.close()  # this releases the lock, and all others

    def close(self) -> None:
        """Releases everything."""
        if self._connection is not None:
            self._connection.close()
