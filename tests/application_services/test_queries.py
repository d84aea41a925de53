"""Rooms and users that application services make when they are asked for, and third-party networks.

Spec: application-service-api/#querying, client-server-api/#third-party-networks
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

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


@pytest.fixture
async def alice(server: Server) -> Client:
    return await server.register("alice")


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
    assert await alice.ok("GET", "thirdparty/protocols") == {"irc": IRC}
    assert await alice.ok("GET", "thirdparty/protocol/irc") == IRC
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
    assert await alice.refused("POST", f"join/{ALIAS}", json={}) == (404, "M_NOT_FOUND")
