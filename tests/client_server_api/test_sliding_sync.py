"""Spec: MSC4186, simplified sliding sync, in the shape that clients ship and in the merged one."""

from __future__ import annotations

from typing import Any

import trio

from homeserver.database import Transaction
from homeserver.limits.users import SYNC_CONNECTIONS_MAX
from tests.support.homeservers import Client, Server
from tests.support.people import create, join, leave, messages, path_of, public_room, say, set_state
from tests.support.rows import row
from tests.support.sliding import EVERY_EXTENSION, PATH, Connection, slide, slide_merged, told_state, told_texts, window


async def test_the_first_answer_has_the_most_recent_rooms_of_the_window(server: Server) -> None:
    alice = await server.register("alice")
    old, middle, new = [await create(alice, name=name) for name in ("old", "middle", "new")]
    await say(alice, old, "hello")
    answer = await slide(alice, lists={"all": window(0, 1, limit=1)})
    assert answer["lists"] == {"all": {"count": 3}}
    assert set(answer["rooms"]) == {old, new}
    assert middle not in answer["rooms"]
    room = answer["rooms"][old]
    assert (room["name"], room["initial"], room["limited"], room["joined_count"]) == ("old", True, True, 1)
    assert told_texts(answer, old) == ["hello"]


async def test_the_next_answer_has_only_what_is_new(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    client = Connection(alice)
    await client.ask()
    assert (await client.ask())["rooms"] == {}
    await say(bob, room_id, "one", "two")
    answer = await client.ask()
    assert told_texts(answer, room_id) == ["one", "two"]
    assert answer["rooms"][room_id]["num_live"] == 2
    assert "initial" not in answer["rooms"][room_id]


async def test_required_state_is_what_was_asked_for(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob, name="room")
    state = [["m.room.name", ""], ["m.room.member", "$ME"], ["org.example", "*"]]
    client = Connection(alice, {"lists": {"all": window(state=state)}})
    answer = await client.ask()
    assert told_state(answer, room_id) == {("m.room.name", ""), ("m.room.member", alice.user_id)}
    await set_state(alice, room_id, "org.example", {"a": 1}, "key")
    await set_state(alice, room_id, "org.other", {"a": 1}, "key")
    assert told_state(await client.ask(), room_id) == {("org.example", "key")}


# Rooms


async def test_lazily_members_come_when_they_speak_and_once(server: Server) -> None:
    alice, bob, carol = [await server.register(name) for name in ("alice", "bob", "carol")]
    room_id = await public_room(alice, bob, carol)
    client = Connection(alice, {"lists": {"all": window(limit=1, state=[["m.room.member", "$LAZY"]])}})
    await say(bob, room_id, "hello")
    assert told_state(await client.ask(), room_id) == {("m.room.member", bob.user_id)}
    await say(carol, room_id, "hello")
    assert told_state(await client.ask(), room_id) == {("m.room.member", carol.user_id)}
    await say(carol, room_id, "again")
    assert told_state(await client.ask(), room_id) == set()


async def test_state_that_is_required_anew_is_told_at_once(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await create(alice, name="room", topic="things")
    client = Connection(alice, {"lists": {"all": window(state=[["m.room.name", ""]])}})
    await client.ask()
    client.body = {"lists": {"all": window(state=[["m.room.name", ""], ["m.room.topic", ""]])}}
    assert told_state(await client.ask(timeout=10_000), room_id) == {("m.room.topic", "")}
    assert (await client.ask())["rooms"] == {}


async def test_a_larger_timeline_is_told_at_once(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await create(alice)
    await say(alice, room_id, "one", "two", "three")
    client = Connection(alice, {"lists": {"all": window(limit=1)}})
    assert told_texts(await client.ask(), room_id) == ["three"]
    client.body["room_subscriptions"] = {room_id: {"timeline_limit": 3, "required_state": []}}
    answer = await client.ask(timeout=10_000)
    assert told_texts(answer, room_id) == ["one", "two", "three"]
    assert answer["rooms"][room_id]["unstable_expanded_timeline"] is True
    assert answer["rooms"][room_id]["num_live"] == 0
    assert (await client.ask())["rooms"] == {}


async def test_a_room_that_comes_back_into_view_is_told_from_where_it_left(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    first, second = await public_room(alice, bob), await public_room(alice, bob)
    client = Connection(alice, {"lists": {"top": window(0, 0)}})
    assert set((await client.ask())["rooms"]) == {second}
    await say(bob, second, "missed")
    await say(bob, first, "hello")
    assert set((await client.ask())["rooms"]) == {first}
    await say(bob, second, "seen")
    answer = await client.ask()
    assert told_texts(answer, second) == ["missed", "seen"]
    assert "initial" not in answer["rooms"][second]
    assert answer["rooms"][second]["num_live"] == 1


async def test_an_invite_comes_with_stripped_state_and_becomes_a_room(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    client = Connection(bob)
    await client.ask()
    room_id = await create(alice, name="come", invite=[bob.user_id])
    room = (await client.ask())["rooms"][room_id]
    assert "timeline" not in room
    assert {"m.room.name", "m.room.member"} <= {event["type"] for event in room["invite_state"]}
    await join(bob, room_id)
    room = (await client.ask())["rooms"][room_id]
    assert room["initial"] is True and room["name"] == "come"
    assert "invite_state" not in room


async def test_a_room_that_was_left_is_told_once_more(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    client = Connection(bob)
    await client.ask()
    await leave(bob, room_id)
    await say(alice, room_id, "secret")
    answer = await client.ask()
    assert ("m.room.member", bob.user_id) in told_state(answer, room_id)
    assert told_texts(answer, room_id) == []
    answer = await client.ask()
    assert (answer["rooms"], answer["lists"]["all"]["count"]) == ({}, 0)


async def test_a_rejected_invite_is_told(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await create(alice, invite=[bob.user_id])
    client = Connection(bob)
    assert "invite_state" in (await client.ask())["rooms"][room_id]
    await leave(bob, room_id)
    room = (await client.ask())["rooms"][room_id]
    assert room["required_state"][0]["content"]["membership"] == "leave"
    assert (await client.ask())["rooms"] == {}


async def test_rooms_that_the_user_left_before_are_not_listed_but_those_they_were_kicked_from(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    left, kicked = await public_room(alice, bob), await public_room(alice, bob)
    await leave(bob, left)
    await alice.ok("POST", path_of(kicked, "kick"), json={"user_id": bob.user_id})
    assert set((await slide(bob, lists={"all": window()}))["rooms"]) == {kicked}


async def test_a_banned_user_who_was_never_there_learns_nothing(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await create(alice, name="secret")
    await alice.ok("POST", path_of(room_id, "ban"), json={"user_id": bob.user_id})
    subscribed = {room_id: {"timeline_limit": 10, "required_state": [["*", "*"]]}}
    assert (await slide(bob, lists={"all": window()}, room_subscriptions=subscribed))["rooms"] == {}


async def test_subscriptions_to_rooms_of_others_are_ignored(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await create(alice)
    subscribed = {each: {"timeline_limit": 10, "required_state": [["*", "*"]]} for each in (room_id, "!unknown:x", "?")}
    assert (await slide(bob, room_subscriptions=subscribed))["rooms"] == {}


async def test_a_nameless_room_comes_with_heroes(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    client = Connection(alice)
    room = (await client.ask())["rooms"][room_id]
    assert room["heroes"] == [{"user_id": bob.user_id, "displayname": "bob"}]
    await set_state(alice, room_id, "m.room.name", {"name": "Named"})
    room = (await client.ask())["rooms"][room_id]
    assert room["name"] == "Named" and "heroes" not in room
    await set_state(alice, room_id, "m.room.name", {})
    room = (await client.ask())["rooms"][room_id]
    assert room["name"] is None and "heroes" in room


async def test_the_bump_stamp_rises_with_messages_only(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await create(alice)
    client = Connection(alice)
    first = (await client.ask())["rooms"][room_id]["bump_stamp"]
    await set_state(alice, room_id, "m.room.topic", {"topic": "x"})
    assert "bump_stamp" not in (await client.ask())["rooms"][room_id]
    await say(alice, room_id, "hello")
    assert (await client.ask())["rooms"][room_id]["bump_stamp"] > first


# Filters


async def listed(client: Client, **filters: Any) -> set[str]:
    return set((await slide(client, lists={"all": window(filters=filters)}))["rooms"])


async def test_lists_are_filtered(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    plain = await create(alice)
    encryption = {"type": "m.room.encryption", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}
    encrypted = await create(alice, initial_state=[encryption])
    space = await create(alice, creation_content={"type": "m.space"})
    invited = await create(bob, invite=[alice.user_id])
    await set_state(alice, space, "m.space.child", {"via": ["test.example"]}, plain)
    await set_state(alice, space, "m.space.child", {}, encrypted)
    path = f"user/{alice.user_id}"
    await alice.ok("PUT", f"{path}/account_data/m.direct", json={bob.user_id: [encrypted, invited], "x": 1})
    await alice.ok("PUT", f"{path}/{path_of(plain)}/tags/m.favourite", json={})
    assert await listed(alice, is_dm=True) == {encrypted, invited}
    assert await listed(alice, is_dm=False) == {plain, space}
    assert await listed(alice, is_encrypted=True) == {encrypted}
    assert await listed(alice, is_invite=True) == {invited}
    assert await listed(alice, is_invite=False) == {plain, encrypted, space}
    assert await listed(alice, room_types=["m.space"]) == {space}
    assert await listed(alice, room_types=[None, "m.space"], not_room_types=["m.space"]) == {plain, encrypted, invited}
    assert await listed(alice, spaces=[space, plain, "!unknown:x"]) == {plain}
    assert await listed(alice, tags=["m.favourite", "u.x"]) == {plain}
    assert await listed(alice, not_tags=["m.favourite"]) == {encrypted, space, invited}
    assert await listed(alice, tags=["m.favourite"], not_tags=["m.favourite"]) == set()


# Connections


async def test_a_lost_answer_is_told_again(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    client = Connection(alice, {"lists": {"top": window(0, 0, limit=5)}})
    await client.ask()
    lost = client.pos
    other = await public_room(bob, alice, name="other")
    await say(bob, room_id, "one")
    await say(bob, other, "two")
    assert (await client.ask())["rooms"][other]["initial"] is True
    client.pos = lost
    answer = await client.ask()
    assert answer["rooms"][other]["initial"] is True and told_texts(answer, other) == ["two"]
    await say(bob, room_id, "three")
    assert told_texts(await client.ask(), room_id) == ["one", "three"]


async def test_a_request_that_the_client_has_given_up_does_not_end_the_connection(server: Server) -> None:
    """The server may not notice for a while that a client has lost its network and asks again from another one."""
    alice = await server.register("alice")
    await public_room(alice)
    client = Connection(alice)
    await client.ask()
    abandoned: list[tuple[int, str]] = []
    rooms: dict[str, Any] = {}

    async def ask_and_lose_the_network() -> None:
        params = {"pos": client.pos, "timeout": 30_000}
        response = await alice.request("POST", PATH, json=client.body, params=params)
        abandoned.append((response.status_code, response.json().get("errcode", "")))

    async def ask_again() -> None:
        rooms.update((await client.ask(timeout=30_000))["rooms"])

    async with trio.open_nursery() as nursery:
        for ask in (ask_and_lose_the_network, ask_again):
            nursery.start_soon(ask)
            await trio.sleep(1)
        room_id = await public_room(alice)
    assert abandoned == [(400, "M_UNKNOWN_POS")]
    assert set(rooms) == {room_id}
    await client.ask()


async def test_connections_are_apart(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await create(alice)
    first = Connection(alice, {"conn_id": "one", "lists": {"all": window()}})
    second = Connection(alice, {"conn_id": "two", "lists": {"all": window()}})
    assert room_id in (await first.ask())["rooms"]
    assert room_id in (await second.ask())["rooms"]
    await say(alice, room_id, "hello")
    assert told_texts(await first.ask(), room_id) == told_texts(await second.ask(), room_id) == ["hello"]


async def test_a_pos_of_another_connection_user_or_shape_is_unknown(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    pos = (await slide(alice))["pos"]
    other = await server.log_in("alice")
    for client, body in ((bob, {}), (other, {}), (alice, {"conn_id": "other"})):
        assert await client.refused("POST", PATH, json=body, params={"pos": pos}) == (400, "M_UNKNOWN_POS")
    for wrong in ("", "s1", "x", pos + "0", pos.replace("~", "~1"), "s99999999_abc~1.0"):
        assert await alice.refused("POST", PATH, json={}, params={"pos": wrong}) == (400, "M_UNKNOWN_POS")
    await slide(alice, pos)


async def test_a_new_connection_ends_its_predecessor(server: Server) -> None:
    alice = await server.register("alice")
    pos = (await slide(alice))["pos"]
    await slide(alice)
    assert await alice.refused("POST", PATH, json={}, params={"pos": pos}) == (400, "M_UNKNOWN_POS")


async def test_a_device_has_few_connections(server: Server) -> None:
    alice = await server.register("alice")
    first = Connection(alice, {"conn_id": "first"})
    await first.ask()
    for number in range(SYNC_CONNECTIONS_MAX):
        await Connection(alice, {"conn_id": str(number)}).ask()
    await create(alice)
    assert await alice.refused("POST", PATH, json=first.body, params={"pos": first.pos}) == (400, "M_UNKNOWN_POS")


async def test_a_pos_is_a_point_in_history(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await create(alice)
    await say(alice, room_id, "before")
    pos = (await slide(alice, lists={"all": window()}))["pos"]
    await say(alice, room_id, "after")
    found = await messages(alice, room_id, start=pos)
    assert found["chunk"][0]["content"]["body"] == "before"


async def test_a_poll_waits_for_news(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    client = Connection(alice)
    await client.ask()
    answers: list[Any] = []

    async def poll() -> None:
        answers.append(await client.ask(timeout=30_000))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(poll)
        await trio.sleep(5)
        assert not answers
        await say(bob, room_id, "hello")
    assert told_texts(answers[0], room_id) == ["hello"]
    begun = trio.current_time()
    assert (await client.ask(timeout=30_000))["rooms"] == {}
    assert trio.current_time() - begun >= 30


async def test_a_quiet_poll_writes_nothing(server: Server) -> None:
    alice = await server.register("alice")
    await create(alice)
    client = Connection(alice, {"lists": {"all": window()}, "extensions": EVERY_EXTENSION})
    await client.ask()
    await client.ask()
    before = await server.read(read_connections)
    pos = client.pos
    for _ in range(3):
        await client.ask(timeout=1_000)
    assert await server.read(read_connections) == before
    assert client.pos == pos


def read_connections(tx: Transaction) -> list[Any]:
    return [tx.all("SELECT * FROM sync_connections"), tx.all("SELECT * FROM sync_connection_rooms"), tx.position]


async def test_a_device_that_logs_out_leaves_no_connection(server: Server) -> None:
    alice = await server.register("alice")
    await create(alice)
    await slide(alice, lists={"all": window()})
    await alice.ok("POST", "logout")
    connections, rooms, _ = await server.read(read_connections)
    assert (connections, rooms) == ([], [])


# The merged shape


async def test_the_merged_shape(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob, name="room")
    required = {"include": [{}], "exclude": [{"type": "m.room.create"}], "lazy_members": True}
    one = {"range": [0, 9], "timeline_limit": 1, "required_state": required}
    answer = await slide_merged(alice, lists={"all": one})
    room = answer["rooms"][room_id]
    assert (room["membership"], room["lists"], room["name"]) == ("join", ["all"], "room")
    assert ("m.room.create", "") not in told_state(answer, room_id)
    assert {key for kind, key in told_state(answer, room_id) if kind == "m.room.member"} == {bob.user_id}
    answer = await slide_merged(alice, answer["pos"], lists={"all": {**one, "timeline_limit": 3}})
    assert answer["rooms"][room_id]["expanded_timeline"] is True
    invited = await create(bob, invite=[alice.user_id])
    answer = await slide_merged(alice, answer["pos"], lists={"invites": {**one, "filters": {"is_invited": True}}})
    assert answer["rooms"][invited]["membership"] == "invite"
    assert answer["rooms"][invited]["stripped_state"]


# Limits


async def test_too_much_or_nonsense_is_refused(server: Server) -> None:
    alice = await server.register("alice")
    for body in [
        {"lists": {str(number): window() for number in range(101)}},
        {"lists": {"a b": window()}},
        {"lists": {"x" * 256: window()}},
        {"lists": {"all": {**window(), "ranges": [[0, 1]] * 21}}},
        {"lists": {"all": window(2, 1)}},
        {"lists": {"all": window(-1, 1)}},
        {"lists": {"all": window(limit=-1)}},
        {"lists": {"all": window(state=[["a", str(number)] for number in range(201)])}},
        {"lists": {"all": window(state=[["a", "x" * 70_000]])}},
        {"room_subscriptions": {f"!{number}:x": {} for number in range(101)}},
        {"conn_id": "x" * 256},
        {"conn_id": "a\0b"},
    ]:
        with row(body):
            assert await alice.refused("POST", PATH, json=body) == (400, "M_INVALID_PARAM")


async def test_wrong_types_are_refused(server: Server) -> None:
    alice = await server.register("alice")
    for body in [
        {"lists": []},
        {"lists": {"all": {"timeline_limit": "1"}}},
        {"lists": {"all": window(filters={"tags": ["x"] * 101})}},
        {"lists": {"all": window(state=[["a"]])}},
        {"extensions": {"to_device": 1}},
    ]:
        with row(body):
            assert await alice.refused("POST", PATH, json=body) == (400, "M_BAD_JSON")


async def test_clients_find_out_that_it_is_there(server: Server) -> None:
    alice = await server.register("alice")
    answer = await alice.ok("GET", "/_matrix/client/versions")
    assert answer["unstable_features"]["org.matrix.simplified_msc3575"] is True
