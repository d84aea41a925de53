"""Database: `read(fn)` and `write(fn)`. One writer thread with group commit, a few reader threads.

The writer takes everything that has arrived as one batch: one transaction, a savepoint for each write, one commit; then
all results reach the trio thread in one hop. `inline` databases do the same on the trio thread itself, one by one.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar, TypeVarTuple

import trio

from homeserver.database.batch import Batch, Request, run_batch, run_read
from homeserver.database.interning import StringCache
from homeserver.database.schema import DatabaseError
from homeserver.database.session import Session
from homeserver.database.transaction import Transaction
from homeserver.limits import DATABASE_BATCH_MAX
from homeserver.stream import Stream

_log = logging.getLogger(__name__)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Database:
    """Opened by `open_database`. `stream` is told of every commit. Used on the trio thread."""

    def __init__(
        self,
        open_session: Callable[[bool], Session],
        *,
        readers: int,
        now_ms: Callable[[], int],
        stream: Stream,
        on_close: Callable[[], None],
    ) -> None:
        """open_session(read_only) gives a new connection; readers 0 means inline: no threads."""
        self.stream = stream
        self._now_ms = now_ms
        self._cache = StringCache()
        self._on_close = on_close
        self._closed = False
        self._token = trio.lowlevel.current_trio_token()
        self._writer_session = open_session(False)
        self._inline = readers == 0
        self._writes: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._reads: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._done: deque[Request | Batch] = deque()
        self._delivery_due = False
        self._threads: list[threading.Thread] = []
        if not self._inline:
            self._start(self._write_loop, "writer", self._writer_session)
            for number in range(readers):
                self._start(self._read_loop, f"reader-{number}", open_session(True))

    def _start(self, loop: Callable[[Session], None], name: str, session: Session) -> None:
        thread = threading.Thread(target=loop, args=(session,), name=f"database-{name}", daemon=True)
        self._threads.append(thread)
        thread.start()

    async def read(self, fn: Callable[[Transaction, *Ts], T], *args: *Ts) -> T:
        """fn(tx, *args) on a snapshot that has every write which was answered before."""
        return await self._ask(self._reads, fn, args)

    async def write(self, fn: Callable[[Transaction, *Ts], T], *args: *Ts) -> T:
        """fn(tx, *args) in a write that is durable when this answers. An exception of fn undoes what it did, and is raised.

        Cancelling the wait does not undo the write. fn may be called again if the connection is lost before the commit.
        """
        return await self._ask(self._writes, fn, args)

    async def _ask(self, requests: queue.SimpleQueue[Request | None], fn: Callable[..., T], args: tuple[Any, ...]) -> T:
        if self._closed:
            raise DatabaseError("The database is closed.")
        await trio.lowlevel.checkpoint_if_cancelled()
        request = Request(fn, args, self._now_ms(), trio.lowlevel.current_task())
        if self._inline:
            return await self._ask_inline(requests is self._writes, request)
        requests.put(request)

        def abort(_: object) -> trio.lowlevel.Abort:
            request.task = None
            return trio.lowlevel.Abort.SUCCEEDED

        result: T = await trio.lowlevel.wait_task_rescheduled(abort)
        return result

    async def _ask_inline(self, is_write: bool, request: Request) -> Any:
        request.task = None
        if is_write:
            self._deliver_batch(run_batch(self._writer_session, self._cache, [request]))
        else:
            run_read(self._writer_session, self._cache, request)
        await trio.lowlevel.cancel_shielded_checkpoint()
        assert request.result is not None
        return request.result.unwrap()

    async def aclose(self) -> None:
        """Finishes what was asked, then closes every connection."""
        if self._closed:
            return
        self._closed = True
        with trio.CancelScope(shield=True):
            if self._inline:
                self._writer_session.close()
            else:
                self._writes.put(None)
                for _ in self._threads[1:]:
                    self._reads.put(None)
                for thread in self._threads:
                    await trio.to_thread.run_sync(thread.join)
                self._deliver()
        self._on_close()

    # The threads

    def _write_loop(self, session: Session) -> None:
        going_on = True
        while going_on:
            requests: list[Request] = []
            request = self._writes.get()
            while request is not None:
                requests.append(request)
                if len(requests) >= DATABASE_BATCH_MAX:
                    break
                try:
                    request = self._writes.get_nowait()
                except queue.Empty:
                    break
            else:
                going_on = False
            if requests:
                self._hand_over(run_batch(session, self._cache, requests))
        session.close()

    def _read_loop(self, session: Session) -> None:
        while (request := self._reads.get()) is not None:
            if request.task is not None:  # else the waiter has gone: nobody wants the answer
                run_read(session, self._cache, request)
                self._hand_over(request)
        session.close()

    def _hand_over(self, done: Request | Batch) -> None:
        """To the trio thread, in one hop for all that are done by the time it looks."""
        self._done.append(done)
        if not self._delivery_due:
            self._delivery_due = True
            try:
                self._token.run_sync_soon(self._deliver)
            except trio.RunFinishedError:
                pass  # nobody is left to hear; what was committed stays committed

    # Back on the trio thread

    def _deliver(self) -> None:
        self._delivery_due = False  # before the queue is emptied: who comes later asks for a delivery of their own
        while self._done:
            item = self._done.popleft()
            if isinstance(item, Batch):
                self._deliver_batch(item)
            else:
                _reschedule(item)

    def _deliver_batch(self, batch: Batch) -> None:
        for fn, args in batch.callbacks:
            try:
                fn(*args)
            except Exception:  # it would end the whole trio run; the write itself is committed
                _log.exception("after_commit callback failed")
        if batch.position is not None:
            self.stream.notify(batch.position, batch.wakes)
        for request in batch.requests:
            _reschedule(request)


def _reschedule(request: Request) -> None:
    task = request.task
    if task is not None:
        request.task = None
        assert request.result is not None
        trio.lowlevel.reschedule(task, request.result)
