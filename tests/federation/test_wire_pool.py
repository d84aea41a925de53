"""The connection pool, over streams in memory and a virtual clock."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from homeserver.federation.wire import WireError, WireRequest
from homeserver.federation.wire.http1 import Connection
from homeserver.federation.wire.pool import Pool, PoolLimits
from tests.federation.wire_server import Received, Reply, Site, always

GET = WireRequest("GET", "/", {}, None)
POST = WireRequest("POST", "/", {}, b"{}")


class Hosts:
    """Servers by name, and a pool of connections to them."""

    def __init__(self, nursery: trio.Nursery, limits: PoolLimits | None = None) -> None:
        self.nursery = nursery
        self.sites: dict[str, Site] = {}
        self.pool: Pool[str] = Pool(self.open_connection, limits)
        self.busy_most = 0
        self.cut: list[trio.testing.MemorySendStream] = []

    async def open_connection(self, name: str) -> Connection:
        await trio.sleep(1)
        if name not in self.sites:
            raise WireError(f"{name} is unknown", "dns")
        ours, theirs = trio.testing.memory_stream_pair()
        self.nursery.start_soon(self.sites[name].serve, theirs)
        return Connection(ours, name, trio.current_time())

    async def get(self, name: str, request: WireRequest = GET) -> bytes:
        connection, head = await self.pool.begin(name, request)
        self.busy_most = max(self.busy_most, self.pool.statistics()[0])
        try:
            return await connection.read_body(head, 1000)
        finally:
            await self.pool.end(name, connection)


Run = Callable[[Hosts], Awaitable[None]]


async def with_hosts(run: Run, limits: PoolLimits | None = None, *names: str, pause_s: float = 0.0) -> Hosts:
    async with trio.open_nursery() as nursery:
        hosts = Hosts(nursery, limits)
        for name in names or ("a",):
            hosts.sites[name] = Site(always(Reply(body=name.encode(), pause_s=pause_s)))
        await run(hosts)
        await hosts.pool.aclose()
        assert hosts.pool.statistics() == (0, 0)
        assert hosts.pool._hosts == {}
        nursery.cancel_scope.cancel()
    return hosts


async def test_one_connection_serves_consecutive_requests(autojump_clock: trio.testing.MockClock) -> None:
    async def run(hosts: Hosts) -> None:
        for _ in range(5):
            assert await hosts.get("a") == b"a"
        assert hosts.sites["a"].connections == 1
        assert hosts.pool.statistics() == (0, 1)

    await with_hosts(run)


async def test_requests_to_one_host_are_limited(autojump_clock: trio.testing.MockClock) -> None:
    async def run(hosts: Hosts) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(hosts.get, "a")
        assert hosts.sites["a"].connections == 3
        assert hosts.pool.statistics() == (0, 3)

    hosts = await with_hosts(run, PoolLimits(busy_per_host_max=3), pause_s=1)
    assert hosts.busy_most == 3


async def test_requests_to_all_hosts_are_limited(autojump_clock: trio.testing.MockClock) -> None:
    names = tuple("abcdef")

    async def run(hosts: Hosts) -> None:
        async with trio.open_nursery() as nursery:
            for name in names * 3:
                nursery.start_soon(hosts.get, name)
        assert hosts.pool.statistics() == (0, 3)

    hosts = await with_hosts(run, PoolLimits(busy_max=4, idle_max=3), *names, pause_s=1)
    assert hosts.busy_most == 4


async def test_idle_connections_are_closed_in_time(autojump_clock: trio.testing.MockClock) -> None:
    async def run(hosts: Hosts) -> None:
        await hosts.get("a")
        await trio.sleep(49)
        await hosts.get("a")
        assert hosts.sites["a"].connections == 1
        await trio.sleep(51)
        await hosts.get("b")
        assert hosts.pool.statistics() == (0, 1), "that of a is swept when b's comes back"
        await trio.sleep(51)
        await hosts.get("b")
        assert (hosts.sites["a"].connections, hosts.sites["b"].connections) == (1, 2)

    await with_hosts(run, None, "a", "b")


async def test_connections_have_a_maximum_age(autojump_clock: trio.testing.MockClock) -> None:
    async def run(hosts: Hosts) -> None:
        for _ in range(30):
            await hosts.get("a")
            await trio.sleep(40)
        assert hosts.sites["a"].connections == 2

    await with_hosts(run)


async def test_a_connection_that_aged_while_busy_is_not_kept(autojump_clock: trio.testing.MockClock) -> None:
    async def run(hosts: Hosts) -> None:
        await hosts.get("a")
        assert hosts.pool.statistics() == (0, 0)

    await with_hosts(run, PoolLimits(age_s=5), pause_s=10)


async def test_a_failure_to_connect_leaves_nothing_behind(autojump_clock: trio.testing.MockClock) -> None:
    async def run(hosts: Hosts) -> None:
        with pytest.raises(WireError):
            await hosts.get("nowhere")
        assert hosts.pool.statistics() == (0, 0)
        assert hosts.pool._hosts == {}

    await with_hosts(run)


@pytest.mark.parametrize("after_s", [0.5, 1.5])
async def test_a_cancelled_request_leaves_nothing_behind(
    autojump_clock: trio.testing.MockClock, after_s: float
) -> None:
    async def run(hosts: Hosts) -> None:
        with trio.move_on_after(after_s) as scope:
            await hosts.get("a")
        assert scope.cancelled_caught
        assert hosts.pool.statistics() == (0, 0)
        assert hosts.pool._hosts == {}

    await with_hosts(run, pause_s=5)


async def test_waiting_for_a_turn_can_be_cancelled(autojump_clock: trio.testing.MockClock) -> None:
    async def run(hosts: Hosts) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hosts.get, "a")
            await trio.testing.wait_all_tasks_blocked()
            with trio.move_on_after(0.5):
                await hosts.get("a")
        assert hosts.pool.statistics() == (0, 1)

    await with_hosts(run, PoolLimits(busy_per_host_max=1))


class Closing:
    """A handler that answers the first request of each connection and hangs up on the second."""

    async def __call__(self, request: Received) -> Reply:
        seen = self.seen[request.connection] = self.seen.get(request.connection, 0) + 1
        return Reply(body=b"ok") if seen == 1 else Reply(raw=b"")

    def __init__(self) -> None:
        self.seen: dict[int, int] = {}


async def test_a_request_is_repeated_if_a_kept_connection_ends(autojump_clock: trio.testing.MockClock) -> None:
    async def run(hosts: Hosts) -> None:
        hosts.sites["a"].handler = Closing()
        assert await hosts.get("a") == b"ok"
        assert await hosts.get("a") == b"ok"
        assert hosts.sites["a"].connections == 2
        assert hosts.pool.statistics() == (0, 1)

    await with_hosts(run)


async def test_a_post_is_not_repeated(autojump_clock: trio.testing.MockClock) -> None:
    async def run(hosts: Hosts) -> None:
        hosts.sites["a"].handler = Closing()
        assert await hosts.get("a", POST) == b"ok"
        with pytest.raises(WireError) as caught:
            await hosts.get("a", POST)
        assert caught.value.reason == "protocol"
        assert hosts.sites["a"].connections == 1

    await with_hosts(run)


async def test_a_silent_server_is_asked_at_most_twice(autojump_clock: trio.testing.MockClock) -> None:
    async def run(hosts: Hosts) -> None:
        assert await hosts.get("a") == b"a"
        hosts.sites["a"].handler = always(Reply(raw=b""))
        for connections in (2, 3):  # the kept one and a fresh one; then a fresh one alone
            with pytest.raises(WireError) as caught:
                await hosts.get("a")
            assert caught.value.reason == "protocol"
            assert hosts.sites["a"].connections == connections
        assert hosts.pool.statistics() == (0, 0)

    await with_hosts(run)


async def test_a_second_attempt_that_answers_nonsense_is_an_error(autojump_clock: trio.testing.MockClock) -> None:
    async def run(hosts: Hosts) -> None:
        async def handle(request: Received) -> Reply:
            if request.connection == 2:
                return Reply(raw=b"nonsense\r\n\r\n")
            return await closing(request)

        closing = Closing()
        hosts.sites["a"].handler = handle
        assert await hosts.get("a") == b"ok"
        with pytest.raises(WireError):
            await hosts.get("a")
        assert hosts.pool.statistics() == (0, 0)

    await with_hosts(run)
