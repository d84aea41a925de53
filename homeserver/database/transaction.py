"""Transaction: the argument of every function passed to `Database.read` or `Database.write`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar, TypeVarTuple

from homeserver.database.cache import Cache, SizedCache
from homeserver.database.interning import StringCache, check_string
from homeserver.database.schema import DatabaseDamaged
from homeserver.database.server_identity import ServerIdentity
from homeserver.database.session import IN_VALUES_MAX, Row, Session

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Needed(BaseException):
    """Raised by a read or write that needs something from elsewhere, such as a blob or the answer of another server.

    `Database.read` and `Database.write` get it and call the function again, with what they got in `tx.given`.
    Not an Exception, because nothing has failed: code that goes on after any failure must not go on without it.
    """

    def __init__(self, key: Hashable) -> None:
        super().__init__(f"needed: {key!r:.200}")
        self.key = key


class TooManyPositions(BaseException):
    """A write that runs beside others takes more positions than it may. It runs again without others.

    Not an Exception, because nothing has failed, as with Needed.
    """


class Transaction:
    """One read snapshot, or one write. Use it only inside the function that received it.

    Statements are text of the common subset (see `homeserver.database`), with `?` for each parameter.
    """

    __slots__ = (
        "_batch_interned",
        "_cache",
        "_caches",
        "_execute",
        "_limit",
        "_position",
        "_server",
        "_session",
        "callbacks",
        "given",
        "interned",
        "is_write",
        "now_ms",
        "wakes",
    )

    def __init__(
        self,
        session: Session,
        cache: StringCache,
        now_ms: int,
        server: ServerIdentity | None,
        batch_interned: dict[str, int],
        position: int | None,
        limit: int | None = None,
    ) -> None:
        self.now_ms = now_ms  # when the transaction began
        self._server = server
        self.wakes: set[str] = set()
        self.callbacks: list[tuple[Callable[..., object], tuple[Any, ...]]] = []
        self.interned: dict[str, int] = {}
        self.given: Mapping[Hashable, object] = {}  # what was got for the Needed of earlier attempts, by its keys
        self._session = session
        self._execute = session.execute
        self._cache = cache
        self._caches = cache.caches  # as they were when the snapshot began: see `drop_caches`
        self._batch_interned = batch_interned  # by earlier writes of the same commit
        self._position = position  # None: not looked up yet (in reads)
        self._limit = limit  # the last position that a write may take, None for any
        self.is_write = position is not None  # a write may see rows that are not committed yet

    @property
    def server(self) -> ServerIdentity:
        """The server that owns this database."""
        if self._server is None:
            raise RuntimeError("No server uses this database yet: see `Database.serve_as`.")
        return self._server

    def one(self, sql: str, *params: object) -> Row | None:
        """Returns the first row, None if there is none."""
        return self._execute(sql, params).fetchone()

    def all(self, sql: str, *params: object) -> list[Row]:
        """Returns every row."""
        return self._execute(sql, params).fetchall()

    def values(self, sql: str, *params: object) -> list[Any]:
        """Returns the first column of every row."""
        return [row[0] for row in self._execute(sql, params).fetchall()]

    def columns(self, sql: str, *params: object) -> list[str]:
        """Returns the names of the columns of a query."""
        return [str(each[0]) for each in self._execute(sql, params).description or ()]

    def key_columns(self, table: str) -> list[str]:
        """Returns the columns of a table's primary key, in its order."""
        return self._session.key_columns(table)

    def run(self, sql: str, *params: object) -> int:
        """Runs a statement and returns how many rows were inserted, updated or deleted."""
        assert self.is_write, "this is a read"
        return self._execute(sql, params).rowcount

    def many(self, sql: str, rows: Iterable[Sequence[object]]) -> None:
        """Runs one statement once with each of `rows`."""
        assert self.is_write, "this is a read"
        self._session.execute_many(sql, rows)

    def all_in(self, sql: str, values: Collection[object], *other: object) -> list[Row]:
        """Returns the rows of `sql`, where `IN (?*)` stands for `values`; `other` are its other parameters, in order.

        It is run in chunks: ORDER BY, LIMIT and aggregates apply to a chunk only, and equal values may be found once.
        """
        listed = list(values)
        rows: list[Row] = []
        for start in range(0, len(listed), IN_VALUES_MAX):
            rows += self._session.execute_in(sql, listed[start : start + IN_VALUES_MAX], other)
        return rows

    @property
    def position(self) -> int:
        """The position of the last change that is visible here: the `upto` of a sync."""
        if self._position is None:
            row = self.one("SELECT position FROM stream_position WHERE id = 1")
            assert row is not None
            self._position = int(row[0])
        return self._position

    def next_position(self, *wake: str) -> int:
        """Takes and returns the next stream position. Waiters for one of the keys `wake` are woken after the commit.

        Keys are user IDs, room IDs … as the waiters name them. Positions rise in commit order, usually with gaps.
        """
        assert self.is_write and self._position is not None, "positions are taken in writes"
        if self._position == self._limit:
            raise TooManyPositions
        self._position += 1
        self.wakes.update(wake)
        return self._position

    def wake(self, *keys: str) -> None:
        """Wakes the waiters for `keys` after the commit, for a change without a position of its own."""
        self.next_position(*keys)

    def after_commit(self, fn: Callable[..., object], *args: Any) -> None:
        """Calls fn(*args) on the trio thread once this write is durable, in order. It must not raise or block."""
        self.callbacks.append((fn, args))

    def attempt(self, fn: Callable[[*Ts], T], *args: *Ts) -> T:
        """Runs fn(*args) in a read that continues even if fn fails. Raises DatabaseDamaged if fn read damaged data."""
        assert not self.is_write, "a write has a savepoint of its own already"
        self._session.savepoint()
        try:
            result = fn(*args)
        except Exception as error:  # whatever it is, the read can continue only from the savepoint
            self._session.rollback_to_savepoint()
            raise self._session.explain(error) from None
        self._session.release()
        return result

    def cache(self, name: str, limit: int) -> Cache:
        """Returns a cache that lives as long as the database, for immutable values or keys that carry a version.

        Add only committed values, or values named by the hash of their content.
        """
        return self._caches.named(name, limit)

    def sized_cache(self, name: str, limit_bytes: int) -> SizedCache:
        """Does the same as `cache`, for a cache that is limited by the bytes of its values."""
        return self._caches.sized(name, limit_bytes)

    def drop_caches(self) -> None:
        """Empties all caches after the commit, because something that they hold must not be known any more.

        Reads that began before go on with the old caches, so they cannot put it into the new ones.
        """
        self.after_commit(self._cache.drop_caches)

    def intern(self, value: str) -> int:
        """Returns the number of `value` in all tables, and assigns one if it has none. Raises MatrixError if `value`
        cannot be stored.
        """
        nid = self.find(value)
        if nid is None:
            nid = self.interned[value] = self._session.intern(check_string(value))
        return nid

    def find(self, value: str) -> int | None:
        """Returns the number of `value`, None if it was never stored."""
        nid = self._cache.nids.get(value)
        if nid is None:
            nid = self.interned.get(value)
        if nid is None:
            nid = self._batch_interned.get(value)
        if nid is None:
            row = self.one("SELECT nid FROM strings WHERE value = ?", check_string(value))
            if row is not None:
                nid = int(row[0])
                self._cache.add({value: nid})  # neither from this write nor from its batch, hence committed
        return nid

    def find_all(self, values: Iterable[str]) -> dict[str, int]:
        """Returns the numbers of those of `values` that were ever stored."""
        found: dict[str, int] = {}
        missing: list[str] = []
        for value in values:
            nid = self._cache.nids.get(value)
            if nid is None:
                nid = self.interned.get(value)
            if nid is None:
                nid = self._batch_interned.get(value)
            if nid is None:
                missing.append(check_string(value))
            else:
                found[value] = nid
        if missing:
            rows = self.all_in("SELECT value, nid FROM strings WHERE value IN (?*)", missing)
            committed = {value: int(nid) for value, nid in rows}
            self._cache.add(committed)  # neither from this write nor from its batch, hence committed
            found |= committed
        return found

    def name(self, nid: int) -> str:
        """Returns the string with the number `nid`. Raises DatabaseDamaged if there is none: none is ever deleted."""
        value = self._cache.names.get(nid)
        return self.names((nid,))[nid] if value is None else value

    def names(self, nids: Iterable[int]) -> dict[int, str]:
        """Returns the strings with these numbers. Raises DatabaseDamaged if one is missing."""
        known = self._cache.names
        found: dict[int, str] = {}
        missing: list[int] = []
        for nid in nids:
            value = known.get(nid)
            if value is None:
                missing.append(nid)
            else:
                found[nid] = value
        if missing:
            self._look_up(missing, found)
        return found

    def _look_up(self, missing: list[int], found: dict[int, str]) -> None:
        committed: dict[str, int] = {}
        for nid, value in self.all_in("SELECT nid, value FROM strings WHERE nid IN (?*)", missing):
            found[nid] = value
            if value not in self.interned and value not in self._batch_interned:
                committed[value] = nid
        self._cache.add(committed)
        for nid in missing:
            if nid not in found:
                raise DatabaseDamaged(f"The interned string {nid} is missing.")
