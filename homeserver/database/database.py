"""Database: `read(fn)` and `write(fn)`, with one writer thread, group commit, and a few reader threads.

Theory of operation. The writer takes all waiting writes as one batch: one transaction, a savepoint for each write, one
commit. Then all results reach the trio thread in one hop, and only then do the callers continue. So a caller that has
its result knows that its write is durable. A write that raises is rolled back to its savepoint; the others are not
affected. If the commit itself fails, all writes of the batch fail with its error.

After the commit, in this order on the trio thread: the callbacks of the writes run, the stream is notified, and the
callers wake. Cancelling a caller does not undo its write; the result is dropped.

An inline database does the same on the trio thread itself, one write at a time. A failure of the storage is reported
to `outages`, which probes it until it works again.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Hashable, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any, TypeVar, TypeVarTuple

import outcome
import trio

from homeserver.database.batch import Batch, Request, run_batch, run_read
from homeserver.database.cache import Caches
from homeserver.database.interning import StringCache
from homeserver.database.leases import Lease, LeaseLost
from homeserver.database.schema import DatabaseBusy, DatabaseDamaged, DatabaseError, DatabaseUnavailable
from homeserver.database.server_identity import ServerIdentity
from homeserver.database.session import Holder, Opened, Session
from homeserver.database.stream import Stream
from homeserver.database.transaction import Needed, Transaction
from homeserver.limits import (
    DATABASE_BATCH_MAX,
    DATABASE_HOLD_SECONDS,
    DATABASE_LEASE_RENEWAL_SECONDS,
    DATABASE_NEEDS_MAX,
    DATABASE_STUCK_SECONDS,
    STREAM_ANNOUNCED_SECONDS_MAX,
    STREAM_CONFIRM_SECONDS,
)
from homeserver.process.outages import DATABASE_READS, DATABASE_WRITES, WRITE_PROVEN_SECONDS, Outages

_log = logging.getLogger(__name__)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_Requests = queue.SimpleQueue[Request | None]
Given = Mapping[Hashable, object]


class Database:
    """Created by `open_database`. Used on the trio thread. Notifies `stream` of commits and `outages` of failures."""

    def __init__(self, opened: Opened, *, now_ms: Callable[[], int]) -> None:
        self.stream = Stream(opened.position)
        self.outages = Outages()
        self.outages.add_probe(DATABASE_READS, self._probe_reads)
        self.outages.add_probe(DATABASE_WRITES, self._probe_writes)
        self._proven_at = -math.inf  # when a write last succeeded in proving that writes work
        self._proof_lock = trio.Lock()
        self._opened = opened
        self._now_ms = now_ms
        self._server: ServerIdentity | None = None
        self._get_needed: Callable[[Needed], Awaitable[Given]] | None = None
        self._cache = StringCache()
        self._taken = opened.position
        self._closed = False
        self._writing_since = math.inf
        self.batches = 0
        self.writes = 0
        self.write_seconds = 0.0
        self._inline = not opened.readers
        self._writes: _Requests = queue.SimpleQueue()
        self._reads: _Requests = queue.SimpleQueue()
        self._done: deque[Request | Batch] = deque()
        self._delivery_due = False
        self._token = trio.lowlevel.current_trio_token()
        self._threads: list[threading.Thread] = []
        if not self._inline:
            self._start_thread("database-writer", self._write_loop, opened.writer)
            for session in opened.readers:
                self._start_thread("database-reader", self._read_loop, session)
        self._holds: dict[str, trio.Lock] = {}
        self._leases: dict[str, Lease] = {}
        self._leases_of_task: ContextVar[tuple[Lease, ...]] = ContextVar("leases_of_task", default=())
        self._holder_lock = trio.Lock()
        self._background_scope = trio.CancelScope()
        self._background_ended = trio.Event()
        if opened.background is not None:
            trio.lowlevel.spawn_system_task(self._run_background)

    def serve_as(self, server: ServerIdentity) -> None:
        """Makes `server` the `tx.server` of all reads and writes from now on."""
        self._server = server

    @property
    def server(self) -> ServerIdentity:
        """The server that owns this database, see `serve_as`."""
        assert self._server is not None
        return self._server

    def get_needed_by(self, get: Callable[[Needed], Awaitable[Given]]) -> None:
        """Sets how to get what reads and writes need from elsewhere, see `Needed`: a map to be added to `tx.given`."""
        self._get_needed = get

    @property
    def generation(self) -> str:
        """The name of the stream's current generation, for new tokens."""
        return self._opened.generation()

    @property
    def is_shared(self) -> bool:
        """Whether other nodes write to the database too, whose commits the stream learns of only a moment later."""
        return self._opened.holder is not None

    @property
    def caches(self) -> Caches:
        """The caches of transactions, for values from elsewhere that requests keep next to them."""
        return self._cache.caches

    def drop_caches(self) -> None:
        """Empties the caches, because another process has deleted what they hold: see `Transaction.drop_caches`."""
        self._cache.drop_caches()

    @property
    def writes_waiting(self) -> int:
        """How many writes wait for the writer thread."""
        return self._writes.qsize()

    async def get_position(self) -> int:
        """Returns the position of the last change that any node has committed."""
        return await self.read(_look) if self.is_shared else self.stream.position

    async def read(self, fn: Callable[[Transaction, *Ts], T], *args: *Ts) -> T:
        """Returns fn(tx, *args), run on a snapshot that includes every write that has returned before.

        If fn raises Needed, it is called again, on a later snapshot, when what it needs is there.
        """
        try:
            result: T = await self._ask(self._reads, fn, args)
        except Needed as needed:
            return await self._ask_with(self._reads, needed, fn, args)
        return result

    async def write(self, fn: Callable[[Transaction, *Ts], T], *args: *Ts, within: Collection[str] = ()) -> T:
        """Returns fn(tx, *args), run in a write that is durable when this returns.

        within: keys, such as a room ID and a user ID. Other writes with one of them do not run at the same time, but on
        a database with several nodes others do that name keys, too: fn writes nothing, and decides by nothing, that a
        write within other keys changes. Without keys fn runs alone, and may touch anything. See `turns.py`.

        If fn raises Needed, its changes are undone, and it is called again when what it needs is there.
        If fn raises, its changes are undone and the exception is raised here. Cancelling the wait does not undo the
        write. If the connection is lost before the commit, fn is called again.
        """
        try:
            result: T = await self._ask(self._writes, fn, args, within)
        except Needed as needed:
            return await self._ask_with(self._writes, needed, fn, args, within)
        except LeaseLost as error:
            error.lease.scope.cancel()
            await trio.lowlevel.checkpoint()  # ends the caller, unless they clean up
            raise
        return result

    async def _ask_with(
        self,
        requests: _Requests,
        needed: Needed,
        fn: Callable[[Transaction, *Ts], T],
        args: tuple[*Ts],
        within: Collection[str] = (),
    ) -> T:
        """Gets what a call needs and repeats it, until it needs nothing more."""
        given: dict[Hashable, object] = {}
        for _ in range(DATABASE_NEEDS_MAX):
            got = None if self._get_needed is None else await self._get_needed(needed)
            if got is None or not got.keys() - given.keys():
                break
            given |= got
            try:
                result: T = await self._ask(requests, _run_with, (dict(given), fn, args), within)
                return result
            except Needed as more:
                needed = more
        raise RuntimeError("A call of the database needs something that it does not get.") from needed

    async def note(self, fn: Callable[[Transaction, *Ts], object], *args: *Ts) -> None:
        """Does the same as `write` for a dispensable note made by a read: that a device was seen, that a file was used.

        While the database accepts no writes it does nothing, so that reads go on.
        """
        if self.outages.is_out(DATABASE_WRITES):
            return
        try:
            await self.write(fn, *args)
        except DatabaseUnavailable:
            pass  # already reported, as every failure is

    async def prove_writable(self) -> None:
        """Returns if a write works, or did a moment ago. Raises DatabaseUnavailable or DatabaseError otherwise."""
        async with self._proof_lock:
            if trio.current_time() - self._proven_at > WRITE_PROVEN_SECONDS or self.outages.is_out(DATABASE_WRITES):
                await self._probe_writes()

    async def _probe_writes(self) -> None:
        check_room = self._opened.check_room
        if check_room is not None:
            try:
                if self._inline:
                    check_room()
                else:
                    await trio.to_thread.run_sync(check_room)
            except DatabaseUnavailable as error:
                self.outages.failed(DATABASE_WRITES, str(error))
                raise
        await self.write(_store_probe)
        self._proven_at = trio.current_time()

    async def _probe_reads(self) -> None:
        await self.read(_look)

    async def scrub(self, *tables: str) -> None:
        """Removes what was deleted or replaced in these tables from the files of the database.

        SQLite overwrites deleted values, but its log still has the pages of before: they are removed. PostgreSQL keeps
        old rows: the tables are written again. Its log, and copies elsewhere, stay. Raises DatabaseUnavailable.
        """
        scrub = self._opened.scrub
        if scrub is not None:
            if self._inline:
                scrub(tables)
            else:
                await trio.to_thread.run_sync(scrub, tables)

    @asynccontextmanager
    async def hold(self, name: str) -> AsyncIterator[None]:
        """Waits until no other task or node on the database holds `name`, then holds it during the context.

        If this node stands still or does not reach the database, another one may take over: see `leases`. Then the
        context's body is cancelled, its writes fail, and execution continues after the context.
        """
        async with self._holds.setdefault(name, trio.Lock()):
            holder = self._opened.holder
            if holder is None:
                yield
                return
            # Another process has it, which does not tell anybody when it ends.
            while (lease := await self._ask_holder(holder.try_hold, name)) is None:  # noqa: ASYNC110
                await trio.sleep(DATABASE_HOLD_SECONDS)
            self._leases[name] = lease
            with lease.scope:
                token = self._leases_of_task.set((*self._leases_of_task.get(), lease))
                try:
                    yield
                finally:
                    self._leases_of_task.reset(token)
                    lease.is_over = True
                    del self._leases[name]
                    with trio.CancelScope(shield=True):
                        await self._ask_holder(holder.release, lease)

    async def aclose(self) -> None:
        """Finishes the waiting calls, then closes every connection."""
        if self._closed:
            return
        self._closed = True
        with trio.CancelScope(shield=True):
            if self._opened.background is not None:
                self._background_scope.cancel()
                await self._background_ended.wait()
            if self._inline:
                self._opened.writer.close()
            else:
                self._writes.put(None)
                for _ in self._opened.readers:
                    self._reads.put(None)
                for thread in self._threads:
                    await trio.to_thread.run_sync(thread.join)
                self._deliver()
            self._opened.close()

    async def _ask(
        self, requests: _Requests, fn: Callable[..., Any], args: tuple[Any, ...], within: Collection[str] = ()
    ) -> Any:
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._closed:
            raise DatabaseError("The database is closed.")
        request = Request(fn, args, self._now_ms(), trio.lowlevel.current_task(), self._server, within=within)
        if self._leases and requests is self._writes:
            request.leases = tuple([lease for lease in self._leases_of_task.get() if not lease.is_over])
        if self._inline:
            return await self._ask_inline(requests is self._writes, request)

        def abort(_: object) -> trio.lowlevel.Abort:
            request.task = None
            return trio.lowlevel.Abort.SUCCEEDED

        requests.put(request)
        return await trio.lowlevel.wait_task_rescheduled(abort)

    async def _ask_inline(self, is_write: bool, request: Request) -> Any:
        request.task = None
        if is_write:
            self._run_batches(self._opened.writer, [request], self._deliver_batch)
        else:
            run_read(self._opened.writer, self._cache, request)
            self._report(request, DATABASE_READS)
        await trio.lowlevel.cancel_shielded_checkpoint()
        result, request.result = request.result, None
        assert result is not None
        return result.unwrap()

    async def _ask_holder(self, fn: Callable[[*Ts], T], *args: *Ts) -> T:
        async with self._holder_lock:
            return fn(*args) if self._inline else await trio.to_thread.run_sync(fn, *args)

    def _run_batches(self, session: Session, requests: list[Request], hand_over: Callable[[Batch], None]) -> None:
        """Runs writes: on a database of several nodes those that have named keys for themselves, beside others."""
        beside = [request for request in requests if request.within] if self.is_shared else []
        alone = [request for request in requests if not request.within] if beside else requests
        if beside:
            batch = self._run_batch(session, beside, beside=True)
            hand_over(batch)
            alone += batch.left
        if alone:
            hand_over(self._run_batch(session, alone))

    def _run_batch(self, session: Session, requests: list[Request], *, beside: bool = False) -> Batch:
        self._writing_since = started = time.perf_counter()
        batch = run_batch(session, self._cache, requests, self._taken, beside=beside)
        self._writing_since = math.inf
        self._taken = batch.taken
        self.batches += 1  # written only by the writer thread; the metrics may read a slightly old value
        self.writes += len(requests)
        self.write_seconds += time.perf_counter() - started
        return batch

    # On the threads

    def _start_thread(self, name: str, loop: Callable[[Session], None], session: Session) -> None:
        thread = threading.Thread(target=loop, args=(session,), name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _write_loop(self, session: Session) -> None:
        closing = False
        while not closing:
            requests: list[Request] = []
            request = self._writes.get()
            while request is not None:
                requests.append(request)
                if len(requests) == DATABASE_BATCH_MAX:
                    break
                try:
                    request = self._writes.get_nowait()
                except queue.Empty:
                    break
            else:
                closing = True
            if requests:
                self._run_batches(session, requests, self._hand_over)
        session.close()

    def _read_loop(self, session: Session) -> None:
        while (request := self._reads.get()) is not None:
            if request.task is not None:  # otherwise nobody waits for the result any more
                run_read(session, self._cache, request)
                self._hand_over(request)
        session.close()

    def _hand_over(self, done: Request | Batch) -> None:
        """Passes results to the trio thread: one hop for everything that is done by then."""
        self._done.append(done)
        if not self._delivery_due:
            self._delivery_due = True
            try:
                self._token.run_sync_soon(self._deliver)
            except trio.RunFinishedError:
                pass  # nobody is left to receive it; committed changes stay committed

    # Back on the trio thread

    def _deliver(self) -> None:
        self._delivery_due = False  # first, so that later additions to `_done` schedule another delivery
        while self._done:
            done = self._done.popleft()
            if isinstance(done, Batch):
                self._deliver_batch(done)
            else:
                self._report(done, DATABASE_READS)
                _answer(done)

    def _deliver_batch(self, batch: Batch) -> None:
        for fn, args in batch.callbacks:
            try:
                fn(*args)
            except Exception:  # it would end everything trio runs, although the write itself is committed
                _log.exception("a callback after a commit failed")
        if batch.position is not None:
            self._proven_at = trio.current_time()
            self.stream.notify(batch.position, batch.wakes, batch.since)
        for request in batch.requests:
            self._report(request, DATABASE_WRITES)
            _answer(request)

    def _report(self, request: Request, part: str) -> None:
        """Reports a call that failed because the storage fails."""
        if isinstance(request.result, outcome.Error):
            error = request.result.error
            if isinstance(error, DatabaseDamaged):
                self.outages.damaged(str(error))
            elif isinstance(error, DatabaseUnavailable) and not isinstance(error, DatabaseBusy):
                self.outages.failed(part, str(error))

    async def _run_background(self) -> None:
        assert self._opened.background is not None
        try:
            with self._background_scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._opened.background, self.stream)
                    if self._opened.holder is not None:
                        nursery.start_soon(self._confirm_position)
                        nursery.start_soon(self._renew_leases, self._opened.holder)
                        nursery.start_soon(self._end_expired_leases)
        finally:
            self._background_ended.set()

    async def _confirm_position(self) -> None:
        """Asks again and again how far all nodes have come, so that no commit stays unknown for long."""
        while True:
            at = trio.current_time()
            try:
                if time.perf_counter() - self._writing_since > DATABASE_STUCK_SECONDS and self._opened.end_stuck:
                    await self.read(self._opened.end_stuck)
                position = await self.read(_look)
            except DatabaseError:
                pass  # it is reported already, and the stream knows that it may be late
            else:
                await trio.sleep(STREAM_ANNOUNCED_SECONDS_MAX)
                self.stream.confirm(position, at)
            await trio.sleep(STREAM_CONFIRM_SECONDS)

    async def _renew_leases(self, holder: Holder) -> None:
        while True:
            await trio.sleep(DATABASE_LEASE_RENEWAL_SECONDS)
            if self._leases:
                await self._ask_holder(holder.renew, tuple(self._leases.values()))

    async def _end_expired_leases(self) -> None:
        """Cancels what is done under a lease that could not be renewed. Does not wait for the database."""
        while True:
            await trio.sleep(DATABASE_LEASE_RENEWAL_SECONDS / 4)
            for lease in self._leases.values():
                if lease.has_expired():
                    lease.scope.cancel()


def _store_probe(tx: Transaction) -> None:
    """Writes a row that nobody reads. It reaches the disk because it changes: SQLite does not write unchanged pages."""
    tx.run(
        "INSERT INTO write_probes (id, at_ms) VALUES (1, ?) ON CONFLICT (id) DO UPDATE SET at_ms = excluded.at_ms",
        tx.now_ms,
    )


def _run_with(tx: Transaction, given: Mapping[Hashable, object], fn: Callable[..., T], args: tuple[Any, ...]) -> T:
    tx.given = given
    return fn(tx, *args)


def _look(tx: Transaction) -> int:
    return tx.position


def _answer(request: Request) -> None:
    task, result = request.task, request.result
    if task is not None:
        request.task = request.result = None  # an error's traceback would otherwise lead back to the error: a cycle
        assert result is not None
        trio.lowlevel.reschedule(task, result)
