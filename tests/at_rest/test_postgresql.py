"""Archive, purging, forgetting, rotation and sealing of what is old work on PostgreSQL as on SQLite: one story."""

from __future__ import annotations

from pathlib import Path

import pytest

from homeserver.config import AtRest, DatabaseSection
from homeserver.errors import MatrixError
from homeserver.features import at_rest
from homeserver.features.archive import delete_leftovers
from homeserver.features.media.sealing_old import seal_old_files
from homeserver.features.media.sealing_storage import count_unsealed
from homeserver.rooms.archive.blocks import list_blocks
from homeserver.rooms.expiring import Purged
from homeserver.rooms.purging import estimate_purge, purge_room
from homeserver.rooms.resealing import count_waiting
from homeserver.rooms.rotation import get_status, rotate
from homeserver.testing import one_server
from tests.support.archive import archive_all
from tests.support.consistency import check_consistency

pytestmark = pytest.mark.postgres

SAID = [f"tea number {number}" for number in range(5)]


async def test_old_conversations_on_postgresql_are_archived_sealed_purged_and_forgotten(
    postgres_url: str, tmp_path: Path
) -> None:
    database = DatabaseSection(url=postgres_url)
    plain = AtRest(events=False, media=False, archive=False)
    async with one_server("a.example", folder=tmp_path, database=database, at_rest=plain) as server:
        alice = await server.register("alice")
        uri = await alice.upload(b"a picture", content_type="text/plain")
        rooms = [await alice.create_room() for _ in range(2)]
        sent = [[await alice.send(room_id, body) for body in SAID] for room_id in rooms]
        await alice.send(rooms[0], {"msgtype": "m.image", "body": "a picture", "url": uri})
        for room_id in rooms:
            await alice.send(room_id, "and good night")
        assert (await archive_all(server.resources)).blocks == 2

    async with one_server("a.example", folder=tmp_path, database=database) as server:
        hs, alice = server.resources, await server.log_in("alice")
        await at_rest.seal_old(hs)
        await seal_old_files(hs)
        await archive_all(hs)
        assert await hs.database.read(count_waiting) == (0, 0)
        assert await hs.database.read(count_unsealed) == 0
        assert (await alice.download(uri)).content == b"a picture"

        old = (await hs.database.read(get_status)).current
        new, _ = await rotate(server.config, hs.database, hs.database.server.master_keys, lambda done, of: None)
        status = await hs.database.read(get_status)
        assert old != new == status.current and status.replaced == {}
        hs.database.drop_caches()

        await alice.call("redact_event", rooms[1], sent[1][0], "t", body={})
        await archive_all(hs)
        for room_id, event_ids in zip(rooms, sent, strict=True):
            (block,) = await hs.database.read(lambda tx, room_id=room_id: list_blocks(tx, tx.find(room_id)))
            assert block.sealed
            shown = [await alice.call("get_one_room_event", room_id, event_id) for event_id in event_ids]
            assert [event["content"].get("body") for event in shown[1:]] == SAID[1:]
        assert shown[0]["content"] == {}

        expected, purged = Purged(), Purged()
        room_nid = await hs.database.read(lambda tx: tx.find(rooms[0]))
        assert room_nid is not None
        await estimate_purge(hs, room_nid, 1 << 60, expected)
        await purge_room(hs, room_nid, 1 << 60, purged)
        assert expected == purged == Purged(1, 7, purged.text_bytes, 1, len(b"a picture"))
        assert [event.body for event in await alice.messages(rooms[0]) if event.type == "m.room.message"] == []
        with pytest.raises(MatrixError):
            await alice.download(uri)

        await at_rest.forget_room(hs, rooms[1], lambda done, of: None)
        assert (await alice.call("get_one_room_event", rooms[1], sent[1][1]))["content"] == {}
        await alice.send(rooms[1], "and on it goes")
        await delete_leftovers(hs)
        await hs.database.read(check_consistency)
