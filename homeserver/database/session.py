"""Session: one connection of one engine. The whole difference between SQLite and PostgreSQL is behind it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from homeserver.database.stream import Stream

Row = tuple[Any, ...]

IN_MARKER = "IN (?*)"
IN_VALUES_MAX = 500  # of one statement; longer lists are asked for in chunks


class Cursor(Protocol):
    """What a statement gives: the rows it returned, or how many it changed."""

    @property
    def rowcount(self) -> int: ...

    def fetchone(self) -> Row | None: ...

    def fetchall(self) -> list[Row]: ...


class Session(Protocol):
    """Used by one thread at a time. Statements are written in the common subset, with `?` for each parameter."""

    @property
    def execute(self) -> Callable[[str, Sequence[Any]], Cursor]: ...

    def execute_many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None: ...

    def execute_in(self, sql: str, values: Sequence[Any], other: Sequence[Any]) -> list[Row]:
        """The rows of `sql`, whose one marker `IN (?*)` stands for `values`, at most IN_VALUES_MAX of them."""
        ...

    def begin_read(self) -> None:
        """Opens a snapshot: every statement until `end_read` sees the same moment."""
        ...

    def end_read(self) -> None: ...

    def begin_write(self) -> int:
        """Opens the one write transaction of the whole database; answers the last position that was committed."""
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
        """Whether the transaction goes on; an engine may have given it up by itself (disk full, connection lost)."""
        ...

    def explain(self, error: BaseException) -> BaseException:
        """DatabaseUnavailable or DatabaseDamaged in place of an error by which the engine says so; else the error."""
        ...

    def recover(self) -> bool:
        """Ends what is left of a failed transaction. True if the connection was lost and there is a new one."""
        ...

    def close(self) -> None: ...


class Holder(Protocol):
    """What only one node may do at a time. Used by one thread at a time."""

    def try_hold(self, name: str) -> bool: ...

    def is_held(self, name: str) -> bool: ...

    def release(self, name: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Opened:
    """An opened engine. No readers: reads share the writer's session, and everything runs on the trio thread.

    background runs as long as the database is open: it tells the stream of the changes that other nodes commit.
    holder None: there are no other nodes. generation: the name of the stream's generation, see `generations.py`.
    check_room raises DatabaseUnavailable if the disk that this process writes the database to takes no more; None
    where that disk is not ours.
    """

    writer: Session
    readers: Sequence[Session]
    position: int
    generation: Callable[[], str]
    background: Callable[[Stream], Awaitable[None]] | None
    holder: Holder | None
    close: Callable[[], None]
    check_room: Callable[[], None] | None = None
