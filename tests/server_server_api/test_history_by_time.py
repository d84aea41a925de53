"""The event of a time, from history that only other servers have.

Spec: server-server-api/#get_matrixfederationv1timestamp_to_eventroomid
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest

from tests.server_server_api.test_history import all_texts
from tests.support.federation import Federation, create_room, join, send_state, send_text, wait_text
from tests.support.homeservers import Client, now_ms

MINUTE_MS = 60_000


class Clock:
    """The time of all servers of a test."""

    def __init__(self) -> None:
        self.ahead_ms = 0

    def __call__(self) -> int:
        return now_ms() + self.ahead_ms


async def say(client: Client, room_id: str, clock: Clock, count: int, first: int = 0) -> list[tuple[str, int]]:
    """Sends messages, one a minute, and returns the event ID and time of each."""
    sent = []
    for number in range(first, first + count):
        clock.ahead_ms += MINUTE_MS
        event_id = await send_text(client, room_id, f"message {number}")
        event = await client.ok("GET", f"rooms/{quote(room_id)}/event/{quote(event_id)}")
        sent.append((event_id, event["origin_server_ts"]))
    clock.ahead_ms += MINUTE_MS
    return sent


async def at_time(client: Client, room_id: str, ts: int, direction: str) -> str:
    path = f"/_matrix/client/v1/rooms/{quote(room_id)}/timestamp_to_event?ts={ts}&dir={direction}"
    return str((await client.ok("GET", path))["event_id"])


async def around(client: Client, room_id: str, event_id: str) -> dict[str, Any]:
    return dict(await client.ok("GET", f"rooms/{quote(room_id)}/context/{quote(event_id)}?limit=0"))


async def test_a_day_before_the_join_is_found(federation: Federation) -> None:
    clock = Clock()
    a, b = await federation.start("a.example", clock=clock), await federation.start("b.example", clock=clock)
    alice, bob = await a.register("alice"), await b.register("bob")
    room_id = await create_room(alice, preset="public_chat")
    sent = await say(alice, room_id, clock, 60)
    await join(bob, room_id, "a.example")
    for number in (30, 10, 45, 59):
        event_id, ts = sent[number]
        assert await at_time(bob, room_id, ts, "f") == event_id
        assert await at_time(bob, room_id, ts - 1, "f") == event_id
        assert await at_time(bob, room_id, ts, "b") == event_id
    assert await at_time(bob, room_id, sent[20][1] + 1, "b") == sent[20][0]
    assert (await around(bob, room_id, sent[10][0]))["event"]["content"]["body"] == "message 10"
    assert await all_texts(bob, room_id, 7) == [f"message {number}" for number in range(60)]


async def test_pagination_continues_from_the_event_of_a_time(federation: Federation) -> None:
    clock = Clock()
    a, b = await federation.start("a.example", clock=clock), await federation.start("b.example", clock=clock)
    alice, bob = await a.register("alice"), await b.register("bob")
    room_id = await create_room(alice, preset="public_chat")
    sent = await say(alice, room_id, clock, 40)
    await join(bob, room_id, "a.example")
    event_id = await at_time(bob, room_id, sent[20][1], "f")
    start = (await around(bob, room_id, event_id))["start"]
    page = await bob.ok("GET", f"rooms/{quote(room_id)}/messages?dir=b&limit=5&from={start}")
    assert [event["event_id"] for event in page["chunk"]] == [each for each, _ in sent[19:14:-1]]


async def test_no_server_is_asked_if_history_is_complete(federation: Federation) -> None:
    clock = Clock()
    a, b = await federation.start("a.example", clock=clock), await federation.start("b.example", clock=clock)
    alice, bob = await a.register("alice"), await b.register("bob")
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id, "a.example")
    sent = await say(alice, room_id, clock, 3)
    await wait_text(bob, room_id, "message 2")
    await federation.kill("a.example")
    assert await at_time(bob, room_id, sent[1][1], "f") == sent[1][0]
    assert await at_time(bob, room_id, sent[1][1], "b") == sent[1][0]


async def test_local_events_are_the_answer_while_others_are_away(federation: Federation) -> None:
    clock = Clock()
    a, b = await federation.start("a.example", clock=clock), await federation.start("b.example", clock=clock)
    alice, bob = await a.register("alice"), await b.register("bob")
    room_id = await create_room(alice, preset="public_chat")
    sent = await say(alice, room_id, clock, 3)
    await join(bob, room_id, "a.example")
    await federation.kill("a.example")
    event_id = await at_time(bob, room_id, sent[1][1], "f")
    assert (await around(bob, room_id, event_id))["event"]["content"]["membership"] == "join"


async def test_timestamps_resolve_to_visible_events_only(federation: Federation) -> None:
    clock = Clock()
    a, b = await federation.start("a.example", clock=clock), await federation.start("b.example", clock=clock)
    alice, bob = await a.register("alice"), await b.register("bob")
    room_id = await create_room(alice, preset="public_chat")
    await send_state(alice, room_id, "m.room.history_visibility", {"history_visibility": "joined"})
    sent = await say(alice, room_id, clock, 3)
    await join(bob, room_id, "a.example")
    event_id = await at_time(bob, room_id, sent[1][1], "f")
    assert event_id not in dict(sent)
    assert (await around(bob, room_id, event_id))["event"]["content"]["membership"] == "join"


@pytest.mark.parametrize("direction", ["f", "b"])
async def test_servers_get_the_nearest_event_that_they_may_see(federation: Federation, direction: str) -> None:
    clock = Clock()
    a, b = await federation.start("a.example", clock=clock), await federation.start("b.example", clock=clock)
    alice, bob = await a.register("alice"), await b.register("bob")
    room_id = await create_room(alice, preset="public_chat")
    early = await say(alice, room_id, clock, 1)
    await send_state(alice, room_id, "m.room.history_visibility", {"history_visibility": "joined"})
    hidden = await say(alice, room_id, clock, 3, first=1)
    await join(bob, room_id, "a.example")
    late = await say(alice, room_id, clock, 1, first=4)
    await wait_text(bob, room_id, "message 4")
    found = await at_time(bob, room_id, hidden[1][1], direction)
    assert found not in dict(hidden)
    event = (await around(bob, room_id, found))["event"]
    assert event["origin_server_ts"] > early[0][1] or event["event_id"] == early[0][0]
    assert event["origin_server_ts"] <= late[0][1]
