"""Spec: client-server-api/#spaces, of one server. `tests/server_server_api/test_hierarchy.py` has several."""

from __future__ import annotations

import base64
from typing import Any

import msgspec

from homeserver.database import Transaction
from homeserver.features.room_hierarchy import DEPTH_MAX, Token
from homeserver.federation.build import Draft
from homeserver.federation.identifiers import RoomID
from homeserver.rooms.append import append_local
from homeserver.rooms.spaces import Child, in_order
from tests.support.homeservers import Client, Server
from tests.support.people import act, create, invite, join, path_of, public_room, redact, set_state
from tests.support.rows import row

Json = dict[str, Any]
SPACE = {"creation_content": {"type": "m.space"}, "preset": "public_chat"}


async def space(client: Client, *children: str, **body: Any) -> RoomID:
    room_id = await create(client, **{**SPACE, **body})
    for number, child in enumerate(children):
        await put_into(client, room_id, child, order=f"{number:03}")
    return room_id


async def put_into(client: Client, space_id: str, room_id: str, **content: Any) -> str:
    return await set_state(client, space_id, "m.space.child", {"via": ["test.example"], **content}, room_id)


async def page(client: Client, room_id: str, **query: Any) -> Json:
    path = "/_matrix/client/v1/" + path_of(room_id, "hierarchy")
    if "start" in query:
        query["from"] = query.pop("start")
    params = {name: str(value).lower() if isinstance(value, bool) else value for name, value in query.items()}
    return await client.ok("GET", path, params=params)


async def refused(client: Client, room_id: str, **query: Any) -> tuple[int, str]:
    return await client.refused("GET", "/_matrix/client/v1/" + path_of(room_id, "hierarchy"), params=query)


async def rooms_of(client: Client, room_id: str, **query: Any) -> list[str]:
    """The IDs of all pages."""
    found: list[str] = []
    while True:
        answer = await page(client, room_id, **query)
        found += [room["room_id"] for room in answer["rooms"]]
        if "next_batch" not in answer:
            return found
        query["start"] = answer["next_batch"]


async def test_a_tree_is_walked_depth_first(server: Server) -> None:
    alice = await server.register("alice")
    a, b, c = [await public_room(alice, name=name) for name in "abc"]
    inner = await space(alice, a, b)
    outer = await space(alice, inner, c)
    assert await rooms_of(alice, outer) == [outer, inner, a, b, c]
    for limit in (1, 2, 3, 4, 5):
        assert await rooms_of(alice, outer, limit=limit) == [outer, inner, a, b, c]


async def test_rooms_are_summarised(server: Server) -> None:
    alice = await server.register("alice")
    encryption = {"type": "m.room.encryption", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}
    rules = {"join_rule": "restricted", "allow": [{"type": "m.room_membership", "room_id": "!a:b"}, 7, {"room_id": 1}]}
    restricted = {"type": "m.room.join_rules", "content": rules}
    room_id = await create(
        alice, name="Tea", topic="Leaves", room_alias_name="tea", room_version="10",
        initial_state=[encryption, restricted],
    )  # fmt: skip
    outer = await space(alice, room_id)
    top, below = (await page(alice, outer))["rooms"]
    assert below == {
        "room_id": room_id, "name": "Tea", "topic": "Leaves", "canonical_alias": "#tea:test.example",
        "join_rule": "restricted", "allowed_room_ids": ["!a:b"], "room_version": "10", "num_joined_members": 1,
        "encryption": "m.megolm.v1.aes-sha2", "world_readable": False, "guest_can_join": True, "children_state": [],
    }  # fmt: skip
    assert top["room_type"] == "m.space"
    (child,) = top["children_state"]
    assert child.pop("origin_server_ts") > 0
    assert child == {
        "type": "m.space.child", "state_key": room_id, "sender": alice.user_id,
        "content": {"via": ["test.example"], "order": "000"},
    }  # fmt: skip


async def test_depth(server: Server) -> None:
    alice = await server.register("alice")
    leaf = await public_room(alice)
    inner = await space(alice, leaf)
    outer = await space(alice, inner)
    assert await rooms_of(alice, outer, max_depth=0) == [outer]
    assert await rooms_of(alice, outer, max_depth=1) == [outer, inner]
    assert await rooms_of(alice, outer, max_depth=2, limit=1) == [outer, inner, leaf]
    assert await rooms_of(alice, outer, max_depth=10**9) == [outer, inner, leaf]


async def test_suggested_rooms(server: Server) -> None:
    alice = await server.register("alice")
    a, b = await public_room(alice), await public_room(alice)
    outer = await space(alice, a)
    await put_into(alice, outer, b, suggested=True)
    answer = await page(alice, outer, suggested_only=True)
    assert [room["room_id"] for room in answer["rooms"]] == [outer, b]
    assert [child["state_key"] for child in answer["rooms"][0]["children_state"]] == [b]
    assert await rooms_of(alice, outer, suggested_only=False) == [outer, a, b]


