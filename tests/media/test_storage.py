"""The tables of the content repository, on both engines."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from homeserver.config import BlobsSection, Config
from homeserver.database import Database, Transaction
from homeserver.database.server_identity import ServerIdentity
from homeserver.errors import MatrixError
from homeserver.features.media import storage, thumbnail_storage
from homeserver.features.media.receiving import blob_created_ms, new_blob_key
from homeserver.features.media.schema import SCHEMA
from homeserver.features.media.storage import Blob, Description, Media, Pending
from homeserver.features.media.thumbnail_storage import Image, Size, Thumbnail
from homeserver.federation.identifiers import ServerName, UserID
from homeserver.users import figures
from tests.support.database import opened
from tests.support.rooms import KEY
from tests.support.sealing import MASTER_KEYS

HERE, THERE = ServerName("here.example"), ServerName("there.example")
ALICE, BOB = UserID("@alice:here.example"), UserID("@bob:here.example")
PICTURE = Description("image/png", "Käse.png")


def blob(content: bytes) -> Blob:
    sha256 = hashlib.sha256(content).digest()
    return Blob(new_blob_key(sha256, 1_700_000_000_000), sha256, len(content))


@asynccontextmanager
async def opened_for_media(url: str) -> AsyncIterator[Database]:
    """The database of a server that counts its uploads."""
    async with opened(url, SCHEMA, figures.SCHEMA) as database:
        database.serve_as(ServerIdentity(HERE, KEY, Config(server_name=HERE, data_dir="nowhere"), MASTER_KEYS))
        yield database


async def upload(database: Database, media_id: str, what: Blob, who: UserID = ALICE, **options: Any) -> None:
    def store(tx: Transaction) -> None:
        flags = {"is_pending": False, "is_public": False, **options}
        storage.store_upload(tx, what, HERE, BlobsSection(), media_id, who, PICTURE, **flags)

    await database.write(store)


async def test_files_are_stored_and_found(database_url: str) -> None:
    async with opened_for_media(database_url) as database:
        first = blob(b"first")
        await upload(database, "one", first)
        found = await database.read(storage.find_media, HERE, "one")
        assert found is not None
        assert (found.blob, found.description, found.is_remote, found.is_public) == (first, PICTURE, False, False)
        assert await database.read(storage.find_media, THERE, "one") is None
        assert await database.read(storage.find_media, HERE, "ONE") is None
        assert await database.read(storage.find_blob_key, first.sha256) == first.key
        await upload(database, "two", first, BOB, is_public=True)
        assert await database.write(storage.delete_media, HERE, "one")
        assert await database.read(storage.list_deletions, 10) == []
        assert await database.write(storage.delete_media, HERE, "two")
        assert not await database.write(storage.delete_media, HERE, "two")
        assert await database.read(storage.list_deletions, 10) == [first.key]
        with pytest.raises(storage.BlobGone):
            await database.write(storage.check_shared, first.key)
        await database.write(storage.delete_deletions, [first.key])
        assert await database.read(storage.list_deletions, 10) == []
        usage = "SELECT files, size_bytes FROM media_usage"
        assert await database.read(lambda tx: tx.all(usage)) == [(0, 0), (0, 0)]


async def test_created_uris_are_stored_and_completed(database_url: str) -> None:
    async with opened_for_media(database_url) as database:
        later_ms = await database.read(lambda tx: tx.now_ms) + 60_000
        await database.write(storage.store_pending, "one", ALICE, later_ms)
        await database.write(storage.store_pending, "two", ALICE, 1)
        assert isinstance(await database.read(storage.find_local, HERE, "one"), Pending)
        assert await database.read(storage.find_local, HERE, "two") is None
        for who, media_id, errcode in (
            (BOB, "one", "M_FORBIDDEN"), (ALICE, "two", "M_NOT_FOUND"), (ALICE, "three", "M_NOT_FOUND"),
        ):  # fmt: skip
            with pytest.raises(MatrixError, match=errcode):
                await upload(database, media_id, blob(b"x"), who, is_pending=True)
        await upload(database, "one", blob(b"x"), is_pending=True)
        assert isinstance(await database.read(storage.find_local, HERE, "one"), Media)
        with pytest.raises(MatrixError, match="M_CANNOT_OVERWRITE_MEDIA"):
            await upload(database, "one", blob(b"x"), is_pending=True)
        assert await database.write(storage.delete_expired_pending) == 1


async def test_remote_files_are_stored_and_found(database_url: str) -> None:
    async with opened_for_media(database_url) as database:
        blobs = [blob(b"%d" % number * 100) for number in range(5)]
        for number, each in enumerate(blobs):
            await database.write(storage.store_remote, each, THERE, f"m{number}", PICTURE)
            await database.write(
                lambda tx, at=number: tx.run("UPDATE media SET used_ms = ? WHERE media_id = ?", at, f"m{at}")
            )
        late = blob(b"another node was faster")
        answer = await database.write(storage.store_remote, late, THERE, "m0", PICTURE)
        assert answer.blob == blobs[0] and answer.is_remote
        assert await database.read(storage.list_deletions, 10) == [late.key]
        assert await database.read(storage.get_remote_bytes) == 500
        await database.write(storage.store_used, answer.media_nid)
        assert await database.write(storage.delete_oldest_remote, 150, 100) == 200
        kept = [number for number in range(5) if await database.read(storage.find_media, THERE, f"m{number}")]
        assert kept == [0, 3, 4]


async def test_thumbnails_are_stored_and_found(database_url: str) -> None:
    async with opened_for_media(database_url) as database:
        await upload(database, "one", blob(b"picture"))
        media = await database.read(storage.find_media, HERE, "one")
        assert media is not None
        nid, size = media.media_nid, Size("crop", 96, 96, False)
        assert await database.read(thumbnail_storage.find_image, nid) is None
        image = Image("image/png", 800, 600, True)
        small = Thumbnail("image/jpeg", blob(b"small").key, 5, b"small")
        assert await database.write(thumbnail_storage.store_thumbnail, nid, image, size, small) == small
        assert await database.read(thumbnail_storage.find_thumbnail, nid, size) == small
        large = Thumbnail("image/webp", blob(b"large").key, 100_000)
        moving = Size("scale", 800, 600, True)
        await database.write(thumbnail_storage.store_thumbnail, nid, image, moving, large)
        slower = Thumbnail("image/webp", blob(b"slower").key, 100_000)
        assert await database.write(thumbnail_storage.store_thumbnail, nid, image, moving, slower) == large
        assert await database.read(storage.list_deletions, 10) == [slower.blob_key]
        assert await database.read(thumbnail_storage.count_thumbnails, nid) == 2
        found = await database.read(thumbnail_storage.find_image, nid)
        assert found is not None and (found.width, found.is_animated, found.failure) == (800, True, "")
        await database.write(thumbnail_storage.store_image, nid, Image(failure="too_large"))
        found = await database.read(thumbnail_storage.find_image, nid)
        assert found is not None and found.failure == "too_large" and found.checked_ms > 0
        orphan = blob(b"orphan").key
        keys = [media.blob.key, large.blob_key, orphan]
        assert await database.read(storage.list_unused, keys) == [orphan]
        await database.write(storage.delete_media, HERE, "one")
        assert await database.read(thumbnail_storage.find_thumbnail, nid, size) is None
        with pytest.raises(MatrixError, match="M_NOT_FOUND"):
            await database.write(thumbnail_storage.store_thumbnail, nid, image, size, small)


async def test_the_sweep_deletes_expired_rows(database_url: str) -> None:
    async with opened_for_media(database_url) as database:
        assert await database.read(storage.get_sweep) == 0
        await database.write(storage.store_sweep, 5)
        assert await database.read(storage.get_sweep) == 5
        key = blob(b"orphan").key
        await database.write(storage.store_orphans, [key, key])
        assert await database.read(storage.list_deletions, 10) == [key]


def test_blob_keys_contain_hash_and_time() -> None:
    key = blob(b"x").key
    assert key.startswith("media/2/2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881-")
    assert blob_created_ms(key) == 1_700_000_000_000
    for other in ("media/x", "media/a-b-c", "a-1", "", key[:-1], key.replace("media", "other")):
        assert blob_created_ms(other) is None
