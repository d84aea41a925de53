"""HTTP/1.1 over real sockets: what can be read in two ways is refused, and no other protocol is spoken.

Spec: RFC 9112 (HTTP/1.1), RFC 9110 (HTTP semantics), RFC 9113 (HTTP/2), section 3.3
"""

from __future__ import annotations

import pytest
import trio

from homeserver import limits
from tests.api.listening import Running, serving, talk

pytestmark = pytest.mark.sockets

VERSIONS = "/_matrix/client/versions"
UPLOAD = "/_matrix/media/v3/upload"
ANSWER = b'{"ip":"127.0.0.1"}'


def head(method: str, target: str, *headers: str, version: str = "HTTP/1.1", host: str = "host: x") -> bytes:
    lines = [f"{method} {target} {version}", *([host] if host else []), *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1")


SECOND = head("GET", VERSIONS, "connection: close")


async def statuses(server: Running, data: bytes) -> list[int]:
    """The status of each answer to raw bytes; the server has to close the connection."""
    with trio.fail_after(30):
        answer = await talk(server.port, data)
    return [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]]


async def is_refused(server: Running, data: bytes) -> bool:
    """Returns whether there is exactly one response, a 4xx, and nothing after the request was read."""
    answered = await statuses(server, data + SECOND)
    return len(answered) == 1 and (400 <= answered[0] < 500 or answered[0] in (501, 505))


# Other protocols

UPGRADES = {
    "h2c": ("connection: Upgrade, HTTP2-Settings", "upgrade: h2c", "http2-settings: AAMAAABkAAQAAP__"),
    "h2c without settings": ("connection: upgrade", "upgrade: h2c"),
    "h2c without connection": ("upgrade: h2c",),
    "H2C among others": ("connection: upgrade", "upgrade: foo, H2C"),
    "TLS": ("connection: upgrade", "upgrade: TLS/1.0"),
    "HTTP/2.0": ("connection: upgrade", "upgrade: HTTP/2.0"),
}


@pytest.mark.parametrize("headers", UPGRADES.values(), ids=UPGRADES)
async def test_the_protocol_never_changes(headers: tuple[str, ...]) -> None:
    """A proxy that passes on `Upgrade` would take all that follows a 101 for its client's own business."""
    async with serving() as server:
        for method in ("GET", "OPTIONS", "HEAD"):
            answered = await statuses(server, head(method, VERSIONS, *headers) + SECOND)
            assert answered == [204 if method == "OPTIONS" else 200, 200]


async def test_http2_is_not_spoken_without_tls() -> None:
    async with serving() as server:
        preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
        answer = await talk(server.port, preface)
        assert answer.startswith(b"HTTP/1.1 505 ")
        assert await is_refused(server, head("GET", VERSIONS, version="HTTP/2.0"))
        assert await is_refused(server, head("GET", VERSIONS, version="HTTP/0.9"))


# Where a request begins and ends

