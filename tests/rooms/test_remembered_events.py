"""What was made of an event's row is remembered, for as long as the row stays the same."""

from __future__ import annotations

import pytest

from homeserver.database import DatabaseDamaged, Transaction
from homeserver.rooms.storage import EVENTS_REMEMBERED_BYTES_MAX, find_stored, find_stored_by_id
from tests.rooms.test_redactions import redact
from tests.support.rooms import OUR_ALICE, Rooms


class Undone(Exception):
    """Ends a write so that it changes nothing."""


async def test_an_event_is_converted_once(rooms: Rooms) -> None:
    room_id = await rooms.create()
    event = await rooms.append(room_id, OUR_ALICE, "m.room.message", {"body": "hello"})
    assert await rooms.read(find_stored_by_id, event.event_id) is await rooms.read(find_stored_by_id, event.event_id)


async def test_a_redacted_event_is_converted_again(rooms: Rooms) -> None:
    room_id = await rooms.create()
    event = await rooms.append(room_id, OUR_ALICE, "m.room.message", {"body": "hello"})
    assert (await rooms.read(find_stored_by_id, event.event_id)).content == {"body": "hello"}
    await redact(rooms, room_id, OUR_ALICE, event)
    assert (await rooms.read(find_stored_by_id, event.event_id)).content == {}


async def test_damage_is_noticed_in_a_remembered_event(rooms: Rooms) -> None:
    room_id = await rooms.create()
    event = await rooms.append(room_id, OUR_ALICE, "m.room.message", {"body": "hello"})
    position = (await rooms.read(find_stored_by_id, event.event_id)).position
    (content,) = await rooms.read(lambda tx: tx.values("SELECT content FROM events WHERE position = ?", position))
    await rooms.write(_set_content, position, b"\1damaged")
    with pytest.raises(DatabaseDamaged):
        await rooms.read(find_stored, position)
    await rooms.write(_set_content, position, content)
    assert (await rooms.read(find_stored_by_id, event.event_id)).content == {"body": "hello"}


def _set_content(tx: Transaction, position: int, content: bytes) -> None:
    tx.run("UPDATE events SET content = ? WHERE position = ?", content, position)


async def test_events_read_in_a_write_are_not_remembered(rooms: Rooms) -> None:
    room_id = await rooms.create()
    event = await rooms.append(room_id, OUR_ALICE, "m.room.message", {"body": "hello"})

    def read_and_undo(tx: Transaction) -> None:
        assert find_stored_by_id(tx, event.event_id) is not None
        raise Undone

    with pytest.raises(Undone):
        await rooms.write(read_and_undo)
    (position,) = await rooms.read(lambda tx: tx.values("SELECT max(position) FROM events"))
    remembered = await rooms.read(lambda tx: tx.sized_cache("stored_events", EVENTS_REMEMBERED_BYTES_MAX).get(position))
    assert remembered is None
