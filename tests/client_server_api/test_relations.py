"""Spec: client-server-api/#relationships-api, #avoiding-duplicate-annotations, #validation-of-mthread-relationships"""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.homeservers import Server
from tests.support.people import (
    ids,
    messages,
    path_of,
    public_room,
    redact,
    say,
    send,
    sync,
    timeline,
)
from tests.support.relations import V1, bundle, edit, react, relate, relations, reply
from tests.support.rows import row


async def test_children_are_listed_newest_first(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    parent, other = await say(alice, room_id, "parent", "other")
    first, second = await react(bob, room_id, parent), await reply(bob, room_id, parent)
    await react(bob, room_id, other)
    third = await edit(alice, room_id, parent, "edited")
    answer = await relations(alice, room_id, parent)
    assert ids(answer["chunk"]) == [third, second, first]
    assert "next_batch" not in answer and "prev_batch" not in answer and "recursion_depth" not in answer
    assert ids((await relations(alice, room_id, parent, dir="f"))["chunk"]) == [first, second, third]


async def test_children_by_relation_and_by_event_type(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    (parent,) = await say(alice, room_id, "parent")
    reaction, replied = await react(alice, room_id, parent), await reply(alice, room_id, parent)
    sticker = await relate(alice, room_id, parent, "m.thread", kind="m.sticker")
    custom = await relate(alice, room_id, parent, "org.example.custom")
    assert ids((await relations(alice, room_id, parent, "m.thread"))["chunk"]) == [sticker, replied]
    assert ids((await relations(alice, room_id, parent, "m.annotation"))["chunk"]) == [reaction]
    assert ids((await relations(alice, room_id, parent, "org.example.custom"))["chunk"]) == [custom]
    assert ids((await relations(alice, room_id, parent, "m.thread", "m.sticker"))["chunk"]) == [sticker]
    assert (await relations(alice, room_id, parent, "m.thread", "m.never.sent"))["chunk"] == []
    assert (await relations(alice, room_id, parent, "m.never.sent"))["chunk"] == []


@pytest.mark.parametrize("direction", ["b", "f"])
async def test_pages_of_children_contain_each_child_once(server: Server, direction: str) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    (root,) = await say(alice, room_id, "root")
    sent = [await reply(alice, room_id, root) for _ in range(7)]
    found: list[str] = []
    start = ""
    while True:
        page = await relations(alice, room_id, root, start=start, limit=3, dir=direction)
        found += ids(page["chunk"])
        assert page.get("prev_batch", "") == start or start
        if "next_batch" not in page:
            break
        start = page["next_batch"]
    assert found == (sent if direction == "f" else sent[::-1])


async def test_tokens_of_sync_and_messages_bound_the_children(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    (root,) = await say(alice, room_id, "root")
    early = await reply(alice, room_id, root)
    since = (await sync(alice))["next_batch"]
    late = await reply(alice, room_id, root)
    assert ids((await relations(alice, room_id, root, start=since))["chunk"]) == [early]
    assert ids((await relations(alice, room_id, root, to=since))["chunk"]) == [late]
    page = await messages(alice, room_id, limit=1)
    assert ids((await relations(alice, room_id, root, start=page["end"]))["chunk"]) == [early]
    path = V1 + path_of(room_id, "relations", root)
    assert await alice.refused("GET", path, params={"from": "nonsense"}) == (400, "M_INVALID_PARAM")


async def test_recursion_includes_three_levels(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    (root,) = await say(alice, room_id, "root")
    chain = [await reply(alice, room_id, root)]
    for _ in range(3):
        chain.append(await relate(alice, room_id, chain[-1], "org.example.chain"))
    answer = await relations(alice, room_id, root, recurse="true")
    assert ids(answer["chunk"]) == chain[2::-1]
    assert answer["recursion_depth"] == 3
    assert ids((await relations(alice, room_id, root, recurse="false"))["chunk"]) == chain[:1]
    assert ids((await relations(alice, room_id, root, "m.thread", recurse="true"))["chunk"]) == chain[:1]
    first = await relations(alice, room_id, root, recurse="true", limit=2)
    second = await relations(alice, room_id, root, recurse="true", limit=2, start=first["next_batch"])
    assert ids(first["chunk"] + second["chunk"]) == chain[2::-1]


async def test_children_of_an_invisible_event_are_not_listed(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice)
    (parent,) = await say(alice, room_id, "parent")
    await react(alice, room_id, parent)
    for event_id in (parent, "$unknown"):
        assert await bob.refused("GET", V1 + path_of(room_id, "relations", event_id)) == (404, "M_NOT_FOUND")


# What may be sent


async def test_the_same_annotation_is_refused_unless_the_first_is_redacted(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    (parent,) = await say(alice, room_id, "parent")
    first = await react(alice, room_id, parent, "👍")
    again = {"m.relates_to": {"rel_type": "m.annotation", "event_id": parent, "key": "👍"}}
    path = path_of(room_id, "send", "m.reaction", "again")
    assert await alice.refused("PUT", path, json=again) == (400, "M_DUPLICATE_ANNOTATION")
    await react(alice, room_id, parent, "👎")
    await react(bob, room_id, parent, "👍")
    await send(alice, room_id, again, kind="org.example.reaction")
    await redact(alice, room_id, first)
    await react(alice, room_id, parent, "👍")


async def test_a_repeated_request_is_not_a_repeated_annotation(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    (parent,) = await say(alice, room_id, "parent")
    content = {"m.relates_to": {"rel_type": "m.annotation", "event_id": parent, "key": "x"}}
    sent = await send(alice, room_id, content, kind="m.reaction", txn_id="once")
    assert await send(alice, room_id, content, kind="m.reaction", txn_id="once") == sent


async def test_a_thread_cannot_start_at_a_related_event(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    (root,) = await say(alice, room_id, "root")
    replied = await reply(alice, room_id, root)
    content = {"msgtype": "m.text", "body": "x", "m.relates_to": {"rel_type": "m.thread", "event_id": replied}}
    assert await alice.refused("PUT", path_of(room_id, "send", "m.room.message", "x"), json=content) == (
        400,
        "M_UNKNOWN",
    )
    quoting = await send(alice, room_id, {"body": "x", "m.relates_to": {"m.in_reply_to": {"event_id": root}}})
    await reply(alice, room_id, quoting)  # a rich reply has no rel_type
    assert (await bundle(alice, room_id, quoting))["m.thread"]["count"] == 1


MALFORMED: list[Any] = [
    None,
    [],
    "text",
    7,
    {},
    {"rel_type": "m.thread"},
    {"rel_type": "m.thread", "event_id": None},
    {"rel_type": "m.thread", "event_id": "not an event"},
    {"rel_type": "m.thread", "event_id": "$" + "x" * 300},
    {"rel_type": "m.thread", "event_id": {"a": 1}},
    {"rel_type": ["m.replace"], "event_id": "$PARENT"},
    {"rel_type": "", "event_id": "$PARENT"},
    {"rel_type": "x" * 300, "event_id": "$PARENT"},
    {"rel_type": "nul\u0000", "event_id": "$PARENT"},
    {"event_id": "$PARENT"},
]


async def test_malformed_relations_are_ignored(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    (parent,) = await say(alice, room_id, "parent")
    for relates_to in MALFORMED:
        with row(relates_to):
            if isinstance(relates_to, dict) and relates_to.get("event_id") == "$PARENT":
                relates_to = {**relates_to, "event_id": parent}
            sent = await send(alice, room_id, {"body": "x", "msgtype": "m.text", "m.relates_to": relates_to})
            assert await bundle(alice, room_id, parent) == {}
            assert (await relations(alice, room_id, parent))["chunk"] == []
            assert (await messages(alice, room_id, limit=1))["chunk"][0]["event_id"] == sent
            assert timeline(await sync(alice), room_id)[-1]["event_id"] == sent


@pytest.mark.parametrize("key", [None, 7, [], {}, "x" * 10_000, "nul\u0000"])
async def test_annotations_may_have_any_key(server: Server, key: Any) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    (parent,) = await say(alice, room_id, "parent")
    sent = await relate(alice, room_id, parent, "m.annotation", kind="m.reaction", relates_to={"key": key})
    assert ids((await relations(alice, room_id, parent, "m.annotation"))["chunk"]) == [sent]


@pytest.mark.parametrize("content", [7, "text", [], None])
async def test_an_edit_whose_new_content_is_not_an_object_is_not_bundled(server: Server, content: Any) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    (parent,) = await say(alice, room_id, "parent")
    await relate(alice, room_id, parent, "m.replace", **{"m.new_content": content})
    assert await bundle(alice, room_id, parent) == {}
