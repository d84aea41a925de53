"""HTTP/1.1 on one connection, over streams in memory."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from homeserver.federation.wire import WireError, WireRequest
from homeserver.federation.wire.http1 import Connection, ConnectionEnded, Head
from tests.federation.wire_server import Received, Reply, Site, always

GET = WireRequest("GET", "/path?query", {"X-A": "b"}, None)
PUT = WireRequest("PUT", "/path", {"Content-Type": "application/json"}, b'{"a":1}')


def connect(nursery: trio.Nursery, site: Site) -> Connection:
    ours, theirs = trio.testing.memory_stream_pair()
    nursery.start_soon(site.serve, theirs)
    return Connection(ours, "example.org:8448", 0.0)


async def exchange(reply: Reply, request: WireRequest = GET, max_bytes: int = 1000) -> tuple[Head, bytes, bool]:
    """Head, body, and whether the connection can be used again."""
    outcome: tuple[Head, bytes, bool] | Exception
    async with trio.open_nursery() as nursery:
        connection = connect(nursery, Site(always(reply)))
        try:
            head = await connection.start(request)
            outcome = (head, await connection.read_body(head, max_bytes), connection.is_reusable)
        except (WireError, ConnectionEnded) as error:
            outcome = error  # raised outside of the nursery, which would wrap it
        await connection.aclose()
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


async def raw_exchange(raw: bytes, max_bytes: int = 1000) -> tuple[Head, bytes, bool]:
    return await exchange(Reply(raw=raw), max_bytes=max_bytes)


async def refuses(run: Callable[[], Awaitable[object]]) -> str:
    """Returns why the exchange fails."""
    with pytest.raises(WireError) as caught:
        await run()
    return caught.value.reason


async def test_requests_and_responses_alternate() -> None:
    async def echo(request: Received) -> Reply:
        return Reply(201, [("X-Method", request.method)], request.body)

    async with trio.open_nursery() as nursery:
        site = Site(echo)
        connection = connect(nursery, site)
        for number, request in enumerate([GET, PUT, GET], start=1):
            head = await connection.start(request)
            assert head == Head(201, {"x-method": request.method, "content-length": str(len(request.body or b""))})
            assert not connection.is_reusable or not request.body
            assert await connection.read_body(head, 1000) == (request.body or b"")
            assert connection.is_reusable
            assert connection.is_quiet
            assert connection.exchanges == number
        assert [received.target for received in site.received] == ["/path?query", "/path", "/path?query"]
        assert site.received[0].headers == {"host": "example.org:8448", "x-a": "b"}
        assert site.received[1].headers == {
            "host": "example.org:8448",
            "content-type": "application/json",
            "content-length": "7",
        }
        await connection.aclose()


async def test_an_empty_body_is_announced() -> None:
    async with trio.open_nursery() as nursery:
        site = Site(always(Reply()))
        connection = connect(nursery, site)
        await connection.start(WireRequest("PUT", "/", {}, b""))
        assert site.received[0].headers["content-length"] == "0"
        await connection.aclose()


async def test_chunked_bodies_are_read() -> None:
    _, body, reusable = await exchange(Reply(chunks=[b"one", b"two", b"three"]))
    assert body == b"onetwothree"
    assert reusable


async def test_bodies_that_end_with_the_connection_are_read() -> None:
    _, body, reusable = await raw_exchange(b"HTTP/1.1 200 OK\r\n\r\nto the end")
    assert body == b"to the end"
    assert not reusable


async def test_a_connection_that_the_server_closes_is_not_reused() -> None:
    assert not (await exchange(Reply(close=True)))[2]


async def test_a_connection_with_surplus_data_is_not_reused() -> None:
    _, body, reusable = await raw_exchange(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n")
    assert body == b"ok"
    assert not reusable


async def test_repeated_headers_are_joined() -> None:
    head, _, _ = await raw_exchange(b"HTTP/1.1 200 OK\r\nX-A: 1\r\nx-a: 2\r\nX-B: \xe9\r\nContent-Length: 0\r\n\r\n")
    assert head.headers["x-a"] == "1, 2"
    assert head.headers["x-b"] == "\xe9"


async def test_informational_responses_are_skipped() -> None:
    head, body, _ = await raw_exchange(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    )
    assert (head.status, body) == (200, b"ok")


@pytest.mark.parametrize(
    "reply",
    [
        Reply(body=b"x" * 1001),
        Reply(chunks=[b"x" * 600, b"x" * 600]),
        Reply(raw=b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 1001),
    ],
)
async def test_oversized_bodies_are_refused(reply: Reply) -> None:
    assert await refuses(lambda: exchange(reply)) == "too_large"


async def test_bodies_of_the_maximum_size_are_read() -> None:
    assert len((await exchange(Reply(body=b"x" * 1000)))[1]) == 1000


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"HTTP/1.1 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n: value\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
    ],
)
async def test_incomplete_and_malformed_responses_are_errors(raw: bytes) -> None:
    assert await refuses(lambda: raw_exchange(raw)) == "protocol"


async def test_switching_protocols_is_an_error() -> None:
    raw = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"
    assert await refuses(lambda: raw_exchange(raw)) == "protocol"
    upgrading = WireRequest("GET", "/", {"Connection": "upgrade", "Upgrade": "websocket"}, None)
    assert await refuses(lambda: exchange(Reply(raw=raw), upgrading)) == "protocol"


async def test_a_connection_closed_without_an_answer_is_recognised() -> None:
    with pytest.raises(ConnectionEnded):
        await raw_exchange(b"")


@pytest.mark.parametrize(
    "request_",
    [
        WireRequest("GET", "/a b", {}, None),
        WireRequest("GET", "/\r\nX: y", {}, None),
        WireRequest("GET", "/\u2603", {}, None),
        WireRequest("G T", "/", {}, None),
        WireRequest("GET", "/", {"X": "a\r\nY: b"}, None),
        WireRequest("GET", "/", {"X Y": "a"}, None),
        WireRequest("GET", "/", {"X": "\u2603"}, None),
        WireRequest("GET", "/", {"Host": "other.org"}, None),
    ],
)
async def test_malformed_requests_are_not_sent(request_: WireRequest) -> None:
    assert await refuses(lambda: exchange(Reply(), request_)) == "protocol"


class HangingUp(trio.abc.Stream):
    """A peer that closes while we still send, with or without having said something."""

    def __init__(self, said: bytes) -> None:
        self.said = said

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        raise trio.BrokenResourceError

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if not self.said:
            raise trio.BrokenResourceError
        said, self.said = self.said, b""
        return said

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


async def test_an_early_answer_is_read() -> None:
    connection = Connection(HangingUp(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig"), "a", 0.0)
    head = await connection.start(PUT)
    assert (head.status, await connection.read_body(head, 10)) == (413, b"big")
    assert not connection.is_reusable


async def test_a_broken_connection_is_an_error() -> None:
    with pytest.raises(ConnectionEnded):
        await Connection(HangingUp(b""), "a", 0.0).start(PUT)
    connection = Connection(HangingUp(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n"), "a", 0.0)
    head = await connection.start(PUT)
    assert await refuses(lambda: connection.read_body(head, 10)) == "protocol"


@pytest.mark.parametrize("size", [1, 7, 5000])
async def test_a_body_is_complete_however_small_its_chunks(size: int) -> None:
    body = bytes(range(256)) * 40
    chunks = [body[start : start + size] for start in range(0, len(body), size)]
    raw = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    raw += b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    _, received, is_reusable = await raw_exchange(raw, 100_000)
    assert (received, is_reusable) == (body, True)


@pytest.mark.parametrize(
    "more",
    [b"1;x=%b\r\na\r\n" % (b"y" * 1000), b"1\r\na\r\n", b"HTTP/1.1 102 Wait\r\nX: %b\r\n\r\n" % (b"y" * 500)],
)
async def test_a_response_that_is_mostly_framing_is_abandoned(more: bytes) -> None:
    head = b"" if more.startswith(b"HTTP") else b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert await refuses(lambda: raw_exchange(head + more * 200_000, 1 << 30)) == "protocol"
