"""Notices: messages of the server to one of its users, in a room of their own."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from tests.support.homeservers import Client, Server
from tests.support.people import join, leave, messages, sync, texts

SEND = "/_synapse/admin/v1/send_server_notice"
Json = dict[str, Any]


def notice(user: Client | str, body: str = "Maintenance at noon.") -> Json:
    user_id = user if isinstance(user, str) else user.user_id
    return {"user_id": user_id, "content": {"msgtype": "m.text", "body": body}}


async def invited_to(client: Client) -> str:
    (room_id,) = (await sync(client))["rooms"]["invite"]
    return str(room_id)


async def test_notices_come_in_a_room_that_only_the_server_writes_in(boss: Client, alice: Client) -> None:
    sent = await boss.ok("POST", SEND, json=notice(alice))
    assert sent["event_id"].startswith("$")
    room_id = await invited_to(alice)
    await join(alice, room_id)
    assert texts((await messages(alice, room_id))["chunk"]) == ["Maintenance at noon."]
    text = {"msgtype": "m.text", "body": "x"}
    path = f"rooms/{quote(room_id)}/send/m.room.message/x"
    assert await alice.refused("PUT", path, json=text) == (403, "M_FORBIDDEN")
    tags = (await alice.ok("GET", f"user/{alice.user_id}/rooms/{quote(room_id)}/tags"))["tags"]
    assert tags == {"m.server_notice": {}}
    await boss.ok("POST", SEND, json=notice(alice, "Done."))
    assert texts((await messages(alice, room_id))["chunk"]) == ["Done.", "Maintenance at noon."]
    await leave(alice, room_id)
    await boss.ok("POST", SEND, json=notice(alice, "Again."))
    assert await invited_to(alice) == room_id


async def test_the_invitation_to_notices_cannot_be_rejected(boss: Client, alice: Client) -> None:
    await boss.ok("POST", SEND, json=notice(alice))
    room_id = await invited_to(alice)
    refused = await alice.refused("POST", f"rooms/{quote(room_id)}/leave", json={})
    assert refused == (403, "M_CANNOT_LEAVE_SERVER_NOTICE_ROOM")


async def test_a_repeated_notice_is_sent_once(boss: Client, alice: Client) -> None:
    first = await boss.ok("PUT", f"{SEND}/txn1", json=notice(alice))
    assert await boss.ok("PUT", f"{SEND}/txn1", json=notice(alice)) == first
    await join(alice, room_id := await invited_to(alice))
    assert len(texts((await messages(alice, room_id))["chunk"])) == 1


async def test_wrong_notices_are_refused(server: Server, boss: Client, alice: Client) -> None:
    for body, error in (
        (notice("@nobody:test.example"), (404, "M_NOT_FOUND")),
        (notice("@x:elsewhere.example"), (400, "M_INVALID_PARAM")),
        ({**notice(alice), "type": "m.room.member", "state_key": alice.user_id}, (400, "M_UNKNOWN")),
        ({"user_id": alice.user_id}, (400, "M_MISSING_PARAM")),
        ({**notice(alice), "content": "x"}, (400, "M_BAD_JSON")),
    ):
        assert await boss.refused("POST", SEND, json=body) == error, body
    assert "rooms" not in await sync(alice)


async def test_notices_do_not_speak_for_a_person(server: Server, boss: Client, alice: Client) -> None:
    await server.register("notices")
    assert await boss.refused("POST", SEND, json=notice(alice)) == (400, "M_UNKNOWN")


async def test_the_largest_rooms_are_listed(boss: Client, alice: Client) -> None:
    room_id = (await alice.ok("POST", "createRoom", json={}))["room_id"]
    largest = (await boss.ok("GET", "/_synapse/admin/v1/statistics/database/rooms"))["rooms"]
    assert [each["room_id"] for each in largest] == [room_id] and largest[0]["estimated_size"] > 0
