"""Relations between events of several servers. Spec: client-server-api/#aggregations-of-child-events"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from tests.support.federation import Federation, create_room, join, send_text, until, wait_text
from tests.support.homeservers import Client
from tests.support.people import all_messages, ids, redact
from tests.support.relations import bundle, edit, relations, reply, threads


async def wait_bundle(client: Client, room_id: str, event_id: str, expected: Any) -> None:
    """Waits until the event is bundled with these edits and replies: the edit's ID, and the replies' number."""

    async def is_so() -> bool:
        found = await bundle(client, room_id, event_id)
        return (found.get("m.replace", {}).get("event_id"), found.get("m.thread", {}).get("count")) == expected

    await until(is_so)


async def test_servers_bundle_identically(federation: Federation) -> None:
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id, "a.example")
    root = await send_text(alice, room_id, "tea?")
    await wait_text(bob, room_id, "tea?")
    edited = await edit(alice, room_id, root, "coffee?")
    mine = await reply(bob, room_id, root)
    for client in (alice, bob):
        await wait_bundle(client, room_id, root, (edited, 1))
        assert (await bundle(client, room_id, root))["m.thread"]["current_user_participated"]
        assert ids((await threads(client, room_id))["chunk"]) == [root]
    await redact(bob, room_id, mine)
    await redact(alice, room_id, edited)
    for client in (alice, bob):
        await wait_bundle(client, room_id, root, (None, None))


async def test_children_from_before_the_join_come_with_history(federation: Federation) -> None:
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice, preset="public_chat")
    root = await send_text(alice, room_id, "tea?")
    edited, early = await edit(alice, room_id, root, "coffee?"), await reply(alice, room_id, root)
    for number in range(20):
        await send_text(alice, room_id, f"message {number}")
    await join(bob, room_id, "a.example")
    late = await reply(bob, room_id, root)  # its root is not known here yet
    assert (await bob.get(f"rooms/{quote(room_id)}/event/{quote(root)}")).status_code == 404
    assert root in ids(await all_messages(bob, room_id, limit=10))
    thread = (await bundle(bob, room_id, root))["m.thread"]
    assert (thread["count"], thread["latest_event"]["event_id"]) == (2, late)
    assert (await bundle(bob, room_id, root))["m.replace"]["event_id"] == edited
    assert ids((await relations(bob, room_id, root))["chunk"]) == [late, early, edited]
