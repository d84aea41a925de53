"""Servers tell each other of changed devices and keys. Spec: server-server-api/#device-management"""

from __future__ import annotations

from itertools import pairwise
from typing import Any
from urllib.parse import quote

import trio

from homeserver import limits
from homeserver.federation.identifiers import ServerName
from tests.support.device_lists import follow, is_followed, now, query, told, upload
from tests.support.federation import Federation, create_room, join, sync, until
from tests.support.homeservers import Client, Server
from tests.support.keys import CrossSigning
from tests.support.stranger import Stranger


async def two(federation: Federation) -> tuple[Server, Server, Client, Client, str]:
    """Alice of a.example and Bob of b.example in a room."""
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id, a.name)
    return a, b, alice, bob, room_id


async def cut_off(federation: Federation) -> None:
    """From here on a query can only be answered from what is known already."""
    federation.network.cut("a.example", "b.example")


# Two honest servers


async def test_keys_of_a_tracked_user_are_available_while_their_server_is_away(federation: Federation) -> None:
    _, _, alice, bob, _ = await two(federation)
    phone, keys = await upload(bob), CrossSigning(bob.user_id)
    await bob.ok("POST", "keys/device_signing/upload", json={**keys.body(), "auth": bob.password_auth()})
    await follow(alice, bob.user_id)
    await cut_off(federation)
    body = {"device_keys": {bob.user_id: []}}
    answer = await alice.ok("POST", "keys/query", json=body)
    assert answer["device_keys"] == {bob.user_id: {bob.device_id: phone.keys()}}
    assert answer["master_keys"] == {bob.user_id: keys.master_key()}
    assert answer["self_signing_keys"] == {bob.user_id: keys.self_signing_key()}
    assert answer["failures"] == {} == answer["user_signing_keys"]
    some = await alice.ok("POST", "keys/query", json={"device_keys": {bob.user_id: ["OTHER"]}})
    assert some["device_keys"] == {bob.user_id: {}}


async def test_a_change_is_announced_and_the_new_keys_are_available_at_once(federation: Federation) -> None:
    a, _, alice, bob, _ = await two(federation)
    await upload(bob)
    await follow(alice, bob.user_id)
    since = await now(alice)
    laptop = await bob.server.log_in("bob", device_id="LAPTOP", initial_device_display_name="Bob's laptop")
    device = await upload(laptop)
    await told(alice, since, bob.user_id)

    async def is_known() -> bool:
        return "LAPTOP" in await query(alice, bob.user_id)

    await until(is_known)
    assert await is_followed(a)
    await cut_off(federation)
    shown = (await query(alice, bob.user_id))["LAPTOP"]
    assert shown == {**device.keys(), "unsigned": {"device_display_name": "Bob's laptop"}}


async def test_a_deleted_device_is_forgotten_on_the_other_server(federation: Federation) -> None:
    _, _, alice, bob, _ = await two(federation)
    await upload(bob)
    laptop = await bob.server.log_in("bob", device_id="LAPTOP")
    await upload(laptop)
    await follow(alice, bob.user_id)
    assert (await query(alice, bob.user_id)).keys() == {bob.device_id, "LAPTOP"}
    since = await now(alice)
    await laptop.ok("POST", "logout", json={})
    await told(alice, since, bob.user_id)
    await cut_off(federation)
    assert (await query(alice, bob.user_id)).keys() == {bob.device_id}


async def test_new_cross_signing_keys_are_announced_and_available(federation: Federation) -> None:
    a, _, alice, bob, _ = await two(federation)
    await upload(bob)
    await follow(alice, bob.user_id)
    since, keys = await now(alice), CrossSigning(bob.user_id, "new")
    await bob.ok("POST", "keys/device_signing/upload", json={**keys.body(), "auth": bob.password_auth()})
    await told(alice, since, bob.user_id)
    await cut_off(federation)
    answer = await alice.ok("POST", "keys/query", json={"device_keys": {bob.user_id: []}})
    assert answer["master_keys"] == {bob.user_id: keys.master_key()}
    assert answer["self_signing_keys"] == {bob.user_id: keys.self_signing_key()}
    assert await is_followed(a)


async def test_changes_made_while_a_server_is_away_arrive_later(federation: Federation) -> None:
    a, _, alice, bob, _ = await two(federation)
    await upload(bob)
    await follow(alice, bob.user_id)
    since = await now(alice)
    await federation.kill("a.example")
    for number in range(3):
        await upload(await bob.server.log_in("bob", device_id=f"NEW{number}"))
    alice.server = await federation.start("a.example")
    await told(alice, since, bob.user_id)

    async def all_are_known() -> bool:
        return len(await query(alice, bob.user_id)) == 4 and await is_followed(alice.server)

    await until(all_are_known)


async def test_if_too_many_changes_were_missed_the_whole_list_is_fetched(federation: Federation) -> None:
    _, _, alice, bob, _ = await two(federation)
    await upload(bob)
    await follow(alice, bob.user_id)
    await federation.kill("a.example")
    await upload(await bob.server.log_in("bob", device_id="LAPTOP"))
    for number in range(60):
        await bob.ok("PUT", f"devices/{bob.device_id}", json={"display_name": f"name {number}"})
    alice.server = await federation.start("a.example")

    async def is_known() -> bool:
        shown = await query(alice, bob.user_id)
        name = shown.get(bob.device_id, {}).get("unsigned", {}).get("device_display_name")
        return "LAPTOP" in shown and name == "name 59" and await is_followed(alice.server)

    await until(is_known)


