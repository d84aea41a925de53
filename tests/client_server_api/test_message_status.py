"""Not in the spec: docs/status.md. To whom a message was delivered, and who has read it."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest
import trio

from homeserver import limits
from homeserver.config import Messages
from homeserver.users.receipts import DELIVERED
from tests.client_server_api.test_privacy import PRIVACY, befriend
from tests.client_server_api.test_status import OURS
from tests.support.homeservers import Client, Homeservers, Server
from tests.support.people import create, ephemeral, invite, join, leave, path_of, public_room, send, sync
from tests.support.sliding import slide, window

PAUSE_S = limits.users.DELIVERED_INTERVAL_S + 0.1


async def message_status(client: Client, room_id: str, event_id: str) -> dict[str, Any]:
    answer: dict[str, Any] = await client.ok("GET", f"{OURS}/{path_of(room_id, 'events', event_id, 'status')}")
    return answer


async def status_for(asker: Client, room_id: str, event_id: str, recipient: Client) -> str:
    answer = await message_status(asker, room_id, event_id)
    status: str = answer["recipients"][recipient.user_id]["status"]
    return status


async def read(client: Client, room_id: str, event_id: str, kind: str = "m.read", **body: Any) -> None:
    await client.ok("POST", path_of(room_id, "receipt", kind, event_id), json=body)


async def catch_up(client: Client, since: str | None = None) -> str:
    """Syncs, and acknowledges what came with another sync."""
    token: str = (await sync(client, since))["next_batch"]
    await sync(client, token)
    await trio.sleep(PAUSE_S)
    return token


async def test_a_message_is_sent_then_delivered_then_read(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    event_id = await send(alice, room_id)
    sent = {"status": "sent", "delivered_ts": None, "read_ts": None}
    assert await message_status(alice, room_id, event_id) == {
        "status": "sent", "recipients": {bob.user_id: sent}, "counts": {"sent": 1, "delivered": 0, "read": 0},
    }  # fmt: skip
    token = (await sync(bob))["next_batch"]
    await trio.sleep(PAUSE_S)
    assert await status_for(alice, room_id, event_id, bob) == "sent"

    delivered_ms = server.hs.now_ms()
    await sync(bob, token)
    await trio.sleep(PAUSE_S)
    delivered = {"status": "delivered", "delivered_ts": delivered_ms, "read_ts": None}
    assert await message_status(alice, room_id, event_id) == {
        "status": "delivered", "recipients": {bob.user_id: delivered}, "counts": {"sent": 0, "delivered": 1, "read": 0},
    }  # fmt: skip

    await trio.sleep(60)
    read_ms = server.hs.now_ms()
    await read(bob, room_id, event_id)
    seen = {"status": "read", "delivered_ts": delivered_ms, "read_ts": read_ms}
    assert await message_status(alice, room_id, event_id) == {
        "status": "read", "recipients": {bob.user_id: seen}, "counts": {"sent": 0, "delivered": 0, "read": 1},
    }  # fmt: skip


async def test_times_stay_when_later_messages_are_read(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    first = await send(alice, room_id, "one")
    token = await catch_up(bob)
    await read(bob, room_id, first)
    before = await message_status(alice, room_id, first)
    for number in range(3):
        await trio.sleep(3600)
        last = await send(alice, room_id, f"more {number}")
        token = await catch_up(bob, token)
        await read(bob, room_id, last)
    assert await message_status(alice, room_id, first) == before
    after = await message_status(alice, room_id, last)
    assert after["status"] == "read"
    assert after["recipients"][bob.user_id]["read_ts"] > before["recipients"][bob.user_id]["read_ts"]


async def test_a_message_that_was_read_at_once_counts_as_delivered(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    event_id = await send(alice, room_id)
    await read(bob, room_id, event_id)
    position = server.hs.stream.position
    await catch_up(bob)
    assert server.hs.stream.position <= position + 1  # presence
    recipient = (await message_status(alice, room_id, event_id))["recipients"][bob.user_id]
    assert recipient["delivered_ts"] == recipient["read_ts"] is not None


async def test_the_status_of_a_group_is_the_least_of_all(server: Server) -> None:
    alice, bob, carol, dave = [await server.register(name) for name in ("alice", "bob", "carol", "dave")]
    room_id = await public_room(alice, bob, carol, dave)
    event_id = await send(alice, room_id)
    await catch_up(bob)
    await catch_up(carol)
    await read(carol, room_id, event_id)
    answer = await message_status(alice, room_id, event_id)
    assert answer["status"] == "sent" and answer["counts"] == {"sent": 1, "delivered": 1, "read": 1}
    await catch_up(dave)
    assert (await message_status(alice, room_id, event_id))["status"] == "delivered"
    for client in (bob, dave):
        await read(client, room_id, event_id)
    assert (await message_status(alice, room_id, event_id))["status"] == "read"


async def test_people_who_join_later_are_no_recipients(server: Server) -> None:
    alice, bob, carol = [await server.register(name) for name in ("alice", "bob", "carol")]
    room_id = await public_room(alice, bob)
    event_id = await send(alice, room_id)
    await read(bob, room_id, event_id)
    await join(carol, room_id)
    answer = await message_status(alice, room_id, event_id)
    assert list(answer["recipients"]) == [bob.user_id] and answer["status"] == "read"
    await leave(bob, room_id)
    assert await message_status(alice, room_id, event_id) == {
        "status": "sent", "recipients": {}, "counts": {"sent": 0, "delivered": 0, "read": 0},
    }  # fmt: skip


async def test_the_status_is_for_members_only(server: Server) -> None:
    alice, bob, carol = [await server.register(name) for name in ("alice", "bob", "carol")]
    room_id = await public_room(alice, bob)
    content = {"history_visibility": "world_readable"}
    await alice.ok("PUT", f"rooms/{room_id}/state/m.room.history_visibility/", json=content)
    event_id = await send(alice, room_id)
    path = f"{OURS}/{path_of(room_id, 'events', event_id, 'status')}"
    assert (await bob.ok("GET", path))["counts"]["sent"] == 1
    await leave(bob, room_id)
    for outsider in (bob, carol):  # who may see the event, but not what its readers do now
        assert await outsider.refused("GET", path) == (403, "M_FORBIDDEN")


async def test_a_person_invited_to_a_conversation_is_a_recipient_once_there(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await create(alice, preset="trusted_private_chat", is_direct=True)
    await invite(alice, room_id, bob)
    event_id = await send(alice, room_id)
    token = await catch_up(bob)
    assert (await message_status(alice, room_id, event_id))["status"] == "sent"
    await join(bob, room_id)
    assert (await message_status(alice, room_id, event_id))["status"] == "sent"
    await catch_up(bob, token)
    assert (await message_status(alice, room_id, event_id))["status"] == "delivered"


async def test_delivered_receipts_are_in_syncs(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    event_id = await send(alice, room_id)
    since = (await sync(alice))["next_batch"]
    await catch_up(bob)
    answer = await sync(alice, since)
    content = ephemeral(answer, room_id, "m.receipt")
    assert content is not None and list(content[event_id]) == [DELIVERED]
    assert list(content[event_id][DELIVERED]) == [bob.user_id]


async def test_a_sliding_sync_acknowledges_too(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    event_id = await send(alice, room_id)
    pos = (await slide(bob, lists={"all": window()}))["pos"]
    await trio.sleep(PAUSE_S)
    assert await status_for(alice, room_id, event_id, bob) == "sent"
    await slide(bob, pos, lists={"all": window()})
    await trio.sleep(PAUSE_S)
    assert await status_for(alice, room_id, event_id, bob) == "delivered"


async def test_own_messages_and_state_deliver_nothing(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    await send(bob, room_id)
    token = (await sync(bob))["next_batch"]
    before = server.hs.stream.position
    await sync(bob, token)
    await trio.sleep(PAUSE_S)
    assert server.hs.stream.position == before


async def test_delivered_receipts_do_not_count_as_read(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    await send(alice, room_id)
    await catch_up(bob)
    counts = (await sync(bob))["rooms"]["join"][room_id]["unread_notifications"]
    assert counts["notification_count"] == 1


async def test_many_acks_of_a_moment_are_one_write(server: Server) -> None:
    alice, *others = [await server.register(name) for name in ("alice", "bob", "carol", "dave")]
    room_id = await public_room(alice, *others)
    tokens = [(await sync(client))["next_batch"] for client in others]
    await trio.sleep(PAUSE_S)
    for number in range(5):
        await send(alice, room_id, f"{number}")
        tokens = [(await sync(client, token))["next_batch"] for client, token in zip(others, tokens, strict=True)]
    position = server.hs.stream.position
    for client, token in zip(others, tokens, strict=True):
        await sync(client, token)
    await trio.sleep(PAUSE_S)
    assert server.hs.stream.position == position + len(others)  # a pointer each, not one for each message


async def test_deliveries_are_not_kept_in_large_rooms(homeservers: Homeservers) -> None:
    server = await homeservers.start(messages=Messages(delivery_members_max=2))
    alice, bob, carol = [await server.register(name) for name in ("alice", "bob", "carol")]
    room_id = await public_room(alice, bob, carol)
    event_id = await send(alice, room_id)
    for client in (bob, carol):
        await catch_up(client)
    assert await message_status(alice, room_id, event_id) == {
        "status": "sent", "recipients": {}, "counts": {"sent": 2, "delivered": 0, "read": 0},
    }  # fmt: skip
    await read(bob, room_id, event_id)
    answer = await message_status(alice, room_id, event_id)
    assert answer["status"] == "sent" and answer["counts"] == {"sent": 1, "delivered": 0, "read": 1}
    assert list(answer["recipients"]) == [bob.user_id]


async def test_people_who_cannot_see_a_message_cannot_see_its_status(server: Server) -> None:
    alice, bob, mallory = [await server.register(name) for name in ("alice", "bob", "mallory")]
    room_id = await create(alice, invite=[bob.user_id])
    event_id = await send(alice, room_id)
    path = f"{OURS}/{path_of(room_id, 'events', event_id, 'status')}"
    assert await mallory.refused("GET", path) == (404, "M_NOT_FOUND")
    other = await create(mallory)
    elsewhere = f"{OURS}/{path_of(other, 'events', event_id, 'status')}"
    assert await mallory.refused("GET", elsewhere) == (404, "M_NOT_FOUND")
    assert await alice.refused("GET", f"{OURS}/{path_of(room_id, 'events', '$nothing', 'status')}") == (
        404,
        "M_NOT_FOUND",
    )


# Privacy


async def test_private_receipts_say_nothing(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    event_id = await send(alice, room_id)
    await read(bob, room_id, event_id, "m.read.private")
    assert await status_for(alice, room_id, event_id, bob) == "sent"
    await catch_up(bob)
    assert await status_for(alice, room_id, event_id, bob) == "delivered"


@pytest.mark.parametrize("audience", ["nobody", "friends"])
async def test_deliveries_are_shown_to_the_audience_only(server: Server, audience: str) -> None:
    alice, bob, carol = [await server.register(name) for name in ("alice", "bob", "carol")]
    room_id = await public_room(alice, bob, carol)
    await bob.ok("PUT", PRIVACY, json={"delivery": audience})
    await server.write(befriend, bob.user_id, carol.user_id)
    event_id = await send(alice, room_id)
    since = (await sync(carol))["next_batch"]
    await catch_up(bob)
    expected = "delivered" if audience == "friends" else "sent"
    assert await status_for(alice, room_id, event_id, bob) == "sent"
    assert await status_for(carol, room_id, event_id, bob) == expected
    assert await status_for(bob, room_id, event_id, bob) == expected
    assert DELIVERED not in str(await sync(alice))
    assert (DELIVERED in str(await sync(carol, since))) == (audience == "friends")
    await read(bob, room_id, event_id)
    assert await status_for(alice, room_id, event_id, bob) == "sent"


async def test_hiding_deliveries_hides_earlier_ones(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    event_id = await send(alice, room_id)
    await catch_up(bob)
    await bob.ok("PUT", PRIVACY, json={"delivery": "nobody"})
    assert await status_for(alice, room_id, event_id, bob) == "sent"
    assert DELIVERED not in str(await sync(alice))


async def test_an_ignored_sender_does_not_learn_that(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    path = f"user/{quote(bob.user_id)}/account_data/m.ignored_user_list"
    await bob.ok("PUT", path, json={"ignored_users": {alice.user_id: {}}})
    event_id = await send(alice, room_id)
    await catch_up(bob)
    assert await status_for(alice, room_id, event_id, bob) == "delivered"
