"""What is not in the room's history: typing, receipts, presence, messages to devices, device lists."""

from __future__ import annotations

from urllib.parse import quote

from tests.interop.clients import Client
from tests.interop.servers import Server

Sides = tuple[Server, Server]


def two_in_a_room(sides: Sides) -> tuple[Client, Client, str]:
    """Who is here, who is there, and their room, which both have synced."""
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
    alice, bob, _ = two_in_a_room(sides)
    body = {"messages": {bob.user_id: {bob.device_id: {"number": 1}}}}
    alice.v3("PUT", f"/sendToDevice/org.example.test/{alice.localpart}", body)
    bob.wait("the message", lambda: bob.to_device)
    assert [(event["type"], event["sender"], event["content"]) for event in bob.to_device] == [
        ("org.example.test", alice.user_id, {"number": 1})
    ]
    bob.sync()
    bob.sync()
    assert len(bob.to_device) == 1


def test_device_keys(sides: Sides) -> None:
    alice, bob, _ = two_in_a_room(sides)
    device = {
        "user_id": alice.user_id,
        "device_id": alice.device_id,
        "algorithms": ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"],
        "keys": {
            f"curve25519:{alice.device_id}": "3C5BFWi2Y8MaVvjM8M22DBmh24PmgR0nPvJOIArzgyI",
            f"ed25519:{alice.device_id}": "lEuiRJBit0IG6nUf5pUzWTUEsRVVe/HJkoKuEww9ULI",
        },
        "signatures": {alice.user_id: {f"ed25519:{alice.device_id}": "c2lnbmF0dXJl"}},
    }
    one_time_key = {
        "signed_curve25519:AAAAAQ": {"key": "zKbLg+NrIjpnagy+pIY6uPL4ZwEG2v+8F9lmgsnlZzs", "signatures": {}}
    }
    alice.v3("POST", "/keys/upload", {"device_keys": device, "one_time_keys": one_time_key})
    bob.wait("device list changed", lambda: alice.user_id in bob.devices_changed)
    answer = bob.v3("POST", "/keys/query", {"device_keys": {alice.user_id: []}})
    got = answer["device_keys"][alice.user_id][alice.device_id]
    assert {key: got[key] for key in ("keys", "algorithms", "user_id", "device_id")} == {
        key: device[key] for key in ("keys", "algorithms", "user_id", "device_id")
    }
    claim = {"one_time_keys": {alice.user_id: {alice.device_id: "signed_curve25519"}}}
    claimed = bob.v3("POST", "/keys/claim", claim)["one_time_keys"][alice.user_id][alice.device_id]
    assert claimed["signed_curve25519:AAAAAQ"]["key"] == one_time_key["signed_curve25519:AAAAAQ"]["key"]
    again = bob.v3("POST", "/keys/claim", claim)["one_time_keys"]
    assert not again.get(alice.user_id, {}).get(alice.device_id)
