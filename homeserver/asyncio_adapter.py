"""A homeserver for asyncio programs: trio runs in a thread of its own, and calls are passed to it and back.

    async with AsyncioHomeserver(config) as hs:
        alice = await hs.log_in("alice")
        await alice.send(room_id, "hello")

The methods are those of `Homeserver` and `Client`; their docstrings apply here too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

from homeserver.asyncio_bridge import Bridge, FromAsyncio, in_asyncio
from homeserver.calls import Answer, Body, Headers, Query
from homeserver.client import Client, File, RoomEvent
from homeserver.config import Config
from homeserver.errors import ClosedError
from homeserver.federation.identifiers import EventID, RoomID, UserID
from homeserver.federation.wire import Wire
from homeserver.http.asgi import AsgiApp, Message, Receive, Scope, Send, lifespan
from homeserver.http.listener import Bound
from homeserver.server import Homeserver, wall_clock_ms

T = TypeVar("T")


class AsyncioClient:
    """A `Client` whose methods are awaited in asyncio. Created by `AsyncioHomeserver.register` and `log_in`."""

    def __init__(self, bridge: Bridge, client: Client) -> None:
        self._bridge = bridge
        self._client = client

    @property
    def user_id(self) -> UserID:
        """The user that the client acts for, such as "@alice:example.org"."""
        return self._client.user_id

    @property
    def device_id(self) -> str:
        """The ID of the device that the client acts as."""
        return self._client.device_id

    async def call(
        self, operation: str, *path: str | int, body: Body = None, query: Query = None, headers: Headers = None
    ) -> Any:
        """Calls any operation by its name in the spec, in snake_case. See `Client.call`."""
        body = _carried(body)
        return await self._run(partial(self._client.call, operation, *path, body=body, query=query, headers=headers))

    @asynccontextmanager
    async def stream(
        self, operation: str, *path: str | int, body: Body = None, query: Query = None, headers: Headers = None
    ) -> AsyncIterator[Answer]:
        """Like `call`, for reading the answer in chunks. See `Client.stream`."""
        loop = asyncio.get_running_loop()
        head: asyncio.Future[tuple[int, Mapping[str, str]]] = loop.create_future()
        chunks: asyncio.Queue[bytes | None] = asyncio.Queue(1)
        body = _carried(body)

        async def read_in_trio() -> None:
            async with self._client.stream(operation, *path, body=body, query=query, headers=headers) as answer:
                loop.call_soon_threadsafe(head.set_result, (answer.status, answer.headers))
                async for chunk in answer.chunks:
                    await in_asyncio(loop, partial(chunks.put, chunk))
            await in_asyncio(loop, partial(chunks.put, None))

        async def iterate() -> AsyncIterator[bytes]:
            while (chunk := await _first(chunks.get(), reading)) is not None:
                yield chunk

        reading = asyncio.create_task(self._run(read_in_trio))
        try:
            status, answered = await _first(head, reading)
            yield Answer(status, answered, iterate())
        finally:
            reading.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.wait([reading])

    async def upload(
        self,
        data: bytes | AsyncIterable[bytes],
        content_type: str = "application/octet-stream",
        filename: str | None = None,
    ) -> str:
        """Stores a file and returns its `mxc://` URI, for use in messages and avatars. `data` may come in chunks."""
        carried = _carried(data)
        return await self._run(partial(self._client.upload, carried, content_type, filename))

    async def download(self, mxc_uri: str) -> File:
        """Returns the file of an `mxc://` URI, of this or any other server."""
        return await self._run(partial(self._client.download, mxc_uri))

    async def create_room(self, **options: Any) -> RoomID:
        """Creates a room and returns its ID. `options` are the fields of POST /createRoom, such as name and invite."""
        return await self._run(partial(self._client.create_room, **options))

    async def invite(self, room_id: str, user_id: str) -> None:
        """Invites a user of this or any other server."""
        await self._run(partial(self._client.invite, room_id, user_id))

    async def join(self, room_id_or_alias: str, *, via: tuple[str, ...] = ()) -> RoomID:
        """Joins a room of this server, or a room of another one through the servers in `via`. Returns the room ID."""
        return await self._run(partial(self._client.join, room_id_or_alias, via=via))

    async def leave(self, room_id: str) -> None:
        """Leaves a room, or declines the invite to it."""
        await self._run(partial(self._client.leave, room_id))

    async def send(
        self, room_id: str, message: str | Mapping[str, Any], *, event_type: str = "m.room.message"
    ) -> EventID:
        """Sends a text message, or an event of any type with that content. The event is durable when this returns."""
        return await self._run(partial(self._client.send, room_id, message, event_type=event_type))

    async def set_state(
        self, room_id: str, event_type: str, content: Mapping[str, Any], *, state_key: str = ""
    ) -> EventID:
        """Sets part of the room's state: its topic, a user's power level, … Returns the ID of the state event."""
        return await self._run(partial(self._client.set_state, room_id, event_type, content, state_key=state_key))

    async def messages(self, room_id: str, *, limit: int = 10) -> list[RoomEvent]:
        """Returns the newest events of a room, newest first."""
        return await self._run(partial(self._client.messages, room_id, limit=limit))

    async def read(self, room_id: str, event_id: str) -> None:
        """Sends a read receipt for an event."""
        await self._run(partial(self._client.read, room_id, event_id))

    async def sync(self, *, timeout_ms: int = 0) -> dict[str, Any]:
        """Returns the answer of /sync: the changes since the last call, or everything on the first call."""
        return await self._run(partial(self._client.sync, timeout_ms=timeout_ms))

    def events(self) -> AsyncIterator[RoomEvent]:
        """Yields the pending invites, then every event since this client was opened. See `Client.events`."""
        return _Events(self._bridge, self._client.events())

    async def _run(self, fn: Callable[[], Awaitable[T]]) -> T:
        return await self._bridge.run(fn)


class _Events:
    """Steps an iterator of trio from asyncio."""

    def __init__(self, bridge: Bridge, events: AsyncIterator[RoomEvent]) -> None:
        self._bridge = bridge
        self._events = events

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> RoomEvent:
        try:
            return await self._bridge.run(self._events.__anext__)
        except ClosedError:
            raise StopAsyncIteration from None


class AsyncioHomeserver:
    """A `Homeserver` for `async with` in asyncio. Cancelling a call in asyncio cancels it in trio.

    If the server fails, pending calls raise ClosedError, and leaving `async with` raises the cause.
    """

    def __init__(
        self,
        config: Config,
        *,
        wire: Wire | None = None,
        now_ms: Callable[[], int] = wall_clock_ms,
        inline_database: bool = False,
    ) -> None:
        """Takes the arguments of `Homeserver`."""
        self._server = Homeserver(config, wire=wire, now_ms=now_ms, inline_database=inline_database)
        self._bridge = Bridge()

    async def __aenter__(self) -> Self:
        """Opens the server in its thread. Raises ConfigError or DatabaseError with a sentence about what is wrong."""
        await self._bridge.open(self._server)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._bridge.close()

    @property
    def config(self) -> Config:
        """The configuration that the server was created with."""
        return self._server.config

    @property
    def server_name(self) -> str:
        """The domain of the server's users and signatures."""
        return self._server.server_name

    @property
    def app(self) -> AsgiApp:
        """The server as an ASGI application for servers and frameworks on asyncio, such as uvicorn and FastAPI.

        It can be mounted before the server is open, but can serve requests only while it is open.
        """
        return self._answer

    async def register(
        self, localpart: str, password: str | None = None, *, admin: bool = False, exist_ok: bool = False
    ) -> AsyncioClient:
        """Creates an account and logs it in; see `Homeserver.register`."""
        register = partial(self._server.register, localpart, password, admin=admin, exist_ok=exist_ok)
        return AsyncioClient(self._bridge, await self._bridge.run(register))

    async def log_in(self, user: str, device_id: str = "EMBEDDED") -> AsyncioClient:
        """Returns a client for an account of this server; see `Homeserver.log_in`."""
        return AsyncioClient(self._bridge, await self._bridge.run(partial(self._server.log_in, user, device_id)))

    async def set_password(self, user: str, password: str | None, *, logout_devices: bool = True) -> None:
        """Replaces a password; see `Homeserver.set_password`."""
        await self._bridge.run(partial(self._server.set_password, user, password, logout_devices=logout_devices))

    async def deactivate(self, user: str, *, erase: bool = False) -> None:
        """Deactivates an account for good; see `Homeserver.deactivate`."""
        await self._bridge.run(partial(self._server.deactivate, user, erase=erase))

    async def run(self, fn: Callable[[Homeserver], Awaitable[T]]) -> T:
        """Awaits fn(homeserver), a function for trio, in the server's thread and returns its result."""
        return await self._bridge.run(lambda: fn(self._server))

    async def serve(self, *, started: asyncio.Future[list[Bound]] | None = None) -> None:
        """Serves the configured listeners until `stop` is called. Raises ConfigError if one cannot listen.

        started: receives the addresses of the listeners once they listen, or the exception if they cannot.
        """
        status = _Started(asyncio.get_running_loop(), started)
        try:
            await self._bridge.run(partial(self._server.serve, task_status=status))
        except BaseException as error:  # the caller that waits for `started` would wait forever
            if started is not None and not started.done():
                started.set_exception(error)
                started.exception()  # mark it as retrieved, because it is raised here too
            raise

    def retire(self) -> None:
        """Makes the health check say that the server is about to stop. It goes on serving until `stop`."""
        self._bridge.run_sync_soon(self._server.retire)

    def stop(self) -> None:
        """Ends `serve`: pending requests are answered, new ones are not accepted."""
        self._bridge.run_sync_soon(self._server.stop)

    def renew_certificates(self) -> None:
        """Reloads the listeners' certificates now, if their files have changed."""
        self._bridge.run_sync_soon(self._server.renew_certificates)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application: trio computes the response, and `receive` and `send` run in asyncio."""
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
            return
        loop = asyncio.get_running_loop()
        held: list[Message] = []

        async def receive_in_trio() -> Message:
            return await in_asyncio(loop, partial(_await, receive))

        async def send_in_trio(message: Message) -> None:
            held.append(message)
            if message["type"] == "http.response.start":  # sent together with the body that follows, to save a hop
                return
            messages = held.copy()
            held.clear()
            await in_asyncio(loop, partial(_send_all, send, messages))

        await self._bridge.run(lambda: self._server.app(scope, receive_in_trio, send_in_trio))


class _Started:
    """A `task_status` of trio that settles an asyncio future."""

    def __init__(self, loop: asyncio.AbstractEventLoop, future: asyncio.Future[list[Bound]] | None) -> None:
        self._loop = loop
        self._future = future

    def started(self, value: list[Bound] | None = None) -> None:
        """Settles the future with the addresses of the listeners."""
        if self._future is not None:
            self._loop.call_soon_threadsafe(self._tell, self._future, value or [])

    def _tell(self, future: asyncio.Future[list[Bound]], value: list[Bound]) -> None:
        if not future.done():
            future.set_result(value)


async def _await(fn: Callable[[], Awaitable[T]]) -> T:
    return await fn()


async def _send_all(send: Send, messages: list[MutableMapping[str, Any]]) -> None:
    for message in messages:
        await send(message)


async def _first(wanted: Awaitable[T], worker: asyncio.Task[None]) -> T:
    """Awaits `wanted`, which `worker` produces. Raises the worker's exception if it fails first."""
    waiting = asyncio.ensure_future(wanted)
    try:
        await asyncio.wait([waiting, worker], return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            worker.result()
        return await waiting
    finally:
        waiting.cancel()


def _carried(body: Any) -> Any:
    """Wraps an asyncio iterator so that trio can read the body; returns any other body unchanged."""
    if isinstance(body, AsyncIterable):
        return FromAsyncio(asyncio.get_running_loop(), aiter(body))
    return body
