"""What a shadow-banned user does is answered as if it had worked, and reaches nobody."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest

from tests.support.homeservers import Client, Server
from tests.support.people import act, create, ids, join, messages, public_room, say, state, sync, texts

V1 = "/_synapse/admin/v1"
Json = dict[str, Any]
TEXT = {"msgtype": "m.text", "body": "spam"}


@pytest.fixture
async def bob(server: Server) -> Client:
    return await server.register("bob")


@pytest.fixture
async def mallory(server: Server, boss: Client) -> Client:
    client = await server.register("mallory")
    await boss.ok("POST", f"{V1}/users/{client.user_id}/shadow_ban")
    return client


async def test_bans_are_shown_and_lifted(server: Server, boss: Client, mallory: Client, bob: Client) -> None:
    shown = await boss.ok("GET", f"/_synapse/admin/v2/users/{mallory.user_id}")
    assert shown["shadow_banned"]
    room_id = await public_room(bob, mallory)
    await boss.ok("DELETE", f"{V1}/users/{mallory.user_id}/shadow_ban")
    await say(mallory, room_id, "hello")
    assert "hello" in texts((await messages(bob, room_id))["chunk"])
    nobody = f"{V1}/users/@nobody:{server.name}/shadow_ban"
    assert await boss.refused("POST", nobody) == (404, "M_NOT_FOUND")


async def test_nothing_that_a_banned_user_sends_reaches_the_room(server: Server, mallory: Client, bob: Client) -> None:
    carol = await server.register("carol")
    levels = {"users": {bob.user_id: 100, carol.user_id: 0}, "users_default": 100}
    room_id = await public_room(bob, mallory, carol, power_level_content_override=levels, room_version="11")
    (mine,) = await say(bob, room_id, "mine")
    since = (await sync(bob))["next_batch"]
    before, room = await state(bob, room_id), f"rooms/{quote(room_id, safe='')}"
    for method, path, body in (
        ("PUT", f"{room}/send/m.room.message/1", TEXT),
        ("POST", f"{room}/send/m.room.message", TEXT),
        ("PUT", f"{room}/state/m.room.name", {"name": "spam"}),
        ("PUT", f"{room}/state/m.room.member/{mallory.user_id}", {"membership": "join", "displayname": "spam"}),
        ("PUT", f"{room}/redact/{quote(mine)}/2", {}),
    ):
        answer = await mallory.ok(method, path, json=body)
        assert answer["event_id"].startswith("$"), path
        assert (await bob.refused("GET", f"{room}/event/{quote(answer['event_id'])}"))[0] == 404
    for path, body in (
        ("invite", {"user_id": "@dave:test.example"}),
        ("invite", {"user_id": "@dave:elsewhere.example"}),
        ("kick", {"user_id": carol.user_id}),
        ("ban", {"user_id": carol.user_id}),
    ):
        assert await mallory.ok("POST", f"{room}/{path}", json=body) == {}, path
    assert await mallory.ok("PUT", f"{room}/typing/{mallory.user_id}", json={"typing": True, "timeout": 30000}) == {}
    assert await mallory.ok("POST", f"{room}/receipt/m.read/{quote(mine)}", json={}) == {}
    assert (await mallory.ok("POST", f"{room}/upgrade", json={"new_version": "11"}))["replacement_room"]
    assert await mallory.ok("PUT", "directory/room/%23spam%3Atest.example", json={"room_id": room_id}) == {}
    assert await bob.refused("GET", "directory/room/%23spam%3Atest.example") == (404, "M_NOT_FOUND")
    after = await sync(bob, since)
    assert "rooms" not in after or not after["rooms"].get("join", {}).get(room_id, {}).get("timeline", {})
    ephemeral = after.get("rooms", {}).get("join", {}).get(room_id, {}).get("ephemeral", {}).get("events", [])
    assert ephemeral == []
    assert ids(list((await state(bob, room_id)).values())) == ids(list(before.values()))


async def test_banned_users_get_the_errors_that_others_get(mallory: Client, bob: Client) -> None:
    room_id = await create(bob)
    room = f"rooms/{quote(room_id, safe='')}"
    assert await mallory.refused("PUT", f"{room}/send/m.room.message/1", json=TEXT) == (403, "M_FORBIDDEN")
    assert await mallory.refused("POST", f"{room}/invite", json={"user_id": bob.user_id}) == (403, "M_FORBIDDEN")
    assert await mallory.refused("PUT", f"{room}/typing/{mallory.user_id}", json={"typing": True}) == (
        403, "M_FORBIDDEN",
    )  # fmt: skip
    public = await public_room(bob, mallory)
    kick = await mallory.refused("POST", f"rooms/{quote(public)}/kick", json={"user_id": bob.user_id})
    assert kick == (403, "M_FORBIDDEN")


async def test_banned_users_come_and_go(mallory: Client, bob: Client) -> None:
    room_id = await public_room(bob)
    await join(mallory, room_id)
    assert ("m.room.member", mallory.user_id) in await state(bob, room_id)
    await act(mallory, room_id, "leave")
    assert (await state(bob, room_id))["m.room.member", mallory.user_id]["content"]["membership"] == "leave"


async def test_rooms_of_banned_users_are_theirs_alone(mallory: Client, bob: Client) -> None:
    room_id = await create(mallory, invite=[bob.user_id], visibility="public", preset="public_chat")
    assert "rooms" not in await sync(bob)
    assert (await bob.ok("GET", "publicRooms"))["chunk"] == []
    assert (await mallory.ok("GET", "joined_rooms"))["joined_rooms"] == [room_id]


async def test_new_names_of_banned_users_do_not_reach_rooms(mallory: Client, bob: Client) -> None:
    room_id = await public_room(bob, mallory)
    await mallory.ok("PUT", f"profile/{mallory.user_id}/displayname", json={"displayname": "spam"})
    assert await mallory.ok("GET", f"profile/{mallory.user_id}/displayname") == {"displayname": "spam"}
    assert (await state(bob, room_id))["m.room.member", mallory.user_id]["content"]["displayname"] == "mallory"


async def test_messages_to_devices_of_others_are_dropped(mallory: Client, bob: Client) -> None:
    body = {"messages": {bob.user_id: {"*": {"a": 1}}, mallory.user_id: {"*": {"b": 2}}}}
    await mallory.ok("PUT", "sendToDevice/org.example/1", json=body)
    assert "to_device" not in await sync(bob)
    assert [each["content"] for each in (await sync(mallory))["to_device"]["events"]] == [{"b": 2}]


async def test_requests_of_banned_users_for_friendship_reach_nobody(mallory: Client, bob: Client) -> None:
    asked = await mallory.ok("PUT", f"/_homeserver/client/v1/friends/{bob.user_id}", json={"message": "spam"})
    assert asked["state"] == "outgoing"
    assert (await bob.ok("GET", "/_homeserver/client/v1/friends"))["friends"] == []
