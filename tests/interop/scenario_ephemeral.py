"""What is not in the history of the room: typing, receipts, presence, messages to devices."""

from __future__ import annotations

from urllib.parse import quote

from tests.interop.clients import Client
from tests.interop.servers import Server

Sides = tuple[Server, Server]


def two_in_a_room(sides: Sides) -> tuple[Client, Client, str]:
    """Returns a user of each server and the room that both have synced."""
    here, there = sides
    alice, bob = Client(here, "alice"), Client(there, "bob")
    room_id = alice.create_room("12", preset="public_chat")
    bob.join(room_id, via=here)
    alice.wait("joined", lambda: alice.membership_of(room_id, bob.user_id) == "join")
    bob.sync()
    alice.sync()
    return alice, bob, room_id


def test_typing(sides: Sides) -> None:
    alice, bob, room_id = two_in_a_room(sides)
    path = f"/rooms/{quote(room_id)}/typing/{quote(alice.user_id)}"

    def typists() -> list[str]:
        return bob.ephemeral.get((room_id, "m.typing"), {}).get("user_ids", [])

    alice.v3("PUT", path, {"typing": True, "timeout": 30000})
    bob.wait("typing", lambda: typists() == [alice.user_id])
    alice.v3("PUT", path, {"typing": False})
    bob.wait("typing no longer", lambda: typists() == [])


def test_receipts(sides: Sides) -> None:
    alice, bob, room_id = two_in_a_room(sides)
    event_id = alice.send(room_id, "read this")
    bob.wait_message(room_id, "read this")
    bob.v3("POST", f"/rooms/{quote(room_id)}/receipt/m.read/{quote(event_id)}", {})

    def readers() -> dict[str, object]:
        receipts = alice.ephemeral.get((room_id, "m.receipt"), {})
        by_user: dict[str, object] = receipts.get(event_id, {}).get("m.read", {})
        return by_user

    alice.wait("a receipt", lambda: bob.user_id in readers())


def test_presence(sides: Sides) -> None:
    alice, bob, _ = two_in_a_room(sides)
    status = f"busy with {bob.localpart}"
    path = f"/presence/{quote(alice.user_id)}/status"
    alice.v3("PUT", path, {"presence": "online", "status_msg": status})
    bob.wait("presence", lambda: bob.presence.get(alice.user_id, {}).get("status_msg") == status)


def test_message_to_a_device(sides: Sides) -> None:
    """A message to a device arrives once."""
    alice, bob, _ = two_in_a_room(sides)
    alice.send_to_device(bob, {"number": 1})
    bob.wait("the message", lambda: bob.to_device)
    bob.sync()
    bob.sync(timeout_ms=1000)
    assert [(event["type"], event["sender"], event["content"]) for event in bob.to_device] == [
        ("org.example.test", alice.user_id, {"number": 1})
    ]


def test_delivered_receipts_change_nothing_for_others(sides: Sides) -> None:
    """Receipts of a type of our own: a server that does not know it goes on showing who has read what."""
    alice, bob, room_id = two_in_a_room(sides)
    event_id = alice.send(room_id, "has this arrived?")
    bob.wait_message(room_id, "has this arrived?")
    bob.sync()  # acknowledges it
    bob.sync(timeout_ms=2000)
    reply = bob.send(room_id, "yes")
    alice.wait_message(room_id, "yes")
    alice.sync(timeout_ms=2000)
    receipts = alice.ephemeral.get((room_id, "m.receipt"), {})
    assert all(set(kinds) <= {"m.read", "org.homeserver.delivered"} for kinds in receipts.values())
    assert bob.user_id not in receipts.get(event_id, {}).get("m.read", {})
    alice.v3("POST", f"/rooms/{quote(room_id)}/receipt/m.read/{quote(reply)}", {})

    def is_read() -> bool:
        by_user = bob.ephemeral.get((room_id, "m.receipt"), {}).get(reply, {}).get("m.read", {})
        return alice.user_id in by_user

    bob.wait("a receipt after a delivered one", is_read)
    counts = {event["event_id"] for event in alice.history(room_id) if event["type"] == "m.room.message"}
    assert counts == {event_id, reply}