async def test_changes_made_while_no_room_was_shared_are_fetched_later(federation: Federation) -> None:
    _, _, alice, bob, room_id = await two(federation)
    await upload(bob)
    await follow(alice, bob.user_id)
    since = await now(alice)
    await bob.ok("POST", f"rooms/{quote(room_id)}/leave", json={})

    async def is_left() -> bool:
        return bob.user_id in (await sync(alice, since)).get("device_lists", {}).get("left", [])

    await until(is_left)
    await upload(await bob.server.log_in("bob", device_id="LAPTOP"))
    since = await now(alice)
    await join(bob, room_id, "a.example")
    await told(alice, since, bob.user_id)
    assert "LAPTOP" in await query(alice, bob.user_id)
    await until(lambda: is_followed(alice.server))
    await cut_off(federation)
    assert "LAPTOP" in await query(alice, bob.user_id)


async def test_device_lists_of_users_without_a_shared_room_are_deleted(federation: Federation) -> None:
    a, _, alice, bob, room_id = await two(federation)
    await upload(bob)
    await follow(alice, bob.user_id)
    await alice.ok("POST", f"rooms/{quote(room_id)}/leave", json={})
    await trio.sleep(limits.encryption.LIST_SWEEP_INTERVAL_S + 1)
    for table in ("remote_device_lists", "remote_devices", "device_list_resyncs"):
        assert not await a.read(lambda tx, table=table: tx.all(f"SELECT user_nid FROM {table}"))


async def test_keys_of_users_without_a_shared_room_are_not_kept(federation: Federation) -> None:
    a, _, alice, bob = await federation.start_two()
    phone = await upload(bob)
    assert await query(alice, bob.user_id) == {bob.device_id: phone.keys()}
    assert not await a.read(lambda tx: tx.all("SELECT user_nid FROM remote_device_lists"))
    assert not await a.read(lambda tx: tx.all("SELECT user_nid FROM device_list_resyncs"))


async def test_updates_describe_the_current_state_and_are_chained(federation: Federation) -> None:
    a = await federation.start("a.example")
    alice, mallory = await a.register("alice"), Stranger(federation.network, ServerName("mallory.example"))
    edus: list[dict[str, Any]] = []
    mallory.take = lambda body: edus.extend(body["edus"])
    room_id = await create_room(alice, preset="public_chat")
    await mallory.join(a.name, room_id, "mallory")
    laptop = await a.log_in("alice", device_id="LAPTOP", initial_device_display_name="laptop")
    device, keys = await upload(laptop), CrossSigning(alice.user_id)
    await alice.ok("POST", "keys/device_signing/upload", json={**keys.body(), "auth": alice.password_auth()})
    await laptop.ok("POST", "logout", json={})

    async def updates() -> list[dict[str, Any]]:
        found = [edu["content"] for edu in edus if edu["edu_type"] == "m.device_list_update"]
        return found if found and found[-1].get("deleted") else []

    found = await until(updates)
    assert {(each["user_id"], each["device_id"]) for each in found} == {(alice.user_id, "LAPTOP")}
    for before, after in pairwise(found):
        assert after["prev_id"] == [before["stream_id"]] and after["stream_id"] > before["stream_id"]
    assert all(each["keys"] == device.keys() for each in found if "keys" in each)
    assert found[-1].keys() == {"user_id", "device_id", "stream_id", "prev_id", "deleted"}
    (signing,) = [edu["content"] for edu in edus if edu["edu_type"] == "m.signing_key_update"]
    assert signing == {
        "user_id": alice.user_id,
        "master_key": keys.master_key(),
        "self_signing_key": keys.self_signing_key(),
    }


async def test_a_server_that_starts_sharing_a_room_gets_an_update(federation: Federation) -> None:
    a = await federation.start("a.example")
    alice, carol = await a.register("alice"), await a.register("carol")
    await upload(alice)
    mallory = Stranger(federation.network, ServerName("mallory.example"))
    edus: list[dict[str, Any]] = []
    mallory.take = lambda body: edus.extend(body["edus"])
    rooms = [await create_room(carol, preset="public_chat") for _ in range(2)]
    for room_id in rooms:
        await mallory.join(a.name, room_id, "mallory")

    def told() -> list[str]:
        return [
            edu["content"]["device_id"]
            for edu in edus
            if edu["edu_type"] == "m.device_list_update" and edu["content"]["user_id"] == alice.user_id
        ]

    async def is_told() -> bool:
        return told() == [alice.device_id]

    assert told() == []
    await join(alice, rooms[0])
    await until(is_told)
    await join(alice, rooms[1])
    await trio.sleep(60)
    assert await is_told(), "it knew the user already"


async def test_the_devices_of_someone_who_joins_a_room_follow_the_join(federation: Federation) -> None:
    a = await federation.start("a.example")
    alice, bob = await a.register("alice"), await a.register("bob")
    await upload(bob)
    mallory = Stranger(federation.network, ServerName("mallory.example"))
    told: list[str] = []

    def take(body: Any) -> None:
        told.extend("join" for pdu in body["pdus"] if pdu.get("state_key") == bob.user_id)
        told.extend("devices" for edu in body["edus"] if edu["content"].get("user_id") == bob.user_id)

    mallory.take = take
    room_id = await create_room(alice, preset="public_chat")
    await mallory.join(a.name, room_id, "mallory")
    await join(bob, room_id)
    await until(lambda: _has(told, "devices"))
    assert told == ["join", "devices"]


async def _has(found: list[str], wanted: str) -> bool:
    return wanted in found
