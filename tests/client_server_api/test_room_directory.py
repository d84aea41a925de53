"""Spec: client-server-api/#room-aliases, #published-room-directory"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from homeserver.config import Directory
from tests.support.homeservers import Client, Homeservers, Server
from tests.support.people import act, create, get_state, join, leave, path_of, redact, set_state
from tests.support.rows import row

FORBIDDEN = (403, "M_FORBIDDEN")
NOT_FOUND = (404, "M_NOT_FOUND")
NO_TOKEN = (401, "M_MISSING_TOKEN")
UNKNOWN_ROOM = "!unknown:test.example"


def alias_path(alias: str) -> str:
    return "directory/room/" + quote(alias, safe="")


PUB = alias_path("#pub:test.example")


async def listed(client: Client, **query: Any) -> list[str]:
    """The names of the rooms of a page."""
    return [room["name"] for room in (await client.ok("GET", "publicRooms", params=query))["chunk"]]


async def searched(client: Client, **body: Any) -> list[str]:
    return sorted(room["name"] for room in (await client.ok("POST", "publicRooms", json=body))["chunk"])


async def public_room(creator: Client, name: str, **body: Any) -> str:
    return await create(creator, visibility="public", name=name, **body)


async def test_aliases_can_be_created_resolved_and_deleted(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await create(alice)
    assert await alice.refused("GET", PUB) == NOT_FOUND
    assert await alice.ok("PUT", PUB, json={"room_id": room_id}) == {}
    for client in (alice, bob, server.anonymous):
        assert await client.ok("GET", PUB) == {"room_id": room_id, "servers": ["test.example"]}
    assert await alice.ok("GET", path_of(room_id, "aliases")) == {"aliases": ["#pub:test.example"]}
    assert await alice.ok("DELETE", PUB) == {}
    assert await alice.refused("GET", PUB) == NOT_FOUND
    assert await alice.refused("DELETE", PUB) == NOT_FOUND
    assert await alice.ok("GET", path_of(room_id, "aliases")) == {"aliases": []}


async def test_an_alias_belongs_to_one_room(server: Server) -> None:
    alice = await server.register("alice")
    room_id, other = await create(alice), await create(alice)
    await alice.ok("PUT", PUB, json={"room_id": room_id})
    for target in (other, room_id):
        assert await alice.refused("PUT", PUB, json={"room_id": target}) == (409, "M_UNKNOWN")
    assert (await alice.ok("GET", PUB))["room_id"] == room_id


async def test_only_members_may_create_aliases(server: Server) -> None:
    alice, bob, carol = [await server.register(name) for name in ("alice", "bob", "carol")]
    room_id = await create(alice, preset="public_chat")
    await join(bob, room_id)
    assert await carol.refused("PUT", PUB, json={"room_id": room_id}) == FORBIDDEN
    assert (await alice.refused("PUT", PUB, json={"room_id": UNKNOWN_ROOM}))[0] in (403, 404)
    assert await server.anonymous.refused("PUT", PUB, json={"room_id": room_id}) == NO_TOKEN
    await bob.ok("PUT", PUB, json={"room_id": room_id})


async def test_the_creator_and_powerful_members_may_delete_an_alias(server: Server) -> None:
    alice, bob, carol, dave = [await server.register(name) for name in ("alice", "bob", "carol", "dave")]
    room_id = await create(alice, preset="public_chat")
    for client in (bob, carol):
        await join(client, room_id)
    for deleter in (bob, alice):  # who gave it, and who has the power
        await bob.ok("PUT", PUB, json={"room_id": room_id})
        for client in (carol, dave):
            assert await client.refused("DELETE", PUB) == FORBIDDEN
        assert await server.anonymous.refused("DELETE", PUB) == NO_TOKEN
        await deleter.ok("DELETE", PUB)
    assert await alice.refused("GET", PUB) == NOT_FOUND


async def test_deleting_an_alias_removes_it_from_the_canonical_alias_event(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await create(alice, room_alias_name="pub")
    other = "#other:test.example"
    await alice.ok("PUT", alias_path(other), json={"room_id": room_id})
    content = {"alias": "#pub:test.example", "alt_aliases": ["#pub:test.example", other], "org.example": 1}
    await set_state(alice, room_id, "m.room.canonical_alias", content)
    await alice.ok("DELETE", PUB)
    assert await get_state(alice, room_id, "m.room.canonical_alias") == {"alt_aliases": [other], "org.example": 1}
    await alice.ok("DELETE", alias_path(other))
    assert await get_state(alice, room_id, "m.room.canonical_alias") == {"org.example": 1}


async def test_only_users_who_may_read_the_room_see_its_aliases(server: Server) -> None:
    alice, bob, carol = [await server.register(name) for name in ("alice", "bob", "carol")]
    room_id = await create(alice, room_alias_name="pub", invite=[carol.user_id])
    for client in (bob, carol):
        assert await client.refused("GET", path_of(room_id, "aliases")) == FORBIDDEN
    assert await bob.refused("GET", path_of(UNKNOWN_ROOM, "aliases")) == FORBIDDEN
    await set_state(alice, room_id, "m.room.history_visibility", {"history_visibility": "world_readable"})
    assert await bob.ok("GET", path_of(room_id, "aliases")) == {"aliases": ["#pub:test.example"]}


async def test_aliases_may_contain_unusual_characters(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await create(alice)
    path = alias_path("#Ü/ 100%?#x:test.example")
    await alice.ok("PUT", path, json={"room_id": room_id})
    assert (await alice.ok("GET", path))["room_id"] == room_id
    assert await alice.ok("POST", path.replace("directory/room/", "join/"), json={}) == {"room_id": room_id}


async def test_malformed_aliases_are_refused(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await create(alice)
    for alias in ["pub:test.example", "#pub", "#:test.example", "#" + "a" * 255 + ":test.example"]:
        with row(alias):
            path = alias_path(alias)
            assert await alice.refused("PUT", path, json={"room_id": room_id}) == (400, "M_INVALID_PARAM")
            assert (await alice.refused("GET", path))[0] in (400, 404)
            assert (await alice.refused("DELETE", path))[0] in (400, 404)


async def test_aliases_of_other_servers_cannot_be_changed(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await create(alice)
    path = alias_path("#pub:far.example")
    assert await alice.refused("PUT", path, json={"room_id": room_id}) == (400, "M_INVALID_PARAM")
    assert await alice.refused("DELETE", path) == NOT_FOUND
    status, _ = await alice.refused("GET", path)  # which cannot be reached
    assert status in (404, 502, 504)


async def test_malformed_alias_bodies_are_refused(server: Server) -> None:
    alice = await server.register("alice")
    for body, errcode in [
        ({}, "M_MISSING_PARAM"),
        ({"room_id": 7}, "M_BAD_JSON"),
        ({"room_id": None}, "M_BAD_JSON"),
        ({"room_id": "room"}, "M_INVALID_PARAM"),
        ([], "M_BAD_JSON"),
    ]:
        with row(body, errcode):
            assert await alice.refused("PUT", PUB, json=body) == (400, errcode)
            assert await alice.refused("GET", PUB) == NOT_FOUND


async def test_a_room_can_be_published_and_unpublished(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await create(alice, name="Room")
    path = f"directory/list/room/{room_id}"
    for visibility, names in (("private", []), ("public", ["Room"]), ("public", ["Room"]), ("private", [])):
        assert await alice.ok("PUT", path, json={"visibility": visibility}) == {}
        assert await server.anonymous.ok("GET", path) == {"visibility": visibility}
        assert await listed(alice) == names
    await alice.ok("PUT", path, json={})
    assert await listed(alice) == ["Room"]


async def test_publishing_a_room_requires_power(server: Server) -> None:
    alice, bob, carol = [await server.register(name) for name in ("alice", "bob", "carol")]
    room_id = await create(alice, preset="public_chat")
    await join(bob, room_id)
    path = f"directory/list/room/{room_id}"
    for client in (bob, carol):
        assert await client.refused("PUT", path, json={"visibility": "public"}) == FORBIDDEN
    assert await server.anonymous.refused("PUT", path, json={"visibility": "public"}) == NO_TOKEN
    assert await alice.ok("GET", path) == {"visibility": "private"}
    unknown = f"directory/list/room/{UNKNOWN_ROOM}"
    assert await alice.refused("GET", unknown) == NOT_FOUND
    assert await alice.refused("PUT", unknown, json={"visibility": "public"}) == NOT_FOUND


async def test_malformed_visibilities_are_refused(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await create(alice)
    path = f"directory/list/room/{room_id}"
    for body in [{"visibility": "secret"}, {"visibility": 7}, {"visibility": None}, []]:
        with row(body):
            assert await alice.refused("PUT", path, json=body) == (400, "M_BAD_JSON")
            assert await alice.ok("GET", path) == {"visibility": "private"}


async def test_the_directory_describes_each_room(server: Server) -> None:
    alice, bob, carol = [await server.register(name) for name in ("alice", "bob", "carol")]
    room_id = await public_room(
        alice, "Pub", topic="Ale", room_alias_name="pub", creation_content={"type": "m.space"}, invite=[carol.user_id]
    )
    await join(bob, room_id)
    await set_state(alice, room_id, "m.room.avatar", {"url": "mxc://test.example/a"})
    expected = {
        "room_id": room_id,
        "name": "Pub",
        "topic": "Ale",
        "canonical_alias": "#pub:test.example",
        "avatar_url": "mxc://test.example/a",
        "room_type": "m.space",
        "join_rule": "public",
        "num_joined_members": 2,
        "world_readable": False,
        "guest_can_join": False,
    }
    page = await alice.ok("GET", "publicRooms")
    assert page == {"chunk": [expected], "total_room_count_estimate": 1}
    await set_state(alice, room_id, "m.room.history_visibility", {"history_visibility": "world_readable"})
    await set_state(alice, room_id, "m.room.guest_access", {"guest_access": "can_join"})
    await leave(bob, room_id)
    (room,) = (await alice.ok("POST", "publicRooms", json={}))["chunk"]
    assert (room["world_readable"], room["guest_can_join"], room["num_joined_members"]) == (True, True, 1)


async def test_the_directory_follows_the_state_of_the_room(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await create(alice, preset="public_chat", visibility="public")

    async def entry() -> dict[str, Any]:
        (listed,) = (await alice.ok("GET", "publicRooms"))["chunk"]
        return listed

    assert "name" not in await entry()
    event_id = await set_state(alice, room_id, "m.room.name", {"name": "Room"})
    assert (await entry())["name"] == "Room"
    await redact(alice, room_id, event_id)
    assert "name" not in await entry()
    await join(bob, room_id)
    assert (await entry())["num_joined_members"] == 2
    await leave(bob, room_id)
    assert (await entry())["num_joined_members"] == 1
    await set_state(alice, room_id, "m.room.history_visibility", {"history_visibility": "world_readable"})
    assert (await entry())["world_readable"] is True


async def test_malformed_state_is_left_out_of_the_directory(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await create(alice, visibility="public")
    for kind, content in (
        ("m.room.name", {"name": 7}),
        ("m.room.topic", {"topic": {}}),
        ("m.room.avatar", {"url": None}),
    ):
        await set_state(alice, room_id, kind, content)
    (room,) = (await alice.ok("GET", "publicRooms"))["chunk"]
    assert not room.keys() & {"name", "topic", "avatar_url"}


async def test_abandoned_rooms_are_not_listed(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice, "Room")
    await leave(alice, room_id)
    assert await listed(alice) == []


async def test_the_pages_contain_every_room_once(server: Server) -> None:
    alice = await server.register("alice")
    people = [await server.register(f"user{number}") for number in range(2)]
    names = [f"room {number}" for number in range(7)]
    for number, name in enumerate(names):
        room_id = await public_room(alice, name)
        for client in people[: number % 3]:
            await join(client, room_id)
    for limit in (1, 3, 7, 100):
        forwards: list[str] = []
        sizes: list[int] = []
        tokens: list[str] = []
        page = await alice.ok("GET", "publicRooms", params={"limit": limit})
        while True:
            assert page["total_room_count_estimate"] == len(names)
            assert len(page["chunk"]) <= limit
            forwards += [room["name"] for room in page["chunk"]]
            sizes += [room["num_joined_members"] for room in page["chunk"]]
            if "next_batch" not in page:
                break
            tokens.append(page["next_batch"])
            page = await alice.ok("POST", "publicRooms", json={"limit": limit, "since": page["next_batch"]})
        assert sorted(forwards) == names
        assert sizes == sorted(sizes, reverse=True)
        if tokens:
            before = await alice.ok("GET", "publicRooms", params={"limit": limit, "since": page["prev_batch"]})
            assert len(before["chunk"]) == limit
        assert "prev_batch" not in await alice.ok("GET", "publicRooms", params={"limit": limit})


async def test_the_directory_can_be_searched(server: Server) -> None:
    alice = await server.register("alice")
    await public_room(alice, "Tea House", topic="Only leaves")
    await public_room(alice, "Library", topic="Books and TEA", creation_content={"type": "m.space"})
    await public_room(alice, "Pub", room_alias_name="steam")
    for term, names in (
        ("tea", ["Library", "Pub", "Tea House"]),
        ("TEA H", ["Tea House"]),
        ("leaves", ["Tea House"]),
        ("#steam", ["Pub"]),
        ("nothing", []),
        ("", ["Library", "Pub", "Tea House"]),
        ("%", []),
    ):
        assert await searched(alice, filter={"generic_search_term": term}) == names
    for room_types, names in (
        (["m.space"], ["Library"]),
        ([None], ["Pub", "Tea House"]),
        ([None, "m.space"], ["Library", "Pub", "Tea House"]),
        (["org.example"], []),
        ([], []),
    ):
        assert await searched(alice, filter={"room_types": room_types}) == names
    both = {"room_types": [None], "generic_search_term": "tea"}
    first = await alice.ok("POST", "publicRooms", json={"filter": both, "limit": 1})
    assert first["total_room_count_estimate"] == 2
    second = await alice.ok("POST", "publicRooms", json={"filter": both, "limit": 1, "since": first["next_batch"]})
    assert {first["chunk"][0]["name"], second["chunk"][0]["name"]} == {"Tea House", "Pub"}


async def test_banned_users_and_non_members_see_the_directory_too(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, "Room")
    await act(alice, room_id, "ban", bob)
    assert await listed(bob) == ["Room"]


async def test_a_setting_opens_the_directory_to_anonymous_clients(homeservers: Homeservers) -> None:
    for require_login in (True, False):
        directory = Directory(require_login=require_login)
        server = await homeservers.start(f"login-{require_login}.example".lower(), directory=directory)
        alice = await server.register("alice")
        await public_room(alice, "Room")
        assert await listed(alice) == ["Room"]
        if require_login:
            assert await server.anonymous.refused("GET", "publicRooms") == NO_TOKEN
        else:
            assert await listed(server.anonymous) == ["Room"]
        assert await server.anonymous.refused("POST", "publicRooms", json={}) == NO_TOKEN


async def test_malformed_parameters_are_refused(server: Server) -> None:
    alice = await server.register("alice")
    for query in [
        "limit=x",
        "limit=-1",
        "limit=1.5",
        "since=nonsense",
        "since=p",
        "since=p-1",
        "since=p1e3",
        "server=no%20name",
        "server=a/b",
        "server=",
    ]:
        with row(query):
            assert await alice.refused("GET", f"publicRooms?{query}") == (400, "M_INVALID_PARAM")
            if query.startswith("server"):
                assert await alice.refused("POST", f"publicRooms?{query}", json={}) == (400, "M_INVALID_PARAM")


async def test_malformed_searches_are_refused(server: Server) -> None:
    alice = await server.register("alice")
    for body, errcode in [
        ({"limit": "7"}, "M_BAD_JSON"),
        ({"limit": -1}, "M_BAD_JSON"),
        ({"since": 7}, "M_BAD_JSON"),
        ({"since": "nonsense"}, "M_INVALID_PARAM"),
        ({"filter": []}, "M_BAD_JSON"),
        ({"filter": {"generic_search_term": 7}}, "M_BAD_JSON"),
        ({"filter": {"room_types": "m.space"}}, "M_BAD_JSON"),
        ({"filter": {"room_types": [7]}}, "M_BAD_JSON"),
        ({"include_all_networks": "yes"}, "M_BAD_JSON"),
        ({"third_party_instance_id": 7}, "M_BAD_JSON"),
        ([], "M_BAD_JSON"),
    ]:
        with row(body, errcode):
            assert await alice.refused("POST", "publicRooms", json=body) == (400, errcode)
