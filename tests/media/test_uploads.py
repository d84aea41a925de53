"""Uploads: what is stored, how often and how much of it. Spec: client-server-api/#content-repository"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from homeserver import limits
from homeserver.errors import MatrixError
from homeserver.features import media
from homeserver.features.media import cleanup, storage
from homeserver.features.media.receiving import temporary_folder
from tests.media.servers import V1, V3, blob_keys, create, server_with_media, upload
from tests.support.homeservers import Client, Server


async def test_the_upload_limit_is_published_and_enforced(tmp_path: Path) -> None:
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
        await alice.ok("PUT", path, content=b"x" * 1000)
        with pytest.raises(MatrixError, match="M_TOO_LARGE"):
            await media.upload(server.hs, alice.user_id, b"x" * 1001, "text/plain")


async def test_an_interrupted_large_upload_leaves_nothing_behind(server: Server, alice: Client) -> None:
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


async def test_a_blob_may_be_deleted_just_before_it_is_shared(server: Server, alice: Client) -> None:
    first = await upload(alice, b"same" * 100_000)
    inner = server.hs.database.read

    async def read(fn: object, *args: object) -> object:
        answer = await inner(fn, *args)  # type: ignore[arg-type]
        if fn is storage.find_blob_key:
            await media.delete(server.hs, f"mxc://{first}")
        return answer

    server.hs.database.read = read  # type: ignore[method-assign, assignment]
    second = await upload(alice, b"same" * 100_000)
    server.hs.database.read = inner  # type: ignore[method-assign]
    assert (await alice.get(f"{V1}/download/{second}")).content == b"same" * 100_000


@pytest.mark.parametrize("same", [b"same", b"same" * 100_000], ids=["small", "large"])
async def test_uploading_a_lost_file_again_restores_it(server: Server, alice: Client, bob: Client, same: bytes) -> None:
    first, second = await upload(alice, same), await upload(bob, same)
    await cleanup.delete_released(server.hs)
    (lost,) = await blob_keys(server)
    await server.hs.blobs.delete(lost)
    third = await upload(bob, same)
    await cleanup.delete_released(server.hs)
    for place in (first, second, third):
        assert (await alice.get(f"{V1}/download/{place}")).content == same
    assert len(await blob_keys(server)) == 1
    for place in (first, second, third):
        assert await media.delete(server.hs, f"mxc://{place}")
    assert await blob_keys(server) == []


@pytest.mark.parametrize("size_bytes", [5_000, 1_000_000])
async def test_uploading_a_truncated_file_again_restores_it(server: Server, alice: Client, size_bytes: int) -> None:
    content = b"x" * size_bytes
    first = await upload(alice, content)
    (cut,) = await blob_keys(server)
    await server.hs.blobs.put(cut, content[: size_bytes // 2])
    await upload(alice, content)
    assert (await alice.get(f"{V1}/download/{first}")).content == content
    await cleanup.delete_released(server.hs)
    assert cut not in await blob_keys(server)


async def test_a_lost_file_is_restored_under_its_old_uri(server: Server, alice: Client) -> None:
    content = b"same" * 100_000
    first, place = await upload(alice, content), await create(alice)
    for key in await blob_keys(server):
        await server.hs.blobs.delete(key)
    await alice.ok("PUT", f"{V3}/upload/{place}", content=content)
    for each in (first, place):
        assert (await alice.get(f"{V1}/download/{each}")).content == content


@pytest.mark.parametrize("same", [b"same", b"same" * 100_000], ids=["small", "large"])
async def test_an_upload_queries_the_blob_store_at_most_once(server: Server, alice: Client, same: bytes) -> None:
    asked: list[str] = []
    inner = server.hs.blobs.size_bytes

    async def size_bytes(key: str) -> int:
        asked.append(key)
        return await inner(key)

    server.hs.blobs.size_bytes = size_bytes  # type: ignore[method-assign]
    await upload(alice, same)
    assert asked == []
    await upload(alice, same)
    assert len(asked) == 1


async def test_uploads_are_limited_in_bytes(tmp_path: Path) -> None:
    async with server_with_media(tmp_path, user_bytes_max=100) as server:
        alice, bob = await server.register("alice"), await server.register("bob")
        first = await upload(alice, b"x" * 60)
        assert await alice.refused("POST", f"{V3}/upload", content=b"x" * 41) == (403, "M_USER_LIMIT_EXCEEDED")
        assert len(await blob_keys(server)) == 1
        pending = (await alice.ok("POST", "/_matrix/media/v1/create"))["content_uri"].removeprefix("mxc://")
        refused = await alice.put(f"{V3}/upload/{pending}", content=b"x" * 41)
        assert (refused.status_code, refused.json()["errcode"]) == (403, "M_USER_LIMIT_EXCEEDED")
        assert refused.json()["info_uri"] == server.hs.config.base_url
        await upload(bob, b"x" * 100)
        await media.delete(server.hs, f"mxc://{first}")
        await upload(alice, b"y" * 100)
        assert await alice.refused("POST", f"{V3}/upload", content=b"z") == (403, "M_USER_LIMIT_EXCEEDED")


async def test_uploads_are_limited_in_number(tmp_path: Path) -> None:
    async with server_with_media(tmp_path, user_files_max=2) as server:
        alice, bob = await server.register("alice"), await server.register("bob")
        first = await upload(alice, b"")
        await upload(alice, b"")
        assert await alice.refused("POST", f"{V3}/upload", content=b"") == (403, "M_USER_LIMIT_EXCEEDED")
        await upload(bob, b"")
        await media.delete(server.hs, f"mxc://{first}")
        await upload(alice, b"")


async def test_the_operator_chooses_the_page_about_quotas(tmp_path: Path) -> None:
    async with server_with_media(tmp_path, user_files_max=1, quota_info_url="https://example.org/space") as server:
        alice = await server.register("alice")
        await upload(alice, b"x")
        refused = await alice.post(f"{V3}/upload", content=b"y")
        assert refused.json()["info_uri"] == "https://example.org/space"


async def test_files_can_be_uploaded_from_python(server: Server, alice: Client) -> None:
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