async def test_loops_end(server: Server) -> None:
    alice = await server.register("alice")
    leaf = await public_room(alice)
    a, b = await space(alice), await space(alice)
    for outer, inner in ((a, b), (b, a), (a, a), (b, leaf)):
        await put_into(alice, outer, inner)
    for limit in (1, 2, 50):
        assert await rooms_of(alice, a, limit=limit) == [a, b, leaf]


async def test_children_that_were_removed_or_make_no_sense(server: Server) -> None:
    alice = await server.register("alice")
    a, b, c, d = [await public_room(alice) for _ in range(4)]
    outer = await space(alice, a)
    event_id = await put_into(alice, outer, b)
    await put_into(alice, outer, c)
    assert await rooms_of(alice, outer) == [outer, a, b, c]
    await redact(alice, outer, event_id)
    await set_state(alice, outer, "m.space.child", {}, c)
    for via in (None, [], "test.example", [7], {}, ["not a server name!"]):
        await set_state(alice, outer, "m.space.child", {"via": via}, d)
        assert await rooms_of(alice, outer) == [outer, a]
    await set_state(alice, outer, "m.space.child", {"via": ["test.example"]}, "nonsense")
    answer = await page(alice, outer)
    assert [child["state_key"] for child in answer["rooms"][0]["children_state"]] == [a]
    # children of a room that is not a space do not count
    plain = await public_room(alice)
    await put_into(alice, plain, a)
    assert await rooms_of(alice, plain) == [plain]


def test_the_order_of_children_is_that_of_the_spec() -> None:
    def child(room_id: str, sent_ts: int, order: object) -> Child:
        return Child(RoomID(room_id), (), False, {"origin_server_ts": sent_ts, "content": {"order": order}})

    shown = in_order(
        [
            child("!a", 1640141000000, "aaaa"), child("!b", 1640341000000, " "), child("!c", 1640841000000, "first"),
            child("!d", 1640741000000, None), child("!e", 1640641000000, None), child("!h", 1, "x" * 51),
            child("!g", 1, "é"), child("!f", 1, 7), child("!i", 5, "first"),
        ]
    )  # fmt: skip
    assert [each.room_id for each in shown] == ["!b", "!a", "!i", "!c", "!f", "!g", "!h", "!e", "!d"]


