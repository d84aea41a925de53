"""The wire to the world: discovery, TLS and HTTP together. Spec: server-server-api/#resolving-server-names"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
import trustme

from homeserver.federation.discovery import Address, SrvRecord
from homeserver.federation.identifiers import ServerName
from homeserver.federation.wire import WireError, WireRequest, WireResponse
from homeserver.federation.wire.internet import InternetWire, OutboundRules
from tests.federation.wire_server import Received, Reply, Site, World, always, few_authorities, headers_of
from tests.support.wires import send

__all__ = ["few_authorities"]
pytestmark = pytest.mark.usefixtures("few_authorities")

WEB_IP, MATRIX_IP = "9.9.9.1", "9.9.9.2"
OK = always(Reply(200, [("Content-Type", "application/json")], b"{}"))


def delegating(body: str, *, headers: Sequence[tuple[str, str]] = (), status: int = 200, pause_s: float = 0.0):
    return always(Reply(status, headers, body.encode(), pause_s=pause_s))


@dataclass
class Setting:
    world: World
    ca: trustme.CA
    wire: InternetWire

    def serve(self, ip: str, port: int, certified: str, *hostnames: str, handler=OK) -> Site:
        return self.world.add(ip, port, Site(handler, self.ca.issue_cert(certified)), *hostnames)

    async def get(self, destination: str, path: str = "/_matrix/x", **options: Any) -> WireResponse:
        request = WireRequest("GET", path, options.pop("headers", {}))
        return await send(self.wire, destination, request, **options)

    async def reason_of(self, destination: str, **options: Any) -> str:
        with pytest.raises(WireError) as caught:
            await self.get(destination, **options)
        return caught.value.reason


@asynccontextmanager
async def setting(tmp_path: Path, *, allow_private_addresses: bool = False) -> AsyncIterator[Setting]:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    async with trio.open_nursery() as nursery:
        world = World(nursery)
        wire = InternetWire(
            str(tmp_path / "ca.pem"),
            True,
            allow_private_addresses,
            resolver=world,
            connect_tcp=world.connect_tcp,
            below=lambda n: 0,
            outbound=OutboundRules(str(tmp_path / "ca.pem")),
        )
        yield Setting(world, ca, wire)
        await wire.aclose()
        nursery.cancel_scope.cancel()


async def test_an_ip_literal_is_connected_to_directly(tmp_path: Path) -> None:
    async with setting(tmp_path) as at:
        site = at.serve(MATRIX_IP, 8448, MATRIX_IP)
        assert (await at.get(MATRIX_IP)).body == b"{}"
        assert at.world.asked == []
        assert headers_of(site.received, "host") == [MATRIX_IP]
        assert site.received[0].sni is None


async def test_an_ipv6_literal_is_connected_to_directly(tmp_path: Path) -> None:
    async with setting(tmp_path) as at:
        site = at.serve("2620:fe::9", 99, "2620:fe::9")
        await at.get("[2620:fe::9]:99")
        assert headers_of(site.received, "host") == ["[2620:fe::9]:99"]


async def test_an_explicit_port_is_used(tmp_path: Path) -> None:
    async with setting(tmp_path) as at:
        site = at.serve(MATRIX_IP, 1234, "example.org", "example.org")
        await at.get("example.org:1234")
        assert headers_of(site.received, "host") == ["example.org:1234"]
        assert site.received[0].sni == "example.org"
        assert at.world.asked == ["example.org"]


async def test_a_delegated_name_with_a_port_is_used(tmp_path: Path) -> None:
    async with setting(tmp_path) as at:
        web = at.serve(WEB_IP, 443, "example.org", "example.org", handler=delegating('{"m.server": "m.example.org:7"}'))
        site = at.serve(MATRIX_IP, 7, "m.example.org", "m.example.org")
        await at.get("example.org")
        assert [request.target for request in web.received] == ["/.well-known/matrix/server"]
        assert web.received[0].headers == {"host": "example.org", "user-agent": "homeserver", "connection": "close"}
        assert headers_of(site.received, "host") == ["m.example.org:7"]
        assert site.received[0].sni == "m.example.org"


async def test_a_delegated_name_with_srv_records_is_used(tmp_path: Path) -> None:
    async with setting(tmp_path) as at:
        at.serve(WEB_IP, 443, "example.org", "example.org", handler=delegating('{"m.server": "m.example.org"}'))
        at.world.srv["_matrix-fed._tcp.m.example.org"] = [SrvRecord(1, 1, 5, "target.example.net")]
        site = at.serve(MATRIX_IP, 5, "m.example.org", "target.example.net")
        await at.get("example.org")
        assert headers_of(site.received, "host") == ["m.example.org"]


async def test_srv_records_are_used_without_well_known(tmp_path: Path) -> None:
    async with setting(tmp_path) as at:
        at.world.srv["_matrix._tcp.example.org"] = [SrvRecord(1, 1, 5, "target.example.net")]
        site = at.serve(MATRIX_IP, 5, "example.org", "target.example.net")
        await at.get("example.org")
        assert headers_of(site.received, "host") == ["example.org"]


async def test_a_bare_host_is_contacted_at_port_8448(tmp_path: Path) -> None:
    async with setting(tmp_path) as at:
        site = at.serve(MATRIX_IP, 8448, "example.org", "example.org")
        await at.get("example.org")
        assert headers_of(site.received, "host") == ["example.org"]
        assert at.world.connected == [Address(MATRIX_IP, 443), Address(MATRIX_IP, 8448)]


@pytest.mark.parametrize(
    "handler",
    [
        delegating('{"m.server": "m.example.org:7"}', status=404),
        delegating('{"m.server": '),
        delegating('{"m.server": "' + "a" * 60_000 + '"}'),
        always(Reply(raw=b"nonsense")),
    ],
)
async def test_a_malformed_well_known_counts_as_missing(tmp_path: Path, handler) -> None:
    async with setting(tmp_path) as at:
        at.serve(WEB_IP, 443, "example.org", "example.org", handler=handler)
        site = at.serve(WEB_IP, 8448, "example.org")
        await at.get("example.org")
        assert len(site.received) == 1


async def test_a_well_known_with_a_bad_certificate_counts_as_missing(tmp_path: Path) -> None:
    async with setting(tmp_path) as at:
        at.serve(WEB_IP, 443, "other.org", "example.org", handler=delegating('{"m.server": "evil.org"}'))
        site = at.serve(WEB_IP, 8448, "example.org")
        await at.get("example.org")
        assert len(site.received) == 1


async def test_well_known_redirects_are_followed(tmp_path: Path) -> None:
    async def handle(request: Received) -> Reply:
        if request.headers["host"] == "example.org":
            return Reply(301, [("Location", "https://www.example.org/.well-known/matrix/server")])
        return Reply(body=b'{"m.server": "m.example.org:7"}')

    async with setting(tmp_path) as at:
        at.serve(WEB_IP, 443, "example.org", "example.org", handler=handle)
        at.serve("9.9.9.3", 443, "www.example.org", "www.example.org", handler=handle)
        site = at.serve(MATRIX_IP, 7, "m.example.org", "m.example.org")
        await at.get("example.org")
        assert len(site.received) == 1


async def test_federation_redirects_are_not_followed(tmp_path: Path) -> None:
    async with setting(tmp_path) as at:
        at.serve(MATRIX_IP, 8448, MATRIX_IP, handler=always(Reply(302, [("Location", "https://9.9.9.9/")])))
        assert (await at.get(MATRIX_IP)).status == 302
        assert len(at.world.connected) == 1


async def test_well_known_is_cached_for_its_lifetime(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with setting(tmp_path) as at:
        answer = delegating('{"m.server": "m.example.org:7"}', headers=[("Cache-Control", "max-age=7200")])
        web = at.serve(WEB_IP, 443, "example.org", "example.org", handler=answer)
        site = at.serve(MATRIX_IP, 7, "m.example.org", "m.example.org")
        for _ in range(4):
            await at.get("example.org")
            await trio.sleep(3000)  # no connection is kept for that long
        assert (len(web.received), site.connections) == (2, 4)


async def test_one_well_known_request_serves_all_waiters(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with setting(tmp_path) as at:
        answer = delegating('{"m.server": "m.example.org:7"}', pause_s=1)
        web = at.serve(WEB_IP, 443, "example.org", "example.org", handler=answer)
        site = at.serve(MATRIX_IP, 7, "m.example.org", "m.example.org")
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(at.get, "example.org")
        assert (len(web.received), len(site.received)) == (1, 10)
        assert at.wire._well_known_locks == {}


async def test_a_silent_web_server_does_not_delay_every_request(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with setting(tmp_path) as at:
        at.world.addresses["example.org"] = [WEB_IP]

        async def connect(address: Address) -> trio.abc.Stream:
            if address.port == 443:
                await trio.sleep_forever()
            return await at.world.connect_tcp(address)

        at.wire._dialer._connect_tcp = connect
        at.serve(WEB_IP, 8448, "example.org")
        assert await at.reason_of("example.org", timeout_s=5) == "timeout"
        assert (await at.get("example.org", timeout_s=5)).status == 200


async def test_a_cancelled_request_does_not_mark_the_web_server_as_silent(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with setting(tmp_path) as at:
        answer = delegating('{"m.server": "m.example.org:7"}', pause_s=1)
        at.serve(WEB_IP, 443, "example.org", "example.org", handler=answer)
        site = at.serve(MATRIX_IP, 7, "m.example.org", "m.example.org")
        with trio.move_on_after(0.5):
            await at.get("example.org")
        await at.get("example.org")
        assert len(site.received) == 1


async def test_a_connection_is_kept_for_the_next_request(tmp_path: Path) -> None:
    async with setting(tmp_path) as at:
        site = at.serve(MATRIX_IP, 8448, MATRIX_IP)
        for number in range(3):
            await at.get(MATRIX_IP, f"/_matrix/{number}", headers={"Authorization": "X-Matrix"})
        assert site.connections == 1
        assert headers_of(site.received, "authorization") == ["X-Matrix"] * 3
        assert [request.target for request in site.received] == ["/_matrix/0", "/_matrix/1", "/_matrix/2"]


async def test_request_bodies_are_sent(tmp_path: Path) -> None:
    async with setting(tmp_path) as at:
        site = at.serve(MATRIX_IP, 8448, MATRIX_IP)
        body = b"x" * 200_000
        await send(at.wire, MATRIX_IP, WireRequest("PUT", "/send/1", {}, body))
        assert (site.received[0].method, site.received[0].body) == ("PUT", body)


async def test_the_guard_refuses_private_addresses(tmp_path: Path) -> None:
    async with setting(tmp_path) as at:
        at.world.addresses["inside.example.org"] = ["10.0.0.1", "fd00::1"]
        assert await at.reason_of("127.0.0.1") == "refused"
        assert await at.reason_of("[::1]:8448") == "refused"
        assert await at.reason_of("inside.example.org:8448") == "refused"
        assert at.world.connected == []


async def test_the_guard_can_be_configured_to_allow_addresses(tmp_path: Path) -> None:
    async with setting(tmp_path, allow_private_addresses=True) as at:
        at.serve("10.0.0.1", 8448, "inside.example.org", "inside.example.org")
        assert (await at.get("inside.example.org:8448")).status == 200


async def test_failures_have_reasons(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with setting(tmp_path) as at:
        assert await at.reason_of("nowhere.org") == "discovery"
        assert await at.reason_of("nowhere.org:0") == "discovery"
        assert await at.reason_of(f"{WEB_IP}:1") == "connect"
        at.serve(WEB_IP, 8448, "other.org", "example.org")
        assert await at.reason_of("example.org:8448") == "tls"
        at.world.black_holes.add("9.9.9.8")
        assert await at.reason_of("9.9.9.8", timeout_s=3) == "timeout"
        at.serve(MATRIX_IP, 8448, MATRIX_IP, handler=always(Reply(body=b"x" * 1001)))
        assert await at.reason_of(MATRIX_IP) == "too_large"
        at.serve(MATRIX_IP, 8448, MATRIX_IP, handler=always(Reply(raw=b"")))
        assert await at.reason_of(MATRIX_IP) == "protocol"
        at.serve(MATRIX_IP, 8448, MATRIX_IP, handler=always(Reply(pause_s=100)))
        assert await at.reason_of(MATRIX_IP, timeout_s=3) == "timeout"


async def test_media_are_streamed_in_chunks(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with setting(tmp_path) as at:
        site = at.serve(MATRIX_IP, 8448, MATRIX_IP, handler=always(Reply(chunks=[b"a", b"b"], pause_s=2)))
        media = WireRequest("GET", "/media", {})
        for _ in range(2):
            async with at.wire.stream(ServerName(MATRIX_IP), media, timeout_s=3, max_bytes=10) as response:
                assert (response.status, [chunk async for chunk in response.chunks]) == (200, [b"a", b"b"])
        assert site.connections == 1
        with pytest.raises(WireError) as caught:
            async with at.wire.stream(ServerName(MATRIX_IP), media, timeout_s=1, max_bytes=10):
                raise AssertionError("no head can have come")
        assert caught.value.reason == "timeout"


async def test_media_may_be_redirected_elsewhere(tmp_path: Path) -> None:
    async with setting(tmp_path) as at:
        site = at.serve(WEB_IP, 443, "cdn.org", "cdn.org", handler=always(Reply(body=b"picture")))
        async with at.wire.stream_url("https://cdn.org/a?b", timeout_s=3, max_bytes=10) as response:
            assert b"".join([chunk async for chunk in response.chunks]) == b"picture"
        assert (site.received[0].target, site.received[0].headers["user-agent"]) == ("/a?b", "homeserver")
        with pytest.raises(WireError) as caught:
            async with at.wire.stream_url("https://127.0.0.1/", timeout_s=3, max_bytes=10):
                raise AssertionError("the guard has slept")
        assert caught.value.reason == "refused"


async def test_urls_of_other_services_are_requested(tmp_path: Path) -> None:
    async with setting(tmp_path) as at:
        site = at.serve(WEB_IP, 443, "push.org", "push.org", handler=always(Reply(body=b"{}")))
        headers = {"content-type": "application/json"}
        response = await at.wire.request_url(
            "POST", "https://push.org/notify", headers=headers, body=b"[1]", timeout_s=3, max_bytes=10
        )
        assert (response.status, response.body) == (200, b"{}")
        (request,) = site.received
        assert (request.method, request.target, request.body) == ("POST", "/notify", b"[1]")
        assert request.headers.items() >= {**headers, "user-agent": "homeserver"}.items()


@pytest.mark.sockets
async def test_requests_work_over_real_sockets(tmp_path: Path) -> None:
    """The whole way with nothing replaced: TCP, TLS, and a server that restarts."""
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    wire = InternetWire(str(tmp_path / "ca.pem"), True, True)
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    destination = ServerName(f"127.0.0.1:{listeners[0].socket.getsockname()[1]}")
    site = Site(always(Reply(body=b"x" * 100_000)), ca.issue_cert("127.0.0.1"))

    async def put() -> None:
        request = WireRequest("PUT", "/_matrix/x", {}, b"y" * 100_000)
        answer = await send(wire, destination, request, timeout_s=10, max_bytes=100_000)
        assert (answer.status, answer.body) == (200, b"x" * 100_000)

    async with trio.open_nursery() as server:
        server.start_soon(trio.serve_listeners, site.serve, listeners)
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(put)
        connections = site.connections
        for _ in range(5):
            await put()
        assert site.connections == connections <= 8
        server.cancel_scope.cancel()
    with pytest.raises(WireError) as caught:
        await put()
    assert caught.value.reason == "connect"

    listeners = await trio.open_tcp_listeners(int(destination.rpartition(":")[2]), host="127.0.0.1")
    async with trio.open_nursery() as server:
        server.start_soon(trio.serve_listeners, site.serve, listeners)
        await put()
        server.cancel_scope.cancel()
    await wire.aclose()
