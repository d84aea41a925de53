"""Spec: client-server-api/#aggregations-of-child-events"""

from __future__ import annotations

from tests.support.homeservers import Server
from tests.support.people import (
    Json,
    get_event,
    ids,
    join,
    leave,
    messages,
    path_of,
    public_room,
    redact,
    say,
    send,
    sync,
    timeline,
)
from tests.support.relations import bundle, edit, ignore, react, relate, relations, reply, threads


async def test_the_latest_edit_is_bundled_as_a_whole_event(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    (parent,) = await say(alice, room_id, "tea")
    await edit(alice, room_id, parent, "coffee")
    latest = await edit(alice, room_id, parent, "water")
    event = await get_event(bob, room_id, parent)
    assert event["content"] == {"msgtype": "m.text", "body": "tea"}
    bundled = event["unsigned"]["m.relations"]["m.replace"]
    assert bundled["event_id"] == latest
    assert bundled["content"]["m.new_content"]["body"] == "water"
    assert {"sender", "type", "origin_server_ts", "room_id", "unsigned"} <= bundled.keys()


async def test_invalid_edits_are_not_bundled(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    (parent,) = await say(alice, room_id, "tea")
    await edit(bob, room_id, parent, "not mine")
    await relate(alice, room_id, parent, "m.replace")  # without m.new_content
    await relate(alice, room_id, parent, "m.replace", kind="m.sticker", **{"m.new_content": {}})
    assert await bundle(alice, room_id, parent) == {}
    valid = await edit(alice, room_id, parent, "coffee")
    await edit(alice, room_id, valid, "an edit of an edit")
    assert (await bundle(alice, room_id, parent))["m.replace"]["event_id"] == valid
    assert await bundle(alice, room_id, valid) == {}


async def test_an_encrypted_edit_needs_no_new_content_in_the_clear(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    parent = await send(alice, room_id, {"algorithm": "m.megolm.v1.aes-sha2"}, kind="m.room.encrypted")
    edited = await relate(alice, room_id, parent, "m.replace", kind="m.room.encrypted")
    assert (await bundle(alice, room_id, parent))["m.replace"]["event_id"] == edited


async def test_redacting_the_latest_edit_restores_the_previous_one(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    (parent,) = await say(alice, room_id, "tea")
    first, second = await edit(alice, room_id, parent, "coffee"), await edit(alice, room_id, parent, "water")
    await redact(alice, room_id, second)
    assert (await bundle(alice, room_id, parent))["m.replace"]["event_id"] == first
    await redact(alice, room_id, first)
    assert await bundle(alice, room_id, parent) == {}


async def test_a_redacted_event_keeps_its_children_but_not_its_edits(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    (parent,) = await say(alice, room_id, "tea")
    edited, replied = await edit(alice, room_id, parent, "coffee"), await reply(alice, room_id, parent)
    await redact(alice, room_id, parent)
    assert set(await bundle(alice, room_id, parent)) == {"m.thread"}
    assert ids((await relations(alice, room_id, parent))["chunk"]) == [replied, edited]


async def test_references_are_bundled_as_a_list(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    (parent,) = await say(alice, room_id, "poll")
    votes = [await relate(alice, room_id, parent, "m.reference") for _ in range(3)]
    await redact(alice, room_id, votes[1])
    assert await bundle(alice, room_id, parent) == {
        "m.reference": {"chunk": [{"event_id": votes[0]}, {"event_id": votes[2]}]}
    }


async def test_a_thread_is_bundled_with_its_root(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    carol = await server.register("carol")
    room_id = await public_room(alice, bob, carol)
    (root,) = await say(alice, room_id, "root")
    await reply(bob, room_id, root)
    latest = await reply(bob, room_id, root)
    edited = await edit(bob, room_id, latest, "edited")
    thread = (await bundle(bob, room_id, root))["m.thread"]
    assert (thread["count"], thread["current_user_participated"]) == (2, True)
    assert thread["latest_event"]["event_id"] == latest
    assert thread["latest_event"]["unsigned"]["m.relations"]["m.replace"]["event_id"] == edited
    assert (await bundle(alice, room_id, root))["m.thread"]["current_user_participated"]  # has sent the root
    assert not (await bundle(carol, room_id, root))["m.thread"]["current_user_participated"]
    await redact(bob, room_id, latest)
    assert (await bundle(bob, room_id, root))["m.thread"]["count"] == 1


async def test_participation_ends_with_the_last_reply(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    (root,) = await say(alice, room_id, "root")
    mine, _ = await reply(bob, room_id, root), await reply(alice, room_id, root)
    await redact(bob, room_id, mine)
    assert not (await bundle(bob, room_id, root))["m.thread"]["current_user_participated"]


async def test_annotations_are_not_bundled(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    (parent,) = await say(alice, room_id, "parent")
    await react(alice, room_id, parent)
    assert await bundle(alice, room_id, parent) == {}


async def test_bundles_are_in_every_page_of_events(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    (parent,) = await say(alice, room_id, "tea")
    edited = await edit(alice, room_id, parent, "coffee")
    late = await say(alice, room_id, "1", "2")

    def is_bundled(events: list[Json]) -> bool:
        (event,) = [event for event in events if event["event_id"] == parent]
        return bool(event["unsigned"]["m.relations"]["m.replace"]["event_id"] == edited)

    assert is_bundled((await messages(alice, room_id))["chunk"])
    around = await alice.ok("GET", path_of(room_id, "context", parent))
    assert is_bundled([around["event"]])
    assert is_bundled((await alice.ok("GET", path_of(room_id, "context", late[0])))["events_before"])
    answer = await sync(alice, filter={"room": {"timeline": {"limit": 4}}})
    assert timeline(answer, room_id)[0]["event_id"] == parent
    assert is_bundled(timeline(answer, room_id))


async def test_state_events_are_not_bundled(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    name = next(event for event in timeline(await sync(alice), room_id) if event["type"] == "m.room.join_rules")
    child = await relate(alice, room_id, name["event_id"], "m.reference")
    assert await bundle(alice, room_id, name["event_id"]) == {}
    assert ids((await relations(alice, room_id, name["event_id"]))["chunk"]) == [child]


async def test_children_of_another_room_do_not_count(server: Server) -> None:
    alice = await server.register("alice")
    room_id, other = await public_room(alice), await public_room(alice)
    (parent,) = await say(alice, room_id, "parent")
    await edit(alice, other, parent, "from elsewhere")
    await reply(alice, other, parent)
    assert await bundle(alice, room_id, parent) == {}
    assert (await relations(alice, room_id, parent))["chunk"] == []


# What a user does not see


async def test_ignored_users_have_no_children(server: Server) -> None:
    alice, bob, carol = [await server.register(name) for name in ("alice", "bob", "carol")]
    room_id = await public_room(alice, bob, carol)
    root, other = await say(carol, room_id, "root", "other")
    await reply(carol, room_id, root)
    await reply(bob, room_id, root)
    shown = await reply(carol, room_id, root)
    await reply(bob, room_id, root)
    await reply(bob, room_id, other)
    await relate(bob, room_id, root, "m.reference")
    await ignore(alice, bob)
    bundled = await bundle(alice, room_id, root)
    assert bundled.keys() == {"m.thread"}
    assert (bundled["m.thread"]["count"], bundled["m.thread"]["latest_event"]["event_id"]) == (2, shown)
    assert ids((await relations(alice, room_id, root))["chunk"])[0] == shown
    shown = await reply(carol, room_id, root)
    thread = (await bundle(alice, room_id, root))["m.thread"]
    assert (thread["count"], thread["latest_event"]["event_id"]) == (3, shown)
    assert ids((await threads(alice, room_id))["chunk"]) == [root]


async def test_the_root_of_an_ignored_user_is_redacted(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    (root,) = await say(bob, room_id, "unwanted")
    await reply(alice, room_id, root)
    await edit(bob, room_id, root, "unwanted too")
    await ignore(alice, bob)
    (shown,) = (await threads(alice, room_id))["chunk"]
    assert (shown["event_id"], shown["content"]) == (root, {})
    assert shown["unsigned"]["m.relations"].keys() == {"m.thread"}


async def test_former_members_see_what_related_while_they_were_there(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    (root,) = await say(alice, room_id, "root")
    early, edited = await reply(alice, room_id, root), await edit(alice, room_id, root, "early")
    await leave(bob, room_id)
    await reply(alice, room_id, root)
    await edit(alice, room_id, root, "late")
    bundled = await bundle(bob, room_id, root)
    assert bundled["m.replace"]["event_id"] == edited
    assert (bundled["m.thread"]["count"], bundled["m.thread"]["latest_event"]["event_id"]) == (1, early)
    assert ids((await relations(bob, room_id, root))["chunk"]) == [edited, early]
    await join(bob, room_id)
    assert (await bundle(bob, room_id, root))["m.thread"]["count"] == 2


async def test_children_from_before_a_member_may_see(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    hidden = {"type": "m.room.history_visibility", "state_key": "", "content": {"history_visibility": "joined"}}
    room_id = await public_room(alice, bob, initial_state=[hidden])
    (root,) = await say(alice, room_id, "root")
    await leave(bob, room_id)
    unseen = await reply(alice, room_id, root)
    await join(bob, room_id)
    assert await bundle(bob, room_id, root) == {}
    seen = await reply(alice, room_id, root)
    assert ids((await relations(bob, room_id, root))["chunk"]) == [seen]
    assert ids((await relations(alice, room_id, root))["chunk"]) == [seen, unseen]


async def test_newcomers_do_not_get_the_edits_of_an_erased_user(server: Server) -> None:
    alice, bob, carol = [await server.register(name) for name in ("alice", "bob", "carol")]
    room_id = await public_room(alice, bob)
    (parent,) = await say(bob, room_id, "secret")
    edited = await edit(bob, room_id, parent, "another secret")
    await bob.ok("POST", "account/deactivate", json={"erase": True, "auth": bob.password_auth()})
    await join(carol, room_id)
    assert (await bundle(alice, room_id, parent))["m.replace"]["event_id"] == edited
    assert await bundle(carol, room_id, parent) == {}
    assert (await relations(carol, room_id, parent))["chunk"] == []
