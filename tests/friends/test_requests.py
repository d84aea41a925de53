"""Not in the spec: docs/friends.md. Asking, accepting, refusing, cancelling and ending, on one server."""

from __future__ import annotations

import pytest
import trio

from homeserver.config import Friends, Registration, Rooms
from tests.friends.people import (
    OURS,
    ask,
    direct_rooms,
    end,
    friends_of,
    path_of,
    say,
    state_content,
    states_of,
    wait_joined,
    wait_states,
)
from tests.support.homeservers import Client, Homeservers, Server


async def test_a_request_is_outgoing_here_and_incoming_there(alice: Client, bob: Client) -> None:
    answer = await ask(alice, bob, message="From the allotment?")
    assert answer["state"] == "outgoing"
    assert await states_of(alice) == {bob.user_id: "outgoing"}
    (request,) = await friends_of(bob)
    assert request["user_id"] == alice.user_id
    assert request["state"] == "incoming"
    assert request["room_id"] == answer["room_id"]
    assert request["message"] == "From the allotment?"


async def test_a_request_is_accepted_by_asking_too(alice: Client, bob: Client) -> None:
    room_id = (await ask(alice, bob))["room_id"]
    assert await ask(bob, alice) == {"state": "friend", "room_id": room_id}
    assert await states_of(alice) == {bob.user_id: "friend"}
    assert await states_of(bob) == {alice.user_id: "friend"}


async def test_a_request_is_accepted_by_joining_in_any_client(alice: Client, bob: Client) -> None:
    room_id = (await ask(alice, bob))["room_id"]
    invited = (await bob.ok("GET", "sync"))["rooms"]["invite"]
    assert list(invited) == [room_id]
    await bob.ok("POST", f"rooms/{room_id}/join", json={})
    await wait_states(bob, {alice.user_id: "friend"})
    await wait_states(alice, {bob.user_id: "friend"})
    assert await direct_rooms(bob, alice) == [room_id]


async def test_repeated_requests_change_nothing(alice: Client, bob: Client) -> None:
    first = await ask(alice, bob)
    assert await ask(alice, bob, message="Hello?") == first
    accepted = await ask(bob, alice)
    assert await ask(bob, alice) == accepted
    assert await ask(alice, bob) == accepted
    assert (await alice.ok("GET", "joined_rooms"))["joined_rooms"] == [first["room_id"]]


async def test_both_people_have_the_conversation_among_their_direct_chats(alice: Client, bob: Client) -> None:
    room_id = (await ask(alice, bob))["room_id"]
    assert await direct_rooms(alice, bob) == [room_id]
    await ask(bob, alice)
    assert await direct_rooms(bob, alice) == [room_id]


async def test_a_refused_request_ends_for_both(alice: Client, bob: Client) -> None:
    await ask(alice, bob)
    await end(bob, alice)
    assert await states_of(alice) == await states_of(bob) == {}


async def test_a_cancelled_request_ends_for_both(alice: Client, bob: Client) -> None:
    await ask(alice, bob)
    await end(alice, bob)
    assert await states_of(alice) == await states_of(bob) == {}
    assert "rooms" not in await bob.ok("GET", "sync")


async def test_a_request_cancelled_by_leaving_in_any_client_is_withdrawn(alice: Client, bob: Client) -> None:
    room_id = (await ask(alice, bob))["room_id"]
    since = (await bob.ok("GET", "sync"))["next_batch"]
    await alice.ok("POST", f"rooms/{room_id}/leave", json={})
    await wait_states(alice, {})
    await wait_states(bob, {})
    assert room_id in (await bob.ok("GET", f"sync?since={since}"))["rooms"]["leave"]


async def test_the_end_leaves_the_conversation_as_history_for_both(alice: Client, bob: Client) -> None:
    room_id = (await ask(alice, bob, encrypted=False))["room_id"]
    await ask(bob, alice)
    await say(alice, room_id, "The beans are up.")
    await end(alice, bob)
    assert await states_of(alice) == await states_of(bob) == {}
    for client in (alice, bob):
        messages = (await client.ok("GET", f"rooms/{room_id}/messages?dir=b"))["chunk"]
        assert "The beans are up." in [event["content"].get("body") for event in messages]


