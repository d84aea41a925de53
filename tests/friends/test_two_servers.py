"""Not in the spec: docs/friends.md. Friends on two servers, of which one may be away."""

from __future__ import annotations

import trio

from tests.friends.people import (
    ask,
    block,
    direct_rooms,
    end,
    friends_of,
    path_of,
    say,
    state_content,
    states_of,
    unblock,
)
from tests.support.federation import Federation, until
from tests.support.homeservers import Client


async def are_friends(alice: Client, bob: Client) -> bool:
    return (await states_of(alice), await states_of(bob)) == ({bob.user_id: "friend"}, {alice.user_id: "friend"})


async def rooms_of(client: Client) -> list[str]:
    rooms: list[str] = (await client.ok("GET", "joined_rooms"))["joined_rooms"]
    return rooms


async def is_incoming(client: Client, other: Client) -> bool:
    return (await states_of(client)).get(other.user_id) == "incoming"


async def test_a_request_is_accepted_on_another_server(federation: Federation) -> None:
    _, _, alice, bob = await federation.start_two()
    await alice.ok("PUT", f"profile/{alice.user_id}/displayname", json={"displayname": "Alice"})
    answer = await ask(alice, bob, message="It is me.")
    assert answer["state"] == "outgoing"
    await until(lambda: is_incoming(bob, alice))
    (request,) = await friends_of(bob)
    assert (request["message"], request["display_name"]) == ("It is me.", "Alice")
    assert await ask(bob, alice) == {"state": "friend", "room_id": answer["room_id"]}
    await until(lambda: are_friends(alice, bob))
    assert await direct_rooms(alice, bob) == await direct_rooms(bob, alice) == [answer["room_id"]]


async def test_a_request_is_accepted_by_joining_on_another_server(federation: Federation) -> None:
    _, _, alice, bob = await federation.start_two()
    room_id = (await ask(alice, bob))["room_id"]
    await bob.ok("POST", f"join/{room_id}?server_name=a.example", json={})
    await until(lambda: are_friends(alice, bob))
    assert await direct_rooms(bob, alice) == [room_id]


async def test_a_request_is_refused_on_another_server(federation: Federation) -> None:
    _, _, alice, bob = await federation.start_two()
    await ask(alice, bob)
    await until(lambda: is_incoming(bob, alice))
    await end(bob, alice)
    assert await states_of(bob) == {}

    async def is_over() -> bool:
        return await states_of(alice) == {}

    await until(is_over)


async def test_a_withdrawn_request_is_withdrawn_on_another_server(federation: Federation) -> None:
    _, _, alice, bob = await federation.start_two()
    room_id = (await ask(alice, bob))["room_id"]
    await until(lambda: is_incoming(bob, alice))
    since = (await bob.ok("GET", "sync"))["next_batch"]
    await end(alice, bob)

    async def is_over() -> bool:
        return await states_of(bob) == {}

    await until(is_over)
    assert room_id in (await bob.ok("GET", f"sync?since={since}"))["rooms"]["leave"]


async def test_a_request_waits_for_a_server_that_is_away(federation: Federation) -> None:
    _, _, alice, bob = await federation.start_two()
    federation.network.cut("a.example", "b.example")
    assert (await ask(alice, bob))["state"] == "outgoing"
    await trio.sleep(3 * 3600)
    assert await states_of(bob) == {}
    federation.network.heal()
    await until(lambda: is_incoming(bob, alice))


async def test_a_request_survives_a_crash_of_its_server(federation: Federation) -> None:
    _, _, alice, bob = await federation.start_two()
    federation.network.cut("a.example", "b.example")
    await ask(alice, bob)
    await federation.kill("a.example")
    federation.network.heal()
    await federation.start("a.example")
    await until(lambda: is_incoming(bob, alice))


