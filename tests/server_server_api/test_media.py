"""Spec: server-server-api/#content-repository"""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from PIL import Image
from trio.testing import MockClock

from homeserver import Config, Homeserver, limits
from homeserver.authenticate import AccountFlags, store_account_flags
from homeserver.features import media
from homeserver.features.media import cleanup, storage
from homeserver.federation.identifiers import ServerName
from homeserver.federation.request_auth import build_authorization
from homeserver.federation.signing import SigningKey
from homeserver.testing import FakeNetwork
from tests.media import images
from tests.media.servers import V1, V3, server_with_media, upload
from tests.support.clock import let_days_pass
from tests.support.homeservers import Client, Server

FEDERATION = "/_matrix/federation/v1/media"
PURGE = "/_synapse/admin/v1/purge_media_cache"


@dataclass
class World:
    """Alice is on alpha, Bob is on beta."""

    network: FakeNetwork
    alpha: Server
    beta: Server
    alice: Client
    bob: Client

    def paths(self, destination: str = "beta.example") -> list[str]:
        return [each.path.partition("?")[0] for each in self.network.exchanges if each.destination == destination]


@asynccontextmanager
async def two_servers(folder: Path, **blobs: Any) -> AsyncIterator[World]:
    network = FakeNetwork()
    async with AsyncExitStack() as stack:
        servers = []
        for name in ("alpha.example", "beta.example"):
            server = await stack.enter_async_context(
                server_with_media(
                    folder, name, wire=network.wire_for(name), **(blobs if name == "alpha.example" else {})
                )
            )
            network.join(name, server.app)
            servers.append(server)
        alpha, beta = servers
        yield World(network, alpha, beta, await alpha.register("alice"), await beta.register("bob"))


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with two_servers(tmp_path) as world:
        yield world


async def blob_keys(server: Server) -> list[str]:
    return sorted([key async for key, _ in server.hs.blobs.list("media")])


async def signed_get(world: World, path: str, origin: str = "alpha.example") -> httpx.Response:
    """A request to beta as another server makes it."""
    key = SigningKey("test", origin.encode().ljust(32, b"\0")[:32])
    header = build_authorization("GET", path, ServerName(origin), ServerName("beta.example"), key, None)
    return await world.beta.http.get(path, headers={"authorization": header})


# --- between two of ours ---


@pytest.mark.parametrize("size", [0, 5, limits.MEDIA_CHUNK_BYTES + 1, 2_000_000])
async def test_remote_media_can_be_downloaded(world: World, size: int) -> None:
    data = bytes(index % 253 for index in range(size))
    place = await upload(world.bob, data, "image/png", "Käse.png")
    for _ in range(2):
        response = await world.alice.get(f"{V1}/download/{place}")
        assert response.status_code == 200 and response.content == data
        assert response.headers["content-type"] == "image/png"
        assert response.headers["content-disposition"] == "inline; filename*=utf-8''K%C3%A4se.png"
    media_id = place.partition("/")[2]
    assert world.paths() == [f"{FEDERATION}/download/{media_id}"]
    assert await world.alice.server.anonymous.refused("GET", f"{V3}/download/{place}") == (404, "M_NOT_FOUND")
    assert await media.download(world.alpha.hs, f"mxc://{place}") == ("image/png", data)


async def test_a_filename_is_optional(world: World) -> None:
    response = await world.alice.get(f"{V1}/download/{await upload(world.bob, b'x', None)}")
    assert response.headers["content-disposition"] == "attachment"
    assert response.headers["content-type"] == "application/octet-stream"


