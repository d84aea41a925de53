"""A homeserver for asyncio programs: trio runs in a thread of its own, and calls are carried across.

    async with AsyncioHomeserver(config) as hs:
        alice = await hs.log_in("@alice:example.org")
        await alice.send(room_id, "hello")
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import trio

from homeserver.client import Client, RoomEvent
from homeserver.config import Config
from homeserver.server import Homeserver


class AsyncioClient:
    """A `homeserver.client.Client` whose methods are awaited in asyncio."""

    def __init__(self, server: AsyncioHomeserver, client: Client) -> None:
        self._server = server
        self._client = client
        self.user_id = client.user_id

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self._client, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            return await self._server.run(lambda: method(*args, **kwargs))

        return call

    async def events(self) -> AsyncIterator[RoomEvent]:
        """As `Client.events`."""
        events = self._client.events()
        while True:
            yield await self._server.run(events.__anext__)


class AsyncioHomeserver:
    """A `Homeserver` to be entered in asyncio. Cancelling a call in asyncio cancels it in trio."""

    def __init__(self, config: Config, **options: Any) -> None:
        """options: as of `Homeserver`."""
        self._server = Homeserver(config, **options)
        self._opened: asyncio.Future[None] | None = None
        self._thread: asyncio.Future[None] | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._nursery: trio.Nursery | None = None
        self._close: trio.Event | None = None

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._opened = loop.create_future()
        self._thread = loop.run_in_executor(None, self._run_trio, loop, self._opened)
        try:
            await self._opened
        except BaseException:
            await self._thread
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._token is not None and self._close is not None and self._thread is not None
        with suppress(trio.RunFinishedError):  # it has ended by itself: its thread says why
            self._token.run_sync_soon(self._close.set)
        await self._thread

    async def register(self, localpart: str, password: str | None = None, *, admin: bool = False) -> AsyncioClient:
        """As `Homeserver.register`."""
        return AsyncioClient(self, await self.run(lambda: self._server.register(localpart, password, admin=admin)))

    async def log_in(self, user_id: str, device_id: str = "EMBEDDED") -> AsyncioClient:
        """As `Homeserver.log_in`."""
        return AsyncioClient(self, await self.run(lambda: self._server.log_in(user_id, device_id)))

    async def serve(self) -> None:
        """As `Homeserver.serve`."""
        await self.run(self._server.serve)

    async def run(self, fn: Callable[[], Awaitable[Any]]) -> Any:
        """Awaits fn() in trio's thread, and answers what it does. RuntimeError where the server is closed by then."""
        assert self._token is not None, "use it inside of `async with`"
        loop = asyncio.get_running_loop()
        result: asyncio.Future[Any] = loop.create_future()
        scope = trio.CancelScope()

        def settle(value: Any, error: BaseException | None) -> None:
            if result.done():
                return
            if error is not None:
                result.set_exception(error)
            else:
                result.set_result(value)

        async def task() -> None:
            value: Any = None
            error: BaseException | None = _closed()
            try:
                with scope:
                    try:
                        value, error = await fn(), None
                    except trio.Cancelled:
                        raise
                    except BaseException as raised:  # it belongs to the caller, in the other thread
                        error = raised
            finally:
                loop.call_soon_threadsafe(settle, value, error)

        def start() -> None:
            if self._nursery is None:
                loop.call_soon_threadsafe(settle, None, _closed())
            else:
                self._nursery.start_soon(task)

        try:
            self._token.run_sync_soon(start)
        except trio.RunFinishedError:
            raise _closed() from None
        try:
            return await result
        except asyncio.CancelledError:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(scope.cancel)
            raise

    def _run_trio(self, loop: asyncio.AbstractEventLoop, opened: asyncio.Future[None]) -> None:
        async def main() -> None:
            self._token = trio.lowlevel.current_trio_token()
            self._close = trio.Event()
            async with self._server:
                try:
                    async with trio.open_nursery() as self._nursery:
                        loop.call_soon_threadsafe(opened.set_result, None)
                        await self._close.wait()
                        self._nursery.cancel_scope.cancel()
                finally:
                    self._nursery = None

        try:
            trio.run(main)
        except BaseException as error:  # it belongs to who opens the server
            if opened.done():
                raise
            loop.call_soon_threadsafe(opened.set_exception, error)


def _closed() -> RuntimeError:
    return RuntimeError("The homeserver is closed.")
