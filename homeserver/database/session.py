"""Session: one connection to one engine. It hides all differences between SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from typing import Any, Protocol

import msgspec

from homeserver.database.leases import Lease
from homeserver.database.stream import Stream
from homeserver.database.turns import Within

Row = tuple[Any, ...]

IN_MARKER = "IN (?*)"
IN_VALUES_MAX = 500  # per statement; longer lists are split into chunks


class Cursor(Protocol):
    """The result of a statement: the rows it returned, or how many it changed."""

    @property
    def rowcount(self) -> int: ...

    @property
    def description(self) -> Sequence[Any] | None:
        """One entry for each column, which begins with its name; None for statements that return no rows."""
        ...

    def fetchone(self) -> Row | None: ...

    def fetchall(self) -> list[Row]: ...


class Session(Protocol):
    """Used by one thread at a time. Statements are written in the common subset, with `?` for each parameter."""

    @property
    def execute(self) -> Callable[[str, Sequence[Any]], Cursor]: ...

    def execute_many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None: ...

    def execute_in(self, sql: str, values: Sequence[Any], other: Sequence[Any]) -> list[Row]:
        """Returns the rows of `sql`, whose single marker `IN (?*)` stands for `values`, at most IN_VALUES_MAX."""
        ...

    def key_columns(self, table: str) -> list[str]:
        """Returns the columns of a table's primary key, in its order."""
        ...

    def begin_read(self) -> None:
        """Opens a snapshot: every statement until `end_read` sees the database at the same moment."""
        ...

    def end_read(self) -> None: ...

    def begin_write(self, within: Within | None, taken: int) -> int:
        """Opens a write transaction: the only one of the database, or the only one that has one of the keys `within`.

        Returns the position after which it takes its own; up to `within.count`, if that is given. No other process
        takes one of these. taken: the highest position ever taken in this process.
        """
        ...

    def intern(self, value: str) -> int:
        """Stores a string that has no number yet. Returns its number."""
        ...

    def commit(self, position: int | None, keys: Collection[str]) -> int:
        """Makes the write transaction durable. `position` is the last one that it took, None if it took none.

        `keys` are woken on the other nodes that share the database. Returns the position of the commit before.
        """
        ...

    def rollback(self) -> None: ...

    def savepoint(self) -> None: ...

    def release(self) -> None: ...

    def rollback_to_savepoint(self) -> None: ...

    def is_alive(self) -> bool:
        """Returns whether the transaction is still open. The engine may have ended it (disk full, connection lost)."""
        ...

    def explain(self, error: BaseException) -> BaseException:
        """Returns DatabaseUnavailable or DatabaseDamaged in place of an error that means this; otherwise the error."""
        ...

    def recover(self) -> bool:
        """Cleans up after a failed transaction. Returns True if the connection was lost and there is a new one."""
        ...

    def close(self) -> None: ...


class Holder(Protocol):
    """Holds the leases of this node, see `leases`. Used by one thread at a time."""

    def try_hold(self, name: str) -> Lease | None: ...

    def renew(self, leases: Collection[Lease]) -> None: ...

    def release(self, lease: Lease) -> None: ...


class Opened(msgspec.Struct, frozen=True):
    """An opened engine. Without readers, reads share the writer's session and everything runs on the trio thread.

    background: runs as long as the database is open, and notifies the stream of other nodes' commits.
    holder: None if there are no other nodes. generation: the name of the stream's generation, see `generations.py`.
    check_room: raises DatabaseUnavailable if the disk of the database file is full; None if the disk is not ours.
    scrub: removes what was deleted from these tables from the files, as far as the engine lets us.
    end_stuck: called in a read. Ends the sessions of other nodes that stand still while our writer waits for them.
    """

    writer: Session
    readers: Sequence[Session]
    position: int
    generation: Callable[[], str]
    background: Callable[[Stream], Awaitable[None]] | None
    holder: Holder | None
    close: Callable[[], None]
    check_room: Callable[[], None] | None = None
    scrub: Callable[[Collection[str]], None] | None = None
    end_stuck: Callable[[Any], None] | None = None
