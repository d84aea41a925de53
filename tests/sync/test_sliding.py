"""A connection of sliding sync that is told step by step ends up with what a new one is told, and with the room.

Windows, limits and required state change on the way, and answers get lost.
"""

from __future__ import annotations

from typing import Any

import trio
from hypothesis import given, seed, settings

from homeserver.federation.identifiers import RoomID
from homeserver.users.account_data import SCHEMA as ACCOUNT_DATA
from homeserver.users.sync_connections import SCHEMA as SYNC_CONNECTIONS
from tests.support.examples import share_of_examples
from tests.support.rooms import Rooms, opened_rooms
from tests.sync.clients import SyncClient
from tests.sync.sliding_clients import EVERYTHING, SlidingClient
from tests.sync.test_incremental import OURS, make_world, steps


async def check_as_fresh(rooms: Rooms, client: SlidingClient) -> None:
    """The client, up to date, knows what a new one is told, and what one of /v3/sync is told."""
    client.limit = 500
    await client.ask(19, EVERYTHING)
    assert (await client.ask(19, EVERYTHING))["rooms"] == {}, "the answer before has told everything"
    fresh = SlidingClient(rooms, client.user_id, "fresh", limit=500)
    await fresh.ask(19, EVERYTHING)
    other = SyncClient(rooms, client.user_id, use_state_after=True, limit=500)
    await other.sync()
    joined = {room_id for room_id, room in fresh.known.items() if room.membership == "join"}
    assert joined == {room_id for room_id, room in other.known.items() if room.section == "join"}
    for room_id, expected in fresh.known.items():
        known = client.known[room_id]
        assert known.membership == expected.membership
        assert len(set(known.timeline)) == len(known.timeline), "an event was told twice"
        if expected.membership == "join":
            assert known.state == expected.state == other.known[room_id].state == await rooms.state(RoomID(room_id))
            assert known.timeline == expected.timeline
            assert set(expected.timeline) == set(other.known[room_id].timeline)
            assert known.joined_count == expected.joined_count
            assert known.joined_count == other.known[room_id].summary["m.joined_member_count"]


async def run(script: list[tuple[Any, ...]]) -> None:
    async with opened_rooms(ACCOUNT_DATA, SYNC_CONNECTIONS) as rooms:
        world = await make_world(rooms)
        clients = [SlidingClient(rooms, user_id, str(number)) for user_id in OURS for number in range(2)]
        world.clients = clients  # type: ignore[assignment]
        for step in script:
            await world.do(*step)
        for client in clients:
            await check_as_fresh(rooms, client)


@seed(20)
@settings(max_examples=share_of_examples(0.4))
@given(steps)
def test_incremental_answers_add_up_to_those_of_a_new_connection(script: list[tuple[Any, ...]]) -> None:
    trio.run(run, script)
