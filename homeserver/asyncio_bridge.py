"""Bridge: runs trio in a thread of its own and carries calls between it and asyncio.

Theory of operation. `open` starts a thread in which trio opens the server and then waits. `run` passes a function to
that thread and starts a task there that awaits it; the result or exception settles a future on the caller's loop.
`in_asyncio` goes the other way, when the function needs something from the program: the next chunk of an upload, or an
ASGI `send`.

Cancellation works in both directions. A cancelled caller cancels its task in trio and waits until that task has ended,
so nothing of a call outlives it. When the server closes or fails, every pending call ends with ClosedError.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import CancelledError as FutureCancelledError
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any, Generic, Self, TypeVar

import trio

from homeserver.errors import ClosedError

T = TypeVar("T")


class Bridge:
    """The connection to one server. All methods are called from asyncio."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended: asyncio.Future[None] | None = None
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._nursery: trio.Nursery | None = None
        self._opening = trio.CancelScope()
        self._close = trio.Event()
        self._results: set[asyncio.Future[Any]] = set()
        self._is_open = False
        self._is_closing = False

    async def open(self, server: AbstractAsyncContextManager[object]) -> None:
        """Starts the thread, and returns once the server is open. Raises what opening the server raises."""
        if self._loop is not None:
            raise RuntimeError("A homeserver is opened once. Make a new AsyncioHomeserver to open it again.")
        self._loop = asyncio.get_running_loop()
        self._ended = self._loop.create_future()
        opened: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run_trio, args=(server, opened), name="homeserver", daemon=True)
        self._thread.start()
        try:
            await opened
        except BaseException:  # it failed to open, or the caller was cancelled
            self._request_close()
            with suppress(BaseException):
                await self._wait_ended()
            raise

    async def close(self) -> None:
        """Ends every call, closes the server and waits for the thread. Raises what the server failed with."""
        self._request_close()
        await self._wait_ended()

    async def run(self, fn: Callable[[], Awaitable[T]]) -> T:
        """Awaits fn() in trio's thread. Returns its result or raises its exception."""
        token = self._token
        if token is None:
            raise RuntimeError("The homeserver is not open. Use it inside `async with AsyncioHomeserver(…) as hs:`.")
        loop = asyncio.get_running_loop()
        result: asyncio.Future[T] = loop.create_future()
        scope = trio.CancelScope()

        async def task() -> None:
            value: Any = None
            error: BaseException | None = ClosedError()  # the result if the task is cancelled
            try:
                with scope:
                    try:
                        value, error = await fn(), None
                    except trio.Cancelled:
                        raise
                    except BaseException as raised:  # the caller in the other thread gets it
                        error = raised
            finally:
                _settle(result, value, error)

        def start() -> None:
            try:
                if self._nursery is None:
                    raise ClosedError
                self._nursery.start_soon(task)
            except RuntimeError:  # ClosedError, or the nursery is about to end
                _settle(result, None, ClosedError())

        self._results.add(result)
        result.add_done_callback(self._results.discard)
        try:
            token.run_sync_soon(start)
        except trio.RunFinishedError:
            result.cancel()
            raise ClosedError from self._failure
        try:
            return await asyncio.shield(result)
        except asyncio.CancelledError:
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(scope.cancel)
            while not result.done():
                with suppress(asyncio.CancelledError):  # already cancelled, so it ends soon
                    await asyncio.wait([result])
            result.exception()  # mark the exception as retrieved; no caller waits for it any more
            raise

    def run_sync_soon(self, fn: Callable[[], object]) -> None:
        """Calls fn() in trio's thread, unless the server is closed by then."""
        if self._token is not None:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(fn)

    def _request_close(self) -> None:
        self._is_closing = True

        def close() -> None:
            self._close.set()
            if not self._is_open:
                self._opening.cancel()

        self.run_sync_soon(close)

    async def _wait_ended(self) -> None:
        """Waits until the thread has ended, even if cancelled meanwhile: the server must not be left half open."""
        assert self._ended is not None and self._thread is not None
        cancelled: asyncio.CancelledError | None = None
        while not self._ended.done():
            try:
                await asyncio.wait([self._ended])
            except asyncio.CancelledError as error:
                cancelled = error
        self._thread.join()  # returns at once: settling `_ended` was the thread's last action
        self._ended.result()
        if cancelled is not None:
            raise cancelled

    def _run_trio(self, server: AbstractAsyncContextManager[object], opened: asyncio.Future[None]) -> None:
        assert self._ended is not None
        failure: BaseException | None = None
        try:
            trio.run(self._main, server, opened)
        except BaseException as error:  # the program that opened the server gets it
            failure = error
        self._failure = failure
        for result in tuple(self._results):  # empty, unless trio itself has failed
            _settle(result, None, ClosedError())
        _settle(opened, None, failure or ClosedError())
        _settle(self._ended, None, failure)

    async def _main(self, server: AbstractAsyncContextManager[object], opened: asyncio.Future[None]) -> None:
        self._token = trio.lowlevel.current_trio_token()
        if self._is_closing:
            self._opening.cancel()
        with self._opening:
            async with server:
                try:
                    async with trio.open_nursery() as self._nursery:
                        self._is_open = True
                        _settle(opened, None, None)
                        await self._close.wait()
                        self._nursery.cancel_scope.cancel()
                finally:
                    self._nursery = None


def _settle(future: asyncio.Future[T], value: Any, error: BaseException | None) -> None:
    """Settles a future of another thread's loop, unless it is done already or the loop is closed."""

    def settle() -> None:
        if future.done():
            return
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)

    with suppress(RuntimeError):  # the loop is closed, so nothing waits for the future
        future.get_loop().call_soon_threadsafe(settle)


async def in_asyncio(loop: asyncio.AbstractEventLoop, fn: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Awaits fn() on the asyncio loop; called from trio. Raises ClosedError if it is cancelled there."""
    token = trio.lowlevel.current_trio_token()
    done = trio.Event()

    def tell(_: object) -> None:
        with suppress(trio.RunFinishedError):
            token.run_sync_soon(done.set)

    future = asyncio.run_coroutine_threadsafe(fn(), loop)
    future.add_done_callback(tell)
    try:
        await done.wait()
    except trio.Cancelled:
        future.cancel()
        raise
    try:
        return future.result()
    except FutureCancelledError:
        raise ClosedError from None


class FromAsyncio(Generic[T]):
    """Wraps an asynchronous iterator of asyncio for use in trio."""

    def __init__(self, loop: asyncio.AbstractEventLoop, items: AsyncIterator[T]) -> None:
        self._loop = loop
        self._items = items

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        return await in_asyncio(self._loop, self._step)

    async def _step(self) -> T:
        return await anext(self._items)
