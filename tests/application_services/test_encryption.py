"""Bridges that encrypt: what transactions tell them of keys. Spec: MSC3202, MSC4203"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from homeserver.database import Transaction
from homeserver.federation.identifiers import UserID
from homeserver.users.encryption.inbox import list_inbox
from tests.support.application_services import AS_TOKEN, Bridge, register, registration
from tests.support.federation import Federation
from tests.support.homeservers import Client, Server
from tests.support.keys import SIGNED, Device
from tests.support.people import act, join, public_room, say

GHOST = "@irc_ghost:a.example"
OTHER_GHOST = "@irc_other:a.example"
AS_PHONE = f"user_id={GHOST}&device_id=PHONE"
LISTS = "org.matrix.msc3202.device_lists"
COUNTS = "org.matrix.msc3202.device_one_time_keys_count"
FALLBACK = "org.matrix.msc3202.device_unused_fallback_key_types"
MESSAGES = "de.sorunome.msc2409.to_device"


@pytest.fixture
async def server(federation: Federation, bridge: Bridge, tmp_path: Path) -> Server:
    services = register(tmp_path, registration(**{"org.matrix.msc3202": True}))
    return await federation.start("a.example", application_services=services)


@pytest.fixture
async def bot(server: Server) -> Client:
    """Acts for a ghost, whose device has keys."""
    client = server.with_token(AS_TOKEN)
    for name in ("irc_ghost", "irc_other"):
        body = {"type": "m.login.application_service", "username": name, "inhibit_login": True}
        await client.ok("POST", "register", json=body)
    assert (await client.put(f"devices/PHONE?user_id={GHOST}", json={})).status_code == 201
    phone = Device(GHOST, "PHONE")
    keys = {
        "device_keys": phone.keys(),
        "one_time_keys": phone.one_time_keys(3),
        "fallback_keys": phone.fallback_key("BBBB"),
    }
    told = await client.ok("POST", f"keys/upload?{AS_PHONE}", json=keys)
    assert told["one_time_key_counts"] == {SIGNED: 3}
    return client


async def told(bridge: Bridge, field: str) -> list[Any]:
    """Returns what transactions had in this field so far, once everything was sent."""
    await trio.sleep(1)
    return [body[field] for _, body in bridge.transactions if field in body]


async def post(sender: Client, txn_id: str, **contents: Any) -> None:
    """Sends a to-device message to devices of the ghost."""
    path = f"sendToDevice/m.room.encrypted/{txn_id}"
    await sender.ok("PUT", path, json={"messages": {GHOST: contents}})


async def claim(client: Client) -> None:
    body = {"one_time_keys": {GHOST: {"PHONE": SIGNED}}}
    assert (await client.ok("POST", "keys/claim", json=body))["one_time_keys"]


async def test_it_gets_to_device_messages_of_its_users(
    bridge: Bridge, server: Server, alice: Client, bot: Client
) -> None:
    await post(alice, "1", PHONE={"ciphertext": "for the ghost"})
    await alice.ok("PUT", "sendToDevice/m.x/2", json={"messages": {alice.user_id: {"*": {"not": "for the bridge"}}}})
    assert await told(bridge, MESSAGES) == [
        [
            {
                "type": "m.room.encrypted",
                "sender": alice.user_id,
                "content": {"ciphertext": "for the ghost"},
                "to_user_id": GHOST,
                "to_device_id": "PHONE",
            }
        ]
    ]
    inbox = await server.read(list_inbox, UserID(GHOST), "PHONE", 0, server.hs.stream.position)
    assert inbox.messages == [], "what it has taken is deleted"


async def test_messages_from_other_servers_reach_it(
    federation: Federation, bridge: Bridge, alice: Client, bot: Client
) -> None:
    bob = await (await federation.start("b.example")).register("bob")
    await post(bob, "1", PHONE={"ciphertext": "from afar"})
    await trio.sleep(5)
    assert [each["sender"] for each in (await told(bridge, MESSAGES))[0]] == [bob.user_id]


async def test_messages_wait_while_the_bridge_is_away_and_survive_a_crash(
    federation: Federation, bridge: Bridge, server: Server, alice: Client, bot: Client, tmp_path: Path
) -> None:
    await trio.sleep(1)
    federation.network.leave("bridge.example")
    for number in range(250):
        await post(alice, f"{number}", PHONE={"number": number})
    await trio.sleep(1)
    await federation.kill("a.example")
    federation.network.join("bridge.example", bridge)
    services = register(tmp_path, registration(**{"org.matrix.msc3202": True}))
    await federation.start("a.example", application_services=services)
    await trio.sleep(120)
    lists = await told(bridge, MESSAGES)
    assert [each["content"]["number"] for messages in lists for each in messages] == list(range(250))
    assert max(map(len, lists)) <= 100


async def test_devices_that_sync_get_their_messages_all_the_same(
    federation: Federation, bridge: Bridge, tmp_path: Path
) -> None:
    """Without the flag of MSC3202 the bridge may be one that reads messages in `/sync`."""
    services = register(tmp_path, registration(receive_ephemeral=True))
    server = await federation.start("c.example", application_services=services)
    carol, bot = await server.register("carol"), server.with_token(AS_TOKEN)
    ghost = "@irc_ghost:c.example"
    await bot.ok("POST", "register", json={"type": "m.login.application_service", "username": "irc_ghost"})
    await bot.put(f"devices/PHONE?user_id={ghost}", json={})
    await carol.ok("PUT", "sendToDevice/m.x/1", json={"messages": {ghost: {"PHONE": {"a": 1}}}})
    assert len((await told(bridge, MESSAGES))[0]) == 1
    synced = await bot.ok("GET", f"sync?user_id={ghost}&device_id=PHONE")
    assert [event["content"] for event in synced["to_device"]["events"]] == [{"a": 1}]


async def test_it_is_told_what_its_devices_have_left_when_a_key_is_claimed(
    bridge: Bridge, alice: Client, bot: Client
) -> None:
    for _ in range(3):
        await claim(alice)
    assert (await told(bridge, COUNTS))[-1] == {GHOST: {"PHONE": {SIGNED: 0}}}
    assert (await told(bridge, FALLBACK))[-1] == {GHOST: {"PHONE": [SIGNED]}}
    await claim(alice)  # the fallback key
    assert (await told(bridge, FALLBACK))[-1] == {GHOST: {"PHONE": []}}
    count = len(bridge.transactions)
    await claim(alice)  # once more
    await trio.sleep(1)
    assert len(bridge.transactions) == count, "there is nothing new to tell"


async def test_it_is_told_whose_keys_to_ask_for_again(
    bridge: Bridge, server: Server, alice: Client, bot: Client
) -> None:
    room_id = await public_room(alice)
    await bot.ok("POST", f"join/{room_id}?user_id={GHOST}", json={})
    stranger = await server.register("stranger")
    await trio.sleep(1)
    del bridge.transactions[:]
    for client in (stranger, alice):
        tablet = await server.log_in(client.user_id)
        device = Device(client.user_id, tablet.device_id)
        await tablet.ok("POST", "keys/upload", json={"device_keys": device.keys()})
    assert await told(bridge, LISTS) == [{"changed": [alice.user_id], "left": []}]


async def test_it_is_told_who_shares_rooms_with_its_users(
    bridge: Bridge, server: Server, alice: Client, bot: Client
) -> None:
    bob, carol = await server.register("bob"), await server.register("carol")
    first, second = await public_room(alice, bob), await public_room(alice)

    async def news() -> list[Any]:
        await trio.sleep(1)
        found = await told(bridge, LISTS)
        del bridge.transactions[:]
        return found

    await news()
    await bot.ok("POST", f"join/{first}?user_id={GHOST}", json={})
    (begun,) = await news()
    assert {alice.user_id, bob.user_id} <= set(begun["changed"])
    await bot.ok("POST", f"join/{first}?user_id={OTHER_GHOST}", json={})
    assert await news() == [], "the bridge knows everybody in the room"
    await bot.ok("POST", f"join/{second}?user_id={GHOST}", json={})
    await join(carol, second)
    assert {user_id for each in await news() for user_id in each["changed"]} >= {carol.user_id}
    await act(bob, first, "leave")
    await act(alice, second, "leave")
    assert await news() == [{"changed": [], "left": [bob.user_id]}], "Alice is in the other room"
    for ghost in (GHOST, OTHER_GHOST):
        await bot.ok("POST", f"rooms/{first}/leave?user_id={ghost}", json={})
    assert [alice.user_id in each["left"] for each in await news()] == [True]


async def test_a_bridge_without_encryption_is_told_nothing_of_keys(
    federation: Federation, bridge: Bridge, tmp_path: Path
) -> None:
    server = await federation.start("c.example", application_services=register(tmp_path, registration()))
    carol, bot = await server.register("carol"), server.with_token(AS_TOKEN)
    room_id = await public_room(carol)
    await bot.ok("POST", f"join/{room_id}", json={})
    await carol.ok("POST", "keys/upload", json={"device_keys": Device(carol.user_id, carol.device_id).keys()})
    await carol.ok("PUT", "sendToDevice/m.x/1", json={"messages": {"@ircbot:c.example": {"*": {}}}})
    await say(carol, room_id, "hello")
    await trio.sleep(1)
    assert {key for _, body in bridge.transactions for key in body} == {"events"}


async def test_a_damaged_message_does_not_hold_up_later_ones(
    federation: Federation, bridge: Bridge, server: Server, alice: Client, bot: Client
) -> None:
    await trio.sleep(1)
    federation.network.leave("bridge.example")
    await post(alice, "0", PHONE={"number": 0})
    await trio.sleep(1)
    for number in (1, 2):
        await post(alice, f"{number}", PHONE={"number": number})
    await server.write(damage_second)
    federation.network.join("bridge.example", bridge)
    await trio.sleep(120)
    lists = await told(bridge, MESSAGES)
    assert [each["content"]["number"] for messages in lists for each in messages] == [0, 2]


def damage_second(tx: Transaction) -> None:
    position = tx.values("SELECT position FROM to_device_inbox ORDER BY position")[1]
    tx.run("UPDATE to_device_inbox SET content = ? WHERE position = ?", b"\xff", position)
