"""Two people of two servers in one room: invite, join, talk, and the same room on both sides."""

from __future__ import annotations

import functools

import pytest

from tests.interop.clients import Client, wait_until
from tests.interop.servers import Server

VERSIONS = ("12", "11", "10", "6", "1")

Sides = tuple[Server, Server]


def assert_same_state(room_id: str, alice: Client, bob: Client) -> None:
    """Waits until both servers have the same state events, as they have to sooner or later."""
    wait_until("the same state on both sides", lambda: alice.state(room_id) == bob.state(room_id))
    assert alice.joined_members(room_id) == bob.joined_members(room_id)


@pytest.mark.parametrize("version", VERSIONS)
def test_invite_and_talk(sides: Sides, version: str) -> None:
    here, there = sides
    alice, bob = Client(here, "alice"), Client(there, "bob")
    room_id = alice.create_room(version, preset="private_chat", name="Two of us", invite=[bob.user_id])
    stripped = bob.wait_invite(room_id)
    assert {"m.room.create", "m.room.member"} <= {event["type"] for event in stripped}
    assert [event["content"]["name"] for event in stripped if event["type"] == "m.room.name"] == ["Two of us"]
    assert bob.join(room_id) == room_id
    alice.wait("the invited joins", lambda: alice.membership_of(room_id, bob.user_id) == "join")
    alice.send(room_id, "hello over there")
    bob.wait_message(room_id, "hello over there")
    bob.send(room_id, "hello back")
    assert alice.wait_message(room_id, "hello back")["sender"] == bob.user_id
    bob.send(room_id, "söme ünicode \U0001f600 \u2028 \u0000")
    alice.wait_message(room_id, "söme ünicode \U0001f600 \u2028 \u0000")
    assert_same_state(room_id, alice, bob)
    bob.membership("leave", room_id)
    alice.wait("the other leaves", lambda: alice.membership_of(room_id, bob.user_id) == "leave")
    bob.wait("left by oneself", lambda: room_id in bob.left)


@pytest.mark.parametrize("version", ("12", "10"))
def test_state_travels_both_ways(sides: Sides, version: str) -> None:
    here, there = sides
    alice, bob = Client(here, "alice"), Client(there, "bob")
    levels = {"users": {bob.user_id: 60} | ({} if version == "12" else {alice.user_id: 100})}
    room_id = alice.create_room(
        version, preset="public_chat", initial_state=[{"type": "org.example.a", "state_key": "x", "content": {"n": 1}}]
    )
    alice.set_state(room_id, "m.room.power_levels", levels)
    bob.join(room_id, via=here)
    assert bob.state_content(room_id, "org.example.a", "x") == {"n": 1}
    topic_id = bob.set_state(room_id, "m.room.topic", {"topic": "from there"})
    wait_until("the topic", lambda: alice.state(room_id).get(("m.room.topic", "")) == topic_id)
    name_id = alice.set_state(room_id, "m.room.name", {"name": "from here"})
    wait_until("the name", lambda: bob.state(room_id).get(("m.room.name", "")) == name_id)
    assert_same_state(room_id, alice, bob)


def test_several_of_each_server(sides: Sides) -> None:
    here, there = sides
    alice, carol = Client(here, "alice"), Client(here, "carol")
    bob, dave = Client(there, "bob"), Client(there, "dave")
    room_id = alice.create_room("12", preset="public_chat")
    carol.join(room_id)
    bob.join(room_id, via=here)
    dave.join(room_id, via=here)
    everybody = (alice, carol, bob, dave)
    for client in everybody:
        wait_until("all members", lambda client=client: len(client.joined_members(room_id)) == len(everybody))
    for client in everybody:
        client.send(room_id, f"I am {client.localpart}")
    for client in everybody:
        for other in everybody:
            client.wait_message(room_id, f"I am {other.localpart}")


@pytest.mark.parametrize("version", ("12", "1"))
def test_unusual_content(sides: Sides, version: str) -> None:
    """Unusual JSON and events near the size limit arrive unchanged, so hashes and signatures were correct."""
    here, there = sides
    alice, bob = Client(here, "alice"), Client(there, "bob")
    room_id = alice.create_room(version, preset="public_chat")
    bob.join(room_id, via=here)
    contents = [
        {"body": "numbers", "n": [0, -1, 2**53 - 1, -(2**53) + 1, True, None]},
        {"body": "keys", "": {"": []}, "\u00e9": 1, "e\u0301": 2, "\U0001f600": 3, "\uffff": 4, "a b": {"\n": "\t"}},
        {"body": "controls", "s": "".join(map(chr, [*range(1, 32), 127, 0x2028, 0x2029, 0xFEFF, 0xFFFD, 0x10FFFF]))},
        {"body": "large", "s": "\u00fc" * 30000},
        {"body": "deep", "d": functools.reduce(lambda inner, _: [inner], range(60), {"a": [{}]})},
    ]
    for sender, reader in ((alice, bob), (bob, alice)):
        for content in contents:
            marked = content | {"by": sender.user_id}
            event_id = sender.send_event(room_id, "org.example.unusual", marked)
            what = f"{content['body']} from {sender}"
            found = wait_until(what, lambda: reader.event(room_id, event_id))  # noqa: B023 (called at once)
            assert found is not None and found["content"] == marked


def test_crossing_messages(sides: Sides) -> None:
    """Both sides talk at once, so that their events cite different heads again and again."""
    here, there = sides
    alice, bob = Client(here, "alice"), Client(there, "bob")
    room_id = alice.create_room("12", preset="public_chat")
    bob.join(room_id, via=here)
    assert_same_state(room_id, alice, bob)
    said = set()
    for number in range(40):
        said.add(alice.send(room_id, f"here {number}"))
        said.add(bob.send(room_id, f"there {number}"))
        if number % 10 == 0:
            alice.set_state(room_id, "org.example.counter", {"n": number}, "x")
    for client in (alice, bob):
        what = f"{client} has them all"
        wait_until(what, lambda: said <= {event["event_id"] for event in client.history(room_id)})  # noqa: B023
    assert_same_state(room_id, alice, bob)


@pytest.mark.parametrize("version", ("12", "11", "10", "1"))
def test_redaction(sides: Sides, version: str) -> None:
    here, there = sides
    alice, bob = Client(here, "alice"), Client(there, "bob")
    room_id = alice.create_room(version, preset="public_chat")
    bob.join(room_id, via=here)
    by_bob = bob.send(room_id, "said there")
    by_alice = alice.send(room_id, "said here")
    alice.wait_message(room_id, "said there")
    bob.wait_message(room_id, "said here")

    def is_redacted(client: Client, event_id: str) -> bool:
        event = client.event(room_id, event_id)
        return event is not None and event["content"] == {} and "redacted_because" in event.get("unsigned", {})

    bob.redact(room_id, by_bob)  # one's own
    wait_until("own message redacted", lambda: is_redacted(alice, by_bob) and is_redacted(bob, by_bob))
    alice.redact(room_id, by_alice)
    wait_until("own message redacted", lambda: is_redacted(bob, by_alice) and is_redacted(alice, by_alice))
    again = bob.send(room_id, "said there again")
    alice.wait_message(room_id, "said there again")
    alice.redact(room_id, again)  # another's, by power
    wait_until("other's message redacted", lambda: is_redacted(bob, again) and is_redacted(alice, again))
