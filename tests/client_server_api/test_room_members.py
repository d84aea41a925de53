"""Spec: client-server-api/#get_matrixclientv3roomsroomidmembers, #get_matrixclientv3roomsroomidjoined_members"""

from __future__ import annotations

from typing import Any

from tests.support.homeservers import Client, Server
from tests.support.people import act, create, invite, join, knock, leave, path_of, redact, send, set_state, sync
from tests.support.rows import row

FORBIDDEN = (403, "M_FORBIDDEN")


async def members(client: Client, room_id: str, **query: Any) -> dict[str, str]:
    """Localpart → membership."""
    answer = await client.ok("GET", path_of(room_id, "members"), params=query)
    assert {event["type"] for event in answer["chunk"]} <= {"m.room.member"}
    return {event["state_key"][1:].partition(":")[0]: event["content"]["membership"] for event in answer["chunk"]}


async def a_room_with_every_membership(server: Server) -> tuple[Client, str]:
    alice = await server.register("alice")
    rules = {"type": "m.room.join_rules", "content": {"join_rule": "knock"}}
    room_id = await create(alice, initial_state=[rules])
    for name in ("joins", "is_invited", "leaves", "is_banned", "knocks"):
        client = await server.register(name)
        if name == "knocks":
            await knock(client, room_id)
            continue
        await invite(alice, room_id, client)
        if name != "is_invited":
            await join(client, room_id)
        if name == "leaves":
            await leave(client, room_id)
        if name == "is_banned":
            await act(alice, room_id, "ban", client)
    return alice, room_id


EVERYONE = {
    "alice": "join",
    "joins": "join",
    "is_invited": "invite",
    "leaves": "leave",
    "is_banned": "ban",
    "knocks": "knock",
}


async def test_members_can_be_filtered_by_membership(server: Server) -> None:
    alice, room_id = await a_room_with_every_membership(server)
    assert await members(alice, room_id) == EVERYONE
    for membership in ("join", "invite", "leave", "ban", "knock"):
        those = {name: each for name, each in EVERYONE.items() if each == membership}
        others = {name: each for name, each in EVERYONE.items() if each != membership}
        assert await members(alice, room_id, membership=membership) == those
        assert await members(alice, room_id, not_membership=membership) == others
    # "the parameters are combined with or": knocking users are in the answer for not being banned
    assert await members(alice, room_id, membership="ban", not_membership="join") == {
        name: each for name, each in EVERYONE.items() if each != "join"
    }


async def test_joined_members_come_with_their_profiles(server: Server) -> None:
    alice, room_id = await a_room_with_every_membership(server)
    await alice.ok("PUT", f"profile/{alice.user_id}/displayname", json={"displayname": "Alice"})
    await alice.ok("PUT", f"profile/{alice.user_id}/avatar_url", json={"avatar_url": "mxc://test.example/a"})
    answer = await alice.ok("GET", path_of(room_id, "joined_members"))
    assert answer["joined"] == {
        alice.user_id: {"display_name": "Alice", "avatar_url": "mxc://test.example/a"},
        "@joins:test.example": {"display_name": "joins"},
    }


