"""Clients that misbehave on the wire: slow, half, garbled, smuggling, huge and many. The server is a program.

Spec: none; RFC 9112 (HTTP/1.1), sections 3 to 6, 9 and 11
"""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from homeserver import limits
from tests.end_to_end.programs import Homeserver, make_place

pytestmark = [pytest.mark.sockets, pytest.mark.timeout(240)]

VERSIONS = b"GET /_matrix/client/versions HTTP/1.1\r\nhost: x\r\n\r\n"
PATIENCE_S = 30


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Homeserver]:
    """A server that has a user, alice, and goes through all of this file without an error in its log."""
    server = make_place(tmp_path_factory.mktemp("hostile")).organisation("victim")
    try:
        server.start()
        yield server
        assert_well(server)
        assert server.stop() == 0
        assert "Traceback" not in server.said()
        assert "error" not in server.said().lower()
    finally:
        server.kill()


@pytest.fixture(scope="module")
def token(server: Homeserver) -> str:
    return server.register("alice")


@pytest.fixture(autouse=True)
def still_well(server: Homeserver) -> Iterator[None]:
    """After each test the server answers, at once."""
    yield
    assert_well(server)


def assert_well(server: Homeserver) -> None:
    began = time.monotonic()
    assert httpx.get(f"{server.url}/_matrix/client/versions", timeout=30, verify=False).status_code == 200
    assert time.monotonic() - began < 20


def connect(server: Homeserver) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.client_port), timeout=PATIENCE_S)


def talk(server: Homeserver, data: bytes, *, end: bool = True) -> bytes:
    """Sends raw bytes and returns everything received until the server closes or, without `end`, falls silent."""
    with connect(server) as sock:
        answer = b""
        with contextlib.suppress(OSError):  # a reset, or time that is up
            sock.sendall(data)
            if end:
                sock.shutdown(socket.SHUT_WR)
            sock.settimeout(PATIENCE_S if end else 0.3)
            while chunk := sock.recv(65_536):
                answer += chunk
        return answer


def statuses(answer: bytes) -> list[int]:
    """The status of each response in a stream of bytes."""
    return [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]]


GARBAGE = {
    "nothing": b"",
    "noise": random.Random(4).randbytes(5_000),
    "NULs": b"\0" * 5_000,
    "line ends": b"\r\n" * 2_000,
    "a TLS hello": bytes.fromhex("16030100a5010000a10303") + b"\1" * 150,
    "an HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0",
    "HTTP/0.9": b"GET /\r\n",
    "HTTP/3.0": b"GET /_matrix/client/versions HTTP/3.0\r\nhost: x\r\n\r\n",
    "no version": b"GET /_matrix/client/versions\r\nhost: x\r\n\r\n",
    "no target": b"GET HTTP/1.1\r\nhost: x\r\n\r\n",
    "spaces": b"GET  /_matrix/client/versions  HTTP/1.1\r\nhost: x\r\n\r\n",
    "a bad method": b"G\x00T / HTTP/1.1\r\nhost: x\r\n\r\n",
    "no host": b"GET /_matrix/client/versions HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /_matrix/client/versions HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n",
    "a header without a colon": b"GET / HTTP/1.1\r\nhost: x\r\nnonsense\r\n\r\n",
    "a header with a space": b"GET / HTTP/1.1\r\nhost: x\r\nbad header: 1\r\n\r\n",
    "a header with a NUL": b"GET / HTTP/1.1\r\nhost: x\r\na: b\0c\r\n\r\n",
    "a folded header": b"GET / HTTP/1.1\r\nhost: x\r\na: b\r\n c\r\n\r\n",
    "bare line feeds": b"GET / HTTP/1.1\nhost: x\n\n",
    "a bare return": b"GET / HTTP/1.1\r\nhost: x\r\na: b\rc: d\r\n\r\n",
    "a proxy's target": b"GET http://elsewhere.example/ HTTP/1.1\r\nhost: x\r\n\r\n",
    "an upgrade": b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: nonsense\r\n\r\n",
    "half a websocket": b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
    "a tunnel": b"CONNECT elsewhere.example:443 HTTP/1.1\r\nhost: x\r\n\r\n",
    "an asterisk": b"OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n",
    "an unknown expectation": b"POST /_matrix/client/v3/login HTTP/1.1\r\nhost: x\r\nexpect: magic\r\n\r\n",
}


@pytest.mark.parametrize("data", GARBAGE.values(), ids=GARBAGE)
def test_garbage_is_refused_or_ignored(server: Homeserver, data: bytes) -> None:
    for end in (True, False):
        answer = talk(server, data, end=end)
        assert all(status < 500 or status in (501, 505) for status in statuses(answer)), answer[:300]


def request(method: str, path: str, *headers: str, body: bytes = b"") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "host: x", *headers, "", ""]).encode("latin-1") + body


