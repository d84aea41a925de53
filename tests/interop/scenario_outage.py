"""Servers that go away and come back, and a wire that is cut: nothing is lost, and both sides agree in the end."""

from __future__ import annotations

import time

import pytest

from tests.interop.clients import Client, RequestFailed, wait_until
from tests.interop.scenario_conversation import assert_same_state
from tests.interop.servers import Server, World

Sides = tuple[Server, Server]

CATCH_UP_TIMEOUT_S = 90.0


def wait_texts(client: Client, room_id: str, texts: list[str]) -> None:
    """Waits until the user can read them all."""

    def have_all() -> bool:
        client.sync()
        return set(texts) <= {event.get("content", {}).get("body") for event in client.history(room_id)}

    wait_until(f"{client} reads {len(texts)} messages", have_all, CATCH_UP_TIMEOUT_S)


@pytest.mark.parametrize("version", ("12",))
def test_restart_of_the_other_side(sides: Sides, version: str) -> None:
    """Messages sent while a server is down arrive once it is up."""
    here, there = sides
    alice, bob = Client(here, "alice"), Client(there, "bob")
    room_id = alice.create_room(version, preset="public_chat")
    bob.join(room_id, via=here)
    bob.send(room_id, "before the restart")
    alice.wait_message(room_id, "before the restart")
    assert_same_state(room_id, alice, bob)  # a join goes on for a while after it was answered
    there.stop()
    said = [f"while it was down {number}" for number in range(60)]
    for text in said:
        alice.send(room_id, text)
    there.start()
    wait_texts(bob, room_id, said)
    bob.send(room_id, "after the restart")
    alice.wait_message(room_id, "after the restart")
    assert_same_state(room_id, alice, bob)


def test_restart_with_messages_not_yet_sent(sides: Sides, world: World) -> None:
    """Messages that a server could not deliver before it was stopped are delivered when it runs again."""
    here, there = sides
    alice, bob = Client(here, "alice"), Client(there, "bob")
    room_id = alice.create_room("12", preset="public_chat")
    bob.join(room_id, via=here)
    alice.wait("joined", lambda: alice.membership_of(room_id, bob.user_id) == "join")
    assert_same_state(room_id, alice, bob)
    world.cut()
    said = [f"not delivered yet {number}" for number in range(5)]
    for text in said:
        alice.send(room_id, text)
    time.sleep(1)
    here.stop()
    world.mend()
    here.start()
    said.append("and one more")
    alice.send(room_id, said[-1])
    wait_texts(bob, room_id, said)
    assert_same_state(room_id, alice, bob)


@pytest.mark.parametrize("version", ("12", "10", "1"))
def test_partition(world: World, version: str) -> None:
    """Both sides change the same state while they do not hear of each other; then they agree."""
    alice, bob = Client(world.ours, "alice"), Client(world.synapse, "bob")
    guest = Client(world.synapse, "guest")
    room_id = alice.create_room(version, preset="public_chat")
    bob.join(room_id, via=world.ours)
    guest.join(room_id, via=world.ours)
    levels = {"users": {bob.user_id: 50} | ({} if version == "12" else {alice.user_id: 100})}
    levels_id = alice.set_state(room_id, "m.room.power_levels", levels)
    wait_until("power", lambda: bob.state(room_id).get(("m.room.power_levels", "")) == levels_id)
    assert_same_state(room_id, alice, bob)
    world.cut()
    here = ["here 1", "here 2"]
    there = ["there 1", "there 2"]
    alice.send(room_id, here[0])
    bob.send(room_id, there[0])
    alice.set_state(room_id, "m.room.topic", {"topic": "here"})
    bob.set_state(room_id, "m.room.topic", {"topic": "there"})
    bob.set_state(room_id, "m.room.name", {"name": "there"})
    alice.set_state(room_id, "org.example.here", {"n": 1}, "x")
    alice.membership("ban", room_id, guest.user_id)
    guest.send(room_id, "I know of no ban")
    guest.set_state(room_id, "m.room.member", {"membership": "join", "displayname": "Guest"}, guest.user_id)
    alice.set_state(room_id, "m.room.power_levels", levels | {"state_default": 50, "events": {"m.room.name": 50}})
    alice.send(room_id, here[1])
    bob.send(room_id, there[1])
    world.mend()
    alice.send(room_id, "mended, says alice")
    bob.send(room_id, "mended, says bob")
    everything = [*here, *there, "mended, says alice", "mended, says bob"]
    wait_texts(alice, room_id, everything)
    wait_texts(bob, room_id, everything)
    wait_until("the same state", lambda: alice.state(room_id) == bob.state(room_id), CATCH_UP_TIMEOUT_S)
    assert alice.membership_of(room_id, guest.user_id) == "ban"
    assert bob.state_content(room_id, "org.example.here", "x") == {"n": 1}
    with pytest.raises(RequestFailed):
        guest.send(room_id, "still here?")


def test_messages_to_a_device_while_down(sides: Sides) -> None:
    """Keys of encrypted rooms travel so: none may be lost, and none may come twice."""
    here, there = sides
    alice, bob = Client(here, "alice"), Client(there, "bob")
    room_id = alice.create_room("12", preset="public_chat")
    bob.join(room_id, via=here)
    assert_same_state(room_id, alice, bob)
    bob.sync()
    there.stop()
    for number in range(5):
        alice.send_to_device(bob, {"number": number})
    here.stop()
    here.start()
    there.start()
    alice.send(room_id, "are you back?")
    bob.wait("all of them", lambda: len(bob.to_device) >= 5, CATCH_UP_TIMEOUT_S)
    bob.sync(timeout_ms=1000)
    assert [event["content"]["number"] for event in bob.to_device] == [0, 1, 2, 3, 4]
