"""HTTP/2 on a connection: Hypercorn's protocol code between a trio stream and the ASGI application.

Theory of operation. Hypercorn's own trio server has timers for each connection. Here a sweep closes connections whose
clients have gone silent (`connection.py`), and this file tells it in which state the connection is. One task reads and
lets the protocol process what has arrived. Each request has a task of its own, which gets its messages from a `Queue`.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable
from math import inf
from typing import Any

import msgspec
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config as HypercornConfig
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState

from homeserver import limits
from homeserver.http.asgi import App, Message
from homeserver.http.connection import Connection, is_gone
from homeserver.http.dispatch import Dispatch
from homeserver.http.http2 import Http2
from homeserver.http.sockets import RECEIVE_BYTES

_log = logging.getLogger("homeserver.http.listener")

_QUEUE_MESSAGES_MAX = 8


class Queue:
    """The messages from a connection to one request. A full queue blocks the connection; a left one drops messages.

    A body that stands still is given up. To the request it looks as if the client had disconnected.
    """

    __slots__ = ("_left", "_messages", "_more_body", "_readers", "_writers")

    def __init__(self, *, has_body: bool) -> None:
        self._more_body = has_body
        self._messages: deque[Message] = deque()
        self._readers = trio.lowlevel.ParkingLot()
        self._writers = trio.lowlevel.ParkingLot()
        self._left = False

    async def put(self, message: Message) -> None:
        if self._left:
            return
        self._messages.append(message)
        self._readers.unpark()
        while len(self._messages) > _QUEUE_MESSAGES_MAX and not self._left:
            await self._writers.park()

    async def get(self) -> Message:
        if not self._messages:
            with trio.move_on_after(limits.http.REQUEST_CHUNK_SECONDS_MAX if self._more_body else inf):
                while not self._messages:
                    await self._readers.park()
            if not self._messages:
                return {"type": "http.disconnect"}
        if self._writers:
            self._writers.unpark_all()
        message = self._messages.popleft()
        if self._more_body:
            self._more_body = message.get("more_body", False)
        return message

    def leave(self) -> None:
        """Ends the request: it needs no more messages, and tasks waiting in `put` return."""
        self._left = True
        self._messages.clear()
        self._writers.unpark_all()


class _Tasks(msgspec.Struct):
    """Starts tasks for Hypercorn's protocols."""

    nursery: trio.Nursery

    async def spawn_app(
        self, app: ASGIWrapper, config: HypercornConfig, scope: Any, send: Callable[[Any], Awaitable[None]]
    ) -> Callable[[Message], Awaitable[None]]:
        queue = Queue(has_body=scope["type"] == "http")
        self.nursery.start_soon(_run_app, app, scope, queue, send)
        return queue.put

    def spawn(self, fn: Callable[..., Awaitable[Any]], *args: Any) -> None:
        self.nursery.start_soon(fn, *args)


async def _run_app(app: ASGIWrapper, scope: Any, queue: Queue, send: Callable[[Any], Awaitable[None]]) -> None:
    try:
        await app.app(scope, queue.get, send)
    except Exception as error:
        # The answer broke off in the middle. This must only affect this connection. The application has already
        # answered and logged errors that happened before the answer began.
        if not is_gone(error):
            _log.error("answer broke off", exc_info=error, extra={"path": scope.get("path", "")})
    finally:
        queue.leave()
        await send(None)


class Http2Connection(msgspec.Struct):
    """Serves one connection until either side closes it. client, server: addresses and ports; None for unix sockets."""

    connection: Connection
    app: App
    client: tuple[str, int] | None
    server: tuple[str, int] | None
    _lock: trio.Lock = msgspec.field(default_factory=trio.Lock)
    _reading: trio.CancelScope = msgspec.field(default_factory=trio.CancelScope)
    _protocol: Any = None  # None until it has begun

    async def run(self) -> None:
        """Serves requests."""
        async with trio.open_nursery() as nursery:
            self._protocol = Http2(
                ASGIWrapper(self.app), _config(), _context(self.app.dispatch), _Tasks(nursery), ConnectionState({}),
                True, self.client, self.server, self._send,
            )  # fmt: skip
            await self._protocol.initiate()
            self.connection.idle_since = trio.current_time()
            with self._reading:
                await self._read()
            await self._protocol.handle(Closed())
        await self.connection.linger()

    async def _read(self) -> None:
        connection = self.connection
        while True:
            try:
                data = await connection.stream.receive_some(RECEIVE_BYTES)
            except (trio.ClosedResourceError, trio.BrokenResourceError):
                return
            if connection.asking_since is inf and connection.is_idle:
                connection.asking_since = trio.current_time()
            await self._protocol.handle(RawData(bytes(data)))
            if not data:
                return

    async def _send(self, event: Event) -> None:
        if isinstance(event, RawData):
            await self._send_data(event.data)
        elif isinstance(event, Updated):
            if event.idle:
                self.connection.become_idle()
            else:
                self.connection.become_busy()
        else:
            await self.connection.end()
            await self._protocol.handle(Closed())
            self._reading.cancel()  # the protocol may block the next request, which would wait in vain

    async def _send_data(self, data: bytes) -> None:
        if not data:
            return
        try:
            self._lock.acquire_nowait()
        except trio.WouldBlock:
            await self._lock.acquire()
        try:
            await self.connection.send(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await self._protocol.handle(Closed())
        finally:
            self._lock.release()


class _Draining:
    """Whether the server has been told to stop, as Hypercorn asks for it."""

    def __init__(self, dispatch: Dispatch) -> None:
        self._dispatch = dispatch

    def is_set(self) -> bool:
        return self._dispatch.is_draining


def _context(dispatch: Dispatch) -> WorkerContext:
    context = WorkerContext(None)
    context.terminated = _Draining(dispatch)
    return context


def _config() -> HypercornConfig:
    config = HypercornConfig()
    config.accesslog = None
    config.errorlog = _log
    config.include_server_header = False
    config.keep_alive_timeout = limits.http.KEEP_ALIVE_SECONDS
    config.keep_alive_max_requests = 100_000  # effectively unlimited: closing a healthy connection gains nothing
    return config