AMBIGUOUS = {
    "a bare line feed after the request line": head("GET", VERSIONS).replace(b"HTTP/1.1\r\n", b"HTTP/1.1\n"),
    "a bare line feed between headers": head("GET", VERSIONS, "a: b\nc: d"),
    "a bare line feed before the empty line": b"GET /_matrix/client/versions HTTP/1.1\r\nhost: x\n\r\n",
    "only line feeds": b"GET /_matrix/client/versions HTTP/1.1\nhost: x\n\n",
    "a bare return in a value": head("GET", VERSIONS, "a: b\rc: d"),
    "a bare return at the end of a value": head("GET", VERSIONS, "a: b\r"),
    "a bare return in the target": head("GET", VERSIONS + "\rx"),
    "a folded header": head("GET", VERSIONS, "a: b\r\n c"),
    "a header folded by a tab": head("GET", VERSIONS, "a: b\r\n\tc"),
    "a folded length": head("POST", UPLOAD, "content-length:\r\n 0"),
    "a space before the first header": b"GET /_matrix/client/versions HTTP/1.1\r\n host: x\r\n\r\n",
    "a space before a colon": head("GET", VERSIONS, "a : b"),
    "a space before the colon of a length": head("POST", UPLOAD, "content-length : 0"),
    "a tab before the colon of a coding": head("POST", UPLOAD, "transfer-encoding\t: chunked"),
    "no name": head("GET", VERSIONS, ": b"),
    "a NUL": head("GET", VERSIONS, "a: b\0c"),
    "a control character": head("GET", VERSIONS, "a: b\x01c"),
    "a vertical tab": head("POST", UPLOAD, "transfer-encoding:\x0bchunked"),
    "a delete": head("GET", VERSIONS, "a: \x7f"),
    "no host": head("GET", VERSIONS, host=""),
    "two hosts": head("GET", VERSIONS, "host: x"),
    "two hosts in one": head("GET", VERSIONS, host="host: x, y"),
    "a host with a path": head("GET", VERSIONS, host="host: x/y"),
    "a host with a user": head("GET", VERSIONS, host="host: u@x"),
    "a host with a space": head("GET", VERSIONS, host="host: x y"),
    "two equal lengths": head("POST", UPLOAD, "content-length: 0", "content-length: 0"),
    "a list of equal lengths": head("POST", UPLOAD, "content-length: 0, 0"),
    "two lengths": head("POST", UPLOAD, "content-length: 0", "content-length: 5"),
    "a list of lengths": head("POST", UPLOAD, "content-length: 0,5"),
    "an empty length": head("POST", UPLOAD, "content-length: "),
    "a signed length": head("POST", UPLOAD, "content-length: +0"),
    "a negative length": head("POST", UPLOAD, "content-length: -1"),
    "a hexadecimal length": head("POST", UPLOAD, "content-length: 0x0"),
    "a length and a coding": head("POST", UPLOAD, "content-length: 5", "transfer-encoding: chunked") + b"0\r\n\r\n",
    "a coding and a length": head("POST", UPLOAD, "transfer-encoding: chunked", "content-length: 5") + b"0\r\n\r\n",
    "two codings": head("POST", UPLOAD, "transfer-encoding: chunked", "transfer-encoding: chunked") + b"0\r\n\r\n",
    "identity": head("POST", UPLOAD, "transfer-encoding: identity"),
    "identity, chunked": head("POST", UPLOAD, "transfer-encoding: identity, chunked") + b"0\r\n\r\n",
    "chunked, identity": head("POST", UPLOAD, "transfer-encoding: chunked, identity") + b"0\r\n\r\n",
    "chunked twice": head("POST", UPLOAD, "transfer-encoding: chunked, chunked") + b"0\r\n\r\n",
    "quoted chunked": head("POST", UPLOAD, 'transfer-encoding: "chunked"') + b"0\r\n\r\n",
    "xchunked": head("POST", UPLOAD, "transfer-encoding: xchunked") + b"0\r\n\r\n",
    "chunked with a parameter": head("POST", UPLOAD, "transfer-encoding: chunked;a=b") + b"0\r\n\r\n",
    "an empty coding": head("POST", UPLOAD, "transfer-encoding: ") + b"0\r\n\r\n",
    "chunks of HTTP/1.0": head("POST", UPLOAD, "transfer-encoding: chunked", version="HTTP/1.0") + b"0\r\n\r\n",
    "too many headers": head("GET", VERSIONS, *["a: b"] * limits.http.HEADERS_MAX),
}


@pytest.mark.parametrize("data", AMBIGUOUS.values(), ids=AMBIGUOUS)
async def test_ambiguous_requests_are_refused(data: bytes) -> None:
    async with serving() as server:
        assert await is_refused(server, data)
        # Also behind a good request, and if it comes in pieces.
        good = head("GET", VERSIONS)
        answered = await statuses(server, good + data + SECOND)
        assert answered[0] == 200 and len(answered) == 2 and answered[1] >= 400
        stream = await trio.open_tcp_stream("127.0.0.1", server.port)
        async with stream:
            for at in range(0, len(data), 7):
                try:
                    await stream.send_all(data[at : at + 7])
                except trio.BrokenResourceError:
                    break
                await trio.lowlevel.checkpoint()
            with trio.fail_after(30):
                assert (await stream.receive_some()).startswith((b"HTTP/1.1 4", b"HTTP/1.1 5"))


CHUNKS = {
    "good ones": (b"2;name=value\r\n{}\r\n0\r\n\r\n", [200]),
    "a good trailer": (b"2\r\n{}\r\n0\r\na: b\r\n\r\n", [200]),
    "a line feed ends the trailer": (b"2\r\n{}\r\n0\r\n\n", [400]),
    "a line feed in the trailer": (b"2\r\n{}\r\n0\r\na: b\n\n", [400]),
    "a space before the size": (b" 2\r\n{}\r\n0\r\n\r\n", [400]),
    "a size in hexadecimal": (b"0x2\r\n{}\r\n0\r\n\r\n", [400]),
    "a line feed after the size": (b"2\n{}\r\n0\r\n\r\n", [400]),
    "a line feed in an extension": (b"2;a\nb\r\n{}\r\n0\r\n\r\n", [400]),
    "a line feed after the data": (b"2\r\n{}\n0\r\n\r\n", [400]),
    "more data than the size": (b"1\r\n{}\r\n0\r\n\r\n", [400]),
}