async def test_a_withdrawn_request_that_never_arrived_does_not_arrive(federation: Federation) -> None:
    _, _, alice, bob = await federation.start_two()
    federation.network.cut("a.example", "b.example")
    await ask(alice, bob)
    await end(alice, bob)
    federation.network.heal()
    await trio.sleep(3600)
    assert await states_of(bob) == await states_of(alice) == {}
    assert "rooms" not in await bob.ok("GET", "sync")


async def test_requests_that_cross_become_one_conversation(federation: Federation) -> None:
    a, _, alice, bob = await federation.start_two()
    federation.network.cut("a.example", "b.example")
    first, second = await ask(alice, bob), await ask(bob, alice)
    assert first["state"] == second["state"] == "outgoing"
    federation.network.heal()
    await until(lambda: are_friends(alice, bob))
    chosen, other = sorted([first["room_id"], second["room_id"]])

    async def is_tidy() -> bool:
        return await rooms_of(alice) == await rooms_of(bob) == [chosen]

    await until(is_tidy)
    assert await direct_rooms(alice, bob) == await direct_rooms(bob, alice) == [chosen]
    loser = alice if first["room_id"] == other else bob
    assert (await state_content(loser, other, "m.room.tombstone"))["replacement_room"] == chosen
    for client in (alice, bob):
        assert "invite" not in (await client.ok("GET", "sync"))["rooms"]


async def test_messages_of_friends_reach_each_other(federation: Federation) -> None:
    _, _, alice, bob = await federation.start_two()
    room_id = (await ask(alice, bob, encrypted=False))["room_id"]
    await until(lambda: is_incoming(bob, alice))
    await ask(bob, alice)
    await say(bob, room_id, "Hello, Alice.")

    async def has_message() -> bool:
        last = (await friends_of(alice))[0]["last_message"]
        return last is not None and last["text"] == "Hello, Alice."

    await until(has_message)
    (friend,) = await friends_of(alice)
    assert friend["unread"] == 1


async def test_a_server_that_does_not_exist_is_not_asked_for_friends(federation: Federation) -> None:
    _, _, alice, _ = await federation.start_two()
    path = path_of("@carol:nowhere.example")
    assert await alice.refused("PUT", path, json={}) == (404, "M_NOT_FOUND")
    assert await states_of(alice) == {}
    assert await rooms_of(alice) == []


async def test_a_user_who_does_not_exist_on_another_server_cannot_be_asked(federation: Federation) -> None:
    _, _, alice, _ = await federation.start_two()
    assert await alice.refused("PUT", path_of("@nobody:b.example"), json={}) == (404, "M_NOT_FOUND")
    assert await states_of(alice) == {}


async def test_a_deactivated_account_on_another_server_cannot_be_asked(federation: Federation) -> None:
    _, _, alice, bob = await federation.start_two()
    await bob.ok("POST", "account/deactivate", json={"auth": bob.password_auth()})
    status, errcode = await alice.refused("PUT", path_of(bob.user_id), json={})
    assert (status, errcode) in [(404, "M_NOT_FOUND"), (403, "M_FORBIDDEN")]
    assert await states_of(alice) == {}
    assert await rooms_of(alice) == []


async def test_a_request_of_a_blocked_person_looks_unanswered_to_them(federation: Federation) -> None:
    _, _, alice, bob = await federation.start_two()
    await block(bob, alice)
    assert (await ask(alice, bob, message="Please?"))["state"] == "outgoing"
    await trio.sleep(3600)
    assert await states_of(alice) == {bob.user_id: "outgoing"}
    assert await states_of(bob) == {}
    assert "rooms" not in await bob.ok("GET", "sync")
    await unblock(bob, alice)
    assert await states_of(bob) == {alice.user_id: "incoming"}


async def test_crossing_requests_make_no_friends_of_people_who_block_each_other(federation: Federation) -> None:
    _, _, alice, bob = await federation.start_two()
    federation.network.cut("a.example", "b.example")
    await ask(alice, bob)
    await ask(bob, alice)
    await block(alice, bob)
    await block(bob, alice)
    federation.network.heal()
    await trio.sleep(3600)
    assert await states_of(alice) == await states_of(bob) == {}
