"""A client is told where a room's timeline has a gap. Spec: client-server-api/#syncing (`limited`, `prev_batch`)"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest
import trio
import trio.lowlevel

from tests.support.federation import Federation, create_room, join, send_text, sync, until, wait_text
from tests.support.homeservers import Client

# Three times as many as one answer of /get_missing_events brings, so that a gap stays for a while.
MESSAGES = 150


def said(events: list[dict[str, Any]]) -> list[str]:
    return [event["content"]["body"] for event in events if event["type"] == "m.room.message"]


async def listen(client: Client, room_id: str, since: str, last: str, page_size: int = 50) -> tuple[list[str], int]:
    """Returns the events that a client gets by syncing and paginating back into gaps, and the number of gaps."""
    heard: list[str] = []
    gaps = 0
    while last not in heard:
        answer = await sync(client, since, timeout=10_000)
        timeline = answer.get("rooms", {}).get("join", {}).get(room_id, {}).get("timeline")
        if timeline is not None:
            events = timeline["events"]
            if timeline["limited"]:
                gaps += 1
                events = await page_back(client, room_id, timeline["prev_batch"], since, page_size) + events
            heard += said(events)
        since = answer["next_batch"]
        await trio.lowlevel.checkpoint()
    return heard, gaps


async def page_back(client: Client, room_id: str, point: str, to: str, size: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    at: str | None = point
    while at is not None:
        path = f"rooms/{quote(room_id)}/messages?dir=b&limit={size}&from={at}&to={to}"
        page = await client.ok("GET", path)
        found += page["chunk"]
        at = page.get("end")
    return found[::-1]


async def test_a_gap_left_by_an_outage_makes_the_timeline_limited(federation: Federation) -> None:
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id, "a.example")
    await send_text(alice, room_id, "before")
    await wait_text(bob, room_id, "before")
    since = (await sync(bob))["next_batch"]
    federation.network.cut("a.example", "b.example")
    for number in range(MESSAGES):
        await send_text(alice, room_id, f"message {number}")
    federation.network.heal()
    heard, gaps = await listen(bob, room_id, since, f"message {MESSAGES - 1}")
    assert heard == [f"message {number}" for number in range(MESSAGES)]
    assert gaps >= 1


@pytest.mark.parametrize("page_size", [30, 1000])
async def test_a_gap_left_by_an_outage_during_which_both_sides_sent(federation: Federation, page_size: int) -> None:
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id, "a.example")
    sinces = {client.user_id: (await sync(client))["next_batch"] for client in (alice, bob)}
    wanted = set()
    for outage in range(2):
        federation.network.cut("a.example", "b.example")
        for number in range(MESSAGES):
            await send_text(alice, room_id, f"here {outage} {number}")
            if number % 3 == 0:
                await send_text(bob, room_id, f"there {outage} {number}")
        federation.network.heal()
        wanted |= {f"here {outage} {number}" for number in range(MESSAGES)}
        wanted |= {f"there {outage} {number}" for number in range(0, MESSAGES, 3)}
        await trio.sleep(5)
        last = await send_text(alice, room_id, f"healed {outage}")
        await until_heard(bob, room_id, last)
        wanted.add(f"healed {outage}")
    for client in (alice, bob):
        heard, _ = await listen(client, room_id, sinces[client.user_id], "healed 1", page_size)
        assert sorted(heard) == sorted(wanted)


async def until_heard(client: Client, room_id: str, event_id: str) -> None:
    """Waits until the client's server has the event, without looking at the history, which would fill gaps."""

    async def is_there() -> bool:
        path = f"rooms/{quote(room_id)}/event/{quote(event_id)}"
        return (await client.get(path)).status_code == 200

    await until(is_there, event_id)


async def test_a_short_outage_leaves_no_gap(federation: Federation) -> None:
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id, "a.example")
    since = (await sync(bob))["next_batch"]
    federation.network.cut("a.example", "b.example")
    for number in range(9):
        await send_text(alice, room_id, f"message {number}")
    federation.network.heal()
    assert await listen(bob, room_id, since, "message 8") == ([f"message {number}" for number in range(9)], 0)
