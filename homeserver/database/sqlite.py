"""SQLite: one file, one server process, one writer connection and a few readers.

Theory of operation. Administration commands may write while a server is running. The server holds a lock on a second
file next to the database, which keeps other servers out. Each commit of a command makes this lock file one byte longer.
The server checks its size regularly, and wakes all waiters when it has grown.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import trio

from homeserver.database.generations import begin_generation, newest_generation
from homeserver.database.migrations import make_sqlite_tables, migrate_sqlite
from homeserver.database.schema import DatabaseBusy, DatabaseDamaged, DatabaseError, DatabaseUnavailable, Schema
from homeserver.database.session import Cursor, Opened, Row
from homeserver.database.stream import Stream
from homeserver.database.translation import split_in
from homeserver.database.turns import Within
from homeserver.limits import DATABASE_BELL_SECONDS
from homeserver.process.outages import check_room

_log = logging.getLogger(__name__)

# RETURNING needs 3.35, IS NOT DISTINCT FROM 3.39.
_VERSION_MIN = (3, 39, 0)
# Sizes of IN lists. Lists are padded to one of these sizes, so that a few prepared statements serve all lengths.
_IN_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 500)
# More than the program has statements, so that each is parsed once per connection.
_STATEMENTS_CACHED = 1024
_BUSY_TIMEOUT_S = 10.0
# How long a starting server waits for a command that holds the lock for a few milliseconds.
_LOCK_WAIT_S = 0.5
_LOCK_RETRY_S = 0.02
# Readers mostly wait for the GIL. With two, a slow read does not block the others.
_READERS = 2
# Writers keep their cache. Readers lose theirs at every commit, but find the pages in the kernel's cache.
_CACHE_KIB_WRITER = 8192
_CACHE_KIB_READER = 2048
# 16 MB of log before it is copied into the file, so that a page that changes often is copied once.
_CHECKPOINT_PAGES = 4000
_LOG_BYTES_KEPT = 64 << 20


# Result codes, see https://www.sqlite.org/rescode.html. A failing read means a bad sector, which is permanent.
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_DAMAGED_READS = frozenset({
    sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ, sqlite3.SQLITE_IOERR_CORRUPTFS,
    sqlite3.SQLITE_IOERR | (32 << 8),  # SQLITE_IOERR_DATA, for which the module has no name
})  # fmt: skip
_UNAVAILABLE = frozenset({
    sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_AUTH, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_PROTOCOL,
})  # fmt: skip
_BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})


class SqliteSession:
    """A connection. Transactions are opened explicitly: the connection is in autocommit mode (isolation_level None)."""

    __slots__ = (
        "_changes_before", "_committed", "_connection", "_guards_reads", "_in_texts", "_new_generation", "_ring",
        "begins_generation", "execute", "generation",
    )  # fmt: skip

    def __init__(
        self, connection: sqlite3.Connection, *, guards_reads: bool = False, ring: Callable[[], None] | None = None
    ) -> None:
        """guards_reads: reads and writes share the connection, so a read that has written fails and is undone.

        ring: called after each commit. If begins_generation is set, the first commit begins a generation.
        """
        self.generation = self._new_generation = ""
        self.begins_generation = False
        self._ring = ring
        self.execute: Callable[[str, Sequence[Any]], Cursor] = connection.execute
        self._connection = connection
        self._guards_reads = guards_reads
        self._changes_before = 0
        self._committed = 0
        self._in_texts: dict[tuple[str, int], tuple[str, int]] = {}

    def execute_many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        self._connection.executemany(sql, rows)

    def execute_in(self, sql: str, values: Sequence[Any], other: Sequence[Any]) -> list[Row]:
        size = next(size for size in _IN_SIZES if size >= len(values))
        known = self._in_texts.get((sql, size))
        if known is None:
            before, after, count = split_in(sql)
            known = self._in_texts[sql, size] = (f"{before}IN ({','.join('?' * size)}){after}", count)
        text, count = known
        padding = (values[-1],) * (size - len(values))
        return self._connection.execute(text, (*other[:count], *values, *padding, *other[count:])).fetchall()

    def key_columns(self, table: str) -> list[str]:
        sql = "SELECT name FROM pragma_table_info(?) WHERE pk > 0 ORDER BY pk"
        return [row[0] for row in self._connection.execute(sql, (table,))]

    def begin_read(self) -> None:
        self._connection.execute("BEGIN")
        self._changes_before = self._connection.total_changes

    def end_read(self) -> None:
        # PRAGMA query_only would refuse the statement itself, but each change of it makes SQLite compile all statements
        # again.
        if self._guards_reads and self._connection.total_changes != self._changes_before:
            raise RuntimeError("A read has written to the database. Reads are read-only.")
        try:
            self._connection.execute("COMMIT")
        except sqlite3.DatabaseError:
            # After `attempt` has met damage, SQLite reports it once more here. What was read is valid anyway.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    def begin_write(self, within: Within | None, taken: int) -> int:
        self._connection.execute("BEGIN IMMEDIATE")
        if self.begins_generation:
            self._new_generation = begin_generation(self.execute)
        row = self._connection.execute("SELECT position FROM stream_position WHERE id = 1").fetchone()
        self._committed = int(row[0])
        return max(self._committed, taken)

    def intern(self, value: str) -> int:
        row = self._connection.execute("INSERT INTO strings (value) VALUES (?) RETURNING nid", (value,)).fetchone()
        return int(row[0])

    def commit(self, position: int | None, keys: Collection[str]) -> int:
        if position is not None:
            self._connection.execute("UPDATE stream_position SET position = ? WHERE id = 1", (position,))
        self._connection.execute("COMMIT")
        if self.begins_generation:
            self.generation, self.begins_generation = self._new_generation, False
        if self._ring is not None:
            self._ring()
        return self._committed

    def rollback(self) -> None:
        self._connection.execute("ROLLBACK")

    def savepoint(self) -> None:
        self._connection.execute("SAVEPOINT w")

    def release(self) -> None:
        self._connection.execute("RELEASE w")

    def rollback_to_savepoint(self) -> None:
        self._connection.execute("ROLLBACK TO w")
        self._connection.execute("RELEASE w")

    def is_alive(self) -> bool:
        return self._connection.in_transaction

    def explain(self, error: BaseException) -> BaseException:
        if not isinstance(error, sqlite3.Error):
            return error
        code = getattr(error, "sqlite_errorcode", None)
        if code in _DAMAGED_READS or (code is not None and code & 0xFF in _DAMAGED) or _is_broken_text(error):
            return DatabaseDamaged(f"The database file is damaged: {error}.")
        if code is not None and code & 0xFF in _UNAVAILABLE:
            return DatabaseUnavailable(f"The database file cannot be used: {error} ({error.sqlite_errorname}).")
        if code is not None and code & 0xFF in _BUSY:
            return DatabaseBusy(f"The database file is in use for too long: {error}.")
        return error

    def recover(self) -> bool:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
        return False

    def close(self) -> None:
        self._connection.close()


class _Lock:
    """Held while a server has the database open, so that a second server is refused. Released when the process ends.

    An administration command holds it for a moment. A server that starts waits for that.
    """

    def __init__(self, path: str, wait_s: float) -> None:
        self._file = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() >= deadline:
                    os.close(self._file)
                    raise DatabaseError(f"The database {path} is in use by another server process.") from None
                time.sleep(_LOCK_RETRY_S)
        os.ftruncate(self._file, 0)
        self._path = path

    def release(self) -> None:
        os.close(self._file)

    async def listen(self, stream: Stream) -> None:
        """Wakes everyone when an administration command has committed. Runs as long as the database is open."""
        heard = 0
        while True:
            size = os.fstat(self._file).st_size
            if size != heard:
                stream.notify_all(await trio.to_thread.run_sync(_read_position, self._path))
                heard = size
            await trio.sleep(DATABASE_BELL_SECONDS)


def is_served(path: str) -> bool:
    """Returns whether a server has the database open."""
    try:
        file = os.open(f"{path}.lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(file)


def _ring(path: str) -> None:
    """Tells the server that has this database open, if any, that there was a commit."""
    try:
        bell = os.open(f"{path}.lock", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            os.write(bell, b"\0")
        finally:
            os.close(bell)
    except FileNotFoundError:
        pass  # no server has ever opened it
    except OSError as error:  # the commit stands: the server sees it with its own next commit
        _log.warning("a running server was not told of a change", extra={"file": f"{path}.lock", "reason": str(error)})


def _read_position(path: str) -> int:
    with contextlib.closing(connect(path, reads_only=True)) as connection:
        (position,) = connection.execute("SELECT position FROM stream_position WHERE id = 1").fetchone()
    return int(position)


def connect(path: str, *, reads_only: bool = False) -> sqlite3.Connection:
    """Returns a connection with the settings that every use of the database needs."""
    connection = sqlite3.connect(
        path,
        timeout=_BUSY_TIMEOUT_S,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=_STATEMENTS_CACHED,
    )
    # No parameters can be given to a PRAGMA; these are constants of this module.
    for setting in (
        "journal_mode = WAL",
        "synchronous = FULL",
        "foreign_keys = ON",
        # Overwrites what is deleted with zeros. Debian builds SQLite with this; others must not leave plaintext either.
        "secure_delete = ON",
        # Checks every cell of a page that is read from the file. Without it a search in a damaged page could miss its
        # way and find nothing, instead of failing.
        "cell_size_check = ON",
        "temp_store = MEMORY",
        f"cache_size = -{_CACHE_KIB_READER if reads_only else _CACHE_KIB_WRITER}",
        f"wal_autocheckpoint = {_CHECKPOINT_PAGES}",
        f"journal_size_limit = {_LOG_BYTES_KEPT}",
        f"query_only = {'ON' if reads_only else 'OFF'}",
    ):
        connection.execute(f"PRAGMA {setting}")
    return connection


def open_sqlite(name: str, schemas: Sequence[Schema], *, inline: bool, exclusive: bool) -> Opened:
    """Opens the database in the file `name`, or in memory for ":memory:", and migrates its tables."""
    if sqlite3.sqlite_version_info < _VERSION_MIN:
        raise DatabaseError(f"SQLite {sqlite3.sqlite_version} is too old: version 3.39 or later is needed.")
    in_memory = name == ":memory:"
    if in_memory and not inline:
        raise DatabaseError("A database in memory has only one connection, so it must be opened inline.")
    path = name if in_memory else str(Path(name).resolve())
    if not in_memory:
        check_not_lost(path)
        _prepare_file(path)
    lock = _Lock(path, _LOCK_WAIT_S) if exclusive and not in_memory else None
    connections: list[sqlite3.Connection] = []
    try:
        writer = connect(path)
        connections.append(writer)
        if in_memory and hasattr(writer, "deserialize"):  # it is optional in builds of SQLite
            writer.deserialize(empty_database(tuple(schemas)))
        elif not _make_tables(writer, schemas):
            migrate_sqlite(writer, schemas)
        session = SqliteSession(
            writer,
            guards_reads=inline,
            ring=None if exclusive or in_memory else functools.partial(_ring, path),
        )
        try:
            session.generation = begin_generation(writer.execute) if exclusive or in_memory else _join(path, writer)
        except sqlite3.OperationalError as error:
            # A full disk must not keep a server from reading. No position is taken before there is room again.
            if not isinstance(session.explain(error), DatabaseUnavailable):
                raise
            session.generation, session.begins_generation = newest_generation(writer.execute), True
        (position,) = writer.execute("SELECT position FROM stream_position WHERE id = 1").fetchone()
        for _ in range(0 if inline else _READERS):
            connections.append(connect(path, reads_only=True))
    except BaseException as error:  # nobody else knows these connections, nor the lock
        for connection in connections:
            connection.close()
        if lock is not None:
            lock.release()
        if isinstance(error, sqlite3.DatabaseError):
            raise DatabaseError(f"The database {path} cannot be opened: {error}.") from error
        raise
    return Opened(
        writer=session,
        readers=[SqliteSession(connection) for connection in connections[1:]],
        position=int(position),
        generation=lambda: session.generation,
        background=None if inline or lock is None else lock.listen,
        holder=None,
        close=lock.release if lock is not None else _close_nothing,
        check_room=None if in_memory else functools.partial(_check_room, Path(path).parent),
        scrub=None if in_memory else functools.partial(_remove_log, path),
    )


def _remove_log(path: str, tables: Collection[str]) -> None:
    """Copies the whole log into the file, and empties it. Waits for readers and writers for a while."""
    with contextlib.closing(connect(path)) as connection:
        (is_busy, _, _) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if is_busy:
        raise DatabaseBusy(f"The log of {path} could not be emptied: the database is in use.")


@cache
def empty_database(schemas: tuple[Schema, ...]) -> bytes:
    """Returns a database with all tables, all empty. Copying it takes a tenth of the time of making them.

    It depends only on the schemas, so it is made once for each process: tests open thousands of new databases.
    """
    connection = connect(":memory:")
    try:
        _make_tables(connection, schemas)
        return connection.serialize()
    finally:
        connection.close()


def _make_tables(connection: sqlite3.Connection, schemas: Sequence[Schema]) -> bool:
    """Makes all tables of a new database; returns False, and changes nothing, if it is not new.

    Whether the database is new is decided within the transaction: another process may be making it at the same time.
    """
    if not _is_new(connection):
        return False
    connection.execute("BEGIN IMMEDIATE")
    try:
        is_new = _is_new(connection)
        if is_new:
            make_sqlite_tables(connection, schemas)
        connection.execute("COMMIT")
    except BaseException:  # interrupted as well: the connection is used again
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return is_new


def _is_new(connection: sqlite3.Connection) -> bool:
    return connection.execute("SELECT 1 FROM sqlite_master").fetchone() is None


def _join(path: str, connection: sqlite3.Connection) -> str:
    """Returns the generation of the server that has the database open, or begins a new one if there is none."""
    if not Path(f"{path}.lock").exists():  # no server has ever opened it; only servers create this file
        return begin_generation(connection.execute)
    try:
        lock = _Lock(path, 0)
    except DatabaseError:
        return newest_generation(connection.execute)
    try:
        return begin_generation(connection.execute)
    finally:
        lock.release()


def check_not_lost(path: str) -> None:
    """Raises DatabaseError if a server has had a database here that is gone: a new one would look like a good start.

    Its file is made before the lock, and nothing of ours ever removes it: see `_prepare_file` and `_Lock`.
    """
    lock = f"{path}.lock"
    if os.path.exists(lock) and not os.path.lexists(path):
        raise DatabaseError(
            f"The database {path} is gone, though {lock} shows that a server has used it: restore it from your backup,"
            f" or remove {lock} to begin with an empty one."
        )


def _prepare_file(path: str) -> None:
    """Creates an empty file that only its owner may read. SQLite gives its log the same permissions."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except FileNotFoundError:
        raise DatabaseError(f"The folder {Path(path).parent} for the database does not exist.") from None
    except OSError as error:
        raise DatabaseError(f"The database {path} cannot be opened: {error.strerror}.") from error


def _check_room(folder: Path) -> None:
    try:
        check_room(folder)
    except OSError as error:
        raise DatabaseUnavailable(f"Nothing can be written in {folder}: {error.strerror}.") from error


def _is_broken_text(error: sqlite3.Error) -> bool:
    """Returns whether the module itself found text that is not UTF-8. Such an error has no SQLite result code."""
    return str(error).startswith("Could not decode to UTF-8")


def _close_nothing() -> None:
    """Does nothing: a database without a lock."""
