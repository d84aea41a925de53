"""Spec: MSC3884, MSC3885, MSC3959, MSC3960, MSC3961: extensions of sliding sync."""

from __future__ import annotations

import pytest

from homeserver.users.receipts import SPAN_BY_POSITION_MAX
from tests.support.homeservers import Server
from tests.support.people import path_of, public_room, say
from tests.support.sliding import EVERY_EXTENSION, Connection, Json, window


async def test_extensions_tell_what_features_know(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    (event_id,) = await say(bob, room_id, "hello")
    client = Connection(alice, {"lists": {"all": window()}, "extensions": EVERY_EXTENSION})
    told = (await client.ask())["extensions"]
    assert {event["type"] for event in told["account_data"]["global"]} == {"m.push_rules"}
    assert told["e2ee"]["device_one_time_keys_count"] == {"signed_curve25519": 0}
    assert told["to_device"]["events"] == []
    await bob.ok("POST", path_of(room_id, "receipt", "m.read", event_id), json={})
    await bob.ok("PUT", path_of(room_id, "typing", bob.user_id), json={"typing": True})
    await alice.ok("PUT", f"user/{alice.user_id}/{path_of(room_id)}/account_data/org.example", json={"a": 1})
    answer = await client.ask(timeout=10_000)
    told = answer["extensions"]
    assert answer["rooms"] == {}
    assert bob.user_id in told["receipts"]["rooms"][room_id]["content"][event_id]["m.read"]
    assert told["typing"]["rooms"][room_id]["content"] == {"user_ids": [bob.user_id]}
    assert [event["type"] for event in told["account_data"]["rooms"][room_id]] == ["org.example"]
    told = (await client.ask())["extensions"]
    assert not {"receipts", "typing", "account_data"} & set(told)


async def test_an_extension_that_is_enabled_later_tells_everything(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    (event_id,) = await say(bob, room_id, "hello")
    await bob.ok("POST", path_of(room_id, "receipt", "m.read", event_id), json={})
    client = Connection(alice)
    assert (await client.ask())["extensions"] == {}
    client.body["extensions"] = {"receipts": {"enabled": True}, "account_data": {"enabled": True}}
    told = (await client.ask())["extensions"]
    assert event_id in told["receipts"]["rooms"][room_id]["content"]
    assert told["account_data"]["global"]
    assert (await client.ask())["extensions"] == {}


async def test_receipts_of_a_room_out_of_view_are_told_when_it_comes_back(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    first = await public_room(alice, bob)
    (event_id,) = await say(bob, first, "hello")
    body = {"lists": {"top": window(0, 0)}, "extensions": {"receipts": {"enabled": True}}}
    client = Connection(alice, body)
    await client.ask()
    await public_room(alice, bob)
    await client.ask()
    await bob.ok("POST", path_of(first, "receipt", "m.read", event_id), json={})
    assert "receipts" not in (await client.ask())["extensions"]
    client.body = {**body, "lists": {"top": window(0, 1)}}
    assert event_id in (await client.ask())["extensions"]["receipts"]["rooms"][first]["content"]


@pytest.mark.parametrize("extensions", [{}, EVERY_EXTENSION], ids=["without-receipts", "with-receipts"])
@pytest.mark.parametrize("kind", ["m.read", "m.read.private"])
async def test_counts_go_when_the_user_reads_on_any_device(server: Server, extensions: Json, kind: str) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    client = Connection(alice, {"lists": {"all": window()}, "extensions": extensions})
    await client.ask()
    (event_id,) = await say(bob, room_id, "hello")
    assert (await client.ask())["rooms"][room_id]["notification_count"] == 1
    await alice.ok("POST", path_of(room_id, "receipt", kind, event_id), json={})
    assert (await client.ask())["rooms"] == {room_id: {"notification_count": 0, "highlight_count": 0}}
    await bob.ok("POST", path_of(room_id, "receipt", kind, event_id), json={})
    assert (await client.ask())["rooms"] == {}


async def test_counts_of_a_room_are_told_however_long_ago_the_user_has_read_it(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    (event_id,) = await say(bob, room_id, "hello")
    client = Connection(alice)
    await client.ask()
    await alice.ok("POST", path_of(room_id, "receipt", "m.read", event_id), json={})
    await server.write(lambda tx: [tx.next_position() for _ in range(SPAN_BY_POSITION_MAX)])
    assert (await client.ask())["rooms"][room_id]["notification_count"] == 0


async def test_messages_to_devices_are_told_until_they_are_acknowledged(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    body = {"messages": {alice.user_id: {"*": {"a": 1}}}}
    await bob.ok("PUT", "sendToDevice/org.example/1", json=body)
    client = Connection(alice, {"extensions": {"to_device": {"enabled": True}}})
    first = (await client.ask())["extensions"]["to_device"]
    assert [event["type"] for event in first["events"]] == ["org.example"]
    assert (await client.ask())["extensions"]["to_device"]["events"] == first["events"]
    client.body = {"extensions": {"to_device": {"enabled": True, "since": first["next_batch"]}}}
    assert (await client.ask())["extensions"]["to_device"]["events"] == []
    client.body, client.pos = {"extensions": {"to_device": {"enabled": True}}}, None
    assert (await client.ask())["extensions"]["to_device"]["events"] == []


async def test_changed_keys_are_reported(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    client = Connection(alice, {"extensions": {"e2ee": {"enabled": True}}})
    await client.ask()
    await public_room(alice, bob)
    told = (await client.ask())["extensions"]["e2ee"]
    assert bob.user_id in told["device_lists"]["changed"]
    assert "device_lists" not in (await client.ask())["extensions"]["e2ee"]


async def test_a_direct_chat_is_marked(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    client = Connection(alice)
    assert "is_dm" not in (await client.ask())["rooms"][room_id]
    await alice.ok("PUT", f"user/{alice.user_id}/account_data/m.direct", json={bob.user_id: [room_id]})
    assert (await client.ask(timeout=10_000))["rooms"][room_id]["is_dm"] is True
    assert (await client.ask())["rooms"] == {}
    await alice.ok("PUT", f"user/{alice.user_id}/account_data/m.direct", json={})
    assert (await client.ask())["rooms"][room_id]["is_dm"] is False
