"""How many connections there may be, and of whom."""

from __future__ import annotations

import json
import resource
import socket
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from math import inf
from typing import Any

import pytest
import trio
import trio.testing

from homeserver import limits
from homeserver.config import Listener
from homeserver.http.connection import Connection, Connections, room_for_connections
from tests.api.listening import serving

pytestmark = pytest.mark.sockets

VERSIONS = b"GET /_matrix/client/versions HTTP/1.1\r\nhost: x\r\n\r\n"


class Crowd:
    """Opens connections to a server with this limit."""

    def __init__(self, total: int) -> None:
        self.connections = Connections(total)
        self.ends: dict[Connection, Any] = {}

    async def come(self, key: str, *, busy: bool = False, is_proxy: bool = False) -> Connection | None:
        """One more, None if it is refused."""
        client, server = trio.testing.memory_stream_pair()
        connection = Connection(server)
        if busy:
            connection.idle_since = inf
        self.ends[connection] = client
        return connection if await self.connections.admit(connection, key, is_proxy=is_proxy) else None

    async def has_ended(self, connection: Connection | None) -> bool:
        """Returns whether the server has closed the connection."""
        assert connection is not None
        with trio.move_on_after(0.01):
            return await self.ends[connection].receive_some() == b""
        return False


async def test_one_address_has_a_share_of_all_connections() -> None:
    crowd = Crowd(40)
    first = await crowd.come("a")
    for _ in range(9):
        assert await crowd.come("a", busy=True)
    assert not await crowd.has_ended(first)
    assert await crowd.come("a", busy=True), "in the place of an idle one"
    assert await crowd.has_ended(first)
    assert await crowd.come("a") is None, "all are busy"
    assert crowd.connections.refused == 1
    assert await crowd.come("b")
    assert len(crowd.connections) == 11


async def test_a_proxy_has_a_larger_share_but_leaves_some_to_others() -> None:
    crowd = Crowd(40)
    for _ in range(30):
        assert await crowd.come("", busy=True, is_proxy=True)
    assert await crowd.come("", busy=True, is_proxy=True) is None
    for number in range(10):
        assert await crowd.come(str(number), busy=True)
    assert await crowd.come("x") is None


async def test_at_the_total_limit_the_oldest_idle_connection_is_closed() -> None:
    crowd = Crowd(8)
    old = [await crowd.come(str(number), busy=number == 0) for number in range(8)]
    assert await crowd.come("new")
    assert [await crowd.has_ended(each) for each in old] == [False, True] + [False] * 6
    assert len(crowd.connections) == 8


async def test_an_idle_connection_is_found_behind_any_number_of_busy_ones() -> None:
    crowd = Crowd(100)
    for number in range(99):
        assert await crowd.come(str(number), busy=True)
    idle = await crowd.come("idle")
    assert await crowd.come("new")
    assert await crowd.has_ended(idle)


async def test_if_all_are_busy_the_address_with_most_connections_loses_one() -> None:
    crowd = Crowd(12)
    many = [await crowd.come(key, busy=True) for key in "aaabbb"]
    few = [await crowd.come(str(number), busy=True) for number in range(6)]
    assert await crowd.come("new", busy=True)
    assert await crowd.come("new", busy=True), "it has one, others have three"
    assert await crowd.come("new", busy=True) is None, "it has as many as they"
    assert [await crowd.has_ended(each) for each in many] == [True, False, False, True, False, False]
    assert not any([await crowd.has_ended(each) for each in few])


async def test_proxies_lose_connections_to_other_proxies_only() -> None:
    crowd = Crowd(8)
    for _ in range(6):
        assert await crowd.come("proxy", busy=True, is_proxy=True)
    for number in range(2):
        assert await crowd.come(str(number), busy=True)
    assert await crowd.come("x", busy=True) is None
    assert await crowd.come("another proxy", busy=True, is_proxy=True)


async def test_a_connection_is_idle_again_after_its_request() -> None:
    crowd = Crowd(8)
    all_busy = [await crowd.come(str(number), busy=True) for number in range(8)]
    assert await crowd.come("new") is None
    connection = all_busy[5]
    assert connection is not None
    connection.become_idle()
    assert await crowd.come("new")
    assert await crowd.has_ended(connection)


async def test_closed_connections_are_not_counted() -> None:
    crowd = Crowd(8)
    for _ in range(100):
        connection = await crowd.come("a", busy=True)
        assert connection is not None
        crowd.connections.discard(connection)
        crowd.connections.discard(connection)
    assert len(crowd.connections) == 0


@contextmanager
def open_files(count: int) -> Iterator[None]:
    """Limits the file descriptors of this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(("files", "room"), [(256, 128), (1024, 512), (4096, 4096 - limits.http.FILES_RESERVED)])
def test_connections_leave_file_descriptors_for_files(files: int, room: int) -> None:
    with open_files(files):
        assert room_for_connections() == room


async def test_a_request_head_must_arrive_promptly(autojump_clock: trio.testing.MockClock) -> None:
    client, server = trio.testing.memory_stream_pair()
    connection = Connection(server)
    connection.asking_since = trio.current_time()
    assert not connection.overdue(trio.current_time() + limits.http.HEAD_SECONDS_MAX - 1)
    assert connection.overdue(trio.current_time() + limits.http.HEAD_SECONDS_MAX + 1)


async def test_idle_connections_of_one_address_do_not_exclude_others() -> None:
    async with AsyncExitStack() as stack:
        with open_files(256):  # so 128 connections, of which a proxy may have 96
            server = await stack.enter_async_context(serving(Listener(bind="127.0.0.1:0")))
        idle = [await trio.open_tcp_stream("127.0.0.1", server.port) for _ in range(300)]
        for source in ("127.0.0.2", "127.0.0.1"):
            stream = await trio.open_tcp_stream("127.0.0.1", server.port, local_address=source)
            async with stream:
                await stream.send_all(VERSIONS)
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 200 ")
        for stream in idle:
            await trio.aclose_forcefully(stream)


async def test_named_proxies_are_trusted_and_others_are_not() -> None:
    """Loopback is always trusted, so the stranger speaks to another address of this machine, if it has one."""
    address = own_address()
    asked = VERSIONS.replace(b"\r\n\r\n", b"\r\nx-forwarded-for: 6.6.6.6, 203.0.113.9\r\n\r\n")
    for trusted, expected in (((), address), ((address,), "203.0.113.9"), ((f"{address}/16",), "203.0.113.9")):
        async with serving(Listener(bind="0.0.0.0:0", trusted_proxies=trusted)) as server:
            stream = await trio.open_tcp_stream(address, server.port)
            async with stream:
                await stream.send_all(asked)
                answer = json.loads((await stream.receive_some()).partition(b"\r\n\r\n")[2])
                assert answer == {"ip": "203.0.113.9" if address.startswith("127.") else expected}


def own_address() -> str:
    """An address of this machine by which it reaches others; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"
