"""WebSocket clients of servers in memory: trio-websocket on the client's side, our own code on the server's."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio
import trio.testing
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_client_stream

from homeserver.http.answers import AnswerHeads
from homeserver.http.asgi import WEBSOCKET_PATH, App
from homeserver.http.connection import Connection
from homeserver.http.http1_connection import Http1Connection
from tests.support.homeservers import Client, Server


class Socket:
    """An open WebSocket. Answers and pushes are read in whatever order they come."""

    def __init__(self, websocket: WebSocketConnection, server_stream: trio.abc.HalfCloseableStream) -> None:
        self.websocket = websocket
        self.server_stream = server_stream
        self.pushed: list[dict[str, Any]] = []
        self._answers: dict[Any, dict[str, Any]] = {}
        self._number = 0

    async def send(self, message: Any) -> None:
        await self.websocket.send_message(message if isinstance(message, str) else json.dumps(message))

    async def receive(self) -> dict[str, Any]:
        with trio.fail_after(60):
            message: dict[str, Any] = json.loads(await self.websocket.get_message())
            return message

    async def call(self, op: str, *path: str | int, **fields: Any) -> dict[str, Any]:
        """Calls an operation and returns its answer, with `status` and `body`."""
        self._number += 1
        await self.send({"id": self._number, "op": op, "path": list(path), **fields})
        return await self.answer_to(self._number)

    async def answer_to(self, id_: Any) -> dict[str, Any]:
        while id_ not in self._answers:
            self._keep(await self.receive())
        return self._answers.pop(id_)

    async def next_push(self) -> dict[str, Any]:
        while not self.pushed:
            self._keep(await self.receive())
        return self.pushed.pop(0)

    def _keep(self, message: dict[str, Any]) -> None:
        if "sync" in message:
            self.pushed.append(message["sync"])
        else:
            self._answers[message["id"]] = message

    async def until_closed(self) -> int:
        """Reads until the server closes the connection, and returns its code."""
        with trio.fail_after(300):
            while True:
                try:
                    self._keep(json.loads(await self.websocket.get_message()))
                except ConnectionClosed as closed:
                    assert closed.reason is not None
                    return int(closed.reason.code)


Wrap = Callable[[Any], trio.abc.HalfCloseableStream]


@asynccontextmanager
async def connected(app: App) -> AsyncIterator[trio.abc.HalfCloseableStream]:
    """Yields the client's end of a new connection to the application's code for HTTP/1.1."""
    async with _both_ends(app, lambda stream: stream) as (client, _):
        yield client


@asynccontextmanager
async def _both_ends(app: App, wrap: Wrap) -> AsyncIterator[tuple[Any, trio.abc.HalfCloseableStream]]:
    client, inner = trio.testing.memory_stream_pair()
    server = wrap(inner)
    http = Http1Connection(Connection(server), app, AnswerHeads(app.dispatch.hs.now_ms), ("192.0.2.1", 7), None)

    async def serve() -> None:
        try:
            proceed = await http.run()
            if proceed is not None:
                await proceed()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # as the listener takes it
        await trio.aclose_forcefully(server)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        yield client, server
        await trio.aclose_forcefully(client)


@asynccontextmanager
async def open_socket(
    server: Server, client: Client | None = None, *, wrap: Wrap = lambda stream: stream
) -> AsyncIterator[Socket]:
    """Yields a WebSocket of a client, who is authenticated by a header; of nobody without one.

    wrap: makes the server's end of the connection from its stream.
    """
    extra = [] if client is None else [(b"authorization", f"Bearer {client.token}".encode())]
    async with _both_ends(server.app, wrap) as (stream, server_stream), trio.open_nursery() as nursery:
        websocket = await wrap_client_stream(nursery, stream, "test.example", WEBSOCKET_PATH, extra_headers=extra)
        yield Socket(websocket, server_stream)
        with trio.move_on_after(5):
            await websocket.aclose()
        nursery.cancel_scope.cancel()


class Line:
    """The way of a client to its server, which a test can cut, once or for a while."""

    def __init__(self, server: Server, client: Client) -> None:
        self._server, self._client = server, client
        self._streams: list[trio.abc.HalfCloseableStream] = []
        self.is_up = True

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[WebSocketConnection]:
        if not self.is_up:
            raise OSError("the line is cut")
        headers = [(b"authorization", f"Bearer {self._client.token}".encode())]
        async with connected(self._server.app) as stream, trio.open_nursery() as nursery:
            self._streams.append(stream)
            with trio.fail_after(20):
                websocket = await wrap_client_stream(nursery, stream, "x", WEBSOCKET_PATH, extra_headers=headers)
            yield websocket
            nursery.cancel_scope.cancel()

    async def cut(self) -> None:
        for stream in self._streams:
            await trio.aclose_forcefully(stream)
        self._streams.clear()
