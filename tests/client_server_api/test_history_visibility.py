"""Spec: client-server-api/#room-history-visibility"""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.homeservers import Client, Server
from tests.support.people import act, all_messages, create, invite, join, leave, path_of, send, set_state, texts

SETTINGS = ("world_readable", "shared", "invited", "joined")


def visibility(setting: str) -> list[dict[str, Any]]:
    return [{"type": "m.room.history_visibility", "content": {"history_visibility": setting}}]


async def seen(client: Client, room_id: str, events: dict[str, str]) -> str:
    """Returns the events that the client sees by /messages both ways, /event and /context, which must agree."""
    by_event = ""
    for name, event_id in events.items():
        one = await client.get(path_of(room_id, "event", event_id))
        around = await client.get(path_of(room_id, "context", event_id) + "?limit=0")
        assert one.status_code == around.status_code
        by_event += name if one.status_code == 200 else ""
    if (await client.get(path_of(room_id, "messages") + "?dir=b")).status_code == 403:
        return by_event
    for direction in ("f", "b"):
        found = texts(await all_messages(client, room_id, direction, limit=3))
        assert sorted(name for name in found if name in events) == sorted(by_event)
    return by_event


async def a_life(server: Server, setting: str) -> tuple[Client, Client, str, dict[str, str]]:
    """A room of alice's in which she speaks before and after each step that bob takes: a, invited, b, joined, c."""
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await create(alice, initial_state=visibility(setting))
    events = {"a": await send(alice, room_id, "a")}
    await invite(alice, room_id, bob)
    events["b"] = await send(alice, room_id, "b")
    return alice, bob, room_id, events


@pytest.mark.parametrize(
    ("setting", "invited", "joined", "left"),
    [
        ("world_readable", "ab", "abc", "abcd"),
        ("shared", "", "abc", "abc"),
        ("invited", "", "bc", "bc"),
        ("joined", "", "c", "c"),
    ],
)
async def test_history_visibility_decides_what_a_user_sees(
    server: Server, setting: str, invited: str, joined: str, left: str
) -> None:
    alice, bob, room_id, events = await a_life(server, setting)
    carol = await server.register("carol")
    assert await seen(bob, room_id, events) == invited
    await join(bob, room_id)
    events["c"] = await send(alice, room_id, "c")
    assert await seen(bob, room_id, events) == joined
    await leave(bob, room_id)
    events["d"] = await send(alice, room_id, "d")
    assert await seen(bob, room_id, events) == left
    assert await seen(alice, room_id, events) == "abcd"
    assert await seen(carol, room_id, events) == ("abcd" if setting == "world_readable" else "")


@pytest.mark.parametrize("setting", SETTINGS)
async def test_a_kicked_or_banned_user_keeps_access_to_what_they_saw(server: Server, setting: str) -> None:
    alice, bob, room_id, events = await a_life(server, setting)
    await join(bob, room_id)
    events["c"] = await send(alice, room_id, "c")
    before = await seen(bob, room_id, events)
    for action in ("kick", "ban", "unban"):
        await act(alice, room_id, action, bob)
        after = await send(alice, room_id, f"after {action}")
        assert await seen(bob, room_id, events) == before
        assert (await bob.get(path_of(room_id, "event", after))).status_code == (
            200 if setting == "world_readable" else 404
        )


@pytest.mark.parametrize(
    ("setting", "expected"), [("world_readable", "abcde"), ("shared", "abcde"), ("invited", "bce"), ("joined", "ce")]
)
async def test_a_returning_member_sees_what_the_setting_allows(server: Server, setting: str, expected: str) -> None:
    alice, bob, room_id, events = await a_life(server, setting)
    await join(bob, room_id)
    events["c"] = await send(alice, room_id, "c")
    await leave(bob, room_id)
    events["d"] = await send(alice, room_id, "d")
    await act(alice, room_id, "invite", bob)
    await join(bob, room_id)
    events["e"] = await send(alice, room_id, "e")
    assert await seen(bob, room_id, events) == expected


@pytest.mark.parametrize("setting", ["shared", "invited", "joined"])
async def test_a_user_who_rejects_an_invitation_sees_nothing(server: Server, setting: str) -> None:
    alice, bob, room_id, events = await a_life(server, setting)
    await leave(bob, room_id)
    events["c"] = await send(alice, room_id, "c")
    assert await seen(bob, room_id, events) == ""
    await act(alice, room_id, "ban", bob)
    assert await seen(bob, room_id, events) == ""


async def test_a_setting_applies_to_events_sent_under_it(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await create(alice, preset="public_chat", initial_state=visibility("joined"))
    events = {}
    for name, setting in (("a", "shared"), ("b", "world_readable"), ("c", "joined"), ("d", "invited")):
        events[name] = await send(alice, room_id, name)  # each under the setting before
        await set_state(alice, room_id, "m.room.history_visibility", {"history_visibility": setting})
    events["e"] = await send(alice, room_id, "e")
    assert await seen(bob, room_id, events) == "c"
    await join(bob, room_id)
    assert await seen(bob, room_id, events) == "bc"


@pytest.mark.parametrize("content", [{}, {"history_visibility": "nonsense"}, {"history_visibility": 7}])
async def test_an_unknown_setting_counts_as_shared(server: Server, content: dict[str, Any]) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await create(alice, preset="public_chat")
    await set_state(alice, room_id, "m.room.history_visibility", content)
    events = {"a": await send(alice, room_id, "a")}
    assert await seen(bob, room_id, events) == ""
    await join(bob, room_id)
    assert await seen(bob, room_id, events) == "a"
