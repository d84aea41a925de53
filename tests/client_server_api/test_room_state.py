"""Spec: client-server-api/#getting-events-for-a-room, #mroomcanonical_alias"""

from __future__ import annotations

from urllib.parse import quote

import pytest

from tests.support.homeservers import Server
from tests.support.people import (
    act,
    all_messages,
    create,
    get_state,
    join,
    leave,
    path_of,
    public_room,
    redact,
    set_state,
    state,
)
from tests.support.rows import row

FORBIDDEN = (403, "M_FORBIDDEN")
ALIAS_PATH = "directory/room/" + quote("#pub:test.example", safe="")


async def test_state_is_returned_as_it_was_set(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    content = {"name": "Ü", "nested": [{"a": None}]}
    for state_key in ("", "key", "with/slash?", "@someone:test.example", "ü"):
        if state_key.startswith("@"):
            refusal = await alice.refused("PUT", path_of(room_id, "state", "org.example", state_key), json={})
            assert refusal == FORBIDDEN  # a state key that is another's user id
            continue
        event_id = await set_state(alice, room_id, "org.example", content, state_key)
        assert await get_state(bob, room_id, "org.example", state_key) == content
        event = await bob.ok("GET", path_of(room_id, "state", "org.example", state_key) + "?format=event")
        assert (event["event_id"], event["state_key"], event["room_id"]) == (event_id, state_key, room_id)
        assert (event["content"], event["sender"]) == (content, alice.user_id)
        assert (await state(bob, room_id))["org.example", state_key]["content"] == content


async def test_an_omitted_state_key_is_empty(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await create(alice)
    await alice.ok("PUT", path_of(room_id, "state", "m.room.topic"), json={"topic": "a"})
    for path in (path_of(room_id, "state", "m.room.topic"), path_of(room_id, "state", "m.room.topic", "")):
        assert await alice.ok("GET", path) == {"topic": "a"}
        assert (await alice.ok("GET", path + "?format=event"))["state_key"] == ""


async def test_the_newest_event_for_a_key_is_current(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await create(alice)
    first = await set_state(alice, room_id, "m.room.name", {"name": "a"})
    second = await set_state(alice, room_id, "m.room.name", {"name": "b"})
    assert await get_state(alice, room_id, "m.room.name") == {"name": "b"}
    event = (await state(alice, room_id))["m.room.name", ""]
    assert event["event_id"] == second
    assert event["unsigned"]["replaces_state"] == first
    assert event["unsigned"]["prev_content"] == {"name": "a"}


async def test_setting_the_same_state_again_creates_no_event(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await create(alice)
    first = await set_state(alice, room_id, "m.room.name", {"name": "a"})
    assert await set_state(alice, room_id, "m.room.name", {"name": "a"}) == first
    await redact(alice, room_id, first)
    assert await get_state(alice, room_id, "m.room.name") == {}
    assert await set_state(alice, room_id, "m.room.name", {"name": "a"}) != first
    assert await get_state(alice, room_id, "m.room.name") == {"name": "a"}


async def test_missing_state_is_not_found(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await create(alice)
    for path in (path_of(room_id, "state", "org.example.none"), path_of(room_id, "state", "m.room.name", "key")):
        assert await alice.refused("GET", path) == (404, "M_NOT_FOUND")
        assert await alice.refused("GET", path + "?format=event") == (404, "M_NOT_FOUND")
    assert await alice.refused("GET", path_of(room_id, "state", "m.room.create") + "?format=no") == (
        400,
        "M_INVALID_PARAM",
    )


async def test_setting_state_requires_the_power_level(server: Server) -> None:
    alice, bob, carol = [await server.register(name) for name in ("alice", "bob", "carol")]
    override = {"events": {"org.example.open": 0}}
    room_id = await public_room(alice, bob, power_level_content_override=override)
    assert await bob.refused("PUT", path_of(room_id, "state", "m.room.name"), json={"name": "x"}) == FORBIDDEN
    assert await carol.refused("PUT", path_of(room_id, "state", "org.example.open"), json={}) == FORBIDDEN
    await set_state(bob, room_id, "org.example.open", {})
    await set_state(bob, room_id, "org.example.open", {}, bob.user_id)
    path = path_of(room_id, "state", "org.example.open", alice.user_id)
    assert await bob.refused("PUT", path, json={}) == FORBIDDEN
    assert await server.anonymous.refused("PUT", path, json={}) == (401, "M_MISSING_TOKEN")
    unknown = path_of("!unknown:test.example", "state", "m.room.name")
    assert (await alice.refused("PUT", unknown, json={}))[0] in (403, 404)


async def test_a_room_cannot_be_created_twice(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await create(alice)
    path = path_of(room_id, "state", "m.room.create")
    assert (await alice.refused("PUT", path, json={"room_version": "11"}))[0] in (400, 403)


@pytest.mark.parametrize(
    ("users", "allowed"),
    [
        ({"bob": 50, "carol": 50}, True),
        ({"bob": 50, "carol": 51}, False),
        ({"bob": 51}, False),
        ({"bob": 0}, True),
        ({"bob": 50, "dave": 0}, False),  # who has as much power as oneself
    ],
)
async def test_nobody_can_grant_more_power_than_they_have(server: Server, users: dict[str, int], allowed: bool) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    by_name = {name: f"@{name}:test.example" for name in ("bob", "carol", "dave")}
    start = {"users": {by_name["bob"]: 50, by_name["dave"]: 50}, "events": {"m.room.power_levels": 50}}
    room_id = await public_room(alice, bob, power_level_content_override=start)
    wanted = {by_name["dave"]: 50, **{by_name[name]: level for name, level in users.items()}}
    content = {**await get_state(alice, room_id, "m.room.power_levels"), "users": wanted}
    response = await bob.put(path_of(room_id, "state", "m.room.power_levels"), content)
    assert response.status_code == (200 if allowed else 403)
    now = await get_state(bob, room_id, "m.room.power_levels")
    assert now["users"] == (wanted if allowed else start["users"])


async def test_power_levels_must_be_integers(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await create(alice)
    before = await get_state(alice, room_id, "m.room.power_levels")
    for content in [
        {"users": {"@bob:test.example": "50"}},
        {"users": {"bob": 50}},
        {"users": []},
        {"events": {"m.room.name": None}},
        {"ban": "50"},
        {"state_default": {}},
        {"notifications": {"room": "50"}},
    ]:
        with row(content):
            status, _ = await alice.refused("PUT", path_of(room_id, "state", "m.room.power_levels"), json=content)
            assert status in (400, 403)
            assert await get_state(alice, room_id, "m.room.power_levels") == before


async def test_former_members_read_the_state_as_of_their_departure(server: Server) -> None:
    alice, bob, carol = [await server.register(name) for name in ("alice", "bob", "carol")]
    room_id = await public_room(alice, bob, carol, name="before")
    await leave(bob, room_id)
    await act(alice, room_id, "ban", carol)
    await set_state(alice, room_id, "m.room.name", {"name": "after"})
    await set_state(alice, room_id, "org.example", {"secret": True})
    for client in (bob, carol):
        assert await get_state(client, room_id, "m.room.name") == {"name": "before"}
        assert ("org.example", "") not in await state(client, room_id)
        assert await client.refused("GET", path_of(room_id, "state", "org.example")) == (404, "M_NOT_FOUND")


async def test_users_who_were_never_members_read_nothing(server: Server) -> None:
    alice, bob, carol, dave = [await server.register(name) for name in ("alice", "bob", "carol", "dave")]
    room_id = await create(alice, invite=[bob.user_id, dave.user_id], name="private")
    await leave(dave, room_id)
    await act(alice, room_id, "ban", carol)
    for client in (bob, carol, dave):
        for path in (path_of(room_id, "state"), path_of(room_id, "state", "m.room.name")):
            assert await client.refused("GET", path) == FORBIDDEN
    assert await bob.refused("GET", path_of("!unknown:test.example", "state")) == FORBIDDEN


async def test_anyone_can_read_a_world_readable_room(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    visibility = {"type": "m.room.history_visibility", "content": {"history_visibility": "world_readable"}}
    room_id = await create(alice, name="open", initial_state=[visibility])
    assert await get_state(bob, room_id, "m.room.name") == {"name": "open"}
    assert ("m.room.name", "") in await state(bob, room_id)


async def test_canonical_aliases_must_point_to_the_room(server: Server) -> None:
    alice = await server.register("alice")
    room_id, other = await create(alice), await create(alice)
    path = path_of(room_id, "state", "m.room.canonical_alias")
    for content in ({"alias": "#pub:test.example"}, {"alt_aliases": ["#pub:test.example"]}):
        assert await alice.refused("PUT", path, json=content) == (400, "M_BAD_ALIAS")
    await alice.ok("PUT", ALIAS_PATH, json={"room_id": other})
    assert await alice.refused("PUT", path, json={"alias": "#pub:test.example"}) == (400, "M_BAD_ALIAS")
    await alice.ok("DELETE", ALIAS_PATH)
    await alice.ok("PUT", ALIAS_PATH, json={"room_id": room_id})
    content = {"alias": "#pub:test.example", "alt_aliases": ["#pub:test.example"]}
    await set_state(alice, room_id, "m.room.canonical_alias", content)
    assert await get_state(alice, room_id, "m.room.canonical_alias") == content
    assert await alice.refused("PUT", path, json={"alias": "#far:away.example"}) == (400, "M_BAD_ALIAS")


async def test_only_newly_added_aliases_are_checked(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await create(alice)
    await alice.ok("PUT", ALIAS_PATH, json={"room_id": room_id})
    await set_state(alice, room_id, "m.room.canonical_alias", {"alt_aliases": ["#pub:test.example"]})
    moderator = await server.register("bob")
    await act(alice, room_id, "invite", moderator)
    await join(moderator, room_id)
    await set_state(alice, room_id, "m.room.canonical_alias", {"alias": "#pub:test.example"})
    await set_state(alice, room_id, "m.room.canonical_alias", {"alias": "#pub:test.example", "org.example": 1})
    await set_state(alice, room_id, "m.room.canonical_alias", {})
    for content in ({"alias": ""}, {"alias": None}):
        await set_state(alice, room_id, "m.room.canonical_alias", content)


async def test_malformed_canonical_aliases_are_refused(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await create(alice, room_alias_name="pub")
    path = path_of(room_id, "state", "m.room.canonical_alias")
    for content, errcode in [
        ({"alias": 7}, "M_BAD_JSON"),
        ({"alias": ["#pub:test.example"]}, "M_BAD_JSON"),
        ({"alias": "pub"}, "M_INVALID_PARAM"),
        ({"alias": "#pub"}, "M_INVALID_PARAM"),
        ({"alias": "#" + "a" * 255 + ":test.example"}, "M_INVALID_PARAM"),
        ({"alt_aliases": "#pub:test.example"}, "M_BAD_JSON"),
        ({"alt_aliases": {}}, "M_BAD_JSON"),
        ({"alt_aliases": [7]}, "M_INVALID_PARAM"),
        ({"alt_aliases": [{}]}, "M_INVALID_PARAM"),
        ({"alt_aliases": [None]}, "M_INVALID_PARAM"),
        ({"alt_aliases": ["nonsense"]}, "M_INVALID_PARAM"),
    ]:
        with row(content, errcode):
            assert await alice.refused("PUT", path, json=content) == (400, errcode)
            assert await get_state(alice, room_id, "m.room.canonical_alias") == {"alias": "#pub:test.example"}


async def test_malformed_content_is_refused(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await create(alice)
    events = len(await all_messages(alice, room_id))
    for content, status, errcode in [
        (b"", 400, "M_NOT_JSON"),
        (b"[]", 400, "M_BAD_JSON"),
        (b'"x"', 400, "M_BAD_JSON"),
        (b'{"n": 0.5}', 400, "M_BAD_JSON"),
        (b'{"n": 9007199254740992}', 400, "M_BAD_JSON"),
        (b'{"n": "' + b"x" * 65_536 + b'"}', 413, "M_TOO_LARGE"),
    ]:
        with row(content, status, errcode):
            for path in (path_of(room_id, "state", "org.example"), path_of(room_id, "state", "org.example", "key")):
                assert await alice.refused("PUT", path, content=content) == (status, errcode)
            assert len(await all_messages(alice, room_id)) == events


async def test_types_and_state_keys_have_a_maximum_length(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await create(alice)
    for path in (path_of(room_id, "state", "t" * 256), path_of(room_id, "state", "org.example", "ü" * 128)):
        assert await alice.refused("PUT", path, json={}) == (413, "M_TOO_LARGE")
        assert await alice.refused("GET", path) == (404, "M_NOT_FOUND")