LOGIN = "/_matrix/client/v3/login"
SMUGGLED = b"GET /_matrix/client/v3/SMUGGLED HTTP/1.1\r\nhost: x\r\n\r\n"
SMUGGLING = {
    "both lengths": ("content-length: 2", "transfer-encoding: chunked"),
    "both, the other way round": ("transfer-encoding: chunked", "content-length: 2"),
    "two lengths": ("content-length: 2", "content-length: 60"),
    "a list of lengths": ("content-length: 2, 60",),
    "a signed length": ("content-length: +2",),
    "a negative length": ("content-length: -2",),
    "a length in hexadecimal": ("content-length: 0x2",),
    "a length with a space": ("content-length: 2 2",),
    "an endless length": ("content-length: " + "9" * 400,),
    "an unknown coding": ("transfer-encoding: xchunked",),
    "two codings": ("transfer-encoding: gzip, chunked",),
    "chunked twice": ("transfer-encoding: chunked, chunked",),
    "a coding behind a tab": ("transfer-encoding:\x0bchunked",),
    "a coding with a space before the colon": ("transfer-encoding : chunked",),
    "identity": ("transfer-encoding: identity", "content-length: 2"),
}


@pytest.mark.parametrize("headers", SMUGGLING.values(), ids=SMUGGLING)
def test_nothing_is_smuggled_behind_a_request_of_two_lengths(server: Homeserver, headers: tuple[str, ...]) -> None:
    for body in (b"{}", b"0\r\n\r\n", b"2\r\n{}\r\n0\r\n\r\n"):
        answer = talk(server, request("POST", LOGIN, *headers, body=body + SMUGGLED))
        answered = statuses(answer)
        assert len(answered) <= 1, answer
        assert all(400 <= status < 500 or status == 501 for status in answered), answer[:300]
        assert b"M_UNRECOGNIZED" not in answer  # which the smuggled request would be answered


CHUNKS = {
    "no size": b"\r\n{}\r\n0\r\n\r\n",
    "no number": b"zz\r\n{}\r\n0\r\n\r\n",
    "a negative one": b"-2\r\n{}\r\n0\r\n\r\n",
    "a huge one": b"f" * 40 + b"\r\n{}\r\n0\r\n\r\n",
    "too short": b"1\r\n{}\r\n0\r\n\r\n",
    "too long": b"9\r\n{}\r\n0\r\n\r\n",
    "never ending": b"2\r\n{}\r\n",
    "extensions without end": b"2;" + b"a=b;" * 50_000 + b"\r\n{}\r\n0\r\n\r\n",
    "trailers without end": b"2\r\n{}\r\n0\r\n" + b"a: b\r\n" * 50_000 + b"\r\n",
}


@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
def test_malformed_chunks_are_refused(server: Homeserver, chunks: bytes) -> None:
    answer = talk(server, request("POST", LOGIN, "transfer-encoding: chunked", body=chunks))
    assert all(400 <= status < 500 for status in statuses(answer)), answer[:300]


def test_pipelined_requests_are_answered_in_order(server: Homeserver) -> None:
    paths = [f"/_matrix/client/v3/{number}" if number % 3 else "/_matrix/client/versions" for number in range(60)]
    answer = talk(server, b"".join(request("GET", path) for path in paths))
    assert statuses(answer) == [404 if number % 3 else 200 for number in range(60)]


def test_garbage_after_a_valid_request_does_not_affect_it(server: Homeserver) -> None:
    for garbage in (b"\0" * 100, b"GARBAGE\r\n\r\n", request("GET", "/x", "content-length: x")):
        answer = talk(server, VERSIONS + garbage)
        assert statuses(answer)[0] == 200
        assert all(400 <= status < 500 for status in statuses(answer)[1:])


