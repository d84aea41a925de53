"""Friends between our server, which knows what a friend is, and Synapse, where a friend is a direct chat."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from tests.interop.clients import Client, wait_until
from tests.interop.servers import World

OURS = "/_homeserver/client/v1"


def friends_of(client: Client) -> dict[str, dict[str, Any]]:
    """Each friend and request of a user of our server, by user ID."""
    return {each["user_id"]: each for each in client.call("GET", f"{OURS}/friends")["friends"]}


def ask(client: Client, user_id: str, **body: Any) -> dict[str, Any]:
    answer: dict[str, Any] = client.call("PUT", f"{OURS}/friends/{quote(user_id, safe='')}", body)
    return answer


def wait_state(client: Client, user_id: str, state: str | None) -> None:
    def is_so() -> bool:
        return friends_of(client).get(user_id, {}).get("state") == state

    wait_until(f"{user_id} is {state} for {client}", is_so)


def test_a_person_on_synapse_becomes_a_friend_and_talks(world: World) -> None:
    alice, bob = Client(world.ours, "alice"), Client(world.synapse, "bob")
    answer = ask(alice, bob.user_id, message="Do you remember me?", encrypted=False)
    assert answer["state"] == "outgoing"
    room_id = answer["room_id"]
    stripped = bob.wait_invite(room_id)
    invitation = next(event for event in stripped if event.get("state_key") == bob.user_id)
    assert invitation["content"]["is_direct"] is True
    assert invitation["content"]["reason"] == "Do you remember me?"
    bob.join(room_id)
    wait_state(alice, bob.user_id, "friend")
    alice.send(room_id, "Hello over there")
    bob.wait_message(room_id, "Hello over there")
    bob.send(room_id, "Hello, Alice")
    alice.wait_message(room_id, "Hello, Alice")
    last = friends_of(alice)[bob.user_id]["last_message"]
    assert (last["sender"], last["text"]) == (bob.user_id, "Hello, Alice")
    bob.set_state(room_id, "m.room.name", {"name": "Bob has the same power"})
    bob.membership("leave", room_id)
    wait_state(alice, bob.user_id, None)


def test_a_person_on_synapse_asks_with_a_direct_room_that_says_so(world: World) -> None:
    alice, bob = Client(world.ours, "alice"), Client(world.synapse, "bob")
    room_id = bob.create_room(
        "12",
        preset="trusted_private_chat",
        is_direct=True,
        creation_content={"org.homeserver.friend": True},
        invite=[alice.user_id],
    )
    wait_state(alice, bob.user_id, "incoming")
    assert ask(alice, bob.user_id) == {"state": "friend", "room_id": room_id}
    alice.send(room_id, "I remember")
    bob.wait_message(room_id, "I remember")


def test_a_person_on_synapse_refuses_by_rejecting_the_invitation(world: World) -> None:
    alice, bob = Client(world.ours, "alice"), Client(world.synapse, "bob")
    room_id = ask(alice, bob.user_id)["room_id"]
    bob.wait_invite(room_id)
    bob.membership("leave", room_id)
    wait_state(alice, bob.user_id, None)


def test_a_withdrawn_request_leads_a_person_on_synapse_nowhere(world: World) -> None:
    """Synapse does not know the EDU that withdraws a request: the invitation stays until the person answers it."""
    alice, bob = Client(world.ours, "alice"), Client(world.synapse, "bob")
    room_id = ask(alice, bob.user_id)["room_id"]
    bob.wait_invite(room_id)
    alice.call("DELETE", f"{OURS}/friends/{quote(bob.user_id, safe='')}")
    wait_state(alice, bob.user_id, None)
    bob.wait_invite(room_id)
    bob.membership("leave", room_id)
    again = ask(alice, bob.user_id, encrypted=False)["room_id"]
    assert again != room_id
    bob.wait_invite(again)
    bob.join(again)
    wait_state(alice, bob.user_id, "friend")
