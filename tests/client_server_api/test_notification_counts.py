"""Spec: client-server-api/#receiving-notifications, #marking-notifications-as-read"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest
import trio

from homeserver.database import Transaction
from homeserver.users.push.notifications import KEPT_MAX, PRUNED_EVERY
from tests.support.homeservers import Client, Server
from tests.support.people import act, invite, join, path_of, public_room, redact, room_in, say, send, sync

APART = {"room": {"timeline": {"unread_thread_notifications": True}}}


async def counts(client: Client, room_id: str, **query: Any) -> tuple[int, int]:
    """The room's notification count and highlight count in a first sync."""
    told = room_in(await sync(client, **query), room_id)["unread_notifications"]
    return told["notification_count"], told["highlight_count"]


async def threads(client: Client, room_id: str) -> dict[str, int]:
    """The notification counts by thread, "main" included, as clients that know of threads ask for them."""
    room = room_in(await sync(client, filter=APART), room_id)
    apart = {root: each["notification_count"] for root, each in room.get("unread_thread_notifications", {}).items()}
    return {"main": room["unread_notifications"]["notification_count"], **apart}


def mention(*user_ids: str, **more: Any) -> dict[str, Any]:
    return {"msgtype": "m.text", "body": "you", "m.mentions": {"user_ids": list(user_ids), **more}}


def in_thread(root: str, body: str = "reply") -> dict[str, Any]:
    return {"msgtype": "m.text", "body": body, "m.relates_to": {"rel_type": "m.thread", "event_id": root}}


async def read(client: Client, room_id: str, event_id: str, kind: str = "m.read", **body: Any) -> None:
    await client.ok("POST", path_of(room_id, "receipt", kind, event_id), json=body)


