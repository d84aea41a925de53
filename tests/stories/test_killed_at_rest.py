"""Archiving, purging, forgetting and sealing are killed at every step. Nothing is lost, nothing comes twice, and all of
them go on.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
import trio

from homeserver.client import Client
from homeserver.config import AtRest
from homeserver.database import Transaction
from homeserver.errors import MatrixError
from homeserver.features import at_rest
from homeserver.features.archive import delete_leftovers, purge_room
from homeserver.features.media.cleanup import delete_released
from homeserver.features.media.sealing_old import seal_old_files
from homeserver.features.media.sealing_storage import count_unsealed
from homeserver.federation.identifiers import RoomID
from homeserver.resources import Resources
from homeserver.rooms.archive.blocks import list_blocks, list_stale
from homeserver.rooms.archiving import Wanted, archive, list_rooms, rewrite
from homeserver.rooms.expiring import Purged
from homeserver.rooms.resealing import count_waiting, note_setting
from homeserver.testing import one_server
from tests.support.archive import archive_all
from tests.support.clock import let_days_pass
from tests.support.consistency import check_consistency
from tests.support.mortal import Killed, lives, mortal

pytestmark = pytest.mark.usefixtures("virtual_clock")

ALL = 1 << 60
"""Later than every message."""
SAID = [f"tea number {number}" for number in range(4)]
HOUR_S = 3600
PLAIN = AtRest(events=False, media=False, archive=False)


async def chat(alice: Client) -> RoomID:
    """A room in which alice has said everything, and one thing more, which stays out of the archive."""
    room_id = await alice.create_room()
    for body in (*SAID, "and good night"):
        await alice.send(room_id, body)
    return room_id


async def bodies(alice: Client, room_id: str) -> list[str]:
    """Returns the texts of the room, oldest first."""
    events = await alice.messages(room_id, limit=50)
    return [event.content.get("body", "") for event in events if event.type == "m.room.message"][::-1]


async def nid_of(hs: Resources, room_id: str) -> int:
    nid = await hs.database.read(lambda tx: tx.find(room_id))
    assert nid is not None
    return nid


async def check_archive(hs: Resources) -> None:
    """Every blob of the archive belongs to a block, once a killed process cannot come back for it; each event is in one
    place.
    """
    await trio.sleep(2 * HOUR_S)
    await delete_leftovers(hs)
    wanted = {
        row.blob for nid in await hs.database.read(list_rooms) for row in await hs.database.read(list_blocks, nid)
    }
    assert {key async for key, _ in hs.blobs.list("archive")} == wanted
    assert await hs.database.read(list_twice) == []
    await hs.database.read(check_consistency)


def list_twice(tx: Transaction) -> list[int]:
    """The positions that are archived and have a row, although no block is to be rewritten because of that."""
    stored = set(tx.values("SELECT position FROM events WHERE state_key_nid IS NULL"))
    return sorted(stored.intersection(tx.values("SELECT position FROM archived_ids"))) if not list_stale(tx) else []


async def test_archiving_that_is_killed_at_any_step_goes_on() -> None:
    async with one_server() as server:
        hs, alice = server.resources, await server.register("alice")
        for life in lives():
            room_id = await chat(alice)
            nid = await nid_of(hs, room_id)
            with suppress(Killed):
                await archive(mortal(hs, life), [nid], Wanted(ALL, rows_bytes_min=0))
            hs.database.drop_caches()
            assert await bodies(alice, room_id) == [*SAID, "and good night"], life
            await archive(hs, [nid], Wanted(ALL, rows_bytes_min=0))
            assert await bodies(alice, room_id) == [*SAID, "and good night"], life
            (block,) = await hs.database.read(list_blocks, nid)
            assert block.events == len(SAID)
        await check_archive(hs)


async def test_rewriting_a_block_that_is_killed_at_any_step_goes_on() -> None:
    async with one_server() as server:
        hs, alice = server.resources, await server.register("alice")
        for life in lives():
            room_id = await alice.create_room()
            secret = await alice.send(room_id, "my secret")
            await alice.send(room_id, "no secret")
            await alice.send(room_id, "and good night")
            await archive_all(hs)
            dying = mortal(hs, life)
            async with hs.database.hold("archived_redactions"):  # the server's own worker waits
                await alice.call("redact_event", room_id, secret, "t", body={})
                (stale,) = await hs.database.read(list_stale)
                with suppress(Killed):
                    await rewrite(dying, stale)
                hs.database.drop_caches()
                assert await bodies(alice, room_id) == ["", "no secret", "and good night"], life
                for block in await hs.database.read(list_stale):
                    await rewrite(hs, block)
            assert await bodies(alice, room_id) == ["", "no secret", "and good night"], life
            (row,) = await hs.database.read(list_blocks, await nid_of(hs, room_id))
            assert row.block != stale and row.events == 2
        await check_archive(hs)


async def test_purging_that_is_killed_at_any_step_goes_on() -> None:
    async with one_server() as server:
        hs, alice = server.resources, await server.register("alice")
        for life in lives():
            room_id = await chat(alice)
            nid = await nid_of(hs, room_id)
            await archive(hs, [nid], Wanted(ALL, rows_bytes_min=0))
            uri = await alice.upload(b"a picture", content_type="text/plain")
            await alice.send(room_id, {"msgtype": "m.image", "body": "a picture", "url": uri})
            with suppress(Killed):
                await purge_room(mortal(hs, life), nid, ALL, Purged())
            hs.database.drop_caches()
            left = await bodies(alice, room_id)
            assert left == [body for body in (*SAID, "and good night", "a picture") if body in left], life
            await purge_room(hs, nid, ALL, Purged())
            assert await bodies(alice, room_id) == [], life
            with pytest.raises(MatrixError):
                await alice.download(uri)
        await delete_released(hs)
        assert [key async for key, _ in hs.blobs.list("media")] == []
        await check_archive(hs)


async def test_forgetting_that_is_killed_at_any_step_is_finished_at_the_next_start() -> None:
    async with one_server() as server:
        hs, alice = server.resources, await server.register("alice")
        for life in lives():
            room_id, other = await chat(alice), await chat(alice)
            await archive(hs, [await nid_of(hs, room_id)], Wanted(ALL, rows_bytes_min=0))
            await alice.send(room_id, "later")
            with suppress(Killed):
                await at_rest.forget_room(mortal(hs, life), room_id, lambda done, of: None)
            hs.database.drop_caches()
            is_begun = bool(await hs.database.read(list_forgotten_rooms, room_id))
            await at_rest.finish_interrupted(hs)
            expected = [""] * (len(SAID) + 2) if is_begun else [*SAID, "and good night", "later"]
            assert await bodies(alice, room_id) == expected, life
            assert await bodies(alice, other) == [*SAID, "and good night"]
        await check_archive(hs)


def list_forgotten_rooms(tx: Transaction, room_id: str) -> list[int]:
    return tx.values("SELECT room_nid FROM forgotten_rooms WHERE room_nid = ?", tx.find(room_id))


async def test_sealing_old_files_that_is_killed_at_any_step_goes_on(tmp_path: Path) -> None:
    contents = [b"cup", b"pot" * 100_000, b""]
    async with one_server("a.example", folder=tmp_path, at_rest=PLAIN) as server:
        alice = await server.register("alice")
        uris: dict[str, bytes] = {}
        for number in range(40):
            content = b"%d" % number + contents[number % 3]
            uris[await alice.upload(content, content_type="text/plain")] = content
    async with one_server("a.example", folder=tmp_path, at_rest=AtRest(media=False)) as server:
        alice = await server.log_in("alice")
        sealing = msgspec.structs.replace(server.config, at_rest=AtRest())  # this server's own work would come between
        hs = msgspec.structs.replace(server.resources, config=sealing)
        for life in lives():
            with suppress(Killed):
                await seal_old_files(mortal(hs, life))
        assert await hs.database.read(count_unsealed) == 0
        for uri, content in uris.items():
            assert (await alice.download(uri)).content == content
        await let_days_pass(2)  # long enough for the clean-up to go through everything
        await delete_released(hs)
        stored = [key async for key, _ in hs.blobs.list("media")]
        assert len(stored) == len(uris)
        assert all("-k" in key for key in stored)


async def test_events_and_blocks_stored_while_sealing_was_off_are_sealed_once_it_is_on(tmp_path: Path) -> None:
    async with one_server("a.example", folder=tmp_path) as server:
        room_id = await chat(await server.register("alice"))
        await archive_all(server.resources)
    async with one_server("a.example", folder=tmp_path, at_rest=PLAIN) as server:
        alice = await server.log_in("alice")
        await trio.sleep(1)
        await alice.send(room_id, "in plain sight")
        await alice.send(room_id, "and this as well")
        await archive_all(server.resources)
        await alice.send(room_id, "and that")
    async with one_server("a.example", folder=tmp_path) as server:
        hs, alice = server.resources, await server.log_in("alice")
        await hs.database.write(note_setting)
        await trio.sleep(60)
        assert await hs.database.read(count_waiting) == (0, 0)
        assert await hs.database.read(list_plain) == []
        blocks = await hs.database.read(list_blocks, await nid_of(hs, room_id))
        assert all(block.sealed for block in blocks)
        assert (await bodies(alice, room_id))[-3:] == ["in plain sight", "and this as well", "and that"]


def list_plain(tx: Transaction) -> list[int]:
    """The events whose content is not sealed."""
    rows = tx.all("SELECT position, content FROM events")
    return [position for position, content in rows if bytes(content)[:1] != b"\xff"]
