"""Spec: client-server-api/#mutual-rooms"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from homeserver.database import Transaction
from homeserver.features.mutual_rooms import ROOMS_PER_PAGE
from homeserver.federation.identifiers import RoomID
from homeserver.rooms.membership import store_membership
from tests.support.homeservers import Client, Server
from tests.support.people import act, create, leave, public_room
from tests.support.rows import row

PATH = "/_matrix/client/v1/mutual_rooms"


async def mutual(client: Client, user_id: str, **query: Any) -> dict[str, Any]:
    answer: dict[str, Any] = await client.ok("GET", PATH, params={"user_id": user_id, **query})
    return answer


async def test_rooms_that_both_are_in(server: Server) -> None:
    alice, bob, carl = [await server.register(name) for name in ("alice", "bob", "carl")]
    shared = [await public_room(alice, bob) for _ in range(2)]
    await public_room(alice, carl)
    left, banned = await public_room(alice, bob), await public_room(alice, bob)
    await leave(bob, left)
    await act(alice, banned, "ban", bob)
    await create(alice, invite=[bob.user_id])
    for client, other in ((alice, bob), (bob, alice)):
        answer = await mutual(client, other.user_id)
        assert sorted(answer["joined"]) == sorted(shared)
        assert answer["count"] == 2 and "next_batch" not in answer
    assert await mutual(bob, carl.user_id) == {"joined": [], "count": 0}


async def test_a_user_who_does_not_exist_shares_no_room(server: Server) -> None:
    alice = await server.register("alice")
    for user_id in ("@nobody:test.example", "@nobody:other.example", "@Histo-RICAL!:other.example"):
        assert await mutual(alice, user_id) == {"joined": [], "count": 0}


async def test_many_rooms_come_in_pages(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    rooms = {room_id, *(RoomID(f"!{number}:test.example") for number in range(ROOMS_PER_PAGE + 3))}

    def join_all(tx: Transaction) -> None:
        for each in rooms - {room_id}:
            for user_id in (alice.user_id, bob.user_id):
                store_membership(tx, tx.intern(each), user_id, "join", 1, tx.next_position(user_id))

    await server.write(join_all)
    first = await mutual(alice, bob.user_id)
    assert len(first["joined"]) == ROOMS_PER_PAGE
    second = await mutual(alice, bob.user_id, **{"from": first["next_batch"]})
    assert first["count"] == second["count"] == len(rooms)
    assert {*first["joined"], *second["joined"]} == rooms
    assert len(second["joined"]) == 4 and "next_batch" not in second

    def leave_all(tx: Transaction) -> None:  # rooms without events are not consistent
        for each in rooms - {room_id}:
            tx.run("DELETE FROM memberships WHERE room_nid = ?", tx.find(each))

    await server.write(leave_all)


async def test_invalid_users(server: Server) -> None:
    alice = await server.register("alice")
    for user_id in ["", "nonsense", "@nobody", "@:test.example", "@é:test.example", "@a b:test.example"]:
        with row(user_id):
            assert await alice.refused("GET", f"{PATH}?user_id={quote(user_id)}") == (400, "M_INVALID_PARAM")


async def test_any_number_is_a_token(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    assert await mutual(alice, bob.user_id, **{"from": "m0"}) == {"joined": [room_id], "count": 1}
    assert await mutual(alice, bob.user_id, **{"from": "m" + "9" * 18}) == {"joined": [], "count": 1}


async def test_refusals(server: Server) -> None:
    alice = await server.register("alice")
    assert await alice.refused("GET", f"{PATH}?user_id={alice.user_id}") == (400, "M_INVALID_PARAM")
    assert await alice.refused("GET", PATH) == (400, "M_MISSING_PARAM")
    assert await server.anonymous.refused("GET", f"{PATH}?user_id=@b:test.example") == (401, "M_MISSING_TOKEN")
    for token in ("", "m", "x1", "m-1", "m1.5", "m" + "9" * 30, "m%C2%B2"):
        refusal = await alice.refused("GET", f"{PATH}?user_id=@b:test.example&from={token}")
        assert refusal == (400, "M_INVALID_PARAM"), token