async def test_friends_who_ended_it_can_begin_again_in_one_conversation(alice: Client, bob: Client) -> None:
    old = (await ask(alice, bob))["room_id"]
    await ask(bob, alice)
    await end(alice, bob)
    new = (await ask(alice, bob))["room_id"]
    assert await ask(bob, alice) == {"state": "friend", "room_id": new}
    await wait_joined(bob, new)
    await wait_joined(alice, new)
    tombstone = await state_content(bob, old, "m.room.tombstone")
    assert tombstone["replacement_room"] == new
    assert await direct_rooms(bob, alice) == [new]


async def test_a_person_who_was_left_goes_on_in_the_same_conversation(alice: Client, bob: Client) -> None:
    room_id = (await ask(alice, bob))["room_id"]
    await ask(bob, alice)
    await end(alice, bob)
    assert await ask(bob, alice) == {"state": "outgoing", "room_id": room_id}
    assert await ask(alice, bob) == {"state": "friend", "room_id": room_id}


async def test_ending_what_never_was_changes_nothing(alice: Client, bob: Client) -> None:
    await end(alice, bob)
    assert await states_of(alice) == {}


# --- the conversation ---


async def test_a_conversation_is_encrypted_by_default(alice: Client, bob: Client) -> None:
    room_id = (await ask(alice, bob))["room_id"]
    assert await state_content(alice, room_id, "m.room.encryption") == {"algorithm": "m.megolm.v1.aes-sha2"}


async def test_a_conversation_is_not_encrypted_if_the_client_says_so(alice: Client, bob: Client) -> None:
    room_id = (await ask(alice, bob, encrypted=False))["room_id"]
    assert (await alice.get(f"rooms/{room_id}/state/m.room.encryption/")).status_code == 404


async def test_a_conversation_is_not_encrypted_if_the_operator_says_so(homeservers: Homeservers) -> None:
    server = await homeservers.start(friends=Friends(encrypted=False))
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = (await ask(alice, bob))["room_id"]
    assert (await alice.get(f"rooms/{room_id}/state/m.room.encryption/")).status_code == 404


@pytest.mark.parametrize("version", ["11", "12"])
async def test_both_people_have_the_same_power(homeservers: Homeservers, version: str) -> None:
    server = await homeservers.start(rooms=Rooms(default_version=version))
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = (await ask(alice, bob))["room_id"]
    await ask(bob, alice)
    create = await state_content(alice, room_id, "m.room.create")
    users = (await state_content(alice, room_id, "m.room.power_levels"))["users"]
    assert create["org.homeserver.friend"] is True
    assert create["room_version"] == version
    if version == "12":
        assert create["additional_creators"] == [bob.user_id]
    else:
        assert users == {alice.user_id: 100, bob.user_id: 100}
    for client in (alice, bob):
        await client.ok("PUT", f"rooms/{room_id}/state/m.room.name/", json={"name": client.user_id})


async def test_a_third_person_in_a_conversation_is_not_a_friend(homeserver: Server, alice: Client, bob: Client) -> None:
    room_id = (await ask(alice, bob))["room_id"]
    await ask(bob, alice)
    carol = await homeserver.register("carol")
    await bob.ok("POST", f"rooms/{room_id}/invite", json={"user_id": carol.user_id})
    await carol.ok("POST", f"rooms/{room_id}/join", json={})
    await trio.sleep(10)
    assert await states_of(carol) == {}
    assert await states_of(alice) == {bob.user_id: "friend"}


async def test_a_room_made_by_another_client_is_a_request_if_it_says_so(alice: Client, bob: Client) -> None:
    body = {
        "creation_content": {"org.homeserver.friend": True},
        "is_direct": True,
        "preset": "trusted_private_chat",
        "invite": [bob.user_id],
    }
    room_id = (await alice.ok("POST", "createRoom", json=body))["room_id"]
    await wait_states(alice, {bob.user_id: "outgoing"})
    await wait_states(bob, {alice.user_id: "incoming"})
    assert await ask(bob, alice) == {"state": "friend", "room_id": room_id}


