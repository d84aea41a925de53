"""WebSocket clients of servers in memory: trio-websocket on the client's side, our own code on the server's."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
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

    def __init__(self, websocket: WebSocketConnection) -> None:
        self.websocket = websocket
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


@asynccontextmanager
async def connected(app: App) -> AsyncIterator[trio.abc.HalfCloseableStream]:
    """Yields the client's end of a new connection to the application's code for HTTP/1.1."""
    client, server = trio.testing.memory_stream_pair()
    http = Http1Connection(Connection(server), app, AnswerHeads(app.dispatch.hs.now_ms), ("192.0.2.1", 7), None)

    async def serve() -> None:
        await http.run()
        await trio.aclose_forcefully(server)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        yield client
        await trio.aclose_forcefully(client)


@asynccontextmanager
async def open_socket(
    server: Server, client: Client | None = None, *, headers: Sequence[Any] = ()
) -> AsyncIterator[Socket]:
    """Yields a WebSocket of a client, who is authenticated by a header; of nobody without one."""
    extra = [*headers]
    if client is not None:
        extra.append((b"authorization", f"Bearer {client.token}".encode()))
    async with connected(server.app) as stream, trio.open_nursery() as nursery:
        websocket = await wrap_client_stream(nursery, stream, "test.example", WEBSOCKET_PATH, extra_headers=extra)
        yield Socket(websocket)
        with trio.move_on_after(5):
            await websocket.aclose()
        nursery.cancel_scope.cancel()
