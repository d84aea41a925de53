"""Spaces and room summaries that cross servers. Spec: client-server-api/#spaces, server-server-api/#spaces"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any
from urllib.parse import quote

import pytest
import trio

from homeserver import limits
from homeserver.federation.identifiers import RoomID, ServerName
from tests.support.federation import Federation, create_room, invite, join, send_state
from tests.support.homeservers import Client, Server
from tests.support.stranger import Stranger

Json = dict[str, Any]
SPACE = {"creation_content": {"type": "m.space"}, "preset": "public_chat"}
EVIL = ServerName("mallory.example")


async def add(client: Client, space_id: str, room_id: str, *via: str, **content: Any) -> None:
    await send_state(client, space_id, "m.space.child", {"via": list(via), **content}, room_id)


async def hierarchy(client: Client, room_id: str, **query: Any) -> list[Json]:
    path = f"/_matrix/client/v1/rooms/{quote(room_id, safe='')}/hierarchy"
    answer = await client.ok("GET", path, params=query)
    rooms: list[Json] = answer["rooms"]
    return rooms


async def ids(client: Client, room_id: str) -> list[str]:
    return [room["room_id"] for room in await hierarchy(client, room_id)]


def summary_path(room: str, *via: str) -> str:
    return f"/_matrix/client/v1/room_summary/{quote(room, safe='')}?" + "&".join(f"via={name}" for name in via)


def served(room_id: str) -> tuple[str, str]:
    return "GET", f"/_matrix/federation/v1/hierarchy/{quote(room_id, safe='')}"


def room_of(room_id: str, **fields: Any) -> Json:
    return {
        "room_id": room_id, "num_joined_members": 3, "world_readable": False, "guest_can_join": False,
        "join_rule": "public", "children_state": [], **fields,
    }  # fmt: skip


def child_of(room_id: str, *via: str, **content: Any) -> Json:
    return {
        "type": "m.space.child", "state_key": room_id, "sender": f"@m:{EVIL}", "origin_server_ts": 1,
        "content": {"via": list(via), **content},
    }  # fmt: skip


def answer_of(room: Any, children: Any = (), inaccessible: Any = ()) -> Json:
    return {"room": room, "children": list(children), "inaccessible_children": list(inaccessible)}


async def test_rooms_of_other_servers_are_described_by_them(federation: Federation) -> None:
    _, _, alice, bob = await federation.start_two()
    leaf = await create_room(bob, preset="public_chat", name="Tea")
    inner = await create_room(bob, **SPACE, name="Drinks")
    await add(bob, inner, leaf, "b.example")
    outer = await create_room(alice, **SPACE)
    await add(alice, outer, inner, "b.example")
    _, space, tea = await hierarchy(alice, outer)
    assert (space["room_id"], space["name"], space["room_type"]) == (inner, "Drinks", "m.space")
    assert [child["state_key"] for child in space["children_state"]] == [leaf]
    assert (tea["room_id"], tea["name"], tea["num_joined_members"]) == (leaf, "Tea", 1)


async def test_a_space_that_this_server_is_not_in(federation: Federation) -> None:
    """Its ID says nothing of a server since room version 12, but an invitation does."""
    _, _, alice, bob = await federation.start_two()
    leaf = await create_room(bob, preset="public_chat")
    old, new = [await create_room(bob, **SPACE, room_version=version) for version in ("11", "12")]
    for space_id in (old, new):
        await add(bob, space_id, leaf, "b.example")
    assert await ids(alice, old) == [old, leaf]
    path = f"/_matrix/client/v1/rooms/{quote(new, safe='')}/hierarchy"
    assert await alice.refused("GET", path) == (403, "M_FORBIDDEN")
    await invite(bob, new, alice.user_id)
    assert await ids(alice, new) == [new, leaf]


async def test_servers_see_only_rooms_that_they_may_know(federation: Federation) -> None:
    a, _, alice, bob = await federation.start_two()
    club = await create_room(bob, preset="public_chat")

    async def room(rule: str, **more: Any) -> RoomID:
        allow = {"allow": [{"type": "m.room_membership", "room_id": club}]} if rule == "restricted" else {}
        state = [{"type": "m.room.join_rules", "content": {"join_rule": rule, **allow}}]
        return await create_room(bob, **{"initial_state": state, **more})

    readable = {"type": "m.room.history_visibility", "content": {"history_visibility": "world_readable"}}
    acl = {"type": "m.room.server_acl", "content": {"allow": ["*"], "deny": ["a.example"]}}
    public, knock, restricted = [await room(rule) for rule in ("public", "knock", "restricted")]
    open_to_read, invited = await room("invite", initial_state=[readable]), await room("invite")
    await invite(bob, invited, alice.user_id)
    closed = await room("invite")
    unfederated = await room("public", creation_content={"m.federate": False})
    denied = await create_room(bob, preset="public_chat", initial_state=[acl])
    space_id = await create_room(bob, **SPACE)
    rooms = (public, knock, restricted, open_to_read, invited, closed, unfederated, denied)
    for number, each in enumerate(rooms):
        await add(bob, space_id, each, "b.example", order=f"{number}")
    mallory = Stranger(federation.network, EVIL)
    status, told = await mallory.get("b.example", served(space_id)[1])
    assert status == 200
    assert [each["room_id"] for each in told["children"]] == [public, knock, open_to_read, denied]
    assert told["inaccessible_children"] == [restricted, invited, closed, unfederated]
    for hidden in (restricted, closed, unfederated, "!nowhere:b.example"):
        assert (await mallory.get("b.example", served(hidden)[1]))[0] == 404
    # users of a.example are invited to one, and in the club whose members may join another
    await join(alice, club, "b.example")
    found = await hierarchy(alice, club)
    assert [each["room_id"] for each in found] == [club]
    outer = await create_room(alice, **SPACE)
    await add(alice, outer, space_id, "b.example")
    assert await ids(alice, outer) == [outer, space_id, public, knock, restricted, open_to_read, invited]
    carl = await a.register("carl")
    assert await ids(carl, outer) == [outer, space_id, public, knock, open_to_read]


async def test_only_suggested_children_are_served_if_so_requested(federation: Federation) -> None:
    _, _, _, bob = await federation.start_two()
    one, two = [await create_room(bob, preset="public_chat") for _ in range(2)]
    space_id = await create_room(bob, **SPACE)
    await add(bob, space_id, one, "b.example")
    await add(bob, space_id, two, "b.example", suggested=True)
    mallory = Stranger(federation.network, EVIL)
    _, told = await mallory.get("b.example", served(space_id)[1] + "?suggested_only=true")
    assert [each["room_id"] for each in told["children"]] == [two]
    assert [each["state_key"] for each in told["room"]["children_state"]] == [two]


async def test_silent_servers_delay_a_page_by_no_more_than_its_deadline(federation: Federation) -> None:
    _, _, alice, bob = await federation.start_two()
    leaf = await create_room(bob, preset="public_chat")
    outer = await create_room(alice, **SPACE)

    async def wait(*_: Any) -> Any:
        await trio.sleep(3600)

    for number in range(30):
        silent = Stranger(federation.network, ServerName(f"silent{number}.example"))
        room_id = f"!r:silent{number}.example"
        silent.answers[served(room_id)] = wait
        await add(alice, outer, room_id, silent.name, order=f"{number:02}")
    await add(alice, outer, leaf, "b.example", order="z")
    started = trio.current_time()
    assert (await ids(alice, outer))[0] == outer
    assert trio.current_time() - started <= limits.peers.HIERARCHY_PAGE_S + 1
    # by now it is known that they are silent
    await trio.sleep(limits.peers.HIERARCHY_TIMEOUT_S)
    await ids(alice, outer)
    started = trio.current_time()
    await ids(alice, outer)
    assert trio.current_time() - started < limits.peers.HIERARCHY_PAGE_S
    await trio.sleep(30)
    assert leaf in await ids(alice, outer)


async def test_answers_are_kept_for_some_minutes(federation: Federation) -> None:
    _, _, alice, _ = await federation.start_two()
    mallory = Stranger(federation.network, EVIL)
    room_id = f"!r:{EVIL}"
    mallory.answers[served(room_id)] = answer_of(room_of(room_id, name="first"))
    outer = await create_room(alice, **SPACE)
    await add(alice, outer, room_id, EVIL)
    asked: list[int] = []
    for _ in range(3):
        assert (await hierarchy(alice, outer))[1]["name"] == "first"
        asked.append(len([path for _, path in mallory.asked if "hierarchy" in path]))
    assert asked == [1, 1, 1]
    mallory.answers[served(room_id)] = answer_of(room_of(room_id, name="second"))
    await trio.sleep(limits.peers.HIERARCHY_CACHED_MS / 1000 + 1)
    assert (await hierarchy(alice, outer))[1]["name"] == "second"


async def test_a_server_lies_only_to_those_who_were_led_to_it(federation: Federation) -> None:
    _, _, alice, bob = await federation.start_two()
    leaf = await create_room(bob, preset="public_chat", name="Tea")
    own = await create_room(alice, preset="public_chat", name="Mine")
    mallory = Stranger(federation.network, EVIL)
    bad = f"!bad:{EVIL}"
    children = [child_of(leaf, EVIL), child_of(own, EVIL)]
    lies = [room_of(leaf, name="Lie"), room_of(own, name="Lie")]
    mallory.answers[served(bad)] = answer_of(room_of(bad, room_type="m.space", children_state=children), lies)
    good, evil = await create_room(alice, **SPACE), await create_room(alice, **SPACE)
    await add(alice, good, leaf, "b.example")
    await add(alice, evil, bad, EVIL)
    names = {room["room_id"]: room.get("name") for room in await hierarchy(alice, evil)}
    assert names[leaf] == "Lie"
    assert names[own] == "Mine"  # what this server knows by itself counts
    assert [room.get("name") for room in await hierarchy(alice, good)] == [None, "Tea"]


HOSTILE: dict[str, Callable[[str], Any]] = {
    "not an object": lambda room_id: [],
    "no room": lambda room_id: {"children": []},
    "another room": lambda room_id: answer_of(room_of(f"!other:{EVIL}")),
    "a refusal": lambda room_id: (404, {"errcode": "M_NOT_FOUND", "error": "no"}),
    "an error": lambda room_id: (500, {}),
    "a room that is closed": lambda room_id: answer_of(room_of(room_id, join_rule="invite")),
    "a restricted room": lambda room_id: answer_of(
        room_of(room_id, join_rule="restricted", allowed_room_ids=["!x:y", 7, None])
    ),
    "a join rule that is not a string": lambda room_id: answer_of(room_of(room_id, join_rule=["public"])),
}


@pytest.mark.parametrize("kind", HOSTILE)
async def test_answers_of_no_use_leave_the_room_out(federation: Federation, kind: str) -> None:
    _, _, alice, _ = await federation.start_two()
    mallory = Stranger(federation.network, EVIL)
    room_id = f"!r:{EVIL}"
    mallory.answers[served(room_id)] = HOSTILE[kind](room_id)
    outer = await create_room(alice, **SPACE)
    await add(alice, outer, room_id, EVIL)
    assert await ids(alice, outer) == [outer]
    assert await alice.refused("GET", summary_path(room_id, EVIL)) == (404, "M_NOT_FOUND")


async def test_only_sensible_parts_of_a_hostile_answer_are_used(federation: Federation) -> None:
    _, _, alice, _ = await federation.start_two()
    mallory = Stranger(federation.network, EVIL)
    bad, leaf = f"!bad:{EVIL}", f"!leaf:{EVIL}"
    room = room_of(
        bad, room_type="m.space", name={"a": 1}, topic="x" * 20_000, num_joined_members=-5, canonical_alias="no alias",
        avatar_url=7, encryption="rot13", world_readable="yes", allowed_room_ids="!a:b", extra=[[[]]],
        children_state=[
            7, None, {}, child_of("nonsense", EVIL), child_of(leaf),
            {**child_of(leaf, EVIL), "origin_server_ts": "now"},
            {**child_of(leaf, EVIL), "type": "m.room.message"}, child_of(bad, EVIL),
            {**child_of(leaf, EVIL, order=7, junk="y" * 1000), "junk": 1}, *[child_of(leaf, EVIL)] * 20,
        ],
    )  # fmt: skip
    mallory.answers[served(bad)] = answer_of(room, [room_of(leaf, name="Leaf"), {}, 7, {"room_id": "x"}], [[], 7])
    outer = await create_room(alice, **SPACE)
    await add(alice, outer, bad, EVIL)
    _, shown, below = await hierarchy(alice, outer)
    assert "extra" not in shown and "name" not in shown and "topic" not in shown and "canonical_alias" not in shown
    assert (shown["num_joined_members"], shown["world_readable"]) == (0, False)
    assert sorted(child["state_key"] for child in shown["children_state"]) == [bad, leaf]
    assert "junk" not in shown["children_state"][0]["content"]
    assert below["name"] == "Leaf"


async def test_an_endless_tree_ends(federation: Federation) -> None:
    """Each space of this server has another one below it, with a new name."""
    _, _, alice, _ = await federation.start_two()
    mallory = Stranger(federation.network, EVIL)
    rooms = [f"!r{number}:{EVIL}" for number in range(40)]
    for room_id, below in pairwise(rooms):
        room = room_of(room_id, room_type="m.space", children_state=[child_of(below, EVIL), child_of(room_id, EVIL)])
        mallory.answers[served(room_id)] = answer_of(room)
    outer = await create_room(alice, **SPACE)
    await add(alice, outer, rooms[0], EVIL)
    assert await ids(alice, outer) == [outer, *rooms[:10]]


# --- the summary of one room ---


async def test_the_summary_of_a_room_of_another_server(federation: Federation) -> None:
    a, _, alice, bob = await federation.start_two()
    room_id = await create_room(bob, preset="public_chat", name="Tea", room_alias_name="tea")
    for path in (
        summary_path(room_id, "b.example"),
        summary_path("#tea:b.example"),
        summary_path(room_id, "a.example", "b.example"),
    ):
        told = await alice.ok("GET", path)
        assert (told["room_id"], told["name"], told["room_version"]) == (room_id, "Tea", "12")
        assert "membership" not in told
    # without an account too, because anyone may join
    assert (await a.anonymous.ok("GET", summary_path(room_id, "b.example")))["name"] == "Tea"
    await join(alice, room_id, "b.example")
    assert (await alice.ok("GET", summary_path(room_id)))["membership"] == "join"
    closed = await create_room(bob, name="Secret")
    assert await alice.refused("GET", summary_path(closed, "b.example")) == (404, "M_NOT_FOUND")
    await invite(bob, closed, alice.user_id)
    await trio.sleep(limits.peers.HIERARCHY_FAILURE_CACHED_MS / 1000)  # a refusal is remembered for a minute
    told = await alice.ok("GET", summary_path(closed))
    assert (told["name"], told["membership"]) == ("Secret", "invite")
    assert await a.anonymous.refused("GET", summary_path(closed, "b.example")) == (404, "M_NOT_FOUND")


async def test_the_summary_of_a_room_of_this_server(federation: Federation) -> None:
    server: Server = await federation.start("a.example")
    alice, bob = await server.register("alice"), await server.register("bob")
    public, closed = await create_room(alice, preset="public_chat", name="Tea"), await create_room(alice)
    assert (await server.anonymous.ok("GET", summary_path(public)))["name"] == "Tea"
    nheko = "/_matrix/client/unstable/im.nheko.summary"
    for path in (f"{nheko}/summary/{quote(public)}", f"{nheko}/rooms/{quote(public)}/summary"):
        assert (await bob.ok("GET", path))["name"] == "Tea"
    missing = [await bob.get(summary_path(name)) for name in (closed, "!nowhere:a.example", "#nowhere:a.example")]
    assert {answer.status_code for answer in missing} == {404}
    assert missing[0].json() == missing[1].json()
    assert (await alice.ok("GET", summary_path(closed)))["membership"] == "join"
    for name in ("nonsense", "#no", "@alice:a.example"):
        assert await bob.refused("GET", summary_path(name)) == (400, "M_INVALID_PARAM")
    assert await bob.refused("GET", summary_path(public, "not a server!")) == (400, "M_INVALID_PARAM")
