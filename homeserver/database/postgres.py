"""PostgreSQL: several nodes on one database. psycopg is used synchronously, in the same threads as SQLite.

Theory of operation
- One advisory lock serialises the write transactions of all nodes, so that positions are committed in order. Writes
  that say what they keep within share it, and commit in order anyway: see `turns`.
- Each commit sends a NOTIFY with the keys that have news, which wakes the waiters on other nodes (`listener`).
- A lost connection is opened again by `recover`. After a restart of PostgreSQL, calls wait for a few seconds. If it
  stays away, calls fail at once, except that one of them tries to connect every _ATTEMPT_INTERVAL_S. The sessions of a
  process share this knowledge (`_Reach`), so that not each of them waits in vain.
- Every statement and every idle transaction has a time limit, so a stuck process cannot hold the writers' lock. A node
  that stands still in a write delays the writes of the others by at most two seconds. PostgreSQL ends such a session
  itself, except in and after a pipeline (`execute_many`), which disarms its timer: then a node that waits for it does.
"""

from __future__ import annotations

import functools
import logging
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
import psycopg
from psycopg import sql
from psycopg.abc import Buffer
from psycopg.adapt import Dumper, Loader
from psycopg.errors import ReadOnlySqlTransaction, error_from_result
from psycopg.pq import Escaping, ExecStatus, TransactionStatus
from psycopg.pq.abc import PGresult
from psycopg.types.numeric import Int8Dumper

from homeserver.database import turns
from homeserver.database.holder import PostgresHolder
from homeserver.database.listener import CHANNEL, Listener, encode_news
from homeserver.database.migrations import READ_LEDGER, list_pending
from homeserver.database.schema import (
    DatabaseBusy,
    DatabaseDamaged,
    DatabaseError,
    DatabaseUnavailable,
    Schema,
)
from homeserver.database.session import Cursor, Opened, Row
from homeserver.database.transaction import Transaction
from homeserver.database.translation import split_in, split_statements, translate_definition, translate_statement
from homeserver.database.turns import Within
from homeserver.errors import invalid_param

_log = logging.getLogger(__name__)

