"""Session: one connection of one engine. The whole difference between SQLite and PostgreSQL is behind this interface."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, Protocol

Row = tuple[Any, ...]


class Cursor(Protocol):
    """What a statement gives: the rows it returned, or how many it changed."""

    @property
    def rowcount(self) -> int: ...

    def fetchone(self) -> Row | None: ...

    def fetchall(self) -> list[Row]: ...


class Session(Protocol):
    """Used by one thread at a time. Statements are written in the common subset, with `?` for each parameter."""

    def execute(self, sql: str, params: Sequence[object], /) -> Cursor: ...

    def execute_many(self, sql: str, rows: Iterable[Sequence[object]]) -> None: ...

    def execute_in(self, sql: str, values: Sequence[object], other: Sequence[object]) -> list[Row]:
        """The rows of `sql`, whose one marker `IN (?*)` stands for `values`; in chunks."""
        ...

    def begin_read(self) -> None:
        """Opens a snapshot: every statement until `rollback` sees the same moment."""
        ...

    def begin_write(self) -> int:
        """Opens the one write transaction of the whole database; answers the last position that was taken."""
        ...

    def commit(self, position: int | None, keys: Collection[str]) -> None:
        """Makes the write transaction durable. `position`: the last one taken in it, None if none was.

        `keys` are woken on the other nodes that share the database.
        """
        ...

    def rollback(self) -> None: ...

    def savepoint(self) -> None: ...

    def release(self) -> None: ...

    def rollback_to_savepoint(self) -> None: ...

    def is_alive(self) -> bool:
        """Whether the transaction is still open; an engine may have given it up by itself (disk full, lost server)."""
        ...

    def close(self) -> None: ...