@pytest.mark.parametrize(("chunks", "expected"), CHUNKS.values(), ids=CHUNKS)
async def test_nothing_is_read_after_a_chunked_body(chunks: bytes, expected: list[int]) -> None:
    async with serving() as server:
        data = head("POST", UPLOAD, "transfer-encoding: chunked") + chunks + SECOND
        assert await statuses(server, data) == expected
        answer = await talk(server.port, data)
        assert b"connection: close" in answer.lower()


async def test_a_body_in_tiny_chunks_is_refused() -> None:
    async with serving() as server:
        chunks = b"1\r\nx\r\n" * (limits.http.SMALL_CHUNKS_MAX + 10)
        assert await statuses(server, head("POST", UPLOAD, "transfer-encoding: chunked") + chunks) == [400]
        chunks = b"200\r\n" + b"x" * 512 + b"\r\n"
        data = head("POST", UPLOAD, "transfer-encoding: chunked") + chunks * 1_500 + b"0\r\n\r\n"
        assert await statuses(server, data) == [200]


# What a request asks for


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("http://x/_matrix/client/versions", VERSIONS),
        ("HTTP://x:8008/_matrix/client/versions?a=b", VERSIONS),
        ("https://[::1]:8448/_matrix/client/versions", VERSIONS),
        ("http://another.example/_matrix/client/versions", VERSIONS),
    ],
)
async def test_the_absolute_form_is_served_like_a_path(target: str, path: str) -> None:
    async with serving() as server:
        answer = await talk(server.port, head("GET", target, "connection: close"))
        assert answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(ANSWER)


@pytest.mark.parametrize("target", ["http://x", "http://x?/_matrix/client/versions", "http://x/_matrix/client"])
async def test_an_unknown_target_in_absolute_form_is_not_found(target: str) -> None:
    async with serving() as server:
        assert await statuses(server, head("GET", target, "connection: close")) == [404]


@pytest.mark.parametrize(
    "target",
    [
        "_matrix/client/versions", "*", "x:443", "http:///_matrix/client/versions", "http:/_matrix/client/versions",
        "http://u:p@x/_matrix/client/versions", "ftp://x/_matrix/client/versions", "/_matrix/client/versions#x",
        "http://x/_matrix/client/versions#x", "http://x#/_matrix/client/versions", "//", "http://x\\y/",
    ],
)  # fmt: skip
async def test_other_request_targets_are_refused(target: str) -> None:
    async with serving() as server:
        answered = await statuses(server, head("GET", target, "connection: close"))
        assert len(answered) == 1 and 400 <= answered[0] < 500


async def test_tunnels_are_refused() -> None:
    async with serving() as server:
        assert await is_refused(server, head("CONNECT", "x:443"))
        assert await is_refused(server, head("CONNECT", VERSIONS))


# Bodies that are not wanted


async def test_a_client_that_expects_continue_gets_it_when_its_body_is_read() -> None:
    async with serving() as server:
        stream = await trio.open_tcp_stream("127.0.0.1", server.port)
        async with stream:
            await stream.send_all(head("POST", UPLOAD, "content-length: 2", "expect: 100-continue"))
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 100 ")
            await stream.send_all(b"{}")
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("size", [2, 10 << 20])
async def test_a_client_that_expects_continue_can_be_refused_without_its_body(size: int) -> None:
    async with serving() as server:
        data = head("POST", "/_matrix/media/v3/nothing", f"content-length: {size}", "expect: 100-continue")
        answer = await talk(server.port, data)
        assert answer.startswith(b"HTTP/1.1 404 ")
        assert b"\r\nconnection: close\r\n" in answer.lower()


async def test_a_refusal_says_that_it_closes_the_connection() -> None:
    async with serving() as server:
        body = b"x" * (1 << 20)
        for headers, data in (
            ((f"content-length: {len(body)}",), body),
            (("transfer-encoding: chunked",), b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)),
        ):
            answer = await talk(server.port, head("POST", "/_matrix/media/v3/nothing", *headers) + data)
            assert answer.startswith(b"HTTP/1.1 404 ")
            assert b"\r\nconnection: close\r\n" in answer.lower()
