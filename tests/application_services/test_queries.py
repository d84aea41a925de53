"""Rooms and users that application services make when they are asked for, and third-party networks.

Spec: application-service-api/#querying, client-server-api/#third-party-networks
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from homeserver.errors import MatrixError
from homeserver.features.room_directory import answer_directory_query
from homeserver.federation.identifiers import ServerName
from tests.support.application_services import AS_TOKEN, Bridge, register, registration
from tests.support.federation import Federation
from tests.support.homeservers import Client, Server
from tests.support.people import create, invite

ALIAS, GHOST = "%23irc_tea:a.example", "@irc_ghost:a.example"
IRC: dict[str, Any] = {
    "icon": "mxc://a.example/irc",
    "field_types": {"nick": {"regexp": ".*", "placeholder": "a nick"}},
    "user_fields": ["nick"],
    "location_fields": ["channel"],
    "instances": [{"desc": "Freenode", "fields": {}, "network_id": "freenode"}],
}
TEA = {"alias": "#irc_tea:a.example", "protocol": "irc", "fields": {"channel": "#tea"}}


@pytest.fixture
async def server(federation: Federation, bridge: Bridge, tmp_path: Path) -> Server:
    services = register(tmp_path, registration(protocols=["irc"]))
    return await federation.start("a.example", application_services=services)


@pytest.fixture
async def bot(server: Server) -> Client:
    return server.with_token(AS_TOKEN)


async def test_a_room_is_made_when_somebody_asks_for_its_alias(
    federation: Federation, bridge: Bridge, bot: Client, alice: Client
) -> None:
    async def make(path: str) -> None:
        assert path == "/_matrix/app/v1/rooms/#irc_tea:a.example"
        await create(bot, preset="public_chat", room_alias_name="irc_tea")
        bridge.has[path] = {}

    bridge.provide = make
    joined = await alice.ok("POST", f"join/{ALIAS}", json={})
    assert (await alice.ok("GET", f"directory/room/{ALIAS}"))["room_id"] == joined["room_id"]
    bob = await (await federation.start("b.example")).register("bob")
    assert (await bob.ok("POST", f"join/{ALIAS}", json={}))["room_id"] == joined["room_id"]


async def test_an_alias_that_no_bridge_knows_leads_nowhere(bridge: Bridge, alice: Client) -> None:
    assert await alice.refused("POST", f"join/{ALIAS}", json={}) == (404, "M_NOT_FOUND")
    assert await alice.refused("GET", "directory/room/%23other:a.example") == (404, "M_NOT_FOUND")
    assert [path for _, path in bridge.requests] == ["/_matrix/app/v1/rooms/#irc_tea:a.example"]


async def test_a_bridge_that_does_not_answer_is_asked_again_then_the_request_times_out(
    federation: Federation, bridge: Bridge, server: Server, alice: Client
) -> None:
    bridge.statuses = [502]
    assert await alice.refused("GET", f"profile/{GHOST}") == (408, "M_CONNECTION_TIMEOUT")

    async def hang(path: str) -> None:
        await trio.sleep(60)

    bridge.provide = hang
    asked = len(bridge.requests)
    assert await alice.refused("POST", f"join/{ALIAS}", json={}) == (408, "M_CONNECTION_TIMEOUT")
    assert await alice.refused("GET", f"directory/room/{ALIAS}") == (408, "M_CONNECTION_TIMEOUT")
    assert len(bridge.requests) == asked + 2, "whoever is slow is not asked again"
    with pytest.raises(MatrixError) as unknown:
        await answer_directory_query(server.hs, ServerName("b.example"), {"room_alias": "#irc_tea:a.example"})
    assert unknown.value.status == 404, "another server is told that there is no such alias"
    room_id = await create(alice, preset="private_chat")
    await invite(alice, room_id, GHOST)


async def test_a_bridge_that_restarts_is_asked_again(
    federation: Federation, bridge: Bridge, bot: Client, alice: Client
) -> None:
    bridge.has[f"/_matrix/app/v1/users/{GHOST}"] = {}
    await bot.ok("POST", "register", json={"type": "m.login.application_service", "username": "irc_other"})
    federation.network.leave("bridge.example")

    async def come_back() -> None:
        await trio.sleep(1)
        federation.network.join("bridge.example", bridge)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(come_back)
        assert await alice.refused("GET", f"profile/{GHOST}") == (404, "M_NOT_FOUND")
    assert [path for _, path in bridge.requests] == [f"/_matrix/app/v1/users/{GHOST}"]


async def test_a_user_is_made_when_another_server_invites_them(
    federation: Federation, bridge: Bridge, bot: Client
) -> None:
    async def make(path: str) -> None:
        body = {"type": "m.login.application_service", "username": "irc_ghost"}
        await bot.ok("POST", "register", json=body)
        bridge.has[path] = {}

    bridge.provide = make
    bob = await (await federation.start("b.example")).register("bob")
    room_id = await create(bob, preset="private_chat")
    await invite(bob, room_id, GHOST)
    assert (await bob.ok("GET", f"profile/{GHOST}"))["displayname"] == "irc_ghost"


async def test_protocols_are_what_the_bridges_say(bridge: Bridge, alice: Client) -> None:
    assert await alice.ok("GET", "thirdparty/protocols") == {}
    bridge.has["/_matrix/app/v1/thirdparty/protocol/irc"] = IRC
    said = {**IRC, "instances": [{**IRC["instances"][0], "instance_id": "irc|freenode"}]}
    assert await alice.ok("GET", "thirdparty/protocols") == {"irc": said}
    assert await alice.ok("GET", "thirdparty/protocol/irc") == said
    assert await alice.refused("GET", "thirdparty/protocol/fax") == (404, "M_NOT_FOUND")


async def test_places_and_users_are_looked_up_at_the_bridges(bridge: Bridge, alice: Client) -> None:
    ghost = {"userid": GHOST, "protocol": "irc", "fields": {"nick": "ghost"}}
    bridge.has |= {
        "/_matrix/app/v1/thirdparty/location/irc?channel=%23tea": [TEA, {"alias": 7}],
        "/_matrix/app/v1/thirdparty/location?alias=%23irc_tea%3Aa.example": [TEA],
        "/_matrix/app/v1/thirdparty/user/irc?nick=ghost": [ghost],
        "/_matrix/app/v1/thirdparty/user?userid=%40irc_ghost%3Aa.example": [ghost],
    }
    assert (await alice.get("thirdparty/location/irc?channel=%23tea")).json() == [TEA]
    assert (await alice.get("thirdparty/location?alias=%23irc_tea:a.example")).json() == [TEA]
    assert (await alice.get("thirdparty/user/irc?nick=ghost")).json() == [ghost]
    assert (await alice.get(f"thirdparty/user?userid={GHOST}")).json() == [ghost]
    assert await alice.refused("GET", "thirdparty/user/irc?nick=nobody") == (404, "M_NOT_FOUND")


async def test_a_bridge_that_is_away_does_not_fail_look_ups(
    federation: Federation, bridge: Bridge, alice: Client
) -> None:
    federation.network.leave("bridge.example")
    assert await alice.ok("GET", "thirdparty/protocols") == {}
    assert await alice.refused("POST", f"join/{ALIAS}", json={}) == (408, "M_CONNECTION_TIMEOUT")


async def test_a_user_is_made_when_somebody_of_this_server_invites_them(
    bridge: Bridge, bot: Client, alice: Client
) -> None:
    async def make(path: str) -> None:
        name = path.rpartition("@")[2].partition(":")[0]
        await bot.ok("POST", "register", json={"type": "m.login.application_service", "username": name})
        bridge.has[path] = {}

    bridge.provide = make
    room_id = await create(alice, preset="private_chat", invite=["@irc_first:a.example"])
    await invite(alice, room_id, "@irc_second:a.example")
    for name in ("irc_first", "irc_second"):
        assert (await alice.ok("GET", f"profile/@{name}:a.example"))["displayname"] == name
    assert [path for _, path in bridge.requests if "/users/" in path] == [
        "/_matrix/app/v1/users/@irc_first:a.example",
        "/_matrix/app/v1/users/@irc_second:a.example",
    ]


async def test_a_bridge_is_not_asked_for_what_it_asks_for_itself(bridge: Bridge, bot: Client) -> None:
    """It may look whether the room exists before it makes it, and would wait for itself."""
    assert await bot.refused("GET", f"directory/room/{ALIAS}") == (404, "M_NOT_FOUND")
    assert await bot.refused("POST", f"join/{ALIAS}", json={}) == (404, "M_NOT_FOUND")
    assert await bot.refused("GET", f"profile/{GHOST}") == (404, "M_NOT_FOUND")
    await create(bot, preset="private_chat", invite=[GHOST])
    assert [path for _, path in bridge.requests if "/users/" in path or "/rooms/" in path] == []


async def test_a_bridge_is_not_asked_for_aliases_of_other_servers(bridge: Bridge, server: Server) -> None:
    """Its regular expression matches them, if it does not end with the name of this server."""
    with pytest.raises(MatrixError):
        await answer_directory_query(server.hs, ServerName("b.example"), {"room_alias": "#irc_tea:b.example"})
    assert bridge.requests == []


async def test_many_who_ask_the_same_share_one_request(bridge: Bridge, alice: Client) -> None:
    async def think(path: str) -> None:
        await trio.sleep(5)

    bridge.provide = think
    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(alice.get, f"directory/room/{ALIAS}")
    assert [path for _, path in bridge.requests] == ["/_matrix/app/v1/rooms/#irc_tea:a.example"]


async def test_a_slow_bridge_is_waited_for_once_however_many_networks_it_has(
    federation: Federation, tmp_path: Path
) -> None:
    bridge = Bridge()
    federation.network.join("slow.example", bridge)

    async def think(path: str) -> None:
        await trio.sleep(3600)

    bridge.provide = think
    services = register(tmp_path, registration(url="http://slow.example", protocols=["a", "b", "c", "d"]))
    carol = await (await federation.start("c.example", application_services=services)).register("carol")
    begun_s = trio.current_time()
    assert await carol.ok("GET", "thirdparty/protocols") == {}
    assert trio.current_time() - begun_s < 20
