"""What an application service is sent. Spec: application-service-api/#pushing-events"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from homeserver.database import Transaction
from homeserver.federation.identifiers import EventID
from homeserver.rooms.storage import find_stored_by_id
from tests.support.application_services import Bridge, register, registration
from tests.support.federation import Federation
from tests.support.homeservers import Client, Server
from tests.support.people import create, invite, join, path_of, public_room, say

GHOST = "@irc_ghost:a.example"


@pytest.fixture
def server(federated: Server) -> Server:
    return federated


async def bridged_room(alice: Client, bot: Client) -> str:
    room_id = await public_room(alice)
    await bot.ok("POST", f"join/{room_id}?user_id={GHOST}", json={})
    return room_id


async def test_it_gets_the_events_of_rooms_that_its_users_are_in(bridge: Bridge, alice: Client, bot: Client) -> None:
    elsewhere = await public_room(alice)
    room_id = await bridged_room(alice, bot)
    await say(alice, elsewhere, "not for the bridge")
    (event_id,) = await say(alice, room_id, "hello")
    await trio.sleep(1)
    assert bridge.said == ["hello"]
    (hello,) = [event for event in bridge.events if event["type"] == "m.room.message"]
    assert (hello["event_id"], hello["room_id"], hello["sender"]) == (event_id, room_id, alice.user_id)


async def test_it_gets_invites_of_its_users(bridge: Bridge, alice: Client, bot: Client) -> None:
    room_id = await create(alice, preset="private_chat")
    await invite(alice, room_id, GHOST)
    await trio.sleep(1)
    (event,) = bridge.events
    assert (event["state_key"], event["content"]["membership"], event["room_id"]) == (GHOST, "invite", room_id)


async def test_it_gets_invites_of_its_users_to_rooms_of_other_servers(
    federation: Federation, bridge: Bridge, bot: Client
) -> None:
    bob = await (await federation.start("b.example")).register("bob")
    room_id = await create(bob, preset="private_chat")
    await invite(bob, room_id, GHOST)
    await trio.sleep(1)
    (event,) = bridge.events
    assert (event["state_key"], event["content"]["membership"], event["room_id"]) == (GHOST, "invite", room_id)
    assert event["sender"] == bob.user_id


async def test_it_gets_no_history_that_was_fetched(federation: Federation, bridge: Bridge, bot: Client) -> None:
    b = await federation.start("b.example")
    bob = await b.register("bob")
    room_id = await public_room(bob)
    await say(bob, room_id, "before")
    await bot.ok("POST", f"join/{room_id}?user_id={GHOST}&server_name=b.example", json={})
    await bot.ok("GET", path_of(room_id, "messages") + f"?dir=b&user_id={GHOST}")
    await say(bob, room_id, "after")
    await trio.sleep(1)
    assert bridge.said == ["after"]


async def test_events_arrive_in_order_and_once(bridge: Bridge, alice: Client, bot: Client) -> None:
    room_id = await bridged_room(alice, bot)
    texts = [f"{number}" for number in range(250)]
    await say(alice, room_id, *texts)
    await trio.sleep(1)
    assert bridge.said == texts
    assert max(len(body["events"]) for _, body in bridge.transactions) <= 100


async def test_a_transaction_is_repeated_under_its_id_until_it_is_taken(
    bridge: Bridge, alice: Client, bot: Client
) -> None:
    room_id = await bridged_room(alice, bot)
    await trio.sleep(1)
    asked = len(bridge.requests)
    bridge.statuses = [500, 502]
    await say(alice, room_id, "hello")
    await trio.sleep(1)
    await say(alice, room_id, "later")
    await trio.sleep(10)
    paths = [path for _, path in bridge.requests[asked:]]
    assert paths[0] == paths[1] == paths[2] != paths[3]
    assert bridge.said == ["hello", "later"]


async def test_nothing_is_lost_while_the_bridge_is_away(
    federation: Federation, bridge: Bridge, alice: Client, bot: Client
) -> None:
    room_id = await bridged_room(alice, bot)
    await trio.sleep(1)
    federation.network.leave("bridge.example")
    for number in range(5):
        await say(alice, room_id, f"{number}")
        await trio.sleep(30)
    federation.network.join("bridge.example", bridge)
    await trio.sleep(120)
    assert bridge.said == ["0", "1", "2", "3", "4"]


async def test_a_crash_loses_nothing_and_repeats_what_was_under_way_under_the_same_id(
    federation: Federation, bridge: Bridge, alice: Client, bot: Client, tmp_path: Path
) -> None:
    room_id = await bridged_room(alice, bot)
    await trio.sleep(1)
    asked = len(bridge.requests)
    bridge.statuses = [500] * 3
    await say(alice, room_id, "under way")
    await trio.sleep(1)
    await say(alice, room_id, "waiting")
    await federation.kill("a.example")
    bridge.statuses = []
    services = register(tmp_path, registration(receive_ephemeral=True))
    await federation.start("a.example", application_services=services)
    await trio.sleep(60)
    assert bridge.said == ["under way", "waiting"]
    first, *rest = [path for _, path in bridge.requests[asked:]]
    assert first in rest


async def test_an_event_that_the_bridge_refuses_does_not_hold_up_later_ones(
    bridge: Bridge, alice: Client, bot: Client
) -> None:
    room_id = await bridged_room(alice, bot)
    await trio.sleep(1)
    bridge.statuses = [503]
    await say(alice, room_id, "first")
    await trio.sleep(0.5)
    await say(alice, room_id, "poison", "last")
    bridge.statuses = [200, 400, 400]
    await trio.sleep(60)
    assert bridge.said == ["first", "last"]


async def test_an_event_that_the_disk_has_damaged_does_not_hold_up_later_ones(
    federation: Federation, bridge: Bridge, server: Server, alice: Client, bot: Client
) -> None:
    room_id = await bridged_room(alice, bot)
    await trio.sleep(1)
    federation.network.leave("bridge.example")
    await say(alice, room_id, "first")
    await trio.sleep(1)
    _, damaged, _ = await say(alice, room_id, "before", "damaged", "after")
    await server.write(damage, damaged)
    federation.network.join("bridge.example", bridge)
    await trio.sleep(120)
    assert bridge.said == ["first", "before", "after"]


def damage(tx: Transaction, event_id: str) -> None:
    event = find_stored_by_id(tx, EventID(event_id))
    assert event is not None
    tx.run("UPDATE events SET sender_nid = 999999 WHERE position = ?", event.position)


async def test_a_dead_bridge_delays_no_other(federation: Federation, tmp_path: Path) -> None:
    alive, dead = Bridge(), Bridge()
    federation.network.join("alive.example", alive)
    federation.network.join("dead.example", dead)
    dead.statuses = [500] * 1000
    services = register(
        tmp_path,
        registration(id="dead", url="http://dead.example", as_token="1", sender_localpart="one"),
        registration(id="alive", url="http://alive.example", as_token="2", sender_localpart="two"),
    )
    server = await federation.start("c.example", application_services=services)
    carol = await server.register("carol")
    room_id = await public_room(carol)
    await server.with_token("2").ok("POST", f"join/{room_id}", json={})
    await server.with_token("1").ok("POST", f"join/{room_id}", json={})
    await say(carol, room_id, "hello")
    await trio.sleep(0.5)
    assert alive.said == ["hello"]
    assert dead.said == []


async def test_it_gets_typing_receipts_and_presence_if_it_asks_for_them(
    bridge: Bridge, alice: Client, bot: Client
) -> None:
    room_id = await bridged_room(alice, bot)
    (event_id,) = await say(alice, room_id, "hello")
    await alice.ok("PUT", path_of(room_id, "typing", alice.user_id), json={"typing": True, "timeout": 30_000})
    await alice.ok("POST", path_of(room_id, "receipt", "m.read", event_id), json={})
    await alice.ok("PUT", f"presence/{alice.user_id}/status", json={"presence": "online", "status_msg": "tea"})
    await trio.sleep(1)
    told: dict[str, list[dict[str, Any]]] = {}
    for each in bridge.ephemeral:
        told.setdefault(each["type"], []).append(each)
    assert told["m.typing"][-1] == {
        "type": "m.typing", "room_id": room_id, "content": {"user_ids": [alice.user_id]},
    }  # fmt: skip
    assert list(told["m.receipt"][-1]["content"][event_id]["m.read"]) == [alice.user_id]
    assert told["m.presence"][-1]["content"]["status_msg"] == "tea"


async def test_private_receipts_of_others_are_not_told(bridge: Bridge, alice: Client, bot: Client) -> None:
    room_id = await bridged_room(alice, bot)
    (event_id,) = await say(alice, room_id, "hello")
    await alice.ok("POST", path_of(room_id, "receipt", "m.read.private", event_id), json={})
    await bot.ok("POST", path_of(room_id, "receipt", "m.read.private", event_id) + f"?user_id={GHOST}", json={})
    await trio.sleep(1)
    receipts = [each["content"][event_id] for each in bridge.ephemeral if each["type"] == "m.receipt"]
    assert [list(each["m.read.private"]) for each in receipts] == [[GHOST]]


async def test_a_bridge_that_knows_only_the_older_paths_is_reached(bridge: Bridge, alice: Client, bot: Client) -> None:
    room_id = await bridged_room(alice, bot)
    await trio.sleep(1)
    asked = len(bridge.requests)
    bridge.statuses = [404]
    await say(alice, room_id, "hello")
    await trio.sleep(1)
    paths = [path for _, path in bridge.requests[asked:]]
    assert paths[0] == f"/_matrix/app/v1{paths[1]}"
    assert bridge.said == ["hello"]


async def test_joins_are_seen_at_once_by_a_bridge_with_a_namespace_of_rooms(
    federation: Federation, bridge: Bridge, tmp_path: Path
) -> None:
    rules = {"users": [], "aliases": [{"regex": "#irc_.*", "exclusive": False}], "rooms": []}
    server = await federation.start(
        "c.example", application_services=register(tmp_path, registration(namespaces=rules))
    )
    carol, dave = await server.register("carol"), await server.register("dave")
    room_id = await create(carol, preset="public_chat", room_alias_name="irc_tea")
    await join(dave, room_id)
    await trio.sleep(1)
    assert dave.user_id in {event.get("state_key") for event in bridge.events}