async def test_thumbnails_of_remote_media_can_be_downloaded(world: World) -> None:
    place = await upload(world.bob, images.encoded(images.gradient(1000, 500), "PNG"), "image/png")
    for _ in range(2):
        response = await world.alice.get(f"{V1}/thumbnail/{place}?width=96&height=96&method=crop")
        assert Image.open(io.BytesIO(response.content)).size == (96, 96)
    assert len(world.paths()) == 1
    place = await upload(world.bob, images.png_claim(60_000, 60_000), "image/png")
    assert await world.alice.refused("GET", f"{V1}/thumbnail/{place}?width=9&height=9") == (502, "M_TOO_LARGE")
    place = await upload(world.bob, b"x", "image/png")
    assert await world.alice.refused("GET", f"{V1}/thumbnail/{place}?width=9&height=9") == (400, "M_UNKNOWN")


async def test_simultaneous_requests_fetch_a_remote_file_once(world: World) -> None:
    place = await upload(world.bob, b"x" * 1_000_000)
    world.network.latency_s = 0.05
    sizes: list[int] = []

    async def fetch() -> None:
        sizes.append(len((await world.alice.get(f"{V1}/download/{place}")).content))

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(fetch)
    assert sizes == [1_000_000] * 10
    assert len(world.paths()) == 1


async def test_a_disconnecting_client_does_not_end_the_fetch(world: World) -> None:
    place = await upload(world.bob, b"x")
    world.network.latency_s = 0.05
    with trio.move_on_after(0.01):
        await media.download(world.alpha.hs, f"mxc://{place}")
    await trio.sleep(0.5)
    world.network.leave("beta.example")
    assert (await world.alice.get(f"{V1}/download/{place}")).content == b"x"
    assert len(world.paths()) == 1


async def test_unknown_unreachable_and_pending_media_have_their_own_errors(
    world: World, autojump_clock: MockClock
) -> None:
    assert await world.alice.refused("GET", f"{V1}/download/beta.example/unknown") == (404, "M_NOT_FOUND")
    assert await world.alice.refused("GET", f"{V1}/download/nowhere.example/x") == (502, "M_UNKNOWN")
    created = await world.bob.ok("POST", "/_matrix/media/v1/create")
    place = created["content_uri"].removeprefix("mxc://")
    began = trio.current_time()
    answer = await world.alice.refused("GET", f"{V1}/download/{place}?timeout_ms=7000")
    assert answer == (504, "M_NOT_YET_UPLOADED")
    assert trio.current_time() - began == pytest.approx(7, abs=0.5)
    async with trio.open_nursery() as nursery:

        async def upload_later() -> None:
            await trio.sleep(2)
            await world.bob.ok("PUT", f"{V3}/upload/{place}", content=b"at last")

        nursery.start_soon(upload_later)
        assert (await world.alice.get(f"{V1}/download/{place}")).content == b"at last"


async def test_a_server_that_was_down_is_asked_again(world: World, autojump_clock: MockClock) -> None:
    place = await upload(world.bob, b"x")
    world.network.cut("alpha.example", "beta.example")
    assert await world.alice.refused("GET", f"{V1}/download/{place}") == (502, "M_UNKNOWN")
    world.network.heal()
    asked = len(world.paths())
    assert await world.alice.refused("GET", f"{V1}/download/{place}") == (502, "M_UNKNOWN")
    assert len(world.paths()) == asked  # it is left alone for a while
    await trio.sleep(2 * limits.peers.RETRY_MS / 1000)
    assert (await world.alice.get(f"{V1}/download/{place}")).content == b"x"


async def test_oversized_remote_media_are_refused(tmp_path: Path) -> None:
    async with two_servers(tmp_path, upload_bytes_max=1000) as world:
        for size in (1001, 1_000_000):
            place = await upload(world.bob, b"x" * size)
            assert await world.alice.refused("GET", f"{V1}/download/{place}") == (502, "M_TOO_LARGE")
        assert await blob_keys(world.alpha) == []
        place = await upload(world.bob, b"x" * 1000)
        assert len((await world.alice.get(f"{V1}/download/{place}")).content) == 1000


