"""Files and thumbnails are sealed in the blob storage. Any part can be read, and damage is noticed."""

from __future__ import annotations

from pathlib import Path

import pytest

from homeserver import Homeserver
from homeserver.blobs import BlobDamaged
from homeserver.client import Client
from homeserver.config import AtRest, BlobsSection
from homeserver.errors import MatrixError
from homeserver.features import at_rest
from homeserver.features.media import sealed_blobs
from homeserver.features.media.cleanup import delete_released
from homeserver.features.media.storage import find_media
from homeserver.testing import one_server
from tests.media import images

CHUNK = sealed_blobs.CHUNK_BYTES
SIZES = (0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 3 * CHUNK + 77)
HEADERS = {"Content-Type": "text/plain"}


def content_of(size: int) -> bytes:
    return bytes(number % 251 for number in range(size))


async def store(hs: Homeserver, content: bytes, folder: Path | None = None) -> str:
    number = await sealed_blobs.new_key(hs.resources)
    key = f"media/0/{len(content):x}{sealed_blobs.suffix_of(number)}"
    data: bytes | Path = content
    if folder is not None:
        data = folder / "upload"
        data.write_bytes(content)
    await sealed_blobs.put(hs.resources, key, data, HEADERS)
    return key


async def read(hs: Homeserver, key: str, size: int, start: int = 0, end: int | None = None) -> bytes:
    return b"".join([chunk async for chunk in sealed_blobs.stream(hs.resources, key, size, start, end)])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("from_file", [False, True])
async def test_any_part_of_a_sealed_blob_can_be_read(tmp_path: Path, size: int, from_file: bool) -> None:
    content = content_of(size)
    async with one_server() as hs:
        key = await store(hs, content, tmp_path if from_file else None)
        stored = await hs.resources.blobs.get(key, expected_bytes=sealed_blobs.stored_bytes(key, size))
        assert size < 20 or content[:20] not in stored
        assert await sealed_blobs.get(hs.resources, key, size) == content
        places = sorted({0, 1, size // 2, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, size - 1, size} & {*range(size + 1)})
        for start in places:
            for end in places:
                if start < end:
                    assert await read(hs, key, size, start, end) == content[start:end]
        assert await read(hs, key, size) == content


async def test_damage_of_a_sealed_blob_is_noticed_where_it_is() -> None:
    content = content_of(3 * CHUNK)
    async with one_server() as hs:
        key = await store(hs, content)
        good = await hs.resources.blobs.get(key)
        sealed_chunk = CHUNK + 16
        swapped = good[sealed_chunk : 2 * sealed_chunk] + good[:sealed_chunk] + good[2 * sealed_chunk :]
        flipped = bytes([*good[: sealed_chunk + 5], good[sealed_chunk + 5] ^ 1, *good[sealed_chunk + 6 :]])
        for damaged in (swapped, flipped):
            await hs.resources.blobs.put(key, damaged)
            with pytest.raises(BlobDamaged):
                await read(hs, key, len(content))
            assert await read(hs, key, len(content), 2 * CHUNK) == content[2 * CHUNK :]
        shorter = good[: 2 * sealed_chunk]
        await hs.resources.blobs.put(key, shorter)
        with pytest.raises(BlobDamaged):  # even if the row agrees
            await read(hs, key, 2 * CHUNK)
        other = await store(hs, content_of(2))
        await hs.resources.blobs.put(other, good)
        with pytest.raises(BlobDamaged):
            await read(hs, other, len(content))


async def send_file(client: Client, room_id: str, uri: str) -> None:
    await client.send(room_id, {"msgtype": "m.image", "body": "a picture", "url": uri})


async def test_files_of_a_forgotten_room_are_gone_if_no_other_room_shows_them(tmp_path: Path) -> None:
    async with one_server("a.example", folder=tmp_path) as hs:
        alice = await hs.register("alice")
        rooms = [await alice.create_room() for _ in range(2)]
        picture = images.encoded(images.gradient(400, 400), "PNG")
        uris = [await alice.upload(picture + bytes([number]), content_type="image/png") for number in range(3)]
        here, both, avatar = uris
        await send_file(alice, rooms[0], here)
        for room_id in rooms:
            await send_file(alice, room_id, both)
        await alice.call("set_profile_field", alice.user_id, "avatar_url", body={"avatar_url": avatar})
        await send_file(alice, rooms[0], avatar)
        media_id = here.rpartition("/")[2]
        await alice.call("get_content_thumbnail_authed", "a.example", media_id, query={"width": 32, "height": 32})
        assert not [
            path for path in (tmp_path / "a.example").rglob("*") if path.is_file() and b"PNG" in path.read_bytes()
        ]
        assert await hs.resources.database.read(find_media, hs.server_name, media_id) is not None
        await at_rest.forget_room(hs.resources, rooms[0], lambda done, of: None)
        with pytest.raises(MatrixError):
            await alice.download(here)
        for uri in (both, avatar):
            assert (await alice.download(uri)).content.startswith(picture)
        await delete_released(hs.resources)
        assert len([path async for path in hs.resources.blobs.list("media")]) == 2
        await at_rest.forget_room(hs.resources, rooms[1], lambda done, of: None)
        with pytest.raises(MatrixError):
            await alice.download(both)


async def test_files_stored_before_there_were_keys_are_still_served(tmp_path: Path) -> None:
    blobs = BlobsSection()
    async with one_server("a.example", folder=tmp_path, blobs=blobs, at_rest=AtRest(media=False)) as hs:
        uri = await (await hs.register("alice")).upload(b"old", content_type="text/plain")
    async with one_server("a.example", folder=tmp_path, blobs=blobs) as hs:
        assert (await (await hs.log_in("alice")).download(uri)).content == b"old"