# The lock of nodes that migrate the tables. The number is arbitrary.
_MIGRATE_LOCK = 7053163
# Each mostly waits for the network. More than with SQLite, whose readers mostly wait for the GIL.
_READERS = 4
_STATEMENTS_PREPARED = 1000
_VERSION_MIN = 13_00_00
# A restart of PostgreSQL takes a few seconds. Calls during that time are answered late instead of failing.
_RECONNECT_DELAYS_S = (0.0, 0.1, 0.3, 1.0, 2.0)
# If it stays away, one session tries this often; other calls fail at once.
_ATTEMPT_INTERVAL_S = 0.5
_CONNECT_TIMEOUT_S = 3
# A server that is cut off is noticed within this time, by the kernel rather than by a statement that waits forever.
_NETWORK_SETTINGS = {
    "connect_timeout": _CONNECT_TIMEOUT_S,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
# A stuck process must not hold the writers' lock, and every statement must end.
_SESSION_SETTINGS = "SET idle_in_transaction_session_timeout = '2s'; SET statement_timeout = '30s'"


# Ends the sessions that block another one and have not said anything for as long as an idle transaction may last.
_END_STUCK = """
    SELECT pg_terminate_backend(pid)
    FROM unnest(pg_blocking_pids(?::int)) AS blocking(pid) JOIN pg_stat_activity USING (pid)
    WHERE wait_event = 'ClientRead' AND state_change < clock_timestamp() - interval '2 seconds'
"""
# SQLSTATEs, see https://www.postgresql.org/docs/current/errcodes-appendix.html
_DAMAGED = frozenset({"XX001", "XX002", "58P01"})  # data or index corrupted; a file is missing
_BUSY = frozenset({"40001", "40P01", "55P03", "57014"})  # conflicted with another transaction; took too long
_UNAVAILABLE = frozenset({"25006", "25P03"})  # read-only; idle for too long
_UNAVAILABLE_CLASSES = frozenset({"08", "53", "57", "58"})  # connection, resources, operator, system
_INTERN = """
    INSERT INTO strings (value) VALUES (%s) ON CONFLICT (value) DO UPDATE SET value = excluded.value RETURNING nid
"""
_Savepoint = Literal["none", "open", "done with"]


class _BooleanDumper(Dumper):
    """Stores booleans as the integers 0 and 1, as on SQLite."""

    oid = Int8Dumper.oid

    def dump(self, obj: bool) -> Buffer:
        return b"1" if obj else b"0"


class _BooleanLoader(Loader):
    def load(self, data: Buffer) -> int:
        return int(bytes(data) == b"t")


class _NumericLoader(Loader):
    """Loads the sum of integers as an integer, as on SQLite."""

    def load(self, data: Buffer) -> int | float:
        text = bytes(data)
        return float(text) if b"." in text or b"N" in text else int(text)


class _Reach(msgspec.Struct):
    """What the sessions of a process know about a lost server. One session waits for it on behalf of all.

    failure: the result of the last attempt to connect again, None while the server can be reached.
    """

    failure: DatabaseError | None = None
    next_attempt: float = 0.0


class PostgresSession:
    """A connection. `recover` opens it again when it is lost. Each statement is finished before the next begins."""

    def __init__(self, connect: Callable[[], psycopg.Connection[Row]], node: str, reach: _Reach | None = None) -> None:
        self._node = node
        self._open = functools.partial(_open_session, connect)
        self._connection = self._open()
        self._cursor = self._connection.cursor()
        self._savepoint: _Savepoint = "none"
        self._end: int | None = None  # of the block of positions of a write that runs beside others
        self._aside: psycopg.Connection[Row] | None = None
        self._reach = reach or _Reach()
        self._statements: dict[str, bytes] = {}
        self._counts_before_lists: dict[str, int] = {}

    def execute(self, sql: str, params: Sequence[Any], /) -> Cursor:
        try:
            return self._cursor.execute(self._translate(sql), params)
        except ReadOnlySqlTransaction:
            # The server is now a standby, or was told to refuse writes. A new connection may reach the new primary, and
            # does not keep settings that were changed meanwhile.
            self._connection.close()
            raise
        except psycopg.DataError:
            if any(isinstance(value, str) and "\0" in value for value in params):
                raise invalid_param("A string contains a NUL character, which cannot be stored.") from None
            raise

    def execute_many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        self._cursor.executemany(self._translate(sql), rows)

    def execute_in(self, sql: str, values: Sequence[Any], other: Sequence[Any]) -> list[Row]:
        count = self._counts_before_lists.get(sql)
        if count is None:
            _, _, count = split_in(sql)
            self._counts_before_lists[sql] = count
        return self.execute(sql, (*other[:count], list(values), *other[count:])).fetchall()

    def _translate(self, sql: str) -> bytes:
        known = self._statements.get(sql)
        if known is None:
            known = self._statements[sql] = translate_statement(sql).encode()
        return known

    def _control(self, sql: bytes) -> PGresult:
        """Runs statements without parameters, bypassing psycopg's cursor, which costs as much as the round trip."""
        result = self._connection.pgconn.exec_(sql)
        if result.status not in (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK):
            error = error_from_result(result)
            # An error without a code comes from libpq, not from the server: the connection is lost.
            raise error if error.sqlstate else psycopg.OperationalError(str(error))
        return result

    def key_columns(self, table: str) -> list[str]:
        sql = (
            "SELECT a.attname FROM pg_index i JOIN pg_attribute a"
            " ON a.attrelid = i.indrelid AND a.attnum = ANY(i.indkey)"
            " WHERE i.indrelid = to_regclass(?) AND i.indisprimary ORDER BY array_position(i.indkey::int2[], a.attnum)"
        )
        return [row[0] for row in self.execute(sql, (table,)).fetchall()]

    def begin_read(self) -> None:
        self._savepoint = "none"
        self._control(b"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")

    def end_read(self) -> None:
        self._control(b"COMMIT")

    def begin_write(self, within: Within | None, taken: int) -> int:
        self._savepoint = "none"
        self._end = None
        if within is None:
            return max(self._number_of(self._control(turns.BEGIN_ALONE)), taken)
        try:
            self._end = self._number_of(self._control(turns.begin_beside(within, taken)))
        except psycopg.Error:
            self._connection.close()  # it may hold the lock of those who draw positions, which no rollback releases
            raise
        return self._end - within.count

    def _number_of(self, result: PGresult) -> int:
        value = result.get_value(0, 0)
        assert value is not None
        return int(value)

    def intern(self, value: str) -> int:
        if self._end is None:
            row = self.execute("INSERT INTO strings (value) VALUES (?) RETURNING nid", (value,)).fetchone()
        else:
            row = self._intern_aside(value)
        assert row is not None
        return int(row[0])

    def _intern_aside(self, value: str) -> Row | None:
        """Interns in a transaction of its own, because others may intern the same string now: see `turns`."""
        if self._aside is None or self._aside.closed:
            self._aside = self._open()
            # What refers to the string is committed later, and reaches the disk later.
            self._aside.execute("SET synchronous_commit = off")
        try:
            return self._aside.execute(_INTERN, (value,)).fetchone()
        except psycopg.Error:
            self._aside.close()
            raise

    def commit(self, position: int | None, keys: Collection[str]) -> int:
        if position is None:
            self._control(b"COMMIT")
            return 0
        literal = Escaping(self._connection.pgconn).escape_literal
        head, tail = encode_news(self._node, position, keys)
        texts = (literal(text.encode()).decode() for text in (CHANNEL, head, tail))
        return self._number_of(self._control(turns.store_and_commit(position, self._end, *texts)))

    def rollback(self) -> None:
        self._control(b"ROLLBACK")

    # A savepoint is released together with opening the next one. After a rollback the same savepoint is used again.

    def savepoint(self) -> None:
        if self._savepoint == "none":
            self._control(b"SAVEPOINT w")
        elif self._savepoint == "done with":
            self._control(b"RELEASE SAVEPOINT w; SAVEPOINT w")
        self._savepoint = "open"

    def release(self) -> None:
        self._savepoint = "done with"

    def rollback_to_savepoint(self) -> None:
        self._control(b"ROLLBACK TO SAVEPOINT w")
        self._savepoint = "open"

    def is_alive(self) -> bool:
        return not self._connection.closed

    @property
    def pid(self) -> int:
        """The number of the server's process."""
        return self._connection.info.backend_pid

    def explain(self, error: BaseException) -> BaseException:
        return explain(error)

    def recover(self) -> bool:
        if not self._connection.closed:
            if self._connection.info.transaction_status != TransactionStatus.IDLE:
                try:
                    self._control(b"ROLLBACK")
                except psycopg.OperationalError:
                    pass  # the connection was just lost
            if not self._connection.closed:
                return False
        self._connect_again()
        return True

    def _connect_again(self) -> None:
        """Tries to connect for a few seconds after the loss, and later only now and then, so that calls fail fast."""
        reach = self._reach
        known = reach.failure
        if known is not None and time.monotonic() < reach.next_attempt:
            raise DatabaseUnavailable(str(known))
        for delay_s in _RECONNECT_DELAYS_S if known is None else (0.0,):
            time.sleep(delay_s)
            try:
                self._connection = self._open()
            except DatabaseError as error:
                failure = error
            else:
                self._cursor = self._connection.cursor()
                reach.failure = None
                return
        reach.failure, reach.next_attempt = failure, time.monotonic() + _ATTEMPT_INTERVAL_S
        raise failure

    def close(self) -> None:
        self._connection.close()
        if self._aside is not None:
            self._aside.close()


def open_postgres(url: str, schemas: Sequence[Schema], *, inline: bool) -> Opened:
    """Opens the database at `url` and migrates its tables."""
    connect_again = functools.partial(connect, url)
    node = secrets.token_hex(8)
    closing: list[Callable[[], None]] = []
    try:
        listener = Listener(connect_again, node)
        closing.append(listener.close)
        migrate(listener.connection, schemas)
        position = listener.listen()
        reach = _Reach()
        writer = PostgresSession(connect_again, node, reach)
        closing.append(writer.close)
        readers: list[PostgresSession] = []
        for _ in range(0 if inline else _READERS):
            readers.append(PostgresSession(connect_again, node, reach))
            closing.append(readers[-1].close)
    except BaseException as error:  # nobody else knows these connections
        for close in closing:
            close()
        if isinstance(error, psycopg.Error):
            raise DatabaseError(f"The database cannot be opened: {describe(error)}.") from error
        raise
    holder = PostgresHolder(connect_again, node, turns.WRITE_LOCK)

    def close_all() -> None:
        listener.close()
        holder.close()

    def end_stuck(tx: Transaction) -> None:
        for _ in tx.all(_END_STUCK, writer.pid):
            _log.warning("another server process stands still in a write: its session was ended")

    return Opened(
        writer, readers, position, lambda: listener.generation, background=listener.run, holder=holder, close=close_all,
        scrub=functools.partial(_write_again, url), end_stuck=end_stuck,
    )  # fmt: skip


def _write_again(url: str, tables: Collection[str]) -> None:
    """Writes these tables to new files, without the old versions of their rows. The tables are locked meanwhile."""
    connection = connect(url)
    try:
        for table in tables:
            connection.execute(sql.SQL("VACUUM (FULL) {}").format(sql.Identifier(table)))
    except psycopg.Error as error:
        raise DatabaseUnavailable(f"The old rows of {table} could not be removed: {describe(error)}.") from error
    finally:
        connection.close()


def connect(url: str) -> psycopg.Connection[Row]:
    """Returns a connection with the settings that every use of the database needs."""
    try:
        given = psycopg.conninfo.conninfo_to_dict(url)
        settings = {name: value for name, value in _NETWORK_SETTINGS.items() if name not in given}
        whole = psycopg.conninfo.make_conninfo(url, application_name="homeserver", **settings)
        connection = psycopg.connect(whole, autocommit=True)
    except psycopg.Error as error:
        raise DatabaseUnavailable(f"The database cannot be reached: {describe(error)}.") from error
    if connection.info.server_version < _VERSION_MIN:
        connection.close()
        raise DatabaseError("PostgreSQL is too old: version 13 or later is needed.")
    if connection.info.parameter_status("server_encoding") != "UTF8":
        connection.close()
        raise DatabaseError("The PostgreSQL database must have the encoding UTF8.")
    connection.prepare_threshold = 2
    connection.prepared_max = _STATEMENTS_PREPARED
    connection.adapters.register_dumper(int, Int8Dumper)  # otherwise small numbers are `smallint`, which overflows
    connection.adapters.register_dumper(bool, _BooleanDumper)
    connection.adapters.register_loader("bool", _BooleanLoader)
    connection.adapters.register_loader("numeric", _NumericLoader)
    return connection


def _open_session(connect_: Callable[[], psycopg.Connection[Row]]) -> psycopg.Connection[Row]:
    """Returns a connection for reads or writes, with time limits for both."""
    connection = connect_()
    try:
        connection.execute(_SESSION_SETTINGS)
    except psycopg.Error as error:
        connection.close()
        raise DatabaseUnavailable(f"The database cannot be reached: {describe(error)}.") from error
    return connection


def explain(error: BaseException) -> BaseException:
    """Returns DatabaseUnavailable or DatabaseDamaged in place of an error that means this; otherwise the error."""
    if not isinstance(error, psycopg.Error):
        return error
    code = error.sqlstate or ""
    if code in _DAMAGED:
        return DatabaseDamaged(f"The database is damaged: {describe(error)}.")
    if code in _BUSY:
        return DatabaseBusy(f"The database is too busy: {describe(error)}.")
    lost = not code and isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError))
    if lost or code in _UNAVAILABLE or code[:2] in _UNAVAILABLE_CLASSES:
        return DatabaseUnavailable(f"The database cannot be used: {describe(error)}.")
    return error


