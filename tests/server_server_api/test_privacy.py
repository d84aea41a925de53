"""Not in the spec: docs/status.md. What a person's privacy settings mean for people and servers elsewhere."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import trio

from tests.client_server_api.test_privacy import PRIVACY, befriend, presence_in
from tests.client_server_api.test_status import status_of
from tests.support.federation import Federation, create_room, invite, join, membership_in, sync, until
from tests.support.homeservers import Client, Server


async def together(federation: Federation) -> tuple[Server, Server, Client, Client, str]:
    """Two people on two servers, in a room."""
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id, "a.example")
    return a, b, alice, bob, room_id


async def is_presence(asker: Client, person: Client, state: str) -> bool:
    answer: dict[str, Any] = await asker.ok("GET", f"presence/{quote(person.user_id)}/status")
    return bool(answer["presence"] == state)


async def test_the_status_of_a_person_elsewhere_comes_from_presence(federation: Federation) -> None:
    a, b, alice, bob, _ = await together(federation)
    await sync(bob)
    await until(lambda: is_presence(alice, bob, "online"))
    status = await status_of(a, bob, alice)
    assert status is not None and status.online and status.text == "Online"
    await trio.sleep(2 * 3600)
    status = await status_of(a, bob, alice)
    assert status is not None and not status.online and status.text in ("Active 1 hour ago", "Active 2 hours ago")


async def test_a_hidden_person_is_offline_for_other_servers(federation: Federation) -> None:
    a, b, alice, bob, _ = await together(federation)
    await sync(bob)
    await until(lambda: is_presence(alice, bob, "online"))
    await bob.ok("PUT", PRIVACY, json={"status": "nobody"})
    await until(lambda: is_presence(alice, bob, "offline"))
    since = (await sync(alice))["next_batch"]
    for state in ("unavailable", "online"):
        await bob.ok("PUT", f"presence/{quote(bob.user_id)}/status", json={"presence": state, "status_msg": state})
        await trio.sleep(10)
    assert presence_in(await sync(alice, since), bob) == []
    assert await status_of(a, bob, alice) is None


async def test_servers_of_friends_see_a_status_that_is_for_friends(federation: Federation) -> None:
    a, b, alice, bob, _ = await together(federation)
    c = await federation.start("c.example")
    carol = await c.register("carol")
    await join(carol, await public_room_of(bob), "b.example")
    for server, person, friend in ((b, bob, alice), (a, alice, bob)):
        await server.write(befriend, person.user_id, friend.user_id)
    await bob.ok("PUT", PRIVACY, json={"status": "friends"})
    await sync(bob)
    await until(lambda: is_presence(alice, bob, "online"))
    await trio.sleep(60)
    assert await is_presence(carol, bob, "offline")


async def public_room_of(client: Client) -> str:
    return await create_room(client, preset="public_chat")


async def test_people_elsewhere_may_invite_if_the_settings_say_so(federation: Federation) -> None:
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice)
    await bob.ok("PUT", PRIVACY, json={"invites": "shared_room"})
    path = f"rooms/{quote(room_id)}/invite"
    answer = await alice.post(path, json={"user_id": bob.user_id})
    assert answer.status_code == 403 and answer.json()["errcode"] == "M_FORBIDDEN"
    assert f"{bob.user_id} does not accept this invitation." in answer.json()["error"]
    assert membership_in(await sync(bob), room_id) is None

    shared = await create_room(alice, preset="public_chat")
    await join(bob, shared, "a.example")
    await invite(alice, room_id, bob.user_id)
    assert membership_in(await sync(bob), room_id) == "invite"


async def test_friend_requests_from_elsewhere_have_an_audience_of_their_own(federation: Federation) -> None:
    a, b, alice, bob = await federation.start_two()
    await bob.ok("PUT", PRIVACY, json={"invites": "nobody"})
    asked = await create_room(alice, creation_content={"org.homeserver.friend": True})
    await invite(alice, asked, bob.user_id)
    assert membership_in(await sync(bob), asked) == "invite"
    await bob.ok("PUT", PRIVACY, json={"friend_requests": "nobody"})
    again = await create_room(alice, creation_content={"org.homeserver.friend": True})
    assert await alice.refused("POST", f"rooms/{quote(again)}/invite", json={"user_id": bob.user_id}) == (
        403,
        "M_FORBIDDEN",
    )