@pytest.mark.parametrize("size", [9_000, 30_000, 100_000, 3_000_000])
def test_long_paths_and_headers_are_refused(server: Homeserver, size: int) -> None:
    requests = (
        request("GET", "/_matrix/client/v3/" + "a" * size),
        request("GET", "/_matrix/client/versions?" + "a" * size),
        request("GET", "/_matrix/client/versions", "x: " + "a" * size),
        request("GET", "/_matrix/client/versions", *(f"x{number}: y" for number in range(size // 8))),
        b"G" * size + b" / HTTP/1.1\r\nhost: x\r\n\r\n",
        request("GET", "/_matrix/client/versions", "x" * size + ": y"),
    )
    for data in requests:
        answered = statuses(talk(server, data))
        assert answered in ([], [200], [404], [400], [405], [414], [431]), answered
        if size > 30_000:
            assert answered in ([], [400], [414], [431])


def test_an_endless_head_is_cut_off(server: Homeserver) -> None:
    with connect(server) as sock, contextlib.suppress(ConnectionError, TimeoutError):
        sock.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n")
        for _ in range(3_000):
            sock.sendall(b"x: " + b"y" * 1_000 + b"\r\n")
        sock.settimeout(5)
        assert all(400 <= status < 500 for status in statuses(sock.recv(65_536)))


def test_surplus_bytes_of_a_body_are_another_request(server: Homeserver) -> None:
    answer = talk(server, request("POST", LOGIN, "content-length: 2", body=b"{}{}{}{}\r\n\r\n"))
    assert statuses(answer)[0] == 400
    assert all(400 <= status < 500 for status in statuses(answer))


def test_an_incomplete_request_changes_nothing(server: Homeserver, token: str) -> None:
    body = b'{"name": "half a room"}'
    headers = (f"authorization: Bearer {token}", f"content-length: {len(body)}", "content-type: application/json")
    whole = request("POST", "/_matrix/client/v3/createRoom", *headers, body=body)
    for length in range(1, len(whole), 7):
        talk(server, whole[:length])
    assert server.call("GET", "joined_rooms", token) == {"joined_rooms": []}
    assert statuses(talk(server, whole)) == [200]
    assert len(server.call("GET", "joined_rooms", token)["joined_rooms"]) == 1


def test_an_incomplete_upload_stores_no_file(server: Homeserver, token: str) -> None:
    headers = (f"authorization: Bearer {token}", "content-length: 1000000")
    answer = talk(server, request("POST", "/_matrix/media/v3/upload", *headers, body=b"x" * 500_000))
    assert statuses(answer) in ([], [400])
    blobs = server.folder / "data" / "blobs"
    assert [path for path in blobs.rglob("*") if path.is_file()] == []


def test_a_client_that_disconnects_during_an_answer_does_no_harm(server: Homeserver, token: str) -> None:
    for number in range(100):
        with connect(server) as sock:
            sock.sendall(request("GET", "/_matrix/client/v3/sync?timeout=10000", f"authorization: Bearer {token}"))
            if number % 2:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset instead of an end


def test_slow_clients_do_not_delay_others(server: Homeserver, token: str) -> None:
    """Slow loris: heads and bodies that arrive one byte at a time, and answers that are never read."""
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connect(server)) for _ in range(200)]
        upload = request("POST", "/_matrix/media/v3/upload", f"authorization: Bearer {token}", "content-length: 100000")
        for sock, data in zip(slow, itertools.cycle((VERSIONS, upload)), strict=False):
            sock.sendall(data[:-5] if data is VERSIONS else data)
        for byte in (b"x", b"y", b"z"):
            for sock in slow[1::2]:
                sock.sendall(byte)
            began = time.monotonic()
            assert server.call("GET", "/_matrix/client/versions")
            assert time.monotonic() - began < 20
        for sock in slow[::2]:
            sock.sendall(VERSIONS[-5:])
            assert statuses(sock.recv(65_536)) == [200]


def test_many_connections_at_once_are_all_answered(server: Homeserver) -> None:
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(connect(server)) for _ in range(800)]
        for sock in socks:
            sock.sendall(VERSIONS)
        assert all(statuses(sock.recv(65_536)) == [200] for sock in socks)
        for sock in socks:  # and once more on the same connections
            sock.sendall(VERSIONS)
        assert all(statuses(sock.recv(65_536)) == [200] for sock in socks)
    assert len(socks) < limits.http.CONNECTIONS_MAX


def test_silent_connections_do_no_harm(server: Homeserver) -> None:
    for _ in range(3):
        with contextlib.ExitStack() as stack:
            for _ in range(300):
                stack.enter_context(connect(server))
            assert_well(server)


def test_requests_alongside_garbage_are_answered(server: Homeserver, token: str) -> None:
    def good(_: int) -> int:
        headers = {"authorization": f"Bearer {token}"}
        return httpx.get(
            f"{server.url}/_matrix/client/v3/account/whoami", headers=headers, timeout=60, verify=False
        ).status_code

    with ThreadPoolExecutor(12) as pool:
        answers = [pool.submit(good, number) for number in range(60)]
        for data in (*GARBAGE.values(), *(request("POST", LOGIN, *headers) for headers in SMUGGLING.values())):
            pool.submit(talk, server, data)
        assert [answer.result() for answer in answers] == [200] * 60


def test_garbage_on_the_federation_port_is_refused(server: Homeserver) -> None:
    address = ("127.0.0.1", server.federation_port)
    for data in (*GARBAGE.values(), bytes.fromhex("160301ffff") + b"\1" * 70_000):
        with socket.create_connection(address, timeout=PATIENCE_S) as sock, contextlib.suppress(ConnectionError):
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65_536):
                pass
    context = ssl.create_default_context(cafile=str(server.folder / "ca.pem"))
    for protocols in (["http/1.1"], ["h2"]):
        context.set_alpn_protocols(protocols)
        for data in (*GARBAGE.values(), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 20_000):
            with socket.create_connection(address, timeout=PATIENCE_S) as raw, contextlib.suppress(OSError):
                with context.wrap_socket(raw, server_hostname="localhost") as sock:
                    sock.sendall(data)
                    sock.settimeout(0.05)
                    while sock.recv(65_536):
                        pass
    with httpx.Client(verify=context) as http:
        assert http.get(f"https://localhost:{server.federation_port}/_matrix/key/v2/server").status_code == 200
