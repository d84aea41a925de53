"""HTTP/2: what a client may make the server do for nothing. Spec: RFC 9113, sections 5.4.1 and 10.5"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.settings
import httpx
import pytest
import trio
import trio.testing
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.events import Closed, RawData
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState

from homeserver import limits
from homeserver.config import Listener
from homeserver.http.addresses import Proxies
from homeserver.http.http2 import FrameCounter, Http2
from tests.api.listening import Running, make_app, serving

VERSIONS = "/_matrix/client/versions"
CALM = h2.errors.ErrorCodes.ENHANCE_YOUR_CALM


class Client:
    """A connection of a client that sends what it likes. frame: bytes as they are."""

    def __init__(self, stream: trio.SSLStream[trio.SocketStream]) -> None:
        self._stream = stream
        self._sending = trio.Lock()
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(validate_outbound_headers=False))
        self.h2.initiate_connection()

    def ask(self, number: int, path: str = VERSIONS, method: str = "GET", *, ends: bool = True) -> None:
        """The head of a request on the stream of this number."""
        head = [(":method", method), (":path", path), (":scheme", "https"), (":authority", "x")]
        self.h2.send_headers(number, head, end_stream=ends)

    async def flush(self, more: bytes = b"") -> None:
        """Sends what has gathered, and more."""
        async with self._sending:
            await self._stream.send_all(self.h2.data_to_send() + more)

    async def aclose(self) -> None:
        """Goes without a word."""
        await trio.aclose_forcefully(self._stream)

    async def events(self) -> AsyncIterator[Any]:
        """Yields the events until the server ends the connection."""
        while True:
            try:
                data = await self._stream.receive_some()
            except trio.BrokenResourceError:
                return
            if not data:
                return
            for event in self.h2.receive_data(data):
                yield event
            await self.flush()

    async def why_ended(self) -> Any:
        """The code with which the server ends the connection; None if it says nothing."""
        code = None
        async for event in self.events():
            if isinstance(event, h2.events.ConnectionTerminated):
                code = event.error_code
        return code


@pytest.fixture
async def server(tls_files: tuple[str, str, ssl.SSLContext]) -> AsyncIterator[Running]:
    cert, key, context = tls_files
    async with serving(Listener(bind="127.0.0.1:0", tls_cert=cert, tls_key=key)) as running:
        yield running
        context.set_alpn_protocols(["http/1.1"])
        if running.stop.is_set():
            return
        async with httpx.AsyncClient(verify=context) as http:
            others = await http.get(running.url + "/_homeserver/health/live")
            assert others.status_code == 200, "others are served as ever"


@asynccontextmanager
async def connected(server: Running, context: ssl.SSLContext) -> AsyncIterator[Client]:
    context.set_alpn_protocols(["h2"])
    stream = await trio.open_ssl_over_tcp_stream("127.0.0.1", server.port, ssl_context=context)
    try:
        client = Client(stream)
        await client.flush()
        yield client
    finally:
        await trio.aclose_forcefully(stream)


@pytest.fixture
async def client(server: Running, tls_files: tuple[str, str, ssl.SSLContext]) -> AsyncIterator[Client]:
    async with connected(server, tls_files[2]) as found:
        yield found


def frame(kind: int, payload: bytes = b"", flags: int = 0, stream: int = 0) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


FLOODS = {
    "pings": frame(6, b"12345678"),
    "answers to pings that nobody sent": frame(6, b"12345678", 1),
    "settings": frame(4),
    "many settings": frame(4, b"\x00\x03\x00\x00\x00\x64" * 2_000),
    "windows": frame(8, b"\x00\x00\x00\x01"),
    "priorities": frame(2, b"\x00\x00\x00\x00\x10", stream=7),
    "frames of no known kind": frame(99, b"x"),
    "empty data": frame(0, stream=1),
}


@pytest.mark.parametrize("flood", FLOODS)
async def test_a_flood_of_frames_ends_the_connection(client: Client, flood: str) -> None:
    client.ask(1, "/_matrix/media/v3/upload", "POST", ends=False)
    await client.flush()

    async def pour() -> None:
        try:
            for _ in range(1_000):
                await client.flush(FLOODS[flood] * 20)
        except trio.BrokenResourceError:
            pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pour)
        assert await client.why_ended() in (CALM, None)
        nursery.cancel_scope.cancel()


async def test_rapid_resets_end_the_connection(client: Client, server: Running) -> None:
    asked = 0

    async def pour() -> None:
        nonlocal asked
        try:
            for number in range(1, 20_000, 2):
                client.ask(number, "/_matrix/client/v3/slow")
                client.h2.reset_stream(number)
                await client.flush()
                asked += 1
        except (trio.BrokenResourceError, h2.exceptions.ProtocolError):
            pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pour)
        assert await client.why_ended() in (CALM, None)
        nursery.cancel_scope.cancel()
    assert asked < 5_000
    assert server.app.dispatch.active <= limits.http.HTTP2_RESETS_FREE + 2
    server.hs.may_end.set()


async def test_an_endless_head_ends_the_connection(client: Client) -> None:
    await client.flush(frame(1, b"\x00\x01a\x01b", stream=1))

    async def pour() -> None:
        try:
            for _ in range(10_000):
                await client.flush(frame(9, b"\x00\x01a\x01b", stream=1) * 20)
        except trio.BrokenResourceError:
            pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pour)
        await client.why_ended()
        nursery.cancel_scope.cancel()


async def test_exceeding_the_agreed_concurrency_ends_the_connection(client: Client, server: Running) -> None:
    most = 0
    async for event in client.events():
        if isinstance(event, h2.events.RemoteSettingsChanged):
            most = event.changed_settings[h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS].new_value
            break
    assert 0 < most <= 100
    client.h2.remote_settings[h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS] = 10_000
    client.h2.remote_settings.acknowledge()
    for number in range(1, 2 * most + 3, 2):
        client.ask(number, "/_matrix/client/v3/slow")
    await client.flush()
    await client.why_ended()
    assert server.app.dispatch.active <= most
    server.hs.may_end.set()


async def test_a_client_that_reads_nothing_loses_the_connection(autojump_clock: trio.testing.MockClock) -> None:
    app, _ = make_app()
    served = ASGIWrapper(app.serving(("media",), Proxies(())))
    ended = trio.Event()

    async def send(event: Any) -> None:
        if isinstance(event, Closed):
            ended.set()
            await protocol.handle(event)

    asking = h2.connection.H2Connection()
    asking.initiate_connection()
    asking.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0})
    head = [(":method", "GET"), (":path", "/_matrix/media/v3/download/8"), (":scheme", "https"), (":authority", "x")]
    asking.send_headers(1, head, end_stream=True)
    async with TaskGroup() as tasks:
        protocol = Http2(served, Config(), WorkerContext(None), tasks, ConnectionState({}), True, None, None, send)
        await protocol.initiate()
        began_s = trio.current_time()
        await protocol.handle(RawData(asking.data_to_send()))
        await ended.wait()
        assert limits.http.SEND_SECONDS_MAX <= trio.current_time() - began_s < 2 * limits.http.SEND_SECONDS_MAX


async def test_a_client_that_disconnects_during_a_request_leaves_nothing_behind(
    client: Client, server: Running
) -> None:
    client.ask(1, "/_matrix/media/v3/upload", "POST", ends=False)
    client.ask(3, "/_matrix/media/v3/download/8")
    await client.flush()
    await server.until_active(1)
    await client.aclose()
    with trio.fail_after(3):
        while server.app.dispatch.active:  # noqa: ASYNC110
            await trio.sleep(0.01)
    began_s = trio.current_time()
    server.stop.set()
    await server.ended.wait()
    assert trio.current_time() - began_s < 3, "no connection is waited for"


async def answers(client: Client, wanted: Callable[[Any], bool], count: int) -> None:
    """Reads until this many of the wanted events have arrived."""
    async for event in client.events():
        if isinstance(event, h2.events.DataReceived):
            client.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        count -= wanted(event)
        if not count:
            return
    raise AssertionError("the connection has ended")


async def test_an_honest_client_may_send_any_number_of_requests(client: Client) -> None:
    """It asks hundreds of times, some of them in vain, pings, and downloads."""
    for number in range(1, 2_001, 2):
        client.ask(number)
        if number % 4 == 1:
            client.h2.reset_stream(number)
            continue
        client.h2.ping(b"12345678")
        await client.flush()
        await answers(client, lambda event: isinstance(event, h2.events.StreamEnded), 1)
    client.ask(2_001, "/_matrix/media/v3/download/100")
    await client.flush()
    await answers(client, lambda event: isinstance(event, h2.events.StreamEnded), 1)


async def test_a_body_that_is_refused_does_not_end_the_connection(client: Client) -> None:
    client.ask(1, "/_matrix/client/v3/nowhere", "POST", ends=False)
    await client.flush()
    await answers(client, lambda event: isinstance(event, h2.events.StreamEnded), 1)
    client.h2.send_data(1, b"x" * 10_000)
    client.h2.send_data(1, b"x" * 10_000)
    await client.flush()
    client.ask(3)
    await client.flush()
    await answers(client, lambda event: isinstance(event, h2.events.StreamEnded) and event.stream_id == 3, 1)


def test_frames_are_counted_wherever_they_are_cut() -> None:
    text = b"x" * 24 + frame(6, b"12345678") + frame(0, b"y" * 1_000, stream=1) + frame(4) * 3
    for size in (1, 5, 9, 10_000):
        counter = FrameCounter()
        for at in range(0, len(text), size):
            counter.feed(text[at : at + size])
        assert counter.frames == 5