def describe(error: psycopg.Error) -> str:
    """Returns the first line of PostgreSQL's message, without a full stop."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def migrate(connection: psycopg.Connection[Row], schemas: Sequence[Schema]) -> None:
    """Applies every pending step, each in a transaction together with its line in the ledger; one node at a time."""
    row = connection.execute(turns.ARE_NUMBERS_MISSING).fetchone()
    if not list_pending_schemas(connection, schemas) and row == (0,):
        return
    connection.execute("SELECT pg_advisory_lock(%s)", (_MIGRATE_LOCK,))
    try:
        connection.execute(turns.CREATE_NUMBERS)
        connection.execute(_CREATE_LEDGER)
        for schema in list_pending_schemas(connection, schemas):
            rows = connection.execute("SELECT name FROM _sqlite_migrations WHERE migration_set = %s", (schema.name,))
            applied = {name for (name,) in rows.fetchall()}
            for step in schema.steps:
                if step.name not in applied:
                    with connection.transaction():
                        for statement in split_statements(step.sql):
                            connection.execute(translate_definition(statement).encode())
                        now = str(datetime.now(UTC))
                        connection.execute(_INSERT_IN_LEDGER, (schema.name, step.name, now))
    finally:
        connection.execute("SELECT pg_advisory_unlock(%s)", (_MIGRATE_LOCK,))


def is_served(connection: psycopg.Connection[Row]) -> bool:
    """Returns whether a server is connected to the database, apart from this connection."""
    row = connection.execute(
        "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'homeserver'"
        " AND pid <> pg_backend_pid() LIMIT 1"
    ).fetchone()
    return row is not None


def list_pending_schemas(connection: psycopg.Connection[Row], schemas: Sequence[Schema]) -> list[Schema]:
    """Returns the schemas with a step that the database lacks. Raises DatabaseError if the database is newer."""
    known = connection.execute("SELECT to_regclass('_sqlite_migrations') IS NOT NULL").fetchone()
    rows = connection.execute(READ_LEDGER).fetchall() if known and known[0] else []
    return list_pending([(name, step) for name, step in rows], schemas)


_CREATE_LEDGER = """
    CREATE TABLE IF NOT EXISTS _sqlite_migrations (
        id BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
        migration_set TEXT,
        name TEXT,
        applied_at TEXT,
        UNIQUE (migration_set, name)
    )
"""
_INSERT_IN_LEDGER = "INSERT INTO _sqlite_migrations (migration_set, name, applied_at) VALUES (%s, %s, %s)"
