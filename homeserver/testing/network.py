"""FakeNetwork: servers in one process, connected by wires that call each other's ASGI apps. No sockets.

All randomness comes from `seed`, and time is trio's: under a virtual clock a partition of an hour takes no time.

    network = FakeNetwork(latency_s=0.05)
    alpha = Homeserver(config_a, wire=network.wire_for("alpha.test"))
    network.join("alpha.test", alpha.app)
    network.cut("alpha.test", "beta.test")
    network.heal()
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Mapping, MutableMapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec
import trio
from msgspec.structs import replace

from homeserver.background import single_error
from homeserver.federation.identifiers import ServerName
from homeserver.federation.wire import WireError, WireRequest, WireResponse, WireStream
from homeserver.http.asgi import AsgiApp, Message


class Exchange(msgspec.Struct, frozen=True):
    """One attempted request, for tests that assert things about traffic. `status` is None if no response arrived."""

    origin: str
    destination: str
    method: str
    path: str
    status: int | None


class FakeNetwork:
    """Connects ASGI apps by server name. `latency_s` is one way; `loss` is the probability of losing an exchange.

    Half of the losses affect the request, so the server never sees it; half affect the response, after the server has
    done its work. `exchanges` records everything in order of completion.
    """

    def __init__(self, *, latency_s: float = 0.0, loss: float = 0.0, seed: int = 0) -> None:
        self.latency_s = latency_s
        self.loss = loss
        self.exchanges: list[Exchange] = []
        self._random = random.Random(seed)
        self._apps: dict[str, AsgiApp] = {}
        self._addresses: dict[str, str] = {}
        self._cuts: set[frozenset[str]] = set()
        self._down: set[str] = set()

    def join(self, server_name: str, asgi_app: AsgiApp) -> None:
        """Makes the app reachable under this name. A second call replaces it, as a restart does."""
        self._apps[server_name] = asgi_app
        self._down.discard(server_name)

    def leave(self, server_name: str) -> None:
        """Switches the server off until it joins again: pending responses are lost, new connections refused."""
        self._down.add(server_name)

    def wire_for(self, server_name: str) -> FakeWire:
        """Returns the wire that this server uses to reach the others. It need not have joined yet."""
        return FakeWire(self, server_name)

    def cut(self, a: str, b: str) -> None:
        """Separates two servers in both directions. Responses in transit are lost too."""
        self._cuts.add(frozenset((a, b)))

    def heal(self) -> None:
        """Ends all cuts."""
        self._cuts.clear()

    def is_cut(self, a: str, b: str) -> bool:
        """Returns whether the two servers are separated."""
        return frozenset((a, b)) in self._cuts

    def is_connected(self, origin: str, destination: str) -> bool:
        """Returns whether `origin` can reach `destination`: they are not separated, and `destination` is not off."""
        return not self.is_cut(origin, destination) and destination not in self._down

    def address_of(self, server_name: str) -> str:
        """Returns the address of this server as others see it: 198.51.100.1, .2, … in order of first use."""
        return self._addresses.setdefault(server_name, f"198.51.100.{len(self._addresses) + 1}")

    def app_for(self, origin: str, destination: str) -> AsgiApp:
        """Returns the app that a request reaches. Raises WireError if it reaches none."""
        if not self.is_connected(origin, destination):
            raise WireError(f"{destination} cannot be reached", "connect")
        app = self._apps.get(destination)
        if app is None:
            raise WireError(f"{destination} has not joined this network", "dns")
        return app

    def draw_loss(self) -> str | None:
        """Returns which part of the next exchange is lost: "request", "response" or None."""
        if self.loss <= 0 or self._random.random() >= self.loss:
            return None
        return self._random.choice(("request", "response"))


class FakeWire:
    """A `Wire` for one server of a `FakeNetwork`. URLs lead to the server that joined under their host name."""

    def __init__(self, network: FakeNetwork, server_name: str) -> None:
        self._network = network
        self._server_name = server_name

    @asynccontextmanager
    async def stream(
        self, destination: ServerName, request: WireRequest, *, timeout_s: float, max_bytes: int
    ) -> AsyncIterator[WireStream]:
        """See `Wire`."""
        network, origin = self._network, self._server_name
        exchange = _Exchange(network, origin, destination, timeout_s, max_bytes)
        lost = network.draw_loss()
        try:
            with trio.move_on_after(timeout_s) as travelling:
                await trio.sleep(network.latency_s)
            if travelling.cancelled_caught:
                raise WireError(f"{destination} did not answer within {timeout_s:g} s", "timeout")
            app = network.app_for(origin, destination)
            if lost == "request":
                raise WireError(f"the request to {destination} was lost", "connect")
            scope = _scope(request, destination, network.address_of(origin))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(exchange.serve, app, scope, request.body or b"")
                if lost == "response":
                    exchange.hang_up()
                    await exchange.served.wait()
                    raise WireError(f"the response of {destination} was lost", "protocol")
                yield await exchange.head()
                # The app may go on working after its response. It is cancelled only if the client gave up by raising.
                exchange.hang_up()
        except BaseExceptionGroup as group:
            raise single_error(group)  # noqa: B904  the group is only trio's wrapping
        finally:
            network.exchanges.append(Exchange(origin, destination, request.method, request.path, exchange.status))

    @asynccontextmanager
    async def stream_url(self, url: str, *, timeout_s: float, max_bytes: int) -> AsyncIterator[WireStream]:
        """See `Wire`. Does not follow redirects: servers in a fake network send none."""
        parts = urlsplit(url)
        if parts.scheme != "https":
            raise WireError("a URL must begin with https", "refused")
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        request = WireRequest("GET", path, {})
        async with self.stream(ServerName(parts.netloc), request, timeout_s=timeout_s, max_bytes=max_bytes) as response:
            yield response

    @asynccontextmanager
    async def stream_page(
        self, url: str, *, headers: Mapping[str, str], timeout_s: float, max_bytes: int
    ) -> AsyncIterator[WireStream]:
        """See `Wire`. Does not follow redirects either."""
        parts = urlsplit(url)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        request = WireRequest("GET", path, headers)
        async with self.stream(ServerName(parts.netloc), request, timeout_s=timeout_s, max_bytes=max_bytes) as response:
            yield replace(response, url=url)

    async def request_url(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: bytes | None = None,
        timeout_s: float,
        max_bytes: int,
    ) -> WireResponse:
        """See `Wire`."""
        if urlsplit(url).scheme != "https":
            raise WireError("a URL must begin with https", "refused")
        return await self.request_service(
            method, url, headers=headers, body=body, timeout_s=timeout_s, max_bytes=max_bytes
        )

    async def request_service(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: bytes | None = None,
        timeout_s: float,
        max_bytes: int,
    ) -> WireResponse:
        """See `Wire`."""
        parts = urlsplit(url)
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        request = WireRequest(method, path, headers, body)
        async with self.stream(ServerName(parts.netloc), request, timeout_s=timeout_s, max_bytes=max_bytes) as response:
            received = b"".join([chunk async for chunk in response.chunks])
            return WireResponse(response.status, response.headers, received)


class _Exchange:
    """One request and its response, on their way between two servers."""

    def __init__(
        self,
        network: FakeNetwork,
        origin: str,
        destination: str,
        timeout_s: float,
        max_bytes: int,
    ) -> None:
        self.status: int | None = None
        self.served = trio.Event()
        self._hung_up = trio.Event()
        self._network = network
        self._origin = origin
        self._destination = destination
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes
        self._to_client, self._from_server = trio.open_memory_channel[Message](16)

    async def serve(self, app: AsgiApp, scope: MutableMapping[str, Any], body: bytes) -> None:
        """Runs the app. Its exceptions are not hidden behind a 500: they reach the test."""
        pieces = [body[at : at + 65536] for at in range(0, len(body), 65536)] or [b""]

        async def receive() -> Message:
            await trio.lowlevel.checkpoint()
            if pieces:
                piece = pieces.pop(0)
                return {"type": "http.request", "body": piece, "more_body": bool(pieces)}
            await self._hung_up.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            try:
                await self._to_client.send(message)
            except trio.BrokenResourceError:  # the client is gone, which is not an error in ASGI
                await trio.lowlevel.checkpoint()

        try:
            async with self._to_client:
                await app(scope, receive, send)
        finally:
            self.served.set()

    def hang_up(self) -> None:
        """Notes that the client has read all it wanted."""
        self._hung_up.set()
        self._from_server.close()

    async def head(self) -> WireStream:
        """Returns the response once its head has arrived."""
        message = await self._next()
        await self._travel()
        assert message is not None and message["type"] == "http.response.start", message
        self.status = message["status"]
        headers: dict[str, str] = {}
        for raw_name, raw_value in message.get("headers", ()):
            name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        return WireStream(message["status"], headers, self._chunks())

    async def _chunks(self) -> AsyncIterator[bytes]:
        left_bytes = self._max_bytes
        while True:
            message = await self._next()
            if message is None:
                raise WireError("the response ended early", "protocol")
            assert message["type"] == "http.response.body", message
            chunk = bytes(message.get("body", b""))
            left_bytes -= len(chunk)
            if left_bytes < 0:
                raise WireError(f"the response is larger than {self._max_bytes} bytes", "too_large")
            if chunk:
                yield chunk
            if not message.get("more_body", False):
                return

    async def _next(self) -> Message | None:
        with trio.move_on_after(self._timeout_s):
            try:
                message = await self._from_server.receive()
            except trio.EndOfChannel:
                message = None
            self._check_connected()
            return message
        raise WireError(f"{self._destination} did not answer within {self._timeout_s:g} s", "timeout")

    async def _travel(self) -> None:
        await trio.sleep(self._network.latency_s)
        self._check_connected()

    def _check_connected(self) -> None:
        if not self._network.is_connected(self._origin, self._destination):
            raise WireError(f"the connection to {self._destination} broke", "protocol")


def _scope(request: WireRequest, destination: str, client_ip: str) -> dict[str, Any]:
    raw_path, _, query = request.path.partition("?")
    sent = [(b"host", destination.encode("ascii"))]
    sent += [(name.lower().encode("ascii"), value.encode("latin-1")) for name, value in request.headers.items()]
    if request.body is not None:
        sent.append((b"content-length", str(len(request.body)).encode("ascii")))
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": "https",
        "path": unquote(raw_path),
        "raw_path": raw_path.encode("ascii"),
        "query_string": query.encode("ascii"),
        "root_path": "",
        "headers": sent,
        "client": (client_ip, 40000),
        "server": (destination, 8448),
        "extensions": {},
    }
