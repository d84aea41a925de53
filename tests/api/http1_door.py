"""The listener's code for HTTP/1.1 on connections in memory, with operations for its tests."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio
import trio.testing

from homeserver.api.routes import Request, Response, Routes
from homeserver.features import health
from homeserver.http.answers import AnswerHeads
from homeserver.http.asgi import App
from homeserver.http.connection import Connection, is_gone
from homeserver.http.dispatch import Dispatch
from homeserver.http.http1_connection import Http1Connection
from homeserver.resources import Resources
from tests.api.listening import make_app

ECHO = "/_matrix/client/v3/echo"
PARTS = "/_matrix/media/v3/parts"
routes = Routes()


@routes.get("/_matrix/client/v3/echo")
async def get_echo(hs: Resources, request: Request) -> dict[str, Any]:
    return {"query": request.query_string, "host": request.headers.get("host", ""), "ip": request.client_ip}


@routes.post("/_matrix/client/v3/echo")
async def post_echo(hs: Resources, request: Request) -> dict[str, Any]:
    return {"body": b"".join([chunk async for chunk in request.stream(1 << 20)]).decode("latin-1")}


@routes.get("/_matrix/client/v3/wait", waits=True)
async def wait(hs: Resources, request: Request) -> dict[str, Any]:
    with trio.move_on_after(30):
        await request.wait_ended()
    return {"waited": True}


@routes.get("/_matrix/media/v3/parts")
async def parts(hs: Resources) -> Response:
    async def chunks() -> AsyncIterator[bytes]:
        for part in (b"one", b"", b"two"):
            yield part

    return Response(headers={"content-type": "text/plain"}, stream=chunks())


@routes.get("/_matrix/media/v3/counted")
async def counted(hs: Resources) -> Response:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"six"
        yield b"ty6"

    return Response(headers={"content-type": "text/plain", "content-length": "6"}, stream=chunks())


@routes.get("/_matrix/media/v3/none")
async def none(hs: Resources) -> Response:
    return Response(204, b"", {"x-a": "b"})


@routes.get("/_matrix/client/v3/unfit")
async def unfit(hs: Resources) -> Response:
    return Response(200, b"", {"x-a": "b\r\nx-smuggled: c"})


class Door:
    """The listener's code for HTTP/1.1, without sockets."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.heads = AnswerHeads(lambda: 0)
        self.latest: Http1Connection | None = None

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[trio.abc.HalfCloseableStream]:
        """Yields the client's end of a new connection."""
        client, server = trio.testing.memory_stream_pair()

        self.latest = Http1Connection(Connection(server), self.app, self.heads, ("192.0.2.1", 7), None)

        async def serve(http: Http1Connection) -> None:
            try:
                await http.run()
            except Exception as error:
                if not is_gone(error):
                    raise
            await trio.aclose_forcefully(server)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, self.latest)
            yield client
            await trio.aclose_forcefully(client)
            nursery.cancel_scope.cancel()

    async def talk(self, *pieces: bytes) -> bytes:
        """Sends the pieces one by one, then the end. Returns all that the server sends."""
        async with self.connected() as client:
            for piece in pieces:
                await client.send_all(piece)
                await trio.testing.wait_all_tasks_blocked()
            await client.send_eof()
            answer = b""
            while data := await client.receive_some():
                answer += data
            return answer


def make_door() -> Door:
    _, hs = make_app()
    return Door(App(Dispatch(hs, [*routes, *health.routes])))


Answer = tuple[int, dict[str, str], bytes]


def read_answers(data: bytes, methods: Sequence[str] = ()) -> list[Answer]:
    """Splits what a client has received into status, headers and body of each answer, strictly."""
    answers: list[Answer] = []
    while data:
        head, separator, data = data.partition(b"\r\n\r\n")
        assert separator
        line, *fields = head.decode("latin-1").split("\r\n")
        found = re.fullmatch(r"HTTP/1\.1 (\d{3}) ([A-Za-z' -]*)", line)
        assert found is not None, line
        status, headers = int(found[1]), {}
        for field in fields:
            name, _, value = field.partition(": ")
            assert name == name.lower() and name not in headers
            headers[name] = value
        if status == 100:
            answers.append((status, headers, b""))
            continue
        method = methods[len(answers)] if len(answers) < len(methods) else "GET"
        body = b""
        if method != "HEAD" and status not in (204, 304):
            if headers.get("transfer-encoding") == "chunked":
                while True:
                    size, _, data = data.partition(b"\r\n")
                    length = int(size, 16)
                    body += data[:length]
                    assert data[length : length + 2] == b"\r\n"
                    data = data[length + 2 :]
                    if not length:
                        break
            elif "content-length" in headers:
                length = int(headers["content-length"])
                body, data = data[:length], data[length:]
                assert len(body) == length
            else:
                body, data = data, b""
        answers.append((status, headers, body))
    return answers


def ask(method: str, target: str, *headers: str, body: bytes = b"", version: str = "HTTP/1.1") -> bytes:
    lines = [f"{method} {target} {version}", "host: x", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def chunked(*pieces: bytes, trailer: bytes = b"") -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n" + trailer + b"\r\n"
