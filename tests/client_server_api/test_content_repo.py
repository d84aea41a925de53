"""Spec: client-server-api/#content-repository"""

from __future__ import annotations

import hashlib
import io
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import trio
from PIL import Image
from trio.testing import MockClock

from homeserver import authenticate, limits
from homeserver.authenticate import AccountFlags
from homeserver.errors import MatrixError
from homeserver.features import media
from homeserver.features.media import cleanup, storage
from homeserver.features.media.receiving import new_blob_key, temporary_folder
from homeserver.features.media.serving import read_range
from homeserver.features.media.storage import Size
from homeserver.features.media.thumbnails import ThumbnailQuery, read_size
from homeserver.workers import WorkerFailed
from tests.media import images
from tests.media.servers import V1, V3, server_with_media, upload
from tests.support.homeservers import Client, Server


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with server_with_media(tmp_path) as server:
        yield server


@pytest.fixture
async def alice(server: Server) -> Client:
    return await server.register("alice")


@pytest.fixture
async def bob(server: Server) -> Client:
    return await server.register("bob")


async def blob_keys(server: Server) -> list[str]:
    return sorted([key async for key, _ in server.hs.blobs.list("media")])


# --- uploads and downloads ---


async def test_what_is_uploaded_can_be_downloaded(server: Server, alice: Client, bob: Client) -> None:
    answer = await alice.ok(
        "POST", f"{V3}/upload?filename=notes.txt", content=b"hello", headers={"content-type": "text/plain"}
    )
    uri = answer["content_uri"]
    assert uri.startswith("mxc://test.example/")
    response = await bob.get(f"{V1}/download/{uri[6:]}")
    assert response.status_code == 200
    assert response.content == b"hello"
    assert response.headers["content-type"] == "text/plain"
    assert response.headers["content-disposition"] == "inline; filename=notes.txt"
    assert response.headers["content-length"] == "5"
    assert response.headers["cross-origin-resource-policy"] == "cross-origin"
    assert response.headers["access-control-allow-origin"] == "*"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cache-control"] == "private, max-age=31536000, immutable"
    assert response.headers["content-security-policy"] == (
        "sandbox; default-src 'none'; script-src 'none'; plugin-types application/pdf;"
        " style-src 'unsafe-inline'; object-src 'self';"
    )


