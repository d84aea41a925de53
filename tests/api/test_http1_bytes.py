"""HTTP/1.1 byte by byte, on connections in memory: the same bytes mean the same requests, however they arrive.

A client that ends its side gets every answer and then the end of the connection.
Spec: RFC 9112 (HTTP/1.1), RFC 9110 (HTTP semantics)
"""

from __future__ import annotations

import httpx
import pytest
import trio
import trio.testing

from homeserver import limits
from homeserver.http.sockets import RECEIVE_BYTES
from tests.api.http1_door import ECHO, PARTS, ask, chunked, make_door, read_answers

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
    "two empty lines between requests": (GET + b"\r\n\r\n" + GET, [200, 400]),
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


@pytest.mark.parametrize("expectation", [(), ("expect: 100-continue",)])
async def test_a_connection_that_is_cut_off_during_a_body_is_no_failure_of_the_server(
    expectation: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    door = make_door()
    async with door.connected() as client:
        await client.send_all(ask("POST", ECHO, "content-length: 10", *expectation, body=b"hello"))
        await trio.testing.wait_all_tasks_blocked()
        assert door.latest is not None
        await trio.aclose_forcefully(door.latest.connection.stream)
        await trio.testing.wait_all_tasks_blocked()
    assert not caplog.records


async def test_a_connection_that_is_cut_off_before_100_continue_is_no_failure_of_the_server(
    caplog: pytest.LogCaptureFixture,
) -> None:
    door = make_door()
    async with door.connected() as client:
        await client.send_all(ask("POST", ECHO, "content-length: 10", "expect: 100-continue"))
        await trio.aclose_forcefully(client)
        await trio.testing.wait_all_tasks_blocked()
    assert not caplog.records


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


class Spawned(trio.abc.Instrument):
    """Counts the tasks that are started."""

    count = 0

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        self.count += 1


async def test_requests_need_no_tasks_of_their_own(autojump_clock: trio.testing.MockClock) -> None:
    spawned = Spawned()
    async with make_door().connected() as client:
        await trio.testing.wait_all_tasks_blocked()
        trio.lowlevel.add_instrument(spawned)
        try:
            for path in (ECHO, PARTS, "/_matrix/client/v3/wait"):
                await client.send_all(ask("GET", path))
                await trio.testing.wait_all_tasks_blocked()
                assert (await client.receive_some()).startswith(b"HTTP/1.1 200 ")
            await client.send_all(ask("POST", ECHO, "content-length: 5", body=b"he"))
            await trio.testing.wait_all_tasks_blocked()
            await client.send_all(b"llo")
            assert (await client.receive_some()).startswith(b"HTTP/1.1 200 ")
        finally:
            trio.lowlevel.remove_instrument(spawned)
    assert spawned.count == 0