async def test_messages_of_others_count_until_they_are_read(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    first, second, third = await say(alice, room_id, "1", "2", "3")
    assert await counts(bob, room_id) == (3, 0)
    assert await counts(alice, room_id) == (0, 0)
    await read(bob, room_id, second)
    assert await counts(bob, room_id) == (1, 0)
    await read(bob, room_id, third, "m.read.private")
    assert await counts(bob, room_id) == (0, 0)


async def test_an_answer_with_a_message_has_its_count(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    since = (await sync(bob))["next_batch"]
    for number in (1, 2, 3):
        await send(alice, room_id)
        answer = await sync(bob, since)
        since = answer["next_batch"]
        assert room_in(answer, room_id)["unread_notifications"]["notification_count"] == number


async def test_events_before_the_join_do_not_count(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice)
    await say(alice, room_id, "1", "2")
    await join(bob, room_id)
    assert await counts(bob, room_id) == (0, 0)
    await send(alice, room_id)
    assert await counts(bob, room_id) == (1, 0)


async def test_mentions_are_highlights(server: Server) -> None:
    alice, bob, carol = [await server.register(name) for name in ("alice", "bob", "carol")]
    room_id = await public_room(alice, bob, carol)
    await send(alice, room_id, mention(bob.user_id))
    await send(alice, room_id, mention(room=True))
    await send(bob, room_id, mention(room=True))  # bob lacks the power level for that
    assert await counts(carol, room_id) == (3, 1)
    assert await counts(bob, room_id) == (0, 0)  # who has read what came before the own message
    await send(alice, room_id, mention(bob.user_id, bob.user_id, "@nobody:test.example", "not a user"))
    assert await counts(bob, room_id) == (1, 1)


async def test_sending_a_message_clears_the_counts(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    (root,) = await say(alice, room_id, "root")
    await send(alice, room_id, in_thread(root))
    await send(bob, room_id)
    assert await threads(bob, room_id) == {"main": 0, root: 1}
    await send(bob, room_id, in_thread(root))
    assert await threads(bob, room_id) == {"main": 0}


async def test_threads_have_their_own_counts_and_receipts(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    root, other = await say(alice, room_id, "root", "other")
    replies = [await send(alice, room_id, in_thread(each)) for each in (root, root, other)]
    assert await threads(bob, room_id) == {"main": 2, root: 2, other: 1}
    assert await counts(bob, room_id) == (5, 0)
    await read(bob, room_id, other, thread_id="main")
    assert await threads(bob, room_id) == {"main": 0, root: 2, other: 1}
    await read(bob, room_id, replies[0], thread_id=root)
    assert await threads(bob, room_id) == {"main": 0, root: 1, other: 1}
    await read(bob, room_id, replies[1])
    assert await threads(bob, room_id) == {"main": 0, other: 1}


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("m.room.message", {"msgtype": "m.notice", "body": "beep"}),
        ("m.reaction", {"m.relates_to": {"rel_type": "m.annotation", "event_id": "$a", "key": "+"}}),
        ("m.room.message", {"msgtype": "m.text", "body": "* b", "m.relates_to": {"rel_type": "m.replace"}}),
        ("org.example.other", {"body": "hello"}),
    ],
)
async def test_notices_reactions_edits_and_unknown_events_do_not_notify(
    server: Server, kind: str, content: dict[str, Any]
) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    await send(alice, room_id, content, kind=kind)
    assert await counts(bob, room_id) == (0, 0)


async def test_encrypted_events_notify(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    await send(alice, room_id, {"algorithm": "m.megolm.v1.aes-sha2", "ciphertext": "x"}, kind="m.room.encrypted")
    assert await counts(bob, room_id) == (1, 0)


async def test_redacted_messages_do_not_count(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    first = await send(alice, room_id, mention(bob.user_id))
    await send(alice, room_id)
    assert await counts(bob, room_id) == (2, 1)
    await redact(alice, room_id, first)
    assert await counts(bob, room_id) == (1, 0)


async def test_the_users_own_rules_decide_what_counts(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id, muted = await public_room(alice, bob), await public_room(alice, bob)
    await bob.ok("PUT", f"pushrules/global/room/{muted}", json={"actions": []})
    highlight = ["notify", {"set_tweak": "highlight"}]
    await bob.ok("PUT", "pushrules/global/content/cake", json={"pattern": "cake", "actions": highlight})
    for each in (room_id, muted):
        await say(alice, each, "tea", "cake!", "pancake")
    assert await counts(bob, room_id) == (3, 1)
    assert await counts(bob, muted) == (1, 1)
    await bob.ok("PUT", "pushrules/global/override/.m.rule.master/enabled", json={"enabled": True})
    await send(alice, room_id, "cake")
    assert await counts(bob, room_id) == (3, 1)


async def test_ignored_users_do_not_notify(server: Server) -> None:
    alice, bob, carol = [await server.register(name) for name in ("alice", "bob", "carol")]
    room_id = await public_room(alice, bob, carol)
    ignored = {"ignored_users": {alice.user_id: {}}}
    await bob.ok("PUT", f"user/{bob.user_id}/account_data/m.ignored_user_list", json=ignored)
    await send(alice, room_id, mention(bob.user_id))
    await send(carol, room_id)
    assert await counts(bob, room_id) == (1, 0)


async def test_a_receipt_of_one_device_clears_the_counts_of_another(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    event_id = await send(alice, room_id)
    laptop = await server.log_in("bob")
    since = (await sync(laptop))["next_batch"]
    await read(bob, room_id, event_id, "m.read.private")
    told = room_in(await sync(laptop, since), room_id)
    assert told["unread_notifications"] == {"notification_count": 0, "highlight_count": 0}


async def test_invited_users_are_notified_of_the_invitation(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice)
    await invite(alice, room_id, bob)
    await join(bob, room_id)
    assert await counts(bob, room_id) == (0, 0)
    await act(bob, room_id, "leave")
    await join(bob, room_id)
    await send(alice, room_id)
    assert await counts(bob, room_id) == (1, 0)


@pytest.mark.parametrize("thread", [0, 7])
async def test_only_the_newest_notifications_of_a_room_are_kept(server: Server, thread: int) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    rule = f"pushrules/global/room/{quote(room_id)}"
    await bob.ok("PUT", rule, json={"actions": []})

    def fill(tx: Transaction) -> None:
        room_nid, user_nid, sender_nid = tx.intern(room_id), tx.intern(bob.user_id), tx.intern(alice.user_id)
        olds = range(-KEPT_MAX - 100, 0)
        tx.many(
            "INSERT INTO notified_events (room_nid, thread, ordering, level, sender_nid) VALUES (?, ?, ?, 1, ?)",
            [(room_nid, thread, old, sender_nid) for old in olds],
        )
        tx.many(
            "INSERT INTO own_notifications (user_nid, room_nid, ordering, thread, default_level, level, sender_nid)"
            " VALUES (?, ?, ?, ?, 1, 0, ?)",
            [(user_nid, room_nid, old, thread, sender_nid) for old in olds],
        )

    await server.write(fill)

    async def numbers() -> tuple[int, int]:
        tables = ("notified_events WHERE thread " + ("<> 0" if thread else "= 0"), "own_notifications")
        counted = [await server.read(lambda tx, of=of: tx.values(f"SELECT COUNT(*) FROM {of}")[0]) for of in tables]
        return counted[0], counted[1]

    sent = 0
    while max(await numbers()) > KEPT_MAX + 10:
        await say(alice, room_id, "message")
        sent += 1
        if sent % 64 == 0:
            await trio.sleep(1)  # the tail that prunes rests between two spans
        assert sent <= 2 * PRUNED_EVERY
    assert min(await numbers()) >= KEPT_MAX
    assert await counts(bob, room_id) == (0, 0)
    await bob.ok("DELETE", rule)
    await say(alice, room_id, "another")
    assert await counts(bob, room_id) == (1, 0)
