"""The HTTP client for URLs: redirects, limits, and what it refuses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
import trio.testing
import trustme

from homeserver.federation.wire import WireError, WireResponse
from homeserver.federation.wire.client import HttpClient, Origin, parse_url
from homeserver.federation.wire.dial import Dialer
from tests.federation.wire_server import Received, Reply, Site, World, always

IP, OTHER_IP = "9.9.9.1", "9.9.9.2"
HTTP_TOO = ("https", "http")


@dataclass
class Setting:
    world: World
    client: HttpClient
    site: Site
    other: Site

    async def get(self, url: str, **options: object) -> WireResponse:
        arguments = {"headers": {}, "timeout_s": 5, "max_bytes": 1000, "redirects_max": 3} | options
        return await self.client.request("GET", url, **arguments)  # type: ignore[arg-type]


@asynccontextmanager
async def setting(tmp_path: Path) -> AsyncIterator[Setting]:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    async with trio.open_nursery() as nursery:
        world = World(nursery)
        site = world.add(IP, 443, Site(always(Reply(body=b"ok")), ca.issue_cert("example.org")), "example.org")
        other = world.add(OTHER_IP, 443, Site(always(Reply(body=b"other")), ca.issue_cert("other.org")), "other.org")
        client = HttpClient(Dialer(str(tmp_path / "ca.pem"), resolver=world, connect_tcp=world.connect_tcp))
        yield Setting(world, client, site, other)
        await client.aclose()
        nursery.cancel_scope.cancel()


def redirecting(locations: dict[str, tuple[int, str]]) -> Site:
    """A handler that redirects some targets and echoes the others."""

    async def handle(request: Received) -> Reply:
        if request.target in locations:
            status, location = locations[request.target]
            return Reply(status, [("Location", location)], b"moved")
        return Reply(body=request.target.encode())

    return handle  # type: ignore[return-value]


async def reason_of(run: object) -> str:
    with pytest.raises(WireError) as caught:
        await run  # type: ignore[misc]
    return caught.value.reason


async def test_a_request_gets_its_response(tmp_path: Path) -> None:
    async with setting(tmp_path) as at:
        answer = await at.client.request(
            "POST", "https://example.org/push?a=b", headers={"X": "y"}, body=b"{}", timeout_s=5, max_bytes=10
        )
        assert (answer.status, answer.body) == (200, b"ok")
        received = at.site.received[0]
        assert (received.method, received.target, received.body) == ("POST", "/push?a=b", b"{}")
        assert received.headers["host"] == "example.org"
        assert received.sni == "example.org"
        await at.get("https://EXAMPLE.org:443")
        assert at.site.connections == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_followed(tmp_path: Path, status: int) -> None:
    async with setting(tmp_path) as at:
        at.site.handler = redirecting({"/a": (status, "/b?c"), "/b?c": (status, "https://other.org/d")})
        assert (await at.get("https://example.org/a")).body == b"other"
        assert at.other.received[0].target == "/d"


async def test_secrets_do_not_follow_to_other_places(tmp_path: Path) -> None:
    async with setting(tmp_path) as at:
        at.site.handler = redirecting({"/a": (302, "/b"), "/b": (302, "https://other.org/")})
        await at.get("https://example.org/a", headers={"Authorization": "secret", "Cookie": "c", "X": "y"})
        assert at.site.received[1].headers["authorization"] == "secret"
        assert set(at.other.received[0].headers) == {"host", "x"}


async def test_the_number_of_redirects_is_limited(tmp_path: Path) -> None:
    async with setting(tmp_path) as at:
        at.site.handler = redirecting({"/a": (302, "/b"), "/b": (302, "/a")})
        assert await reason_of(at.get("https://example.org/a")) == "protocol"
        assert len(at.site.received) == 4


async def test_redirects_are_not_followed_unless_asked(tmp_path: Path) -> None:
    async with setting(tmp_path) as at:
        at.site.handler = redirecting({"/a": (302, "/b")})
        assert (await at.get("https://example.org/a", redirects_max=0)).status == 302
        posted = await at.client.request(
            "POST", "https://example.org/a", headers={}, body=b"", timeout_s=5, max_bytes=10, redirects_max=3
        )
        assert posted.status == 302


async def test_a_redirect_without_a_location_is_an_ordinary_response(tmp_path: Path) -> None:
    async with setting(tmp_path) as at:
        at.site.handler = always(Reply(304))
        assert (await at.get("https://example.org/a")).status == 304
        at.site.handler = always(Reply(302))
        assert (await at.get("https://example.org/a")).status == 302


@pytest.mark.parametrize(
    "location",
    ["http://example.org/", "http://169.254.169.254/", "file:///etc/passwd", "https://user@other.org/", "https://["],
)
async def test_redirects_to_forbidden_places_are_refused(tmp_path: Path, location: str) -> None:
    async with setting(tmp_path) as at:
        at.site.handler = redirecting({"/a": (302, location)})
        assert await reason_of(at.get("https://example.org/a")) == "refused"


async def test_the_guard_applies_to_redirects(tmp_path: Path) -> None:
    async with setting(tmp_path) as at:
        at.site.handler = redirecting({"/a": (302, "https://127.0.0.1/"), "/b": (302, "https://inside.example.org/")})
        at.world.addresses["inside.example.org"] = ["10.0.0.1"]
        assert await reason_of(at.get("https://example.org/a")) == "refused"
        assert await reason_of(at.get("https://example.org/b")) == "refused"
        assert {address.ip for address in at.world.connected} == {IP}


async def test_plain_http_is_used_only_on_request(tmp_path: Path) -> None:
    async with setting(tmp_path) as at:
        at.world.add(IP, 80, Site(always(Reply(body=b"plain"))))
        assert await reason_of(at.get("http://example.org/")) == "refused"
        assert (await at.get("http://example.org/", schemes=HTTP_TOO)).body == b"plain"


async def test_failures_have_reasons(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with setting(tmp_path) as at:
        assert await reason_of(at.get("https://nowhere.org/")) == "dns"
        assert await reason_of(at.get("https://example.org:81/")) == "connect"
        at.world.addresses["wrong.org"] = [IP]
        assert await reason_of(at.get("https://wrong.org/")) == "tls"
        assert await reason_of(at.get("https://example.org/", max_bytes=1)) == "too_large"
        at.site.handler = always(Reply(pause_s=100))
        began_s = trio.current_time()
        assert await reason_of(at.get("https://example.org/")) == "timeout"
        assert trio.current_time() - began_s == 5


async def test_bodies_are_streamed_in_chunks(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with setting(tmp_path) as at:
        at.site.handler = always(Reply(chunks=[b"a", b"b", b"c"], pause_s=3))
        for _ in range(2):
            stream = at.client.stream("https://example.org/", headers={}, timeout_s=5, max_bytes=1000)
            async with stream as response:
                assert response.status == 200
                assert b"".join([chunk async for chunk in response.chunks]) == b"abc"
                assert [chunk async for chunk in response.chunks] == []
        assert at.site.connections == 1


async def test_streams_are_limited_in_size(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async def read(**options: object) -> bytes:
        arguments = {"headers": {}, "timeout_s": 5, "max_bytes": 1000} | options
        async with at.client.stream("https://example.org/", **arguments) as response:  # type: ignore[arg-type]
            return b"".join([chunk async for chunk in response.chunks])

    async with setting(tmp_path) as at:
        at.site.handler = always(Reply(chunks=[b"a" * 600, b"b" * 600]))
        assert await reason_of(read()) == "too_large"
        at.site.handler = always(Reply(body=b"a" * 1001))
        assert await reason_of(read()) == "too_large"
        at.site.handler = always(Reply(chunks=[b"a", b"b"], pause_s=20))
        assert await reason_of(read()) == "timeout"
        assert len(await read(timeout_s=30)) == 2
        at.site.handler = always(Reply(chunks=[b"a", b"b"], chunk_pause_s=20))
        assert await reason_of(read(timeout_s=10)) == "timeout"
        assert len(await read(timeout_s=30)) == 2


async def test_a_dripping_stream_is_abandoned(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async def read() -> int:
        async with at.client.stream("https://example.org/", headers={}, timeout_s=5, max_bytes=1 << 20) as response:
            return sum([len(chunk) async for chunk in response.chunks])

    async with setting(tmp_path) as at:
        at.site.handler = always(Reply(chunks=[b"a"] * 100, chunk_pause_s=4))
        assert await reason_of(read()) == "timeout"
        assert trio.current_time() < 30
        at.site.handler = always(Reply(chunks=[b"a" * 200_000] * 5, chunk_pause_s=4))
        assert await read() == 1_000_000


async def test_leaving_a_stream_early_closes_its_connection(tmp_path: Path) -> None:
    async with setting(tmp_path) as at:
        at.site.handler = always(Reply(chunks=[b"a", b"b", b"c"], pause_s=0.01))
        async with at.client.stream("https://example.org/", headers={}, timeout_s=5, max_bytes=9) as response:
            assert await anext(response.chunks) == b"a"
        at.site.handler = always(Reply(body=b"whole"))
        assert (await at.get("https://example.org/")).body == b"whole"
        assert at.site.connections == 2


@pytest.mark.parametrize(
    ("url", "origin", "target"),
    [
        ("https://example.org", Origin("https", "example.org", 443), "/"),
        ("HTTPS://Example.ORG:8443/a/b?c=d#e", Origin("https", "example.org", 8443), "/a/b?c=d"),
        ("http://example.org/", Origin("http", "example.org", 80), "/"),
        ("https://[2620:fe::9]:99/a%20b", Origin("https", "[2620:fe::9]", 99), "/a%20b"),
        ("https://example.org/ä b?q=ü", Origin("https", "example.org", 443), "/%C3%A4%20b?q=%C3%BC"),
        ("https://bücher.example/", Origin("https", "xn--bcher-kva.example", 443), "/"),
    ],
)
def test_urls_are_parsed(url: str, origin: Origin, target: str) -> None:
    assert parse_url(url, HTTP_TOO) == (origin, target)


def test_host_headers_contain_only_nonstandard_ports() -> None:
    assert Origin("https", "a.org", 443).host_header == "a.org"
    assert Origin("https", "a.org", 80).host_header == "a.org:80"
    assert Origin("http", "[::1]", 8080).host_header == "[::1]:8080"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.org",
        "//example.org/",
        "https:///path",
        "https://",
        "https://:443/",
        "https://example.org:99999/",
        "https://example.org:0/",
        "https://example.org:port/",
        "https://user:password@example.org/",
        "https://@example.org/",
        "https://[::1/",
        "https://" + "ü" * 70 + ".org/",
        "ftp://example.org/",
        "gopher://example.org/",
    ],
)
def test_malformed_urls_are_refused(url: str) -> None:
    with pytest.raises(WireError) as caught:
        parse_url(url, (*HTTP_TOO, "ftp"))
    assert caught.value.reason == "refused"