@pytest.mark.parametrize("way", ["public", "invited"])
async def test_a_person_who_enters_a_marked_room_without_a_request_is_no_friend(
    alice: Client, bob: Client, way: str
) -> None:
    body = {"creation_content": {"org.homeserver.friend": True}, "preset": "public_chat", "is_direct": False}
    room_id = (await alice.ok("POST", "createRoom", json=body))["room_id"]
    if way == "invited":
        await alice.ok("POST", f"rooms/{room_id}/invite", json={"user_id": bob.user_id})
    await bob.ok("POST", f"rooms/{room_id}/join", json={})
    member = {"membership": "join", "displayname": "A"}
    for client in (alice, bob):
        await client.ok("PUT", f"rooms/{room_id}/state/m.room.member/{client.user_id}", json=member)
    await trio.sleep(10)
    assert await states_of(bob) == {} and await states_of(alice) == {}
    assert (await ask(alice, bob))["state"] == "outgoing"


# --- refusals ---


async def test_nobody_is_a_friend_of_themselves(alice: Client) -> None:
    assert await alice.refused("PUT", path_of(alice.user_id), json={}) == (400, "M_INVALID_PARAM")


async def test_a_user_who_does_not_exist_cannot_be_asked(alice: Client) -> None:
    assert await alice.refused("PUT", path_of("@nobody:test.example"), json={}) == (404, "M_NOT_FOUND")
    assert (await alice.ok("GET", "joined_rooms"))["joined_rooms"] == []


@pytest.mark.parametrize("user_id", ["bob", "@bob", "#bob:test.example", "@bob:", "@bob:bad server"])
async def test_only_users_can_be_asked(alice: Client, user_id: str) -> None:
    assert await alice.refused("PUT", path_of(user_id), json={}) == (400, "M_INVALID_PARAM")


async def test_a_deactivated_account_cannot_be_asked(alice: Client, bob: Client) -> None:
    await bob.ok("POST", "account/deactivate", json={"auth": bob.password_auth()})
    assert await alice.refused("PUT", path_of(bob.user_id), json={}) == (403, "M_FORBIDDEN")


async def test_the_friend_of_a_deactivated_account_has_lost_it(alice: Client, bob: Client) -> None:
    await ask(alice, bob)
    await ask(bob, alice)
    await bob.ok("POST", "account/deactivate", json={"auth": bob.password_auth()})
    await wait_states(alice, {})


async def test_requests_of_a_deactivated_account_are_withdrawn(alice: Client, bob: Client) -> None:
    await ask(alice, bob)
    await alice.ok("POST", "account/deactivate", json={"auth": alice.password_auth()})
    await wait_states(bob, {})


async def test_guests_have_no_friends(homeservers: Homeservers) -> None:
    server = await homeservers.start(registration=Registration(enabled=True, guests=True))
    alice = await server.register("alice")
    answer = await server.anonymous.ok("POST", "register?kind=guest", json={})
    guest = server.with_token(answer["access_token"])
    assert await guest.refused("PUT", path_of(alice.user_id), json={}) == (403, "M_GUEST_ACCESS_FORBIDDEN")
    assert await guest.refused("GET", f"{OURS}/friends") == (403, "M_GUEST_ACCESS_FORBIDDEN")
    assert await alice.refused("PUT", path_of(answer["user_id"]), json={}) == (403, "M_FORBIDDEN")


async def test_a_message_of_a_request_is_short(alice: Client, bob: Client) -> None:
    assert await alice.refused("PUT", path_of(bob.user_id), json={"message": "x" * 1001}) == (400, "M_INVALID_PARAM")


@pytest.mark.parametrize("body", [{"message": 7}, {"encrypted": "yes"}, {"message": None}])
async def test_a_request_of_the_wrong_shape_is_refused(alice: Client, bob: Client, body: dict[str, object]) -> None:
    assert await alice.refused("PUT", path_of(bob.user_id), json=body) == (400, "M_BAD_JSON")


async def test_friends_can_be_turned_off(homeservers: Homeservers) -> None:
    server = await homeservers.start(friends=Friends(enabled=False))
    alice = await server.register("alice")
    assert await alice.refused("GET", f"{OURS}/friends") == (404, "M_UNRECOGNIZED")
    assert await alice.refused("PUT", path_of("@bob:test.example"), json={}) == (404, "M_UNRECOGNIZED")
