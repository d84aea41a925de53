"""Spec: client-server-api/#querying-threads-in-a-room"""

from __future__ import annotations

from tests.support.homeservers import Server
from tests.support.people import (
    ids,
    path_of,
    public_room,
    redact,
    say,
)
from tests.support.relations import V1, bundle, reply, threads


async def test_threads_are_listed_by_their_latest_reply(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    first, second, third = await say(alice, room_id, "1", "2", "3")
    await say(alice, room_id, "no thread")
    for root in (first, second, third, first):
        await reply(alice, room_id, root)
    answer = await threads(bob, room_id)
    assert ids(answer["chunk"]) == [first, third, second]
    assert answer["chunk"][0]["unsigned"]["m.relations"]["m.thread"]["count"] == 2
    assert "next_batch" not in answer
    page = await threads(bob, room_id, limit=2)
    assert ids(page["chunk"]) == [first, third]
    rest = await threads(bob, room_id, limit=2, start=page["next_batch"])
    assert ids(rest["chunk"]) == [second] and "next_batch" not in rest


async def test_threads_can_be_limited_to_those_the_user_participated_in(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    first, second = await say(alice, room_id, "1", "2")
    (own,) = await say(bob, room_id, "3")
    for root in (first, second, own):
        await reply(alice, room_id, root)
    await reply(bob, room_id, first)
    assert ids((await threads(bob, room_id, include="participated"))["chunk"]) == [first, own]
    assert ids((await threads(bob, room_id, include="all"))["chunk"]) == [first, own, second]


async def test_a_thread_whose_replies_are_all_redacted_is_not_listed(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    (root,) = await say(alice, room_id, "root")
    await redact(alice, room_id, await reply(alice, room_id, root))
    assert (await threads(alice, room_id))["chunk"] == []
    assert await bundle(alice, room_id, root) == {}


async def test_only_users_who_may_read_the_room_can_list_its_threads(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice)
    assert await bob.refused("GET", V1 + path_of(room_id, "threads")) == (403, "M_FORBIDDEN")
    for query in ({"limit": 0}, {"limit": "x"}, {"from": "nonsense"}, {"include": "some"}):
        assert (await alice.refused("GET", V1 + path_of(room_id, "threads"), params=query))[0] == 400
