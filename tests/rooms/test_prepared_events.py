"""Answers made of prepared events are what a reader would get without any cache, whatever has happened in the room."""

from __future__ import annotations

from typing import Any

import orjson
import trio
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from homeserver.database import Transaction
from homeserver.encoding import to_json
from homeserver.federation.identifiers import RoomID
from homeserver.rooms.client_event import client_event, client_events
from homeserver.rooms.erasure import note_erased
from homeserver.rooms.heads import get_head
from homeserver.rooms.prepared import PREPARED_BYTES_MAX, encode_bare, encode_events, list_prepared_state
from homeserver.rooms.resolve import StateAt, entries_of
from homeserver.rooms.storage import list_stored, without_withheld
from homeserver.users.account_data import SCHEMA as ACCOUNT_DATA
from tests.rooms.test_redactions import redact
from tests.support.examples import share_of_examples
from tests.support.rooms import OUR_ALICE, OUR_BOB, Rooms, opened_rooms
from tests.sync.test_incremental import OURS, make_world, numbers

ACTIONS = ["state"] * 4 + ["member"] * 4 + ["redact_state"] * 3 + ["erase", "branch"] + ["build"] * 6 + ["deliver"] * 4


def _decoded(value: Any) -> Any:
    return orjson.loads(to_json(value))


def _check_state(tx: Transaction, room_id: RoomID, user_id: str) -> None:
    head = get_head(tx, room_id)
    state = StateAt(head.state_root)
    prepared = list_prepared_state(tx, head, state)
    stored = list_stored(tx, set(entries_of(tx, state).values()))
    expected = without_withheld(tx, [stored[position] for position in sorted(stored)])
    assert [each.event for each in prepared] == list(expected)
    told = encode_events(tx, room_id, prepared, user_id=user_id, device_id="D")
    assert _decoded(told) == _decoded(client_events(tx, expected, user_id=user_id, device_id="D"))
    bare = [
        client_event(tx, event, {"age": tx.now_ms - event.origin_server_ts}, with_room_id=False) for event in expected
    ]
    assert _decoded(encode_bare(tx, prepared)) == _decoded(bare)


async def run(script: list[tuple[str, int, int, int]]) -> None:
    async with opened_rooms(ACCOUNT_DATA) as rooms:
        world = await make_world(rooms)
        for what, a, b, c in script:
            room_id = world.room_ids[a % 2]
            if what == "erase":
                await rooms.write(note_erased, OURS[b % 3])
            elif what == "redact_state":
                state = list((await rooms.state(room_id)).values())
                world.sent[room_id] = [state[(b * 8 + c) % len(state)]]
                await world.do("redact", a % 2, b, 0)
            else:
                await world.do(what, a, b, c)
            await rooms.read(_check_state, room_id, OURS[c % 3])
        for room_id in world.room_ids:
            for user_id in OURS:
                await rooms.read(_check_state, room_id, user_id)


@seed(21)
@settings(max_examples=share_of_examples(0.2))
@given(st.lists(st.tuples(st.sampled_from(ACTIONS), numbers, numbers, numbers), min_size=30, max_size=40))
def test_prepared_states_are_what_each_reader_gets_without_a_cache(script: list[tuple[str, int, int, int]]) -> None:
    trio.run(run, script)


async def test_a_prepared_event_is_encoded_once(rooms: Rooms) -> None:
    room_id = await rooms.create()

    def read(tx: Transaction) -> list[bytes]:
        head = get_head(tx, room_id)
        return [each.head for each in list_prepared_state(tx, head, StateAt(head.state_root))]

    first = await rooms.read(read)
    await rooms.append(room_id, OUR_ALICE, "m.room.topic", {"topic": "new"}, "")
    second = await rooms.read(read)
    assert len(second) == len(first) + 1
    assert all(old is new for old, new in zip(first, second, strict=False))


async def test_a_redaction_ends_what_was_prepared(rooms: Rooms) -> None:
    room_id = await rooms.create(OUR_ALICE, OUR_BOB)
    topic = await rooms.append(room_id, OUR_ALICE, "m.room.topic", {"topic": "secret"}, "")

    def read(tx: Transaction) -> bytes:
        head = get_head(tx, room_id)
        prepared = list_prepared_state(tx, head, StateAt(head.state_root))
        return to_json(encode_events(tx, room_id, prepared, user_id=OUR_BOB))

    assert b"secret" in await rooms.read(read)
    await redact(rooms, room_id, OUR_ALICE, topic)
    assert b"secret" not in await rooms.read(read)


async def test_events_prepared_in_a_write_are_not_kept(rooms: Rooms) -> None:
    room_id = await rooms.create()

    def prepare(tx: Transaction) -> list[int]:
        head = get_head(tx, room_id)
        return [each.event.position for each in list_prepared_state(tx, head, StateAt(head.state_root))]

    positions = await rooms.write(prepare)
    cache = rooms.database.caches.sized("prepared_events", PREPARED_BYTES_MAX)
    assert [cache.get(position) for position in positions] == [None] * len(positions)
