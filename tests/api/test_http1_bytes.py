"""HTTP/1.1 byte by byte, on connections in memory: the same bytes mean the same requests, however they arrive.

A client that ends its side gets every answer and then the end of the connection.
Spec: RFC 9112 (HTTP/1.1), RFC 9110 (HTTP semantics)
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from homeserver import limits
from homeserver.api.routes import Request, Response, Routes
from homeserver.features import health
from homeserver.http.answers import AnswerHeads
from homeserver.http.asgi import App
from homeserver.http.connection import Connection
from homeserver.http.dispatch import Dispatch
from homeserver.http.http1 import Refused, parse_head
from homeserver.http.http1_connection import Http1Connection
from homeserver.http.sockets import RECEIVE_BYTES
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
            await http.run()
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


# Requests that every server answers


CHUNKED = "transfer-encoding: chunked"
GET = ask("GET", ECHO)
CONVERSATIONS: dict[str, tuple[bytes, list[int]]] = {
    "nothing": (b"", []),
    "one": (GET, [200]),
    "two, pipelined": (ask("GET", ECHO + "?1") + GET, [200, 200]),
    "a body and another request": (ask("POST", ECHO, "content-length: 5", body=b"hello") + GET, [200, 200]),
    "an empty body": (ask("POST", ECHO, "content-length: 0") + GET, [200, 200]),
    "a body that nobody reads": (ask("GET", ECHO, "content-length: 5", body=b"hello") + GET, [200, 200]),
    "an empty line between requests": (GET + b"\r\n" + GET, [200, 200]),
    "names in capitals": (ask("POST", ECHO, "CONTENT-LENGTH: 5", body=b"hello") + GET, [200, 200]),
    "no space after a colon": (ask("POST", ECHO, "content-length:5", body=b"hello") + GET, [200, 200]),
    "spaces around a length": (ask("POST", ECHO, "content-length:  5 \t", body=b"hello") + GET, [200, 200]),
    "a length with leading zeros": (ask("POST", ECHO, "content-length: 005", body=b"hello") + GET, [200, 200]),
    "an empty header": (ask("GET", ECHO, "x-empty:"), [200]),
    "a header of other bytes": (ask("GET", ECHO, "x-a: \xe4\xff"), [200]),
    "a header twice": (ask("GET", ECHO, "x-a: 1", "x-a: 2"), [200]),
    "chunks": (ask("POST", ECHO, CHUNKED, body=chunked(b"hel", b"lo")), [200]),
    "chunks in capitals": (ask("POST", ECHO, "Transfer-Encoding: CHUNKED", body=chunked(b"x" * 300)), [200]),
    "chunks with a trailer": (ask("POST", ECHO, CHUNKED, body=chunked(b"x", trailer=b"a: b\r\n")), [200]),
    "no chunk": (ask("POST", ECHO, CHUNKED, body=chunked()), [200]),
    "close": (ask("GET", ECHO, "connection: close") + GET, [200]),
    "close among others": (ask("GET", ECHO, "connection: x, Close") + GET, [200]),
    "close in a second header": (ask("GET", ECHO, "connection: x", "connection: close") + GET, [200]),
    "keep-alive": (ask("GET", ECHO, "connection: keep-alive") + GET, [200, 200]),
    "HTTP/1.0": (ask("GET", ECHO, version="HTTP/1.0") + GET, [200]),
    "HTTP/1.0 without a host": (b"GET /_matrix/client/v3/echo HTTP/1.0\r\n\r\n", [200]),
    "HTTP/1.0 with a body": (ask("POST", ECHO, "content-length: 5", body=b"hello", version="HTTP/1.0"), [200]),
    "HEAD": (ask("HEAD", ECHO) + GET, [200, 200]),
    "OPTIONS": (ask("OPTIONS", ECHO) + GET, [204, 200]),
    "an answer without a body": (ask("GET", "/_matrix/media/v3/none") + GET, [204, 200]),
    "parts": (ask("GET", PARTS) + GET, [200, 200]),
    "parts for HEAD": (ask("HEAD", PARTS) + GET, [200, 200]),
    "parts of a known length": (ask("GET", "/_matrix/media/v3/counted") + GET, [200, 200]),
    "parts for HTTP/1.0": (ask("GET", PARTS, version="HTTP/1.0"), [200]),
    "an unknown path": (ask("GET", "/_matrix/nothing") + ask("GET", "/nothing") + GET, [404, 404, 200]),
    "an unknown method": (ask("PATCH", ECHO) + GET, [405, 200]),
    "a method of nobody": (ask("BREW", ECHO) + GET, [405]),
    "an expectation of nobody": (ask("GET", ECHO, "expect: magic") + GET, [200, 200]),
    "an upgrade": (ask("GET", ECHO, "connection: upgrade", "upgrade: websocket") + GET, [200, 200]),
    "an upgrade with a body": (
        ask("POST", ECHO, "connection: upgrade", "upgrade: h2c", "content-length: 5", body=b"hello") + GET,
        [200, 200],
    ),
}


@pytest.mark.parametrize(("data", "expected"), CONVERSATIONS.values(), ids=CONVERSATIONS)
async def test_a_conversation_has_the_same_answers_however_it_arrives(data: bytes, expected: list[int]) -> None:
    door = make_door()
    methods = [line.partition(b" ")[0].decode() for line in data.split(b"\r\n") if line.endswith((b"/1.1", b"/1.0"))]
    whole = await door.talk(data)
    answers = read_answers(whole, methods)
    assert [status for status, _, _ in answers] == expected
    assert await door.talk(*(data[at : at + 1] for at in range(len(data)))) == whole
    for at in range(0, len(data), 11):
        assert await door.talk(data[:at], data[at:]) == whole


async def test_bodies_and_answers_are_complete() -> None:
    door = make_door()
    for data, bodies in (
        (CONVERSATIONS["chunks"][0], [b'{"body":"hello"}']),
        (CONVERSATIONS["a length with leading zeros"][0][:-40], [b'{"body":"hello"}']),
        (CONVERSATIONS["parts"][0], [b"onetwo", None]),
        (CONVERSATIONS["parts for HTTP/1.0"][0], [b"onetwo"]),
        (CONVERSATIONS["parts of a known length"][0], [b"sixty6", None]),
    ):
        answers = read_answers(await door.talk(data))
        for (_, _, body), expected in zip(answers, bodies, strict=False):
            assert expected is None or body == expected


async def test_a_head_request_has_the_headers_of_its_answer_and_no_body() -> None:
    door = make_door()
    (got,) = read_answers(await door.talk(ask("GET", ECHO)))
    (head,) = read_answers(await door.talk(ask("HEAD", ECHO)), ["HEAD"])
    assert head == (200, got[1], b"")


async def test_the_absolute_form_replaces_the_host() -> None:
    (answer,) = read_answers(await make_door().talk(ask("GET", f"http://other.example:1{ECHO}?a=b")))
    assert answer[2] == b'{"query":"a=b","host":"other.example:1","ip":"192.0.2.1"}'


async def test_headers_of_an_answer_cannot_contain_line_ends() -> None:
    answers = read_answers(await make_door().talk(ask("GET", "/_matrix/client/v3/unfit") + GET))
    assert [status for status, _, _ in answers] == [500]
    assert not any("x-smuggled" in headers for _, headers, _ in answers)


# The two doors

ALIKE: dict[str, tuple[str, str, bytes]] = {
    "a query": ("GET", ECHO + "?a=%2F&b", b""),
    "a body": ("POST", ECHO, b"hello"),
    "HEAD": ("HEAD", ECHO, b""),
    "a preflight": ("OPTIONS", ECHO, b""),
    "parts": ("GET", PARTS, b""),
    "parts for HEAD": ("HEAD", PARTS, b""),
    "parts of a known length": ("GET", "/_matrix/media/v3/counted", b""),
    "no content": ("GET", "/_matrix/media/v3/none", b""),
    "an unknown operation": ("GET", "/_matrix/nothing", b""),
    "an unknown page": ("GET", "/nothing", b""),
    "an unknown method": ("PATCH", ECHO, b""),
    "a path that is too long": ("GET", ECHO + "/" + "a" * limits.http.PATH_CHARACTERS_MAX, b""),
    "a body that nobody reads": ("GET", ECHO, b"hello"),
    "an encoded path": ("GET", "/_matrix/client/v3/%65cho", b""),
}


@pytest.mark.parametrize(("method", "target", "body"), ALIKE.values(), ids=ALIKE)
async def test_the_listener_answers_like_the_asgi_application(method: str, target: str, body: bytes) -> None:
    door = make_door()
    length = [f"content-length: {len(body)}"] if body else []
    (ours,) = read_answers(await door.talk(ask(method, target, *length, body=body)), [method])
    transport = httpx.ASGITransport(app=door.app, client=("192.0.2.1", 7))  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
        theirs = await http.request(method, target, content=body)
    of_connections = {"date", "transfer-encoding", "connection"}
    headers = {name: value for name, value in ours[1].items() if name not in of_connections}
    assert (ours[0], headers, ours[2]) == (theirs.status_code, dict(theirs.headers), theirs.content)


# 100 Continue


async def test_a_client_is_told_to_continue_only_if_it_waits_for_that() -> None:
    door = make_door()
    for expectation, expected in (("100-continue", [100, 200]), ("100-Continue", [100, 200]), ("magic", [200])):
        head = ask("POST", ECHO, "content-length: 2", f"expect: {expectation}")
        assert [status for status, _, _ in read_answers(await door.talk(head, b"{}"))] == expected
        assert [status for status, _, _ in read_answers(await door.talk(head + b"{}"))] == [200], "it did not wait"
    head = ask("POST", ECHO, "content-length: 2", "expect: 100-continue", version="HTTP/1.0")
    assert [status for status, _, _ in read_answers(await door.talk(head, b"{}"))] == [200], "HTTP/1.0 knows no 100"


# Slow clients, and clients that go


async def test_a_body_that_stands_still_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    async with make_door().connected() as client:
        await client.send_all(ask("POST", ECHO, "content-length: 10", body=b"hello"))
        began = trio.current_time()
        assert (await client.receive_some()).startswith(b"HTTP/1.1 408 ")
        assert trio.current_time() - began == pytest.approx(limits.http.REQUEST_CHUNK_SECONDS_MAX)
        while await client.receive_some():
            pass


async def test_a_body_that_ends_early_is_refused() -> None:
    door = make_door()
    for data in (
        ask("POST", ECHO, "content-length: 10", body=b"hello"),
        ask("POST", ECHO, "transfer-encoding: chunked", body=b"a\r\nhello"),
    ):
        assert [status for status, _, _ in read_answers(await door.talk(data))] == [400]


async def test_a_client_that_waits_may_send_ahead(autojump_clock: trio.testing.MockClock) -> None:
    async with make_door().connected() as client:
        await client.send_all(ask("GET", "/_matrix/client/v3/wait"))
        await trio.testing.wait_all_tasks_blocked()
        await client.send_all(ask("GET", ECHO + "?next", "connection: close"))
        answer = b""
        while data := await client.receive_some():
            answer += data
        assert [body[:10] for _, _, body in read_answers(answer)] == [b'{"waited":', b'{"query":"']


async def test_a_client_that_waits_is_not_read_without_end() -> None:
    door = make_door()
    async with door.connected() as client:
        await client.send_all(ask("GET", "/_matrix/client/v3/wait") + b"x" * (8 * limits.http.PIPELINED_BYTES_MAX))
        await trio.testing.wait_all_tasks_blocked()
        assert door.latest is not None
        assert len(door.latest._buffer) <= limits.http.PIPELINED_BYTES_MAX + RECEIVE_BYTES


async def test_a_draining_server_ends_connections_after_their_answer() -> None:
    door = make_door()
    async with door.connected() as client:
        await client.send_all(ask("GET", "/_matrix/client/v3/wait") + ask("GET", ECHO))
        await trio.testing.wait_all_tasks_blocked()
        door.app.dispatch.drain()
        answer = b""
        while data := await client.receive_some():
            answer += data
        ((status, headers, _),) = read_answers(answer)
        assert (status, headers["connection"]) == (503, "close")


# Any bytes at all

TOKENS = st.sampled_from(
    [
        b"GET ",
        b"POST ",
        b"HEAD ",
        b"OPTIONS ",
        b"PUT ",
        b"BREW ",
        b"PRI * ",
        ECHO.encode(),
        PARTS.encode(),
        b"*",
        b"?a=b",
        b"http://x/",
        b"#",
        b" HTTP/1.1",
        b" HTTP/1.0",
        b" HTTP/2.0",
        b"\r\n",
        b"\r\n",
        b"\r\n\r\n",
        b"\n",
        b"\r",
        b" ",
        b"\t",
        b":",
        b"host: x\r\n",
        b"content-length: 5\r\n",
        b"content-length: 0\r\n",
        b"Content-Length:",
        b"hello",
        b"\0",
        b"\xff",
        b"transfer-encoding: chunked\r\n",
        b"transfer-encoding: x\r\n",
        b"connection: close\r\n",
        b"5\r\nhello\r\n",
        b"0\r\n\r\n",
        b"connection: upgrade\r\n",
        b"upgrade: websocket\r\n",
        b"expect: 100-continue\r\n",
        GET,
        ask("POST", ECHO, "content-length: 5", body=b"hello"),
        ask("POST", ECHO, CHUNKED),
    ]
)
STREAMS = st.lists(TOKENS | st.binary(max_size=8), max_size=25).map(b"".join)


@settings(max_examples=400, deadline=None)
@given(STREAMS, st.lists(st.integers(0, 400), max_size=6))
def test_any_bytes_have_the_same_answers_however_they_arrive(data: bytes, cuts: list[int]) -> None:
    """There is always an end, and never a 500. Answers to nonsense may come before all of it has arrived."""

    async def main() -> None:
        door = make_door()
        ends = sorted({min(cut, len(data)) for cut in cuts} | {len(data)})
        pieces = [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        with trio.fail_after(60):
            whole = statuses_of(await door.talk(data))
            parts = statuses_of(await door.talk(*pieces))
        assert [status for status in whole if status != 100] == [status for status in parts if status != 100]
        assert all(status < 500 or status in (501, 505) for status in whole)

    run(main)


def statuses_of(answer: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]


def run(main: Any) -> None:
    """Runs under a virtual clock. Fails if anything was logged."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = records.append  # type: ignore[method-assign]
    logging.getLogger("homeserver").addHandler(handler)
    try:
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    finally:
        logging.getLogger("homeserver").removeHandler(handler)
    assert not records


@settings(max_examples=500, deadline=None)
@given(STREAMS)
def test_a_head_is_read_or_refused(data: bytes) -> None:
    """Nothing that is read could be read in another way: no other line ends, no two lengths, no unknown version."""
    raw = data.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    try:
        head = parse_head(raw)
    except Refused as refused:
        assert refused.status in (400, 405, 431, 501, 505)
        return
    assert raw.count(b"\n") == raw.count(b"\r") == raw.count(b"\r\n")
    lines = [line.lower() for line in raw[:-4].split(b"\r\n")[1:]]
    assert len(lines) == len(head.headers)
    framing = [line for line in lines if line.startswith((b"content-length", b"transfer-encoding"))]
    assert len(framing) <= 1
    assert bool(framing) or head.length == 0
    assert head.path.startswith("/") or head.path == "*"
    assert head.method.encode() + b" " == raw[: len(head.method) + 1]
