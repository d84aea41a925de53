"""The fake network, held to what `Wire` promises: other tests rely on it."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from homeserver.federation.identifiers import ServerName
from homeserver.federation.wire import Wire, WireError, WireRequest, WireResponse
from homeserver.testing import Exchange, FakeNetwork
from tests.support.wires import send

Scope = dict[str, Any]
MEDIA = WireRequest("GET", "/media", {})


class Echo:
    """An ASGI app that answers with what it was asked."""

    def __init__(self, pause_s: float = 0.0) -> None:
        self.pause_s = pause_s
        self.scopes: list[Scope] = []
        self.finished = 0
        self.last_message: dict[str, Any] = {}

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        body, more = b"", True
        while more:
            message = await receive()
            body += message["body"]
            more = message["more_body"]
        await trio.sleep(self.pause_s)
        headers = [(b"Content-Type", b"text/plain"), (b"x-a", b"1"), (b"x-a", b"2")]
        await send({"type": "http.response.start", "status": 201, "headers": headers})
        await send({"type": "http.response.body", "body": scope["method"].encode() + b" ", "more_body": True})
        await send({"type": "http.response.body", "body": body})
        self.finished += 1


class Counting(Echo):
    """Streams for as long as somebody listens."""

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        for number in range(100):
            await send({"type": "http.response.body", "body": str(number % 10).encode(), "more_body": True})
            await trio.sleep(self.pause_s)
        await send({"type": "http.response.body"})
        await receive()
        self.last_message = await receive()
        self.finished += 1


async def ask(wire: Wire, destination: str = "beta.test", **options: Any) -> WireResponse:
    request = WireRequest("PUT", "/_matrix/a%2Fb?c=d", {"X-Test": "t"}, options.pop("body", b"body"))
    return await send(wire, destination, request, **options)


async def reason_of(wire: Wire, destination: str = "beta.test", **options: Any) -> str:
    with pytest.raises(WireError) as caught:
        await ask(wire, destination, **options)
    return caught.value.reason


async def test_a_request_reaches_the_app_as_from_a_real_server() -> None:
    network, echo = FakeNetwork(), Echo()
    network.join("beta.test", echo)
    answer = await ask(network.wire_for("alpha.test"))
    assert answer == WireResponse(201, {"content-type": "text/plain", "x-a": "1, 2"}, b"PUT body")
    scope = echo.scopes[0]
    assert (scope["path"], scope["raw_path"], scope["query_string"]) == ("/_matrix/a/b", b"/_matrix/a%2Fb", b"c=d")
    assert scope["headers"] == [(b"host", b"beta.test"), (b"x-test", b"t"), (b"content-length", b"4")]
    assert scope["client"][0] == network.address_of("alpha.test") != network.address_of("beta.test")
    assert network.exchanges == [Exchange("alpha.test", "beta.test", "PUT", "/_matrix/a%2Fb?c=d", 201)]


async def test_long_bodies_arrive_in_chunks() -> None:
    network = FakeNetwork()
    network.join("beta.test", Echo())
    answer = await ask(network.wire_for("alpha.test"), body=b"x" * 200_000, max_bytes=300_000)
    assert len(answer.body) == 200_004
    assert (await ask(network.wire_for("alpha.test"), body=None)).body == b"PUT "


async def test_latency_is_virtual(autojump_clock: trio.testing.MockClock) -> None:
    network = FakeNetwork(latency_s=1000)
    network.join("beta.test", Echo())
    await ask(network.wire_for("alpha.test"), timeout_s=3000)
    assert trio.current_time() == 2000
    assert await reason_of(network.wire_for("alpha.test"), timeout_s=500) == "timeout"
    assert await reason_of(network.wire_for("alpha.test"), timeout_s=1500) == "timeout"
    assert trio.current_time() == 4000


async def test_unreachable_servers_fail() -> None:
    network = FakeNetwork()
    wire = network.wire_for("alpha.test")
    assert await reason_of(wire) == "dns"
    network.join("beta.test", Echo())
    network.leave("beta.test")
    assert await reason_of(wire) == "connect"
    network.join("beta.test", Echo())
    assert (await ask(wire)).status == 201


async def test_connections_can_be_cut_and_healed() -> None:
    network = FakeNetwork()
    network.join("beta.test", Echo())
    network.join("gamma.test", Echo())
    wire = network.wire_for("alpha.test")
    network.cut("beta.test", "alpha.test")
    assert await reason_of(wire) == "connect"
    assert (await ask(wire, "gamma.test")).status == 201
    network.heal()
    assert (await ask(wire)).status == 201


async def test_a_cut_loses_responses_under_way(autojump_clock: trio.testing.MockClock) -> None:
    network, echo = FakeNetwork(), Echo(pause_s=5)
    network.join("beta.test", echo)
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def cut_soon() -> None:
            await trio.sleep(1)
            network.cut("alpha.test", "beta.test")

        assert await reason_of(network.wire_for("alpha.test")) == "protocol"
    assert len(echo.scopes) == 1


async def test_losses_affect_requests_and_responses_and_are_reproducible() -> None:
    async def run(seed: int) -> tuple[list[str], int]:
        network, echo = FakeNetwork(loss=0.5, seed=seed), Echo()
        network.join("beta.test", echo)
        outcomes = []
        for _ in range(40):
            try:
                await ask(network.wire_for("alpha.test"))
                outcomes.append("ok")
            except WireError as error:
                outcomes.append(error.reason)
        return outcomes, echo.finished

    outcomes, finished = await run(7)
    assert await run(7) == (outcomes, finished)
    assert await run(8) != (outcomes, finished)
    assert {"ok", "connect", "protocol"} == set(outcomes)
    assert finished == outcomes.count("ok") + outcomes.count("protocol")


async def test_sizes_are_limited(autojump_clock: trio.testing.MockClock) -> None:
    network = FakeNetwork()
    network.join("beta.test", Echo(pause_s=5))
    wire = network.wire_for("alpha.test")
    assert await reason_of(wire, max_bytes=7) == "too_large"
    assert (await ask(wire, max_bytes=8)).status == 201
    assert await reason_of(wire, timeout_s=1) == "timeout"


async def test_bodies_can_be_streamed(autojump_clock: trio.testing.MockClock) -> None:
    network, counting = FakeNetwork(latency_s=1), Counting(pause_s=1)
    network.join("beta.test", counting)
    wire = network.wire_for("alpha.test")
    options: dict[str, Any] = {"timeout_s": 10, "max_bytes": 1000}
    async with wire.stream(ServerName("beta.test"), MEDIA, **options) as response:
        assert b"".join([chunk async for chunk in response.chunks]) == b"0123456789" * 10
    assert (counting.finished, counting.last_message) == (1, {"type": "http.disconnect"})
    async with wire.stream(ServerName("beta.test"), MEDIA, **options) as response:
        assert await anext(response.chunks) == b"0"
    assert counting.finished == 2, "the app runs to its end, though nobody listens"
    with pytest.raises(WireError) as caught:
        async with wire.stream(ServerName("beta.test"), MEDIA, **options | {"timeout_s": 0.5}):
            raise AssertionError("the request is still on its way")
    assert caught.value.reason == "timeout"


async def test_abandoning_a_request_cancels_the_app(autojump_clock: trio.testing.MockClock) -> None:
    network, counting = FakeNetwork(), Counting(pause_s=1)
    network.join("beta.test", counting)
    wire = network.wire_for("alpha.test")
    with pytest.raises(KeyError):
        async with wire.stream(ServerName("beta.test"), MEDIA, timeout_s=10, max_bytes=1000):
            raise KeyError
    assert counting.finished == 0


async def test_urls_reach_the_server_of_that_name() -> None:
    network, echo = FakeNetwork(), Echo()
    network.join("cdn.test", echo)
    wire = network.wire_for("alpha.test")
    async with wire.stream_url("https://cdn.test/a?b", timeout_s=1, max_bytes=9) as response:
        assert b"".join([chunk async for chunk in response.chunks]) == b"GET "
    assert (echo.scopes[0]["path"], echo.scopes[0]["query_string"]) == ("/a", b"b")
    with pytest.raises(WireError) as caught:
        async with wire.stream_url("http://cdn.test/a", timeout_s=1, max_bytes=9):
            raise AssertionError("only https is fetched")
    assert caught.value.reason == "refused"


async def test_a_crash_of_the_app_fails_the_test() -> None:
    async def crash(scope: Scope, receive: Any, send: Any) -> None:
        raise ZeroDivisionError

    network = FakeNetwork()
    network.join("beta.test", crash)
    with pytest.raises(ZeroDivisionError):
        await ask(network.wire_for("alpha.test"))


async def test_an_app_that_ends_early_is_an_error() -> None:
    async def half(scope: Scope, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    network = FakeNetwork()
    network.join("beta.test", half)
    assert await reason_of(network.wire_for("alpha.test")) == "protocol"
