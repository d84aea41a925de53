"""Archived events are read like stored ones, and nothing is lost on the way into blocks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from msgspec.structs import replace

from homeserver.blobs import BlobError, Blobs
from homeserver.database import DatabaseDamaged, Transaction
from homeserver.federation.build import Draft
from homeserver.federation.event import Event
from homeserver.federation.identifiers import RoomID
from homeserver.rooms.append import append_local
from homeserver.rooms.archive.blocks import list_blocks, list_garbage
from homeserver.rooms.archiving import Plan, Wanted, find_plan, move
from homeserver.rooms.events import find_event, load_events
from homeserver.rooms.expiring import expire
from homeserver.rooms.retention import EXPIRED_PER_WRITE
from homeserver.rooms.storage import StoredEvent, find_position, list_positions
from homeserver.rooms.timeline import END, START, list_backwards, list_by_timestamp, list_forwards
from tests.support.archive import Archive, archive_all
from tests.support.rooms import OUR_ALICE, OUR_BOB, Rooms


@pytest.fixture
def archivist(rooms: Rooms) -> Archive:
    return rooms.archive


async def _chat(rooms: Rooms, number: int) -> tuple[RoomID, list[Event]]:
    room_id = await rooms.create(OUR_ALICE, OUR_BOB)
    sent = []
    for each in range(number):
        sender = (OUR_ALICE, OUR_BOB)[each % 2]
        sent.append(await rooms.append(room_id, sender, content={"msgtype": "m.text", "body": f"message {each}"}))
        if each % 10 == 5:
            sent.append(await rooms.append(room_id, OUR_ALICE, "m.room.topic", {"topic": f"topic {each}"}, ""))
    return room_id, sent


def _rows(tx: Transaction) -> int:
    (count,) = tx.values("SELECT COUNT(*) FROM events WHERE state_key_nid IS NULL")
    return int(count)


async def test_archived_events_are_read_like_stored_ones(rooms: Rooms, archivist: Archive) -> None:
    room_id, sent = await _chat(rooms, 60)

    async def read() -> list[object]:
        found: list[object] = []
        for fn, start in ((list_backwards, END), (list_forwards, START)):
            everything = await rooms.read(fn, room_id, start, 500)
            found += [everything, await rooms.read(fn, room_id, everything[30].ordering, 17)]
        found.append(await rooms.read(list_positions, 0, END))
        for event in sent:
            found.append(await rooms.read(find_position, event.event_id))
            found.append((await rooms.read(find_event, event.event_id)).pdu)
        for ts in (sent[0].origin_server_ts, sent[31].origin_server_ts + 1, sent[-1].origin_server_ts):
            found.append(await rooms.read(list_by_timestamp, room_id, ts, "f", 3))
            found.append(await rooms.read(list_by_timestamp, room_id, ts, "b", 3))
        return found

    before = await read()
    assert (await archive_all(archivist)).events == 59
    assert await rooms.read(_rows) == 1
    assert await read() == before


async def test_archived_events_have_their_ids_and_signatures(rooms: Rooms, archivist: Archive) -> None:
    _, sent = await _chat(rooms, 40)
    await archive_all(archivist)
    for event in sent:
        found = await rooms.read(find_event, event.event_id)
        assert found.pdu == event.pdu
        assert found.pdu["signatures"] == event.pdu["signatures"]


async def test_new_messages_join_the_last_block(rooms: Rooms, archivist: Archive) -> None:
    room_id, _ = await _chat(rooms, 10)
    await archive_all(archivist)
    for number in range(5):
        await rooms.append(room_id, OUR_ALICE, content={"body": f"more {number}"})
    timeline = await rooms.timeline(room_id)
    await archive_all(archivist)
    assert await rooms.timeline(room_id) == timeline
    (block,) = await rooms.read(lambda tx: list_blocks(tx, tx.find(room_id)))
    assert block.events == 14


async def test_redacting_an_archived_event_rewrites_its_block(rooms: Rooms, archivist: Archive) -> None:
    room_id, sent = await _chat(rooms, 10)
    await archive_all(archivist)
    (old,) = await rooms.read(lambda tx: list_blocks(tx, tx.find(room_id)))
    secret = await rooms.append(room_id, OUR_BOB, content={"body": "a secret"})
    await rooms.append(room_id, OUR_BOB)
    await archive_all(archivist)
    await rooms.append(room_id, OUR_BOB, "m.room.redaction", {"redacts": secret.event_id}, redacts=secret.event_id)
    redacted = await rooms.stored(secret.event_id)
    assert redacted.content == {}
    assert redacted.redacted_by is not None
    timeline = await rooms.timeline(room_id)
    await archive_all(archivist)
    assert await rooms.stored(secret.event_id) == redacted
    assert await rooms.timeline(room_id) == timeline
    (new,) = await rooms.read(lambda tx: list_blocks(tx, tx.find(room_id)))
    assert new.blob != old.blob
    assert (await rooms.read(find_event, secret.event_id)).event_id == secret.event_id


async def test_a_lost_block_is_named_and_the_rest_is_readable(rooms: Rooms, archivist: Archive) -> None:
    room_id, sent = await _chat(rooms, 10)
    await archive_all(archivist)
    (block,) = await rooms.read(lambda tx: list_blocks(tx, tx.find(room_id)))
    data = await archivist.blobs.get(block.blob)
    await archivist.blobs.delete(block.blob)
    rooms.database.drop_caches()
    with pytest.raises(DatabaseDamaged, match=block.blob):
        await rooms.read(list_backwards, room_id, END, 100)
    newest: list[StoredEvent] = await rooms.read(list_backwards, room_id, END, 1)
    assert newest[0].event_id == sent[-1].event_id
    await rooms.append(room_id, OUR_ALICE)
    await archivist.blobs.put(block.blob, b"damaged")
    with pytest.raises(DatabaseDamaged, match=block.blob):
        await rooms.read(find_event, sent[0].event_id)
    await archivist.blobs.put(block.blob, data)


async def test_events_that_cite_one_another_across_blocks_come_back(rooms: Rooms, archivist: Archive) -> None:
    room_id, _ = await _chat(rooms, 30)
    await archive_all(archivist)
    positions = await rooms.read(list_positions, 0, END)
    events = await rooms.read(load_events, positions)
    assert len(events) == len(positions)


async def _plan(rooms: Rooms, room_id: RoomID) -> Plan:
    wanted = Wanted(1 << 60, rows_bytes_min=0)
    plan: Plan = await rooms.read(lambda tx: find_plan(tx, tx.find(room_id) or 0, wanted))
    return plan


async def test_an_interrupted_archiving_changes_nothing_and_leaves_only_garbage(
    rooms: Rooms, archivist: Archive
) -> None:
    room_id, sent = await _chat(rooms, 10)
    timeline = await rooms.timeline(room_id)
    plan = await _plan(rooms, room_id)
    archivist.blobs = FailingBlobs("memory:", inline=True)
    with pytest.raises(BlobError):
        await move(archivist, plan)
    assert await rooms.timeline(room_id) == timeline
    assert await rooms.read(_rows) == 10
    assert await rooms.read(list_garbage, 10) == []  # not yet: it might still be going on
    noted = await rooms.read(lambda tx: tx.values("SELECT blob FROM archive_garbage"))
    assert len(noted) == 1


class FailingBlobs(Blobs):
    """A storage that is full."""

    async def put(self, key: str, data: bytes | Path, headers: Mapping[str, str] | None = None) -> None:
        raise BlobError("The blob storage is full.")


async def test_rows_that_change_meanwhile_are_not_moved(rooms: Rooms, archivist: Archive) -> None:
    room_id, sent = await _chat(rooms, 10)
    plan = await _plan(rooms, room_id)
    await rooms.append(room_id, OUR_ALICE, "m.room.redaction", {"redacts": sent[2].event_id}, redacts=sent[2].event_id)
    assert not await move(archivist, plan)
    assert await rooms.read(lambda tx: list_blocks(tx, tx.find(room_id) or 0)) == []
    assert (await rooms.stored(sent[2].event_id)).content == {}
    await archive_all(archivist)
    assert (await rooms.stored(sent[2].event_id)).content == {}


async def test_expiry_reduces_all_messages_however_many_have_the_same_time(rooms: Rooms, archivist: Archive) -> None:
    room_id = await rooms.create(OUR_ALICE, OUR_BOB)
    number = EXPIRED_PER_WRITE + 5
    draft = Draft(room_id, OUR_ALICE, "m.room.message", {"body": "hello"}, origin_server_ts=1_000)
    sent = [await rooms.write(append_local, draft) for _ in range(number)]
    kept = await rooms.write(append_local, replace(draft, content={"body": "kept"}, origin_server_ts=2_000))
    room_nid = await rooms.read(lambda tx: tx.find(room_id))
    assert room_nid is not None
    assert (await expire(archivist, room_nid, 2_000))[0] == number
    assert await expire(archivist, room_nid, 2_000) == (0, 0)
    for event in sent:
        assert (await rooms.stored(event.event_id)).content == {}
    assert (await rooms.stored(kept.event_id)).content == {"body": "kept"}