@pytest.mark.parametrize("size", [0, 1, limits.MEDIA_CHUNK_BYTES, limits.MEDIA_CHUNK_BYTES + 1, 3_000_000])
async def test_sizes(server: Server, alice: Client, size: int) -> None:
    data = (hashlib.sha256(b"x").digest() * (size // 32 + 1))[:size]
    place = await upload(alice, data)
    response = await alice.get(f"{V1}/download/{place}")
    assert response.content == data
    assert response.headers["content-length"] == str(size)
    head = await alice.request("HEAD", f"{V1}/download/{place}")
    assert head.status_code == 200 and head.content == b"" and head.headers["content-length"] == str(size)
    folder = temporary_folder(server.hs)
    assert not folder.exists() or list(folder.iterdir()) == []


async def test_the_type_defaults_and_the_filename_is_optional(alice: Client) -> None:
    response = await alice.get(f"{V1}/download/{await upload(alice, b'x', None)}")
    assert response.headers["content-type"] == "application/octet-stream"
    assert response.headers["content-disposition"] == "attachment"


async def test_a_page_cannot_run_here(alice: Client) -> None:
    response = await alice.get(f"{V1}/download/{await upload(alice, b'<script>', 'text/html', 'a.html')}")
    assert response.headers["content-type"] == "text/html"
    assert response.headers["content-disposition"] == "attachment; filename=a.html"
    assert response.headers["content-security-policy"].startswith("sandbox;")


async def test_filenames_of_the_path_and_of_the_upload(alice: Client) -> None:
    place = await upload(alice, b"x", "image/png", 'Käse "1".png')
    response = await alice.get(f"{V1}/download/{place}")
    assert response.headers["content-disposition"] == "inline; filename*=utf-8''K%C3%A4se%20%221%22.png"
    response = await alice.get(f"{V1}/download/{place}/other%20name.png")
    assert response.headers["content-disposition"] == 'inline; filename="other name.png"'
    response = await alice.get(f"{V1}/download/{place}/a%0D%0Ab")
    assert response.headers["content-disposition"] == "inline; filename*=utf-8''a%0D%0Ab"


async def test_an_impossible_filename_is_refused(alice: Client) -> None:
    for filename in ("a%00b", "x" * 2000):
        answer = await alice.refused("POST", f"{V3}/upload?filename={filename}", content=b"x")
        assert answer == (400, "M_INVALID_PARAM")


async def test_access_tokens_are_asked_for(server: Server, alice: Client) -> None:
    place = await upload(alice, b"x")
    for method, path in (
        ("POST", f"{V3}/upload"), ("POST", "/_matrix/media/v1/create"), ("PUT", f"{V3}/upload/{place}"),
        ("GET", f"{V1}/config"), ("GET", f"{V3}/config"), ("GET", f"{V1}/download/{place}"),
        ("GET", f"{V1}/download/{place}/name"), ("GET", f"{V1}/thumbnail/{place}?width=1&height=1"),
    ):  # fmt: skip
        assert await server.anonymous.refused(method, path) == (401, "M_MISSING_TOKEN")


async def test_guests_may_download_and_not_upload(server: Server, alice: Client) -> None:
    place = await upload(alice, b"x")
    guest = await server.register("guest")
    flags = AccountFlags(is_guest=True)
    await server.write(authenticate.store_account_flags, server.hs.token_cache, guest.user_id, flags)
    assert (await guest.get(f"{V1}/download/{place}")).status_code == 200
    for method, path in (
        ("POST", f"{V3}/upload"), ("POST", "/_matrix/media/v1/create"), ("PUT", f"{V3}/upload/{place}"),
        ("GET", f"{V1}/config"),
    ):  # fmt: skip
        assert await guest.refused(method, path) == (403, "M_GUEST_ACCESS_FORBIDDEN")


async def test_who_is_suspended_may_not_upload(server: Server, alice: Client) -> None:
    flags = AccountFlags(is_suspended=True)
    await server.write(authenticate.store_account_flags, server.hs.token_cache, alice.user_id, flags)
    assert await alice.refused("POST", f"{V3}/upload", content=b"x") == (403, "M_USER_SUSPENDED")
    assert await alice.refused("POST", "/_matrix/media/v1/create") == (403, "M_USER_SUSPENDED")


async def test_unknown_media(alice: Client) -> None:
    for place in (
        "test.example/unknown", "test.example/..%2F..%2Fetc%2Fpasswd", "test.example/a.b", "test.example/%C3%A4",
        "test.example/" + "a" * 300, "test.example/a%00",
    ):  # fmt: skip
        status, _ = await alice.refused("GET", f"{V1}/download/{place}")
        assert status in (400, 404)
        status, _ = await alice.refused("GET", f"{V1}/thumbnail/{place}?width=10&height=10")
        assert status in (400, 404)
    assert await alice.refused("GET", f"{V1}/download/..%2F..%2Fetc/passwd") == (400, "M_INVALID_PARAM")


async def test_config(tmp_path: Path) -> None:
    async with server_with_media(tmp_path, upload_bytes_max=1000) as server:
        alice = await server.register("alice")
        for path in (f"{V1}/config", f"{V3}/config"):
            assert await alice.ok("GET", path) == {"m.upload.size": 1000}
        await upload(alice, b"x" * 1000)
        assert await alice.refused("POST", f"{V3}/upload", content=b"x" * 1001) == (413, "M_TOO_LARGE")

        async def chunks() -> AsyncIterator[bytes]:  # sent without Content-Length
            for _ in range(11):
                yield b"x" * 100

        assert await alice.refused("POST", f"{V3}/upload", content=chunks()) == (413, "M_TOO_LARGE")
        created = await alice.ok("POST", "/_matrix/media/v1/create")
        path = f"{V3}/upload/{created['content_uri'][6:]}"
        assert await alice.refused("PUT", path, content=b"x" * 1001) == (413, "M_TOO_LARGE")
        assert await alice.ok("PUT", path, content=b"x" * 1000) == {}
        with pytest.raises(MatrixError, match="M_TOO_LARGE"):
            await media.upload(server.hs, alice.user_id, b"x" * 1001, "text/plain")


async def test_a_large_upload_that_breaks_off_leaves_nothing(server: Server, alice: Client) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"x" * (limits.MEDIA_CHUNK_BYTES + 1)
        yield b"x"
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await media.upload(server.hs, alice.user_id, chunks(), "text/plain")
    assert list(temporary_folder(server.hs).iterdir()) == []
    assert await blob_keys(server) == []


@pytest.mark.parametrize("same", [b"same", b"same" * 100_000], ids=["small", "large"])
async def test_the_same_content_is_stored_once(server: Server, alice: Client, bob: Client, same: bytes) -> None:
    first, second = await upload(alice, same), await upload(bob, same, "text/html", "x")
    assert first != second
    await cleanup.delete_released(server.hs)
    assert len(await blob_keys(server)) == 1
    assert (await alice.get(f"{V1}/download/{second}")).headers["content-type"] == "text/html"
    assert await media.delete(server.hs, f"mxc://{first}")
    assert (await alice.get(f"{V1}/download/{second}")).content == same
    assert await media.delete(server.hs, f"mxc://{second}")
    assert not await media.delete(server.hs, f"mxc://{second}")
    assert await blob_keys(server) == []
    assert await alice.refused("GET", f"{V1}/download/{second}") == (404, "M_NOT_FOUND")
    assert len(await blob_keys(server)) == 0
    await upload(alice, same)
    assert len(await blob_keys(server)) == 1


async def test_a_blob_that_is_deleted_while_it_would_be_shared(server: Server, alice: Client) -> None:
    first = await upload(alice, b"same" * 100_000)
    inner = server.hs.database.read

    async def read(fn: object, *args: object) -> object:
        answer = await inner(fn, *args)  # type: ignore[arg-type]
        if fn is storage.get_blob_key:
            await media.delete(server.hs, f"mxc://{first}")
        return answer

    server.hs.database.read = read  # type: ignore[method-assign, assignment]
    second = await upload(alice, b"same" * 100_000)
    server.hs.database.read = inner  # type: ignore[method-assign]
    assert (await alice.get(f"{V1}/download/{second}")).content == b"same" * 100_000


async def test_a_quota(server: Server, alice: Client, bob: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "MEDIA_USER_BYTES_MAX", 100)
    monkeypatch.setattr(storage, "MEDIA_USER_FILES_MAX", 3)
    first = await upload(alice, b"x" * 60)
    assert await alice.refused("POST", f"{V3}/upload", content=b"x" * 41) == (403, "M_FORBIDDEN")
    assert len(await blob_keys(server)) == 1
    await media.delete(server.hs, f"mxc://{first}")
    for _ in range(3):
        await upload(alice, b"")
    assert await alice.refused("POST", f"{V3}/upload", content=b"") == (403, "M_FORBIDDEN")
    await upload(bob, b"x" * 100)


# --- uploads to a URI that was created before ---


async def create(client: Client) -> str:
    answer = await client.ok("POST", "/_matrix/media/v1/create")
    return str(answer["content_uri"]).removeprefix("mxc://")


async def test_create_then_upload(autojump_clock: MockClock, server: Server, alice: Client, bob: Client) -> None:
    answer = await alice.ok("POST", "/_matrix/media/v1/create")
    assert answer["unused_expires_at"] == server.hs.now_ms() + 24 * 60 * 60 * 1000
    place = answer["content_uri"].removeprefix("mxc://")
    assert await bob.refused("PUT", f"{V3}/upload/{place}", content=b"x") == (403, "M_FORBIDDEN")
    headers = {"content-type": "image/png"}
    assert await alice.ok("PUT", f"{V3}/upload/{place}?filename=a.png", content=b"x", headers=headers) == {}
    response = await bob.get(f"{V1}/download/{place}")
    assert response.content == b"x"
    assert response.headers["content-disposition"] == "inline; filename=a.png"
    assert await alice.refused("PUT", f"{V3}/upload/{place}", content=b"y") == (409, "M_CANNOT_OVERWRITE_MEDIA")
    assert await bob.refused("PUT", f"{V3}/upload/{place}", content=b"y") == (403, "M_FORBIDDEN")


async def test_uploads_to_what_was_not_created(alice: Client) -> None:
    assert await alice.refused("PUT", f"{V3}/upload/test.example/abc", content=b"x") == (404, "M_NOT_FOUND")
    place = await create(alice)
    other = place.replace("test.example", "other.example")
    assert await alice.refused("PUT", f"{V3}/upload/{other}", content=b"x") == (404, "M_NOT_FOUND")
    normal = await upload(alice, b"x")
    assert await alice.refused("PUT", f"{V3}/upload/{normal}", content=b"y") == (409, "M_CANNOT_OVERWRITE_MEDIA")


async def test_a_created_uri_expires(autojump_clock: MockClock, server: Server, alice: Client) -> None:
    place = await create(alice)
    await trio.sleep(24 * 60 * 60)
    assert await alice.refused("PUT", f"{V3}/upload/{place}", content=b"x") == (404, "M_NOT_FOUND")
    assert await alice.refused("GET", f"{V1}/download/{place}") == (404, "M_NOT_FOUND")


async def test_pending_uploads_are_limited(server: Server, alice: Client, bob: Client) -> None:
    places = [await create(alice) for _ in range(limits.MEDIA_PENDING_PER_USER_MAX)]
    response = await alice.post("/_matrix/media/v1/create")
    assert response.status_code == 429 and response.json()["errcode"] == "M_LIMIT_EXCEEDED"
    assert 0 < response.json()["retry_after_ms"] <= limits.MEDIA_PENDING_LIFETIME_MS
    await create(bob)
    await alice.ok("PUT", f"{V3}/upload/{places[0]}", content=b"x")
    await create(alice)


async def test_waiting_for_an_upload(autojump_clock: MockClock, server: Server, alice: Client, bob: Client) -> None:
    place = await create(alice)
    began = trio.current_time()
    assert await bob.refused("GET", f"{V1}/download/{place}?timeout_ms=5000") == (504, "M_NOT_YET_UPLOADED")
    assert trio.current_time() - began == pytest.approx(5, abs=0.1)
    assert await bob.refused("GET", f"{V1}/download/{place}?timeout_ms=0") == (504, "M_NOT_YET_UPLOADED")
    began = trio.current_time()
    assert await bob.refused("GET", f"{V1}/download/{place}") == (504, "M_NOT_YET_UPLOADED")
    assert trio.current_time() - began == pytest.approx(20, abs=0.1)
    assert await bob.refused("GET", f"{V1}/thumbnail/{place}?timeout_ms=99999999&width=9&height=9") == (
        504,
        "M_NOT_YET_UPLOADED",
    )
    assert trio.current_time() - began == pytest.approx(80, abs=0.1)
    assert await bob.refused("GET", f"{V1}/download/{place}?timeout_ms=-1") == (400, "M_INVALID_PARAM")

    async with trio.open_nursery() as nursery:

        async def upload_later() -> None:
            await trio.sleep(3)
            await alice.ok("PUT", f"{V3}/upload/{place}", content=b"at last")

        nursery.start_soon(upload_later)
        began = trio.current_time()
        assert (await bob.get(f"{V1}/download/{place}")).content == b"at last"
        assert trio.current_time() - began == pytest.approx(3, abs=0.1)


async def test_of_two_uploads_at_once_one_wins(autojump_clock: MockClock, server: Server, alice: Client) -> None:
    place = await create(alice)
    results: list[tuple[int, bytes]] = []

    async def put(content: bytes) -> None:
        async def slowly() -> AsyncIterator[bytes]:
            await trio.sleep(1)
            yield content

        response = await alice.request("PUT", f"{V3}/upload/{place}", content=slowly())
        results.append((response.status_code, content))

    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(put, b"%d" % number)
    assert sorted(status for status, _ in results) == [200, 409, 409]
    (winner,) = (content for status, content in results if status == 200)
    assert (await alice.get(f"{V1}/download/{place}")).content == winner
    assert len(await blob_keys(server)) == 1


# --- conditional and partial requests ---


async def get_raw(client: Client, path: str, **headers: str) -> httpx.Response:
    """An answer whose status is one of HTTP that the specification does not mention (206, 304, 416)."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return await client.server.http.get(path, headers={"authorization": f"Bearer {client.token}", **sent})


async def test_etag(alice: Client) -> None:
    place = await upload(alice, b"x" * 1000)
    etag = (await alice.get(f"{V1}/download/{place}")).headers["etag"]
    for value in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        response = await get_raw(alice, f"{V1}/download/{place}", if_none_match=value)
        assert response.status_code == 304 and response.content == b"" and response.headers["etag"] == etag
    response = await alice.get(f"{V1}/download/{place}", headers={"if-none-match": '"other"'})
    assert response.status_code == 200


@pytest.mark.parametrize("size", [1000, limits.MEDIA_CHUNK_BYTES * 3])
async def test_ranges(alice: Client, size: int) -> None:
    data = bytes(index % 251 for index in range(size))
    place = await upload(alice, data, "video/mp4")
    for value, start, end in (
        ("bytes=0-0", 0, 1), ("bytes=0-99", 0, 100), ("bytes=500-", 500, size), ("bytes=-10", size - 10, size),
        ("bytes=-99999999", 0, size), ("bytes=990-99999999", 990, size),
    ):  # fmt: skip
        response = await get_raw(alice, f"{V1}/download/{place}", range=value)
        assert response.status_code == 206
        assert response.content == data[start:end]
        assert response.headers["content-range"] == f"bytes {start}-{end - 1}/{size}"
        assert response.headers["content-length"] == str(end - start)
        assert response.headers["content-type"] == "video/mp4"
    for value in (f"bytes={size}-", "bytes=-0"):
        response = await get_raw(alice, f"{V1}/download/{place}", range=value)
        assert response.status_code == 416 and response.headers["content-range"] == f"bytes */{size}"
    for value in ("bytes=5-2", "bytes=-", "items=0-1", "bytes=0-1,5-6", "bytes=a-b"):
        response = await get_raw(alice, f"{V1}/download/{place}", range=value)
        assert response.status_code == 200 and response.content == data
    headers = {"range": "bytes=0-0", "if-range": '"other"'}
    assert (await alice.get(f"{V1}/download/{place}", headers=headers)).status_code == 200


def test_ranges_of_nothing() -> None:
    assert read_range("bytes=0-", 0) == (0, 0)
    assert read_range("bytes=-5", 0) == (0, 0)


# --- the deprecated endpoints, frozen ---


async def test_what_is_uploaded_now_needs_a_token(server: Server, alice: Client) -> None:
    place = await upload(alice, images.encoded(images.gradient(200, 200), "PNG"), "image/png")
    for path in (f"download/{place}", f"download/{place}/name", f"thumbnail/{place}?width=32&height=32"):
        assert await server.anonymous.refused("GET", f"{V3}/{path}") == (404, "M_NOT_FOUND")
        assert await alice.refused("GET", f"{V3}/{path}") == (404, "M_NOT_FOUND")
    for place in ("other.example/abc", "test.example/abc"):
        assert await server.anonymous.refused("GET", f"{V3}/download/{place}") == (404, "M_NOT_FOUND")


async def test_what_is_stored_as_public_does_not(server: Server, alice: Client) -> None:
    picture = images.encoded(images.gradient(200, 200), "PNG")
    uri = await media.upload(server.hs, alice.user_id, picture, "image/png", "icon.png", is_public=True)
    query = "?allow_remote=false&timeout_ms=1&allow_redirect=true"
    response = await server.anonymous.get(f"{V3}/download/{uri[6:]}{query}")
    assert response.content == picture
    assert response.headers["content-disposition"] == "inline; filename=icon.png"
    assert response.headers["cache-control"] == "public, max-age=31536000, immutable"
    response = await server.anonymous.get(f"{V3}/download/{uri[6:]}/other.png")
    assert response.headers["content-disposition"] == "inline; filename=other.png"
    response = await server.anonymous.get(f"{V3}/thumbnail/{uri[6:]}?width=32&height=32&method=crop&allow_remote=false")
    assert Image.open(io.BytesIO(response.content)).size == (32, 32)


# --- thumbnails ---


async def test_thumbnails(server: Server, alice: Client, bob: Client) -> None:
    place = await upload(alice, images.encoded(images.gradient(1000, 500), "PNG"), "image/png", "big.png")
    for query, size in (
        ("width=32&height=32&method=crop", (32, 32)),
        ("width=90&height=90&method=crop", (96, 96)),
        ("width=96&height=96&method=crop&animated=true", (96, 96)),
        ("width=100&height=50&method=crop", (320, 160)),
        ("width=1&height=1", (320, 160)),
        ("width=321&height=100&method=scale", (640, 320)),
        ("width=700&height=100", (800, 400)),
    ):
        response = await bob.get(f"{V1}/thumbnail/{place}?{query}")
        assert response.status_code == 200, response.text
        assert response.headers["content-type"] == "image/jpeg"
        assert response.headers["content-disposition"] == "inline; filename=thumbnail.jpg"
        assert response.headers["content-security-policy"].startswith("sandbox;")
        assert Image.open(io.BytesIO(response.content)).size == size
        again = await get_raw(bob, f"{V1}/thumbnail/{place}?{query}", if_none_match=response.headers["etag"])
        assert again.status_code == 304
    assert len(await blob_keys(server)) == 1  # thumbnails this small are in their rows
    count = "SELECT COUNT(*) FROM media_thumbnails"
    assert await server.read(lambda tx: tx.values(count)) == [6]


async def test_a_small_image_is_its_own_thumbnail(server: Server, alice: Client) -> None:
    picture = images.encoded(images.gradient(300, 200), "PNG")
    place = await upload(alice, picture, "image/jpeg")
    for query in ("width=400&height=300", "width=5000&height=5000", "width=400&height=400&method=crop"):
        response = await alice.get(f"{V1}/thumbnail/{place}?{query}")
        assert response.content == picture and response.headers["content-type"] == "image/png"
    large = images.encoded(images.gradient(2000, 1500), "PNG")
    place = await upload(alice, large, "image/png")
    for query in ("width=3000&height=10", "width=1700&height=1700&method=crop"):
        assert (await alice.get(f"{V1}/thumbnail/{place}?{query}")).content == large
    assert len(await blob_keys(server)) == 2


async def test_animated_thumbnails(alice: Client) -> None:
    place = await upload(alice, images.animation(4, "GIF", 400, 400), "image/gif")
    path = f"{V1}/thumbnail/{place}?width=96&height=96&method=crop"
    for query, content_type, count in (
        ("", "image/jpeg", 1), ("&animated=true", "image/webp", 4), ("&animated=false", "image/jpeg", 1),
    ):  # fmt: skip
        response = await alice.get(path + query)
        assert response.headers["content-type"] == content_type
        thumbnail = Image.open(io.BytesIO(response.content))
        assert thumbnail.size == (96, 96) and getattr(thumbnail, "n_frames", 1) == count
    small = images.animation(3, "GIF")
    place = await upload(alice, small, "image/gif")
    assert (await alice.get(f"{V1}/thumbnail/{place}?width=96&height=96&animated=true")).content == small
    still = await alice.get(f"{V1}/thumbnail/{place}?width=96&height=96")
    assert still.headers["content-type"] == "image/jpeg"


@pytest.mark.parametrize(
    ("content", "content_type", "status", "errcode"),
    [
        (b"no image", "image/png", 400, "M_UNKNOWN"),
        (images.encoded(images.gradient(300, 300), "PNG"), "application/octet-stream", 400, "M_UNKNOWN"),
        (b"%PDF", "application/pdf", 400, "M_UNKNOWN"),
        (b"", "image/png", 400, "M_UNKNOWN"),
        (images.encoded(images.gradient(300, 300), "PNG")[:200], "image/png", 400, "M_UNKNOWN"),
        (images.png_claim(60_000, 60_000), "image/png", 413, "M_TOO_LARGE"),
    ],
    ids=["text", "encrypted", "pdf", "empty", "truncated", "bomb"],
)
async def test_what_has_no_thumbnail(
    autojump_clock: MockClock,
    server: Server,
    alice: Client,
    content: bytes,
    content_type: str,
    status: int,
    errcode: str,
) -> None:
    place = await upload(alice, content, content_type)
    calls = 0
    inner = server.hs.workers.run_process

    async def run_process(*args: object, **options: object) -> object:
        nonlocal calls
        calls += 1
        return await inner(*args, **options)  # type: ignore[arg-type]

    object.__setattr__(server.hs.workers, "run_process", run_process)
    for _ in range(3):
        for query in ("width=32&height=32&method=crop", "width=320&height=240"):
            assert await alice.refused("GET", f"{V1}/thumbnail/{place}?{query}") == (status, errcode)
    assert calls <= 1
    await trio.sleep(limits.THUMBNAIL_FAILURE_MS / 1000 + 1)
    assert await alice.refused("GET", f"{V1}/thumbnail/{place}?width=32&height=32") == (status, errcode)
    assert (await alice.get(f"{V1}/download/{place}")).content == content


@pytest.mark.parametrize(
    "query",
    ["", "width=1", "height=1", "width=a&height=1", "width=0&height=1", "width=-5&height=5", "width=1.5&height=1",
     "width=1&height=1&method=stretch", "width=1&height=1&animated=maybe"],
)  # fmt: skip
async def test_requests_that_make_no_sense(alice: Client, query: str) -> None:
    status, _ = await alice.refused("GET", f"{V1}/thumbnail/test.example/abc?{query}")
    assert status == 400


async def test_many_at_once_are_made_once(server: Server, alice: Client) -> None:
    place = await upload(alice, images.encoded(images.gradient(400, 400), "PNG"), "image/png")
    bodies: list[bytes] = []

    async def fetch() -> None:
        response = await alice.get(f"{V1}/thumbnail/{place}?width=96&height=96&method=crop")
        bodies.append(response.content)

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(fetch)
    assert len(set(bodies)) == 1 and len(bodies) == 20


async def test_many_aspect_ratios_of_one_image(server: Server, alice: Client) -> None:
    place = await upload(alice, images.encoded(images.gradient(400, 400), "PNG"), "image/png")
    for height in range(1, limits.THUMBNAILS_PER_MEDIA_MAX + 30):
        response = await alice.get(f"{V1}/thumbnail/{place}?width=96&height={height}&method=crop")
        assert response.status_code == 200
        width, found = Image.open(io.BytesIO(response.content)).size
        assert width >= 96 and found >= height
    assert await server.read(storage.count_thumbnails, 1) <= limits.THUMBNAILS_PER_MEDIA_MAX + 5


def test_sizes_are_snapped() -> None:
    def size(width: int, height: int, method: str) -> tuple[str, int, int]:
        found = read_size(ThumbnailQuery(width, height, method))  # type: ignore[arg-type]
        return found.method, found.width, found.height

    assert size(32, 32, "crop") == ("crop", 32, 32)
    assert size(33, 33, "crop") == ("crop", 96, 96)
    assert size(97, 97, "crop") == ("crop", 320, 320)
    assert size(64, 48, "crop") == ("crop", 96, 72)
    assert size(3, 1600, "crop") == ("crop", 3, 1600)
    assert size(1, 100_000, "crop") == ("scale", 65_535, 65_535)
    assert size(800, 600, "scale") == ("scale", 800, 600)
    assert size(800, 601, "scale") == ("scale", 1600, 1200)
    for width in range(1, 1601, 37):
        for height in range(1, 1601, 41):
            for method in ("crop", "scale"):
                _, made_width, made_height = size(width, height, method)
                assert made_width >= width and made_height >= height


# --- embedding ---


async def test_from_python(server: Server, alice: Client) -> None:
    uri = await media.upload(server.hs, alice.user_id, b"hello", "text/plain", "a.txt")
    assert await media.download(server.hs, uri) == ("text/plain", b"hello")
    assert (await alice.get(f"{V1}/download/{uri[6:]}")).headers["content-disposition"] == "inline; filename=a.txt"

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b"x" * 100_000

    uri = await media.upload(server.hs, alice.user_id, chunks(), "application/x-thing")
    assert await media.download(server.hs, uri) == ("application/x-thing", b"x" * 1_000_000)
    for wrong in (
        "",
        "mxc://",
        "mxc://test.example",
        "https://test.example/a",
        "mxc://test.example/../x",
        "mxc://a b/c",
    ):
        with pytest.raises(MatrixError, match="M_NOT_FOUND"):
            await media.download(server.hs, wrong)


# --- clean-up ---


async def test_blobs_that_never_got_a_row_are_found(autojump_clock: MockClock, server: Server, alice: Client) -> None:
    hs = server.hs
    kept = await upload(alice, b"kept")
    await upload(alice, images.encoded(images.gradient(400, 400), "PNG"), "image/png")
    old = [new_blob_key(bytes([number]) * 32, hs.now_ms()) for number in range(256)]
    for key in old:
        await hs.blobs.put(key, b"orphan")
    await trio.sleep(limits.MEDIA_ORPHAN_AGE_MS / 1000 + 1)
    young = new_blob_key(b"\x07" * 32, hs.now_ms())
    await hs.blobs.put(young, b"under way")
    for _ in range(cleanup.SHARDS // 2 + 1):
        await cleanup.find_orphans(hs)
    # A crash here loses nothing: what was found is in a table, and the search goes on where it was.
    for _ in range(cleanup.SHARDS):
        await cleanup.find_orphans(hs)
    await cleanup.delete_released(hs)
    found = await blob_keys(server)
    assert young in found and not set(old) & set(found) and len(found) == 3
    assert (await alice.get(f"{V1}/download/{kept}")).content == b"kept"


async def test_the_background_task_does_all_of_it(autojump_clock: MockClock, server: Server, alice: Client) -> None:
    hs = server.hs
    await create(alice)
    orphan = new_blob_key(b"\0" * 32, hs.now_ms())
    await hs.blobs.put(orphan, b"orphan")
    await trio.sleep(2 * limits.MEDIA_ORPHAN_AGE_MS / 1000)
    assert await blob_keys(server) == []
    assert await hs.database.read(lambda tx: tx.values("SELECT COUNT(*) FROM media_pending")) == [0]


async def test_a_thumbnail_of_what_was_deleted_meanwhile(server: Server, alice: Client) -> None:
    place = await upload(alice, images.encoded(images.gradient(400, 400), "PNG"), "image/png")
    inner = server.hs.workers.run_process

    async def run_process(*args: object, **options: object) -> object:
        answer = await inner(*args, **options)  # type: ignore[arg-type]
        await media.delete(server.hs, f"mxc://{place}")
        return answer

    object.__setattr__(server.hs.workers, "run_process", run_process)
    path = f"{V1}/thumbnail/{place}?width=96&height=96"
    assert await alice.refused("GET", path) == (404, "M_NOT_FOUND")
    assert await blob_keys(server) == []
    assert await server.read(storage.get_thumbnail, 1, Size("scale", 320, 240, False)) is None


async def test_content_that_is_lost(server: Server, alice: Client) -> None:
    small, large = await upload(alice, b"x"), await upload(alice, b"x" * 1_000_000)
    for key in await blob_keys(server):
        await server.hs.blobs.delete(key)
    for place in (small, large):
        assert await alice.refused("GET", f"{V1}/download/{place}") == (404, "M_NOT_FOUND")


@pytest.mark.parametrize(
    "answer",
    [
        None,
        [b"x", "text/html", ["image/png", 1, 1, False]],
        [b"x", "image/png\r\nSet-Cookie: a=b", ["image/png", 1, 1, False]],
        [b"x", "image/png", ["text/html", 1, 1, False]],
        [b"x", "image/png", ["image/png", -1, 1, False]],
        ["x", "image/png", ["image/png", 1, 1]],
    ],
)
async def test_a_process_that_was_taken_over_is_not_believed(server: Server, alice: Client, answer: object) -> None:
    place = await upload(alice, images.encoded(images.gradient(400, 400), "PNG"), "image/png")

    async def run_process(*args: object, **options: object) -> object:
        await trio.lowlevel.checkpoint()
        return answer

    object.__setattr__(server.hs.workers, "run_process", run_process)
    assert await alice.refused("GET", f"{V1}/thumbnail/{place}?width=96&height=96") == (400, "M_UNKNOWN")


async def test_a_process_that_dies(server: Server, alice: Client) -> None:
    place = await upload(alice, images.encoded(images.gradient(400, 400), "PNG"), "image/png")

    async def run_process(*args: object, **options: object) -> object:
        await trio.lowlevel.checkpoint()
        raise WorkerFailed("out of memory")

    object.__setattr__(server.hs.workers, "run_process", run_process)
    assert await alice.refused("GET", f"{V1}/thumbnail/{place}?width=96&height=96") == (413, "M_TOO_LARGE")
