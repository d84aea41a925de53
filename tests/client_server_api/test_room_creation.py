"""Spec: client-server-api/#creation, rooms/"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest

from homeserver import limits
from homeserver.config import Rooms
from homeserver.federation.room_versions import DEFAULT_ROOM_VERSION, ROOM_VERSIONS
from tests.support.homeservers import Client, Homeservers, Server
from tests.support.people import create, get_state, join, messages, path_of, send, state, sync
from tests.support.rows import row

VERSIONS = list(ROOM_VERSIONS)
WITH_CREATORS = [version.id for version in ROOM_VERSIONS.values() if version.creators_privileged]
WITHOUT_CREATORS = [version for version in VERSIONS if version not in WITH_CREATORS]


async def assert_nothing_was_made(client: Client) -> None:
    assert await client.ok("GET", "joined_rooms") == {"joined_rooms": []}
    assert (await client.ok("GET", "publicRooms"))["chunk"] == []
    assert "rooms" not in await sync(client)


async def test_rooms_of_every_version_can_be_created(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    for version in VERSIONS:
        with row(version):
            room_id = await create(alice, room_version=version, preset="public_chat", name="A room")
            await join(bob, room_id)
            await send(bob, room_id, "hello")
            content = await get_state(alice, room_id, "m.room.create")
            assert content["room_version"] == version
            assert content.get("creator") == (alice.user_id if int(version) < 11 else None)
            assert (":" in room_id) == (int(version) < 12)
            assert (await get_state(bob, room_id, "m.room.name"))["name"] == "A room"


async def test_the_default_version_is_the_one_in_capabilities(server: Server) -> None:
    alice = await server.register("alice")
    capabilities = await alice.ok("GET", "capabilities")
    default = capabilities["capabilities"]["m.room_versions"]["default"]
    room_id = await create(alice)
    assert (await get_state(alice, room_id, "m.room.create"))["room_version"] == default == DEFAULT_ROOM_VERSION


async def test_the_default_version_is_a_setting(homeservers: Homeservers) -> None:
    server = await homeservers.start(rooms=Rooms(default_version="10"))
    alice = await server.register("alice")
    capabilities = await alice.ok("GET", "capabilities")
    assert capabilities["capabilities"]["m.room_versions"]["default"] == "10"
    room_id = await create(alice)
    assert (await get_state(alice, room_id, "m.room.create"))["room_version"] == "10"


async def test_initial_events_are_in_the_order_of_the_spec(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await create(
        alice,
        room_alias_name="pub",
        name="Pub",
        topic="All about happy hour",
        invite=[bob.user_id],
        initial_state=[{"type": "org.example.a", "content": {}}, {"type": "org.example.b", "content": {}}],
    )
    chunk = (await messages(alice, room_id, "f", limit=100))["chunk"]
    types = [event["type"] for event in chunk]
    assert types[:4] == ["m.room.create", "m.room.member", "m.room.power_levels", "m.room.canonical_alias"]
    assert set(types[4:7]) == {"m.room.join_rules", "m.room.history_visibility", "m.room.guest_access"}
    assert types[7:] == ["org.example.a", "org.example.b", "m.room.name", "m.room.topic", "m.room.member"]
    assert chunk[-1]["state_key"] == bob.user_id


@pytest.mark.parametrize(
    ("body", "join_rule", "guest_access"),
    [
        ({}, "invite", "can_join"),
        ({"visibility": "private"}, "invite", "can_join"),
        ({"visibility": "public"}, "public", "forbidden"),
        ({"preset": "private_chat"}, "invite", "can_join"),
        ({"preset": "trusted_private_chat"}, "invite", "can_join"),
        ({"preset": "public_chat"}, "public", "forbidden"),
        ({"preset": "private_chat", "visibility": "public"}, "invite", "can_join"),
        ({"preset": "public_chat", "visibility": "private"}, "public", "forbidden"),
    ],
)
async def test_each_preset_sets_its_state(
    server: Server, body: dict[str, Any], join_rule: str, guest_access: str
) -> None:
    alice = await server.register("alice")
    room_id = await create(alice, **body)
    assert await get_state(alice, room_id, "m.room.join_rules") == {"join_rule": join_rule}
    assert await get_state(alice, room_id, "m.room.history_visibility") == {"history_visibility": "shared"}
    assert await get_state(alice, room_id, "m.room.guest_access") == {"guest_access": guest_access}
    listed = [room["room_id"] for room in (await alice.ok("GET", "publicRooms"))["chunk"]]
    assert listed == ([room_id] if body.get("visibility") == "public" else [])


@pytest.mark.parametrize("version", WITHOUT_CREATORS[::5])
async def test_the_creator_has_power_level_100(server: Server, version: str) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await create(alice, room_version=version, invite=[bob.user_id])
    levels = await get_state(alice, room_id, "m.room.power_levels")
    assert levels["users"] == {alice.user_id: 100}
    room_id = await create(alice, room_version=version, invite=[bob.user_id], preset="trusted_private_chat")
    levels = await get_state(alice, room_id, "m.room.power_levels")
    assert levels["users"] == {alice.user_id: 100, bob.user_id: 100}


@pytest.mark.parametrize("version", WITH_CREATORS)
async def test_creators_have_no_power_level_in_version_12(server: Server, version: str) -> None:
    alice, bob, carol = [await server.register(name) for name in ("alice", "bob", "carol")]
    room_id = await create(
        alice,
        room_version=version,
        preset="trusted_private_chat",
        invite=[bob.user_id],
        creation_content={"additional_creators": [carol.user_id, bob.user_id]},
    )
    content = await get_state(alice, room_id, "m.room.create")
    assert sorted(content["additional_creators"]) == sorted([bob.user_id, carol.user_id])
    levels = await get_state(alice, room_id, "m.room.power_levels")
    assert levels["users"] == {}
    assert levels["events"]["m.room.tombstone"] == 150 > levels["state_default"]
    await join(bob, room_id)
    assert "event_id" in await bob.ok("PUT", path_of(room_id, "state", "m.room.tombstone"), json={"body": "moved"})


@pytest.mark.parametrize("version", WITH_CREATORS)
async def test_creators_cannot_be_given_a_power_level(server: Server, version: str) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    for body in (
        {"power_level_content_override": {"users": {alice.user_id: 100}}},
        {
            "power_level_content_override": {"users": {bob.user_id: 100}},
            "creation_content": {"additional_creators": [bob.user_id]},
        },
    ):
        refusal = await alice.refused("POST", "createRoom", json={"room_version": version, **body})
        assert refusal == (400, "M_INVALID_ROOM_STATE")
    await assert_nothing_was_made(alice)


async def test_additional_creators_have_no_privileges_before_version_12(server: Server) -> None:
    alice = await server.register("alice")
    content = {"additional_creators": "whatever", "org.example": 1}
    room_id = await create(alice, room_version="11", creation_content=content)
    assert await get_state(alice, room_id, "m.room.create") == {"room_version": "11", **content}


async def test_creation_content(server: Server) -> None:
    alice = await server.register("alice")
    content = {"m.federate": False, "type": "m.space", "creator": "@mallory:test.example", "room_version": "99"}
    room_id = await create(alice, room_version="10", creation_content=content)
    expected = {"m.federate": False, "type": "m.space", "creator": alice.user_id, "room_version": "10"}
    assert await get_state(alice, room_id, "m.room.create") == expected


async def test_initial_state_takes_precedence_over_the_preset(server: Server) -> None:
    alice = await server.register("alice")
    initial = [
        {"type": "m.room.join_rules", "content": {"join_rule": "knock"}},
        {"type": "m.room.history_visibility", "state_key": "", "content": {"history_visibility": "joined"}},
        {"type": "m.room.name", "content": {"name": "overwritten"}},
        {"type": "m.room.topic", "content": {"topic": "overwritten"}},
        {"type": "org.example", "state_key": "with a key", "content": {"n": 1}},
    ]
    room_id = await create(alice, preset="public_chat", initial_state=initial, name="Name", topic="Topic")
    found = {key: event["content"] for key, event in (await state(alice, room_id)).items()}
    assert found["m.room.join_rules", ""] == {"join_rule": "knock"}
    assert found["m.room.history_visibility", ""] == {"history_visibility": "joined"}
    assert found["m.room.guest_access", ""] == {"guest_access": "forbidden"}
    assert found["m.room.name", ""] == {"name": "Name"}
    assert found["m.room.topic", ""]["topic"] == "Topic"
    assert found["m.room.topic", ""]["m.topic"]["m.text"] == [{"body": "Topic", "mimetype": "text/plain"}]
    assert found["org.example", "with a key"] == {"n": 1}


async def test_power_levels_are_overridden_key_by_key(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    override = {"events_default": 10, "users": {bob.user_id: 40}, "events": {"m.room.name": 5}, "org.example": "kept"}
    room_id = await create(alice, power_level_content_override=override)
    levels = await get_state(alice, room_id, "m.room.power_levels")
    assert {key: levels[key] for key in override} == override
    assert levels["state_default"] == levels["ban"] == 50


async def test_power_level_overrides_must_leave_the_creator_enough_power(server: Server) -> None:
    alice = await server.register("alice")
    for override in ({"users": {alice.user_id: 0}}, {"users": {}}):
        body = {"room_version": "11", "power_level_content_override": override, "name": "Room"}
        assert await alice.refused("POST", "createRoom", json=body) == (400, "M_INVALID_ROOM_STATE")
    await assert_nothing_was_made(alice)


async def test_an_alias_becomes_canonical(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await create(alice, room_alias_name="thepub")
    assert await get_state(alice, room_id, "m.room.canonical_alias") == {"alias": "#thepub:test.example"}
    found = await alice.ok("GET", f"directory/room/{quote('#thepub:test.example', safe='')}")
    assert found == {"room_id": room_id, "servers": ["test.example"]}


@pytest.mark.parametrize(
    ("content", "errcode"),
    [
        ({"alias": "#elsewhere:test.example"}, "M_BAD_ALIAS"),
        ({"alias": "#thepub:test.example", "alt_aliases": ["#elsewhere:test.example"]}, "M_BAD_ALIAS"),
        ({"alt_aliases": ["#pub:other.example"]}, "M_BAD_ALIAS"),
        ({"alias": "nonsense"}, "M_INVALID_PARAM"),
        ({"alias": 7}, "M_BAD_JSON"),
        ({"alias": "#thepub:test.example", "alt_aliases": ["#thepub:test.example"]}, None),
        ({}, None),
    ],
)
async def test_a_canonical_alias_points_to_the_new_room(server: Server, content: Any, errcode: str | None) -> None:
    alice = await server.register("alice")
    await create(alice, room_alias_name="elsewhere", preset="private_chat")
    initial = [{"type": "m.room.canonical_alias", "content": content}]
    body = {"room_alias_name": "thepub", "initial_state": initial}
    if errcode is None:
        assert await get_state(alice, await create(alice, **body), "m.room.canonical_alias") == content
    else:
        assert await alice.refused("POST", "createRoom", json=body) == (400, errcode)


async def test_a_taken_alias_is_refused(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    await create(alice, room_alias_name="thepub")
    body = {"room_alias_name": "thepub", "visibility": "public"}
    assert await bob.refused("POST", "createRoom", json=body) == (400, "M_ROOM_IN_USE")
    await assert_nothing_was_made(bob)


async def test_invited_users_are_invited(server: Server) -> None:
    alice, bob, carol = [await server.register(name) for name in ("alice", "bob", "carol")]
    await bob.ok("PUT", f"profile/{bob.user_id}/displayname", json={"displayname": "Bob"})
    people = [bob.user_id, carol.user_id, bob.user_id]
    room_id = await create(alice, invite=people, name="Room", is_direct=True)
    content = await get_state(alice, room_id, "m.room.member", bob.user_id)
    assert content == {"membership": "invite", "is_direct": True, "displayname": "Bob"}
    assert "is_direct" not in await get_state(alice, room_id, "m.room.member", alice.user_id)
    told = (await sync(bob))["rooms"]["invite"][room_id]["invite_state"]["events"]
    by_type = {event["type"]: event["content"] for event in told}
    assert by_type["m.room.name"] == {"name": "Room"}
    assert by_type["m.room.join_rules"] == {"join_rule": "invite"}
    await join(carol, room_id)
    not_direct = await create(alice, invite=[bob.user_id])
    assert "is_direct" not in await get_state(alice, not_direct, "m.room.member", bob.user_id)


async def test_rooms_created_in_the_same_millisecond_are_distinct(server: Server) -> None:
    alice = await server.register("alice")
    rooms = {await create(alice) for _ in range(5)}
    assert len(rooms) == 5
    assert set((await alice.ok("GET", "joined_rooms"))["joined_rooms"]) == rooms


async def test_an_access_token_is_required(server: Server) -> None:
    assert await server.anonymous.refused("POST", "createRoom", json={}) == (401, "M_MISSING_TOKEN")


async def test_malformed_bodies_are_refused_and_create_nothing(server: Server) -> None:
    alice = await server.register("alice")
    for body, errcode in [
        ([], "M_BAD_JSON"),
        ({"visibility": "secret"}, "M_BAD_JSON"),
        ({"visibility": 7}, "M_BAD_JSON"),
        ({"room_alias_name": 7}, "M_BAD_JSON"),
        ({"room_alias_name": ""}, "M_INVALID_PARAM"),
        ({"room_alias_name": "a:b"}, "M_INVALID_PARAM"),
        ({"room_alias_name": "a\0b"}, "M_INVALID_PARAM"),
        ({"room_alias_name": "a" * 255}, "M_INVALID_PARAM"),
        ({"name": []}, "M_BAD_JSON"),
        ({"topic": {}}, "M_BAD_JSON"),
        ({"invite": "@bob:test.example"}, "M_BAD_JSON"),
        ({"invite": [7]}, "M_BAD_JSON"),
        ({"invite": ["bob"]}, "M_INVALID_PARAM"),
        ({"invite": [f"@u{n}:test.example" for n in range(limits.CREATE_ROOM_INVITES_MAX + 1)]}, "M_INVALID_PARAM"),
        ({"invite_3pid": {}}, "M_BAD_JSON"),
        ({"invite_3pid": [7]}, "M_BAD_JSON"),
        ({"room_version": 1}, "M_BAD_JSON"),
        ({"room_version": "nope"}, "M_UNSUPPORTED_ROOM_VERSION"),
        ({"room_version": ""}, "M_UNSUPPORTED_ROOM_VERSION"),
        ({"creation_content": []}, "M_BAD_JSON"),
        ({"creation_content": {"additional_creators": 7}}, "M_BAD_JSON"),
        ({"creation_content": {"additional_creators": [{}]}}, "M_BAD_JSON"),
        ({"creation_content": {"additional_creators": ["bob"]}}, "M_INVALID_ROOM_STATE"),
        ({"creation_content": {"n": 1.5}}, "M_BAD_JSON"),
        ({"initial_state": {}}, "M_BAD_JSON"),
        ({"initial_state": [7]}, "M_BAD_JSON"),
        ({"initial_state": [{"type": "org.example"}]}, "M_MISSING_PARAM"),
        ({"initial_state": [{"content": {}}]}, "M_MISSING_PARAM"),
        ({"initial_state": [{"type": 7, "content": {}}]}, "M_BAD_JSON"),
        ({"initial_state": [{"type": "org.example", "content": []}]}, "M_BAD_JSON"),
        ({"initial_state": [{"type": "org.example", "content": {}, "state_key": 7}]}, "M_BAD_JSON"),
        ({"initial_state": [{"type": "org.example", "content": {"n": 2**60}}]}, "M_BAD_JSON"),
        ({"initial_state": [{"type": "m.room.create", "content": {}}]}, "M_INVALID_PARAM"),
        ({"preset": "party"}, "M_BAD_JSON"),
        ({"is_direct": "yes"}, "M_BAD_JSON"),
        ({"power_level_content_override": []}, "M_BAD_JSON"),
        ({"power_level_content_override": {"users": []}}, "M_INVALID_ROOM_STATE"),
        ({"power_level_content_override": {"ban": "high"}}, "M_INVALID_ROOM_STATE"),
        ({"power_level_content_override": {"events": {"m.room.name": []}}}, "M_INVALID_ROOM_STATE"),
    ]:
        with row(body, errcode):
            wanted = {"room_alias_name": "pub", "visibility": "public", **body} if isinstance(body, dict) else body
            assert await alice.refused("POST", "createRoom", json=wanted) == (400, errcode)
            await assert_nothing_was_made(alice)
            refusal = await alice.refused("GET", f"directory/room/{quote('#pub:test.example', safe='')}")
            assert refusal == (404, "M_NOT_FOUND")


async def test_creators_cannot_invite_themselves(server: Server) -> None:
    alice = await server.register("alice")
    assert await alice.refused("POST", "createRoom", json={"invite": [alice.user_id]}) == (403, "M_FORBIDDEN")
    await assert_nothing_was_made(alice)


async def test_oversized_state_is_refused(server: Server) -> None:
    alice = await server.register("alice")
    for event in (
        {"type": "org.example", "content": {"body": "x" * 70_000}},
        {"type": "t" * 256, "content": {}},
        {"type": "org.example", "state_key": "k" * 256, "content": {}},
    ):
        body = {"name": "Room", "initial_state": [event]}
        assert await alice.refused("POST", "createRoom", json=body) == (413, "M_TOO_LARGE")
    await assert_nothing_was_made(alice)
