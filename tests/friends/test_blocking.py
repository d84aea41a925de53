"""Not in the spec: docs/friends.md. Nothing of a blocked person reaches a user, and that person does not notice."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest
import trio

from tests.friends.people import OURS, ask, befriend, block, friends_of, path_of, say, states_of, unblock
from tests.support.homeservers import Client, Server


async def blocked_by(client: Client) -> list[str]:
    blocked: list[str] = (await client.ok("GET", f"{OURS}/blocked"))["blocked"]
    return blocked


async def test_blocked_people_are_the_ignored_users_of_other_clients(alice: Client, bob: Client) -> None:
    await block(alice, bob)
    await block(alice, bob)
    path = f"user/{alice.user_id}/account_data/m.ignored_user_list"
    assert await alice.ok("GET", path) == {"ignored_users": {bob.user_id: {}}}
    assert await blocked_by(alice) == [bob.user_id]
    await unblock(alice, bob)
    await unblock(alice, bob)
    assert await alice.ok("GET", path) == {"ignored_users": {}}
    assert await blocked_by(alice) == []


async def test_people_ignored_in_another_client_are_blocked(alice: Client, bob: Client) -> None:
    body = {"ignored_users": {bob.user_id: {"reason": "spam"}}, "more": 1}
    path = f"user/{alice.user_id}/account_data/m.ignored_user_list"
    await alice.ok("PUT", path, json=body)
    assert await blocked_by(alice) == [bob.user_id]
    await unblock(alice, bob)
    assert await alice.ok("GET", path) == {"ignored_users": {}, "more": 1}


@pytest.mark.parametrize("content", [{}, {"ignored_users": 7}, {"ignored_users": ["@bob:test.example"]}])
async def test_a_list_of_another_shape_is_replaced(alice: Client, bob: Client, content: dict[str, Any]) -> None:
    await alice.ok("PUT", f"user/{alice.user_id}/account_data/m.ignored_user_list", json=content)
    assert await blocked_by(alice) == []
    await block(alice, bob)
    assert await blocked_by(alice) == [bob.user_id]


async def test_nobody_blocks_themselves(alice: Client) -> None:
    assert await alice.refused("PUT", f"{path_of(alice.user_id)}/block") == (400, "M_INVALID_PARAM")


async def test_a_blocked_friend_stays_one_without_being_told(alice: Client, bob: Client) -> None:
    await befriend(alice, bob)
    before = await friends_of(bob)
    await block(alice, bob)
    assert await states_of(alice) == {}
    assert await friends_of(bob) == before
    await unblock(alice, bob)
    assert await states_of(alice) == {bob.user_id: "friend"}


async def test_a_request_of_a_blocked_person_is_not_shown(alice: Client, bob: Client) -> None:
    await block(bob, alice)
    since = (await bob.ok("GET", "sync"))["next_batch"]
    answer = await ask(alice, bob, message="Please?")
    assert answer["state"] == "outgoing"
    assert await states_of(alice) == {bob.user_id: "outgoing"}
    assert await states_of(bob) == {}
    news = await bob.ok("GET", f"sync?since={since}")
    assert "rooms" not in news
    assert "account_data" not in news


async def test_a_user_must_unblock_a_person_to_ask_them(alice: Client, bob: Client) -> None:
    await ask(alice, bob)
    await block(bob, alice)
    assert await bob.refused("PUT", path_of(alice.user_id), json={}) == (403, "M_FORBIDDEN")


async def test_nothing_of_a_blocked_person_reaches_the_user(homeserver: Server, alice: Client, bob: Client) -> None:
    room_id = await befriend(alice, bob)
    mine = await say(alice, room_id, "mine")
    await bob.ok("PUT", f"presence/{bob.user_id}/status", json={"presence": "unavailable"})
    await block(alice, bob)
    await trio.sleep(1)
    since = (await alice.ok("GET", "sync"))["next_batch"]
    await bob.ok("PUT", f"presence/{bob.user_id}/status", json={"presence": "online", "status_msg": "Hello?"})
    await bob.ok("PUT", f"rooms/{room_id}/typing/{bob.user_id}", json={"typing": True, "timeout": 20000})
    await bob.ok("POST", f"rooms/{room_id}/receipt/m.read/{quote(mine)}", json={})
    messages = {alice.user_id: {"*": {"hello": 1}}}
    await bob.ok("PUT", "sendToDevice/org.example.hello/t1", json={"messages": messages})
    await say(bob, room_id, "Do you hear me?")
    await trio.sleep(1)
    for news in (await alice.ok("GET", f"sync?since={since}"), await alice.ok("GET", "sync")):
        text = str({key: value for key, value in news.items() if key not in ("account_data", "rooms")})
        assert bob.user_id not in text
        assert "hello" not in text
        room = news.get("rooms", {}).get("join", {}).get(room_id, {})
        assert "Do you hear me?" not in str(room)
        assert bob.user_id not in str(room.get("ephemeral", {}))
        assert room.get("unread_notifications", {}).get("notification_count", 0) == 0
    assert (await alice.ok("GET", "notifications"))["notifications"] == []


async def test_other_people_still_reach_the_user(homeserver: Server, alice: Client, bob: Client) -> None:
    carol = await homeserver.register("carol")
    room_id = await befriend(alice, carol)
    await block(alice, bob)
    since = (await alice.ok("GET", "sync"))["next_batch"]
    await carol.ok("PUT", f"rooms/{room_id}/typing/{carol.user_id}", json={"typing": True, "timeout": 20000})
    messages = {alice.user_id: {"*": {"hello": 1}}}
    await carol.ok("PUT", "sendToDevice/org.example.hello/t1", json={"messages": messages})
    news = await alice.ok("GET", f"sync?since={since}")
    assert news["to_device"]["events"][0]["sender"] == carol.user_id
    assert carol.user_id in str(news["rooms"]["join"][room_id]["ephemeral"])