async def test_unused_remote_files_are_deleted(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with two_servers(tmp_path, remote_bytes_max=2000) as world:
        own = await upload(world.alice, b"o" * 1000)
        places = []
        for number in range(5):
            places.append(await upload(world.bob, b"%d" % number * 1000))
            await world.alice.get(f"{V1}/download/{places[-1]}")
            await trio.sleep(10)
        await trio.sleep(2 * limits.MEDIA_USED_INTERVAL_MS / 1000)
        await world.alice.get(f"{V1}/download/{places[0]}")
        await trio.sleep(1)
        await cleanup.clean_up(world.alpha.hs)
        assert len(await blob_keys(world.alpha)) == 3
        before = len(world.paths())
        for place in (own, places[0], places[4]):
            assert (await world.alice.get(f"{V1}/download/{place}")).status_code == 200
        assert len(world.paths()) == before
        assert (await world.alice.get(f"{V1}/download/{places[1]}")).content == b"1" * 1000
        assert len(world.paths()) == before + 1


# --- what other servers get from us ---


async def test_the_answer_is_multipart_with_two_parts(world: World) -> None:
    place = await upload(world.bob, b"hello", "text/plain", "a b.txt")
    response = await signed_get(world, f"{FEDERATION}/download/{place.partition('/')[2]}")
    assert response.status_code == 200
    kind, _, boundary = response.headers["content-type"].partition("; boundary=")
    assert kind == "multipart/mixed"
    assert response.content.decode() == (
        f"--{boundary}\r\nContent-Type: application/json\r\n\r\n{{}}\r\n--{boundary}\r\nContent-Type: text/plain\r\n"
        f'Content-Disposition: inline; filename="a b.txt"\r\n\r\nhello\r\n--{boundary}--\r\n'
    )


async def test_a_long_answer_has_a_content_length(world: World) -> None:
    place = await upload(world.bob, b"x" * 2_000_000)
    response = await signed_get(world, f"{FEDERATION}/download/{place.partition('/')[2]}")
    assert response.headers["content-length"] == str(len(response.content))


async def test_thumbnails_are_served_to_other_servers(world: World) -> None:
    place = await upload(world.bob, images.encoded(images.gradient(400, 400), "PNG"), "image/png")
    path = f"{FEDERATION}/thumbnail/{place.partition('/')[2]}"
    response = await signed_get(world, f"{path}?width=32&height=32&method=crop")
    part = response.content.split(b"\r\n\r\n", 2)[2]
    assert Image.open(io.BytesIO(part)).size == (32, 32)
    assert (
        b"\r\nContent-Type: image/jpeg\r\nContent-Disposition: inline; filename=thumbnail.jpg\r\n" in response.content
    )
    assert (await signed_get(world, path)).status_code == 400
    assert (await signed_get(world, f"{FEDERATION}/thumbnail/unknown?width=1&height=1")).status_code == 404


async def test_only_our_own_media_are_served_and_only_to_signed_requests(world: World) -> None:
    place = await upload(world.alice, b"alpha's")
    await world.bob.get(f"{V1}/download/{place}")
    media_id = place.partition("/")[2]
    response = await signed_get(world, f"{FEDERATION}/download/{media_id}")
    assert response.status_code == 404 and response.json()["errcode"] == "M_NOT_FOUND"
    for path in (f"{FEDERATION}/download/{media_id}", f"{FEDERATION}/thumbnail/{media_id}?width=1&height=1"):
        assert (await world.beta.http.get(path)).status_code == 401
    created = await world.bob.ok("POST", "/_matrix/media/v1/create")
    pending = created["content_uri"].rpartition("/")[2]
    response = await signed_get(world, f"{FEDERATION}/download/{pending}?timeout_ms=0")
    assert response.status_code == 504 and response.json()["errcode"] == "M_NOT_YET_UPLOADED"


# --- servers of other kinds ---

Answer = tuple[int, dict[str, str], bytes]


def app_that(answer: Callable[[str, str], Answer]) -> Callable[..., Awaitable[None]]:
    """An ASGI application: answer(path, query) gives status, headers and body, sent in pieces."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        status, headers, body = answer(scope["path"], scope["query_string"].decode())
        sent = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": sent})
        for at in range(0, len(body), 1000):
            await send({"type": "http.response.body", "body": body[at : at + 1000], "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    return app


UNRECOGNIZED: Answer = (404, {"content-type": "application/json"}, b'{"errcode":"M_UNRECOGNIZED","error":"?"}')


async def test_an_older_server_is_asked_at_the_deprecated_path(world: World) -> None:
    asked: list[tuple[str, str]] = []

    def answer(path: str, query: str) -> Answer:
        asked.append((path, query))
        if path.startswith("/_matrix/federation"):
            return UNRECOGNIZED
        return 200, {"content-type": "image/gif", "content-disposition": 'inline; filename="old.gif"'}, b"GIF" * 5000

    world.network.join("old.example", app_that(answer))
    response = await world.alice.get(f"{V1}/download/old.example/abc?timeout_ms=1234")
    assert response.content == b"GIF" * 5000
    assert response.headers["content-disposition"] == "inline; filename=old.gif"
    assert asked == [
        (f"{FEDERATION}/download/abc", "timeout_ms=1234"),
        (f"{V3}/download/old.example/abc", "allow_remote=false&timeout_ms=1234"),
    ]


@pytest.mark.parametrize(
    ("answer", "status", "errcode"),
    [
        ((404, {}, b'{"errcode":"M_NOT_FOUND"}'), 404, "M_NOT_FOUND"),
        ((404, {}, b"<html>not found</html>"), 404, "M_NOT_FOUND"),
        ((404, {}, b"\xff" * 200_000), 404, "M_NOT_FOUND"),
        ((502, {}, b'{"errcode":"M_TOO_LARGE"}'), 502, "M_TOO_LARGE"),
        ((504, {}, b'{"errcode":"M_NOT_YET_UPLOADED"}'), 504, "M_NOT_YET_UPLOADED"),
        ((504, {}, b"gateway"), 502, "M_UNKNOWN"),
        ((401, {}, b'{"errcode":"M_UNAUTHORIZED"}'), 502, "M_UNKNOWN"),
        ((429, {}, b'{"errcode":"M_LIMIT_EXCEEDED"}'), 502, "M_UNKNOWN"),
        ((500, {}, b'{"errcode":5}'), 502, "M_UNKNOWN"),
        ((200, {"content-type": "image/png"}, b"PNG"), 502, "M_UNKNOWN"),
        ((200, {}, b""), 502, "M_UNKNOWN"),
        ((200, {"content-type": "multipart/mixed; boundary=b"}, b"garbage"), 502, "M_UNKNOWN"),
        (
            (200, {"content-type": "multipart/mixed; boundary=b"},
             b"--b\r\nContent-Type: application/json\r\n\r\n{}\r\n--b\r\n\r\n" + b"x" * 500_000),
            502, "M_UNKNOWN",
        ),
        (
            (200, {"content-type": "multipart/mixed; boundary=b"},
             b"--b\r\nContent-Type: application/json\r\n\r\n{}\r\n--b\r\nLocation: http://cdn.example/x\r\n\r\n\r\n--b--"),
            502, "M_UNKNOWN",
        ),
    ],
)  # fmt: skip
async def test_malformed_media_answers_are_refused(world: World, answer: Answer, status: int, errcode: str) -> None:
    world.network.join("odd.example", app_that(lambda path, query: answer))
    assert await world.alice.refused("GET", f"{V1}/download/odd.example/abc") == (status, errcode)
    assert await blob_keys(world.alpha) == []
    assert await world.alpha.read(storage.find_media, ServerName("odd.example"), "abc") is None


async def test_media_missing_on_an_old_server_are_not_found(world: World) -> None:
    world.network.join("old.example", app_that(lambda path, query: UNRECOGNIZED))
    assert await world.alice.refused("GET", f"{V1}/download/old.example/abc") == (404, "M_NOT_FOUND")
    assert len(world.paths("old.example")) == 2


async def test_a_location_header_is_followed(world: World) -> None:
    body = (
        b"--b\r\nContent-Type: application/json\r\n\r\n{}\r\n"
        b"--b\r\nLocation: https://cdn.example/file?token=1\r\n\r\n\r\n--b--"
    )
    asked: list[str] = []

    def cdn(path: str, query: str) -> Answer:
        asked.append(f"{path}?{query}")
        return (
            200,
            {"content-type": "video/mp4", "content-disposition": "attachment; filename=film.mp4"},
            b"film" * 1000,
        )

    world.network.join("odd.example", app_that(lambda *_: (200, {"content-type": "multipart/mixed; boundary=b"}, body)))
    world.network.join("cdn.example", app_that(cdn))
    for _ in range(2):
        response = await world.alice.get(f"{V1}/download/odd.example/abc")
        assert response.content == b"film" * 1000
        assert response.headers["content-type"] == "video/mp4"
        assert response.headers["content-disposition"] == "inline; filename=film.mp4"
    assert asked == ["/file?token=1"]


async def test_unsafe_headers_of_remote_media_are_not_passed_on(world: World) -> None:
    body = (
        b"--b\r\nContent-Type: application/json\r\n\r\n{}\r\n--b\r\nContent-Type: text/html, image/png\r\n"
        b'Content-Disposition: inline; filename="x\\\r\n y"\r\nSet-Cookie: a=b\r\n\r\n<script>\r\n--b--'
    )
    headers = {"content-type": "multipart/mixed; boundary=b", "set-cookie": "c=d"}
    world.network.join("odd.example", app_that(lambda *_: (200, headers, body)))
    response = await world.alice.get(f"{V1}/download/odd.example/abc")
    assert response.content == b"<script>"
    assert response.headers["content-type"] == "application/octet-stream"
    assert response.headers["content-disposition"].startswith("attachment")
    assert "set-cookie" not in response.headers


async def test_without_federation_there_are_no_remote_media(tmp_path: Path) -> None:
    async with two_servers(tmp_path) as world:
        place = await upload(world.bob, b"x")
        config = world.alpha.hs.config
        off = type(config.federation)(enabled=False)
        world.alpha.hs.config = type(config)(server_name=config.server_name, data_dir=config.data_dir, federation=off)
        assert await world.alice.refused("GET", f"{V1}/download/{place}") == (404, "M_NOT_FOUND")
        assert world.paths() == []


async def test_media_travel_between_two_whole_servers(tmp_path: Path) -> None:
    """With the real check of signatures, and keys that are fetched."""
    network = FakeNetwork()
    async with AsyncExitStack() as stack:
        servers = []
        for name in ("alpha.example", "beta.example"):
            config = Config(server_name=name, data_dir=str(tmp_path / name))
            server = Homeserver(config, wire=network.wire_for(name), inline_database=True)
            servers.append(await stack.enter_async_context(server))
            network.join(name, server.app)
        alpha, beta = servers
        bob = await beta.register("bob")
        picture = images.encoded(images.gradient(300, 300), "PNG")
        uri = await media.upload(beta.resources, bob.user_id, picture, "image/png", "a.png")
        assert await media.download(alpha.resources, uri) == ("image/png", picture)


# --- quarantine ---


async def administrator(server: Server) -> Client:
    boss = await server.register("boss")
    await server.write(store_account_flags, boss.user_id, AccountFlags(is_admin=True))
    return boss


async def test_quarantined_files_are_not_served_to_other_servers(world: World) -> None:
    place, boss = await upload(world.bob, b"a file"), await administrator(world.beta)
    await boss.ok("POST", f"/_homeserver/admin/v1/media/quarantine/{place}")
    media_id = place.partition("/")[2]
    for path in (f"{FEDERATION}/download/{media_id}", f"{FEDERATION}/thumbnail/{media_id}?width=10&height=10"):
        assert (await signed_get(world, path)).status_code == 404
    assert await world.alice.refused("GET", f"{V1}/download/{place}") == (404, "M_NOT_FOUND")


@pytest.mark.parametrize("is_cached", [False, True])
async def test_quarantined_files_of_other_servers_are_not_fetched_again(world: World, is_cached: bool) -> None:
    place, boss = await upload(world.bob, b"a file"), await administrator(world.alpha)
    if is_cached:
        assert (await world.alice.get(f"{V1}/download/{place}")).content == b"a file"
    await boss.ok("POST", f"/_homeserver/admin/v1/media/quarantine/{place}")
    if is_cached:
        assert await boss.ok("POST", f"{PURGE}?before_ts=9007199254740991") == {"deleted": 1}
    before = len(world.network.exchanges)
    for path in (f"download/{place}", f"thumbnail/{place}?width=10&height=10"):
        assert await world.alice.refused("GET", f"{V1}/{path}") == (404, "M_NOT_FOUND")
    assert len(world.network.exchanges) == before
    await boss.ok("POST", f"/_homeserver/admin/v1/media/unquarantine/{place}")
    assert (await world.alice.get(f"{V1}/download/{place}")).content == b"a file"


async def test_content_in_quarantine_is_not_served_from_another_server(world: World) -> None:
    boss = await administrator(world.alpha)
    here = await upload(world.alice, b"a file")
    await boss.ok("POST", f"/_homeserver/admin/v1/media/quarantine/{here}")
    there = await upload(world.bob, b"a file")
    assert await world.alice.refused("GET", f"{V1}/download/{there}") == (404, "M_NOT_FOUND")
    await boss.ok("DELETE", f"/_homeserver/admin/v1/media/{there}")
    before = len(world.network.exchanges)
    assert await world.alice.refused("GET", f"{V1}/download/{there}") == (404, "M_NOT_FOUND")
    assert len(world.network.exchanges) == before


async def test_deleted_files_of_other_servers_are_fetched_again_on_demand(world: World) -> None:
    place, boss = await upload(world.bob, b"a file"), await administrator(world.alpha)
    await world.alice.get(f"{V1}/download/{place}")
    await boss.ok("DELETE", f"/_homeserver/admin/v1/media/{place}")
    assert (await world.alice.get(f"{V1}/download/{place}")).content == b"a file"
    assert len(world.paths()) == 2


async def test_remote_files_that_were_not_used_lately_can_be_purged(world: World, autojump_clock: MockClock) -> None:
    old = await upload(world.bob, b"old")
    await world.alice.get(f"{V1}/download/{old}")
    own, boss = await upload(world.alice, b"own"), await administrator(world.alpha)
    await trio.sleep(60)
    moment = world.alpha.hs.now_ms()
    await trio.sleep(60)
    await world.alice.get(f"{V1}/download/{await upload(world.bob, b'new')}")
    assert await boss.ok("POST", f"{PURGE}?before_ts={moment}") == {"deleted": 1}
    assert len(await blob_keys(world.alpha)) == 2
    assert (await world.alice.get(f"{V1}/download/{own}")).content == b"own"
    assert await boss.refused("POST", PURGE) == (400, "M_MISSING_PARAM")


async def test_remote_files_that_nobody_uses_for_days_are_fetched_again_on_demand(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with two_servers(tmp_path, remote_days_max=10) as world:
        unused, used = await upload(world.bob, b"unused"), await upload(world.bob, b"used")
        own = await upload(world.alice, b"own")
        for place in (unused, used):
            await world.alice.get(f"{V1}/download/{place}")
        for _ in range(4):
            await let_days_pass(3)
            await world.alice.get(f"{V1}/download/{used}")
        assert len(await blob_keys(world.alpha)) == 2
        assert len(world.paths()) == 2
        assert (await world.alice.get(f"{V1}/download/{own}")).content == b"own"
        assert (await world.alice.get(f"{V1}/download/{unused}")).content == b"unused"
        assert len(world.paths()) == 3