async def test_only_rooms_that_the_user_may_know_of_are_shown(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    club = await public_room(alice, bob)

    async def room(rule: str, **more: Any) -> RoomID:
        allow = {"allow": [{"type": "m.room_membership", "room_id": club}]} if "restricted" in rule else {}
        state = [{"type": "m.room.join_rules", "content": {"join_rule": rule, **allow}}]
        return await create(alice, **{"initial_state": state, **more})

    readable = {"type": "m.room.history_visibility", "content": {"history_visibility": "world_readable"}}
    shown = [
        await room("public"), await room("knock"), await room("restricted"), await room("knock_restricted"),
        await room("invite", initial_state=[readable]), await room("invite", invite=[bob.user_id]),
    ]  # fmt: skip
    joined = await room("invite", invite=[bob.user_id])
    await join(bob, joined)
    banned = await room("public")
    await act(alice, banned, "ban", bob)
    # in room version 6 nobody can knock, and in 7 no room is restricted: both are closed
    closed = [
        await room("invite"), await room("knock", room_version="6"), await room("restricted", room_version="7"), banned,
    ]  # fmt: skip
    outer = await space(alice, *shown, joined, *closed)
    assert await rooms_of(bob, outer) == [outer, *shown, joined]
    await act(bob, club, "leave")
    assert await rooms_of(bob, outer) == [outer, *(each for each in shown if each != shown[2]), joined]


async def test_rooms_below_a_hidden_space_are_hidden(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    leaf = await public_room(alice)
    hidden = await space(alice, leaf, preset="private_chat")
    outer = await space(alice, hidden)
    assert await rooms_of(bob, outer) == [outer]
    await invite(alice, hidden, bob)
    assert await rooms_of(bob, outer) == [outer, hidden, leaf]


async def test_a_space_that_the_user_must_not_know_of_is_refused_like_one_that_is_not_there(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    closed, banned = await space(alice, preset="private_chat"), await space(alice)
    await act(alice, banned, "ban", bob)
    for room_id in (closed, banned, "!nowhere:test.example"):
        assert await refused(bob, room_id) == (403, "M_FORBIDDEN")
        path = "/_matrix/client/v1/" + path_of(room_id, "hierarchy")
        assert (await bob.get(path)).json()["error"] == "You are not allowed to see this room."
        assert await server.anonymous.refused("GET", path) == (401, "M_MISSING_TOKEN")


# --- tokens ---


def token(*, told: int = 0, path: Any = (), place: int = 0, depth: int = DEPTH_MAX) -> str:
    made = Token(False, depth, told, tuple(path), place)
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(made)).decode()


async def test_parameters_must_stay_the_same(server: Server) -> None:
    alice = await server.register("alice")
    outer = await space(alice, await public_room(alice), await public_room(alice))
    start = (await page(alice, outer, limit=1, max_depth=3))["next_batch"]
    await page(alice, outer, start=start)
    await page(alice, outer, start=start, max_depth=3, suggested_only=False)
    for other in ({"max_depth": 2}, {"suggested_only": "true"}):
        assert await refused(alice, outer, **{"from": start}, **other) == (400, "M_INVALID_PARAM")


async def test_nonsense_is_refused(server: Server) -> None:
    alice = await server.register("alice")
    path = "/_matrix/client/v1/" + path_of(await space(alice), "hierarchy")
    for query in ["limit=0", "limit=-1", "limit=x", "max_depth=-1", "max_depth=1.5", "suggested_only=maybe"]:
        with row(query):
            assert await alice.refused("GET", f"{path}?{query}") == (400, "M_INVALID_PARAM")


async def test_forged_tokens_lead_nowhere(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    leaf = await public_room(alice)
    hidden = await space(alice, leaf, preset="private_chat")
    other = await space(alice, leaf)
    outer = await space(alice, hidden, await public_room(alice))
    for forged in (
        "x", "é", "=" * 8, "A" * 10_000, base64.urlsafe_b64encode(b"\x95\xc2\xff\x00\x90\x00").decode(),
        base64.urlsafe_b64encode(msgspec.msgpack.encode([False, 99, 0, [], 0])).decode(),
        base64.urlsafe_b64encode(msgspec.msgpack.encode([False, 5, 0, [[0, "!a"]] * 11, 0])).decode(),
        base64.urlsafe_b64encode(msgspec.msgpack.encode([False, 5, -1, [], 0])).decode(),
    ):  # fmt: skip
        assert await refused(bob, outer, **{"from": forged}) == (400, "M_INVALID_PARAM"), forged
    # a path through a space that is hidden, or is not a child, goes on behind its place
    for path in ([(0, hidden)], [(0, other)], [(0, hidden), (0, leaf)], [(2**40, "!nowhere")], [(0, outer)] * 9):
        answer = await page(bob, outer, start=token(path=path))
        assert leaf not in [room["room_id"] for room in answer["rooms"]]
    assert (await page(bob, outer, start=token(place=2**40)))["rooms"] == []
    assert await refused(bob, hidden, **{"from": token()}) == (403, "M_FORBIDDEN")


async def test_a_walk_survives_changes_between_pages(server: Server) -> None:
    alice = await server.register("alice")
    rooms = [await public_room(alice) for _ in range(3)]
    inner = await space(alice, *rooms)
    outer = await space(alice, inner)
    answer = await page(alice, outer, limit=3)
    assert [room["room_id"] for room in answer["rooms"]] == [outer, inner, rooms[0]]
    await set_state(alice, outer, "m.space.child", {}, inner)
    assert (await page(alice, outer, start=answer["next_batch"]))["rooms"] == []


async def test_so_many_children_are_examined_for_a_page_and_no_more(server: Server) -> None:
    """No matter how many of them the user must not know of, or how many users are banned from the space."""
    alice = await server.register("alice")
    leaf = await public_room(alice)

    def fill(tx: Transaction, space_id: RoomID, children: int, members: int) -> None:
        for number in range(children):
            child = leaf if number == 0 else f"!hidden{number}:test.example"
            content = {"via": ["test.example"], "order": f"{number:04}"}
            append_local(tx, Draft(space_id, alice.user_id, "m.space.child", content, state_key=child))
        for number in range(members):
            user_id = f"@u{number}:other.example"
            content = {"membership": "ban"}
            append_local(tx, Draft(space_id, alice.user_id, "m.room.member", content, state_key=user_id))

    few, many = await space(alice), await space(alice)
    await server.write(fill, few, 600, 0)
    await server.write(fill, many, 600, 600)
    for space_id in (few, many):
        first = await page(alice, space_id)
        assert [room["room_id"] for room in first["rooms"]] == [space_id, leaf]
        assert len(first["rooms"][0]["children_state"]) == 600
        # 500 children have been examined; the others are on the next page
        assert (await page(alice, space_id, start=first["next_batch"])) == {"rooms": []}
