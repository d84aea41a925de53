"""What came before /sync. Spec: client-server-api/#get_matrixclientv3events, #room-previews"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest
import trio

from tests.support.homeservers import Client, Server
from tests.support.people import (
    act,
    create,
    ids,
    invite,
    join,
    leave,
    messages,
    path_of,
    public_room,
    say,
    set_state,
    sync,
    texts,
)

READABLE = {"history_visibility": "world_readable"}


async def events(client: Client, start: str | None = None, **query: Any) -> dict[str, Any]:
    if start is not None:
        query["from"] = start
    answer: dict[str, Any] = await client.ok("GET", "events", params=query)
    return answer


async def test_the_stream_has_the_events_of_all_rooms_in_order(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    one, two = await public_room(alice, bob), await public_room(alice, bob)
    elsewhere = await public_room(alice)
    start = (await events(bob))["end"]
    assert (await events(bob, start))["chunk"] == []
    sent = [*await say(alice, one, "1"), *await say(alice, two, "2"), *await say(alice, one, "3")]
    await say(alice, elsewhere, "not for bob")
    answer = await events(bob, start)
    assert ids(answer["chunk"]) == sent and answer["start"] == start
    assert [event["room_id"] for event in answer["chunk"]] == [one, two, one]
    assert (await events(bob, answer["end"]))["chunk"] == []
    with_sync = await sync(bob)
    (last,) = await say(alice, two, "4")
    assert ids((await events(bob, with_sync["next_batch"]))["chunk"]) == [last], "tokens of /sync are taken too"


async def test_the_stream_waits_for_events(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    start = (await events(bob))["end"]
    answers: list[dict[str, Any]] = []

    async def wait() -> None:
        answers.append(await events(bob, start, timeout=30_000))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.sleep(5)
        assert not answers
        await say(alice, room_id, "hello")
    assert texts(answers[0]["chunk"]) == ["hello"]
    began = trio.current_time()
    assert (await events(bob, answers[0]["end"], timeout=2_000))["chunk"] == []
    assert trio.current_time() - began == pytest.approx(2, abs=0.5)


async def test_many_events_are_told_in_several_answers(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    one, two = await public_room(alice, bob), await public_room(alice, bob)
    token = (await events(bob))["end"]
    sent = []
    for number in range(130):
        sent += await say(alice, one if number % 3 else two, str(number))
    told: list[str] = []
    for _ in range(4):
        answer = await events(bob, token)
        told += ids(answer["chunk"])
        token = answer["end"]
    assert told == sent


async def test_the_stream_tells_of_invites_and_of_being_removed(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await create(alice)
    token = (await events(bob))["end"]
    await invite(alice, room_id, bob)
    answer = await events(bob, token)
    (invited,) = answer["chunk"]
    assert invited["content"]["membership"] == "invite" and invited["room_id"] == room_id
    await join(bob, room_id)
    token = (await events(bob))["end"]
    await act(alice, room_id, "kick", bob)
    await say(alice, room_id, "bob is gone")
    (kicked,) = (await events(bob, token))["chunk"]
    assert kicked["content"]["membership"] == "leave"


async def test_a_room_that_anyone_may_read_is_peeked_into(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice)
    assert await bob.refused("GET", "events", params={"room_id": room_id}) == (403, "M_FORBIDDEN")
    await set_state(alice, room_id, "m.room.history_visibility", READABLE)
    _, first = await say(alice, room_id, "older", "first")
    snapshot = await bob.ok("GET", path_of(room_id, "initialSync"), params={"limit": 2})
    assert ids(snapshot["messages"]["chunk"])[-1] == first and len(snapshot["messages"]["chunk"]) == 2
    assert "membership" not in snapshot and snapshot["visibility"] == "private"
    assert ("m.room.create", "") in {(event["type"], event["state_key"]) for event in snapshot["state"]}
    older = await messages(bob, room_id, start=snapshot["messages"]["start"])
    assert ids(older["chunk"]) and first not in ids(older["chunk"])
    (second,) = await say(alice, room_id, "second")
    answer = await events(bob, snapshot["messages"]["end"], room_id=room_id)
    assert ids(answer["chunk"]) == [second]
    await set_state(alice, room_id, "m.room.history_visibility", {"history_visibility": "joined"})
    refused = await bob.refused("GET", "events", params={"room_id": room_id, "from": answer["end"]})
    assert refused == (403, "M_FORBIDDEN")


async def test_a_room_as_its_members_see_it(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    await bob.put(f"user/{bob.user_id}/{path_of(room_id)}/account_data/org.example", {"a": 1})
    snapshot = await bob.ok("GET", path_of(room_id, "initialSync"))
    assert snapshot["membership"] == "join"
    assert snapshot["account_data"] == [{"type": "org.example", "content": {"a": 1}}]
    await leave(bob, room_id)
    await say(alice, room_id, "bob is gone")
    snapshot = await bob.ok("GET", path_of(room_id, "initialSync"))
    assert snapshot["membership"] == "leave" and "bob is gone" not in texts(snapshot["messages"]["chunk"])
    carol = await server.register("carol")
    assert await carol.refused("GET", path_of(room_id, "initialSync")) == (403, "M_FORBIDDEN")


async def test_one_event_by_its_id_alone(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await create(alice)
    (event_id,) = await say(alice, room_id, "hello")
    path = f"events/{quote(event_id, safe='')}"
    event = await alice.ok("GET", path)
    assert (event["event_id"], event["room_id"]) == (event_id, room_id)
    assert await bob.refused("GET", path) == (404, "M_NOT_FOUND")
    assert await bob.refused("GET", f"events/{quote('$' + 'x' * 43)}") == (404, "M_NOT_FOUND")


async def test_everything_at_once(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    joined, left, invited = await public_room(alice, bob), await public_room(alice, bob), await create(alice)
    await leave(bob, left)
    await invite(alice, invited, bob)
    sent = await say(alice, joined, "1", "2", "3")
    answer = await bob.ok("GET", "initialSync", params={"limit": 2})
    rooms = {room["room_id"]: room for room in answer["rooms"]}
    assert set(rooms) == {joined, invited}
    assert ids(rooms[joined]["messages"]["chunk"]) == sent[1:] and rooms[joined]["membership"] == "join"
    state = {(event["type"], event["state_key"]): event for event in rooms[joined]["state"]}
    assert state["m.room.member", bob.user_id]["content"]["membership"] == "join"
    assert rooms[invited]["invite"]["content"]["membership"] == "invite"
    assert "m.push_rules" in {event["type"] for event in answer["account_data"]}
    assert ids((await messages(bob, joined, start=rooms[joined]["messages"]["start"]))["chunk"])[0] == sent[0]
    await say(alice, joined, "4")
    assert texts((await events(bob, answer["end"]))["chunk"]) == ["4"]
    archived = await bob.ok("GET", "initialSync", params={"archived": "true"})
    memberships = {room["room_id"]: room["membership"] for room in archived["rooms"]}
    assert memberships == {joined: "join", invited: "invite", left: "leave"}


async def test_nonsense_is_refused(server: Server) -> None:
    alice = await server.register("alice")
    for query in ({"from": "x"}, {"timeout": "x"}, {"timeout": -1}, {"room_id": "x"}, {"from": "t1_2_3"}):
        assert (await alice.refused("GET", "events", params=query))[0] == 400
    assert (await alice.refused("GET", "initialSync", params={"limit": "-1"}))[0] == 400
    for path in ("events", "initialSync", f"rooms/{quote('!r:test.example')}/initialSync", "events/x"):
        assert (await server.anonymous.refused("GET", path))[0] == 401
