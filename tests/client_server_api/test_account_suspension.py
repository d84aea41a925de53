"""Spec: client-server-api/#account-suspension"""

from __future__ import annotations

import pytest

from homeserver.authenticate import AccountFlags, store_account_flags
from tests.support.homeservers import Client, Server
from tests.support.people import create, join, path_of, public_room, redact, say

SUSPENDED = (403, "M_USER_SUSPENDED")


@pytest.fixture
async def mallory(homeserver: Server) -> Client:
    return await homeserver.register("mallory")


async def suspend(client: Client) -> None:
    await client.server.write(store_account_flags, client.user_id, AccountFlags(is_suspended=True))


async def test_a_suspended_user_cannot_do_anything_that_others_see(homeserver: Server, mallory: Client) -> None:
    alice = await homeserver.register("alice")
    room_id, other = await public_room(alice, mallory), await public_room(alice)
    (theirs,) = await say(alice, room_id, "hello")
    await suspend(mallory)
    target = {"user_id": alice.user_id}
    for method, path, body in (
        ("POST", "createRoom", {}),
        ("POST", path_of(other, "join"), {}),
        ("POST", f"join/{other}", {}),
        ("POST", f"knock/{other}", {}),
        ("POST", path_of(room_id, "invite"), target),
        ("POST", path_of(room_id, "kick"), target),
        ("POST", path_of(room_id, "ban"), target),
        ("POST", path_of(room_id, "unban"), target),
        ("PUT", path_of(room_id, "send", "m.room.message", "1"), {"msgtype": "m.text", "body": "spam"}),
        ("PUT", path_of(room_id, "redact", theirs, "2"), {}),
        ("PUT", path_of(room_id, "state", "m.room.topic", ""), {"topic": "spam"}),
        ("PUT", path_of(room_id, "typing", mallory.user_id), {"typing": True}),
        ("PUT", f"presence/{mallory.user_id}/status", {"presence": "online", "status_msg": "spam"}),
        ("PUT", f"profile/{mallory.user_id}/displayname", {"displayname": "spam"}),
        ("DELETE", f"profile/{mallory.user_id}/displayname", None),
        ("PUT", "directory/room/%23spam:test.example", {"room_id": room_id}),
    ):
        assert await mallory.refused(method, path, json=body) == SUSPENDED, path


async def test_a_suspended_user_can_read_and_leave(homeserver: Server, mallory: Client) -> None:
    alice = await homeserver.register("alice")
    room_id = await public_room(alice, mallory)
    invited_to = await create(alice, preset="private_chat", invite=[mallory.user_id])
    (mine,) = await say(mallory, room_id, "spam")
    await suspend(mallory)
    (theirs,) = await say(alice, room_id, "hello")
    assert room_id in (await mallory.ok("GET", "sync"))["rooms"]["join"]
    messages = await mallory.ok("GET", path_of(room_id, "messages") + "?dir=b")
    assert theirs in {event["event_id"] for event in messages["chunk"]}
    await mallory.ok("POST", path_of(room_id, "receipt", "m.read", theirs), json={})
    await mallory.ok("PUT", f"user/{mallory.user_id}/account_data/org.example.note", json={"text": "why?"})
    await redact(mallory, room_id, mine)
    await mallory.ok("PUT", path_of(room_id, "state", "m.room.member", mallory.user_id), json={"membership": "leave"})
    await mallory.ok("POST", path_of(invited_to, "leave"), json={})
    again = await homeserver.log_in(mallory.user_id)
    await again.ok("DELETE", f"devices/{again.device_id}", json={"auth": again.password_auth()})
    await mallory.ok("POST", "logout")


async def test_a_suspension_can_be_lifted(homeserver: Server, mallory: Client) -> None:
    room_id = await public_room(await homeserver.register("alice"))
    await suspend(mallory)
    assert await mallory.refused("POST", path_of(room_id, "join"), json={}) == SUSPENDED
    await homeserver.write(store_account_flags, mallory.user_id, AccountFlags())
    await join(mallory, room_id)