async def test_joined_members_are_always_current(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await create(alice, preset="public_chat")

    async def joined() -> dict[str, Any]:
        answer = await alice.ok("GET", path_of(room_id, "joined_members"))
        assert answer == await alice.ok("GET", path_of(room_id, "joined_members"))
        return {user_id: member.get("display_name") for user_id, member in answer["joined"].items()}

    assert await joined() == {alice.user_id: "alice"}
    await join(bob, room_id)
    assert await joined() == {alice.user_id: "alice", bob.user_id: "bob"}
    await bob.ok("PUT", f"profile/{bob.user_id}/displayname", json={"displayname": "Something bad"})
    assert await joined() == {alice.user_id: "alice", bob.user_id: "Something bad"}
    events = (await alice.ok("GET", path_of(room_id, "members")))["chunk"]
    (named,) = [event["event_id"] for event in events if event["state_key"] == bob.user_id]
    await redact(alice, room_id, named)
    assert await joined() == {alice.user_id: "alice", bob.user_id: None}
    await leave(bob, room_id)
    assert await joined() == {alice.user_id: "alice"}


async def test_members_can_be_listed_at_a_sync_token(server: Server) -> None:
    alice, bob, carol = [await server.register(name) for name in ("alice", "bob", "carol")]
    room_id = await create(alice, preset="public_chat")
    await join(bob, room_id)
    then = (await sync(alice))["next_batch"]
    await join(carol, room_id)
    await leave(bob, room_id)
    now = (await sync(alice))["next_batch"]
    assert await members(alice, room_id, at=then) == {"alice": "join", "bob": "join"}
    assert await members(alice, room_id, at=then, not_membership="join") == {}
    assert await members(alice, room_id, at=now) == {"alice": "join", "bob": "leave", "carol": "join"}
    page = await alice.ok("GET", path_of(room_id, "messages") + "?dir=f&limit=5")
    assert await members(alice, room_id, at=page["end"]) == {"alice": "join"}


async def test_no_members_are_listed_before_the_first_event(server: Server) -> None:
    """A sync with the whole timeline of a room begins there: its members are told by the timeline."""
    alice = await server.register("alice")
    room_id = await create(alice)
    start = (await sync(alice))["rooms"]["join"][room_id]["timeline"]["prev_batch"]
    assert await members(alice, room_id, at=start) == {}


async def test_members_can_be_listed_at_a_message(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await create(alice, preset="public_chat")
    event_id = await send(alice, room_id, "before")
    await join(bob, room_id)
    context = await alice.ok("GET", path_of(room_id, "context", event_id) + "?limit=0")
    assert await members(alice, room_id, at=context["end"]) == {"alice": "join"}


async def test_former_members_see_no_later_changes(server: Server) -> None:
    alice, bob, carol = [await server.register(name) for name in ("alice", "bob", "carol")]
    room_id = await create(alice, preset="public_chat")
    await join(bob, room_id)
    await leave(bob, room_id)
    await join(carol, room_id)
    now = (await sync(alice))["next_batch"]
    then = {"alice": "join", "bob": "leave"}
    assert await members(bob, room_id) == then
    generation = server.hs.database.generation
    for at in (now, f"s999999999_{generation}", f"t99999999999999_99999_{generation}"):
        assert await members(bob, room_id, at=at) == then
    assert await bob.refused("GET", path_of(room_id, "joined_members")) == FORBIDDEN


async def test_earlier_members_are_as_visible_as_the_history(server: Server) -> None:
    alice, bob, carol = [await server.register(name) for name in ("alice", "bob", "carol")]
    room_id = await create(alice, preset="public_chat")
    await join(carol, room_id)
    await send(alice, room_id, "who is here?")
    shared = (await sync(alice))["next_batch"]
    await set_state(alice, room_id, "m.room.history_visibility", {"history_visibility": "joined"})
    await send(alice, room_id, "and now?")
    hidden = (await sync(alice))["next_batch"]
    await leave(carol, room_id)
    await join(bob, room_id)
    now = (await sync(bob))["next_batch"]
    assert await members(bob, room_id, at=shared) == {"alice": "join", "carol": "join"}
    path = path_of(room_id, "members")
    assert await bob.refused("GET", f"{path}?at={hidden}") == FORBIDDEN
    assert await members(bob, room_id, at=now) == {"alice": "join", "bob": "join", "carol": "leave"}


async def test_users_who_were_never_members_see_nothing(server: Server) -> None:
    alice, bob, carol = [await server.register(name) for name in ("alice", "bob", "carol")]
    room_id = await create(alice, invite=[bob.user_id])
    for client in (bob, carol):
        for what in ("members", "joined_members"):
            assert await client.refused("GET", path_of(room_id, what)) == FORBIDDEN
            assert await client.refused("GET", path_of("!unknown:test.example", what)) == FORBIDDEN
    assert await server.anonymous.refused("GET", path_of(room_id, "members")) == (401, "M_MISSING_TOKEN")


async def test_anyone_can_list_the_members_of_a_world_readable_room(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await create(alice)
    await set_state(alice, room_id, "m.room.history_visibility", {"history_visibility": "world_readable"})
    assert await members(bob, room_id) == {"alice": "join"}


async def test_member_events_with_malformed_content_are_tolerated(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await create(alice)
    content = {"membership": "join", "displayname": 7, "avatar_url": ["no"]}
    await set_state(alice, room_id, "m.room.member", content, alice.user_id)
    assert (await alice.ok("GET", path_of(room_id, "joined_members")))["joined"] == {alice.user_id: {}}


async def test_malformed_parameters_are_refused(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await create(alice)
    for query in ["at=nonsense", "at=", "at=t", "at=s-1x", "membership=dance", "not_membership=", "membership=JOIN"]:
        with row(query):
            assert await alice.refused("GET", path_of(room_id, "members") + "?" + query) == (400, "M_INVALID_PARAM")
