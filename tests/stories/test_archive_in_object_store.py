"""The archive is in an object store that is full, slow, damaged or lacks a block: the rest of the server goes on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from homeserver import Homeserver
from homeserver.blobs import BlobError
from homeserver.client import Client
from homeserver.config import BlobsSection, DatabaseSection
from homeserver.database import DatabaseDamaged
from homeserver.federation.identifiers import RoomID
from homeserver.resources import Resources
from homeserver.rooms.archive.blocks import BlockRow, list_blocks
from homeserver.rooms.archiving import verify_block
from homeserver.testing import config_for_tests
from tests.support.archive import archive_all
from tests.support.object_store import Objects, running_object_store
from tests.support.quiet import until_quiet

pytestmark = pytest.mark.sockets

SAID = [f"tea number {number}" for number in range(4)]


@asynccontextmanager
async def opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Resources, Client, Objects]]:
    """Alice's server, which stores blobs in a bucket."""
    with running_object_store() as (environment, objects):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        stores: dict[str, Any] = {"database": DatabaseSection(), "blobs": BlobsSection(url="s3://bucket/prefix")}
        config = config_for_tests("a.example", folder, **stores)
        async with Homeserver(config) as server:
            yield server.resources, await server.register("alice"), objects


async def chat(alice: Client) -> RoomID:
    room_id = await alice.create_room()
    for body in (*SAID, "and good night"):
        await alice.send(room_id, body)
    return room_id


async def bodies(alice: Client, room_id: str, limit: int = 50) -> list[str]:
    events = await alice.messages(room_id, limit=limit)
    return [event.body for event in events if event.type == "m.room.message"][::-1]


async def block_of(hs: Resources, room_id: str) -> BlockRow:
    (block,) = await hs.database.read(lambda tx: list_blocks(tx, tx.find(room_id) or 0))
    return block


async def test_an_archive_in_a_full_or_slow_store_loses_nothing_and_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path, monkeypatch) as (hs, alice, objects):
        room_id = await chat(alice)
        await until_quiet()
        objects.is_full = True
        with trio.fail_after(30), pytest.raises(BlobError):
            await archive_all(hs)
        assert await bodies(alice, room_id) == [*SAID, "and good night"]
        assert objects == {}
        objects.is_full = False
        await archive_all(hs)
        assert len(objects) == 1

        hs.database.drop_caches()
        objects.gate.clear()
        found: list[str] = []
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                found.extend(await bodies(alice, room_id))

            nursery.start_soon(read)
            with trio.fail_after(10):
                await alice.send(room_id, "while we wait")
                assert await bodies(alice, room_id, 1) == ["while we wait"]
            assert found == []
            objects.gate.set()
        assert found[: len(SAID)] == SAID


async def test_a_block_that_an_object_store_has_lost_or_damaged_is_named_and_the_rest_is_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path, monkeypatch) as (hs, alice, objects):
        rooms = [await chat(alice) for _ in range(3)]
        await until_quiet()
        await archive_all(hs)
        lost, damaged, good = [await block_of(hs, room_id) for room_id in rooms]
        del objects[f"prefix/{lost.blob}"]
        data = objects[f"prefix/{damaged.blob}"]
        objects[f"prefix/{damaged.blob}"] = data[:-1] + bytes([data[-1] ^ 1])
        hs.database.drop_caches()
        for block, words in ((lost, "is lost"), (damaged, "is damaged")):
            with pytest.raises(DatabaseDamaged, match=f"The archived block {block.blob} {words}"):
                await verify_block(hs, block)
        assert await verify_block(hs, good)
        for room_id, block in zip(rooms, (lost, damaged), strict=False):
            with pytest.raises(DatabaseDamaged, match=block.blob):
                await bodies(alice, room_id)
            assert await bodies(alice, room_id, 1) == ["and good night"]
            await alice.send(room_id, "and on it goes")
        assert await bodies(alice, rooms[2]) == [*SAID, "and good night"]
