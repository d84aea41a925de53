"""The room directories of other networks. Spec: application-service-api/#published-room-directories"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.application_services import AS_TOKEN, register, registration
from tests.support.federation import Federation
from tests.support.homeservers import Client, Server
from tests.support.people import create, public_room

LIST = "directory/list/appservice"


@pytest.fixture
async def server(federation: Federation, tmp_path: Path) -> Server:
    other = registration(id="fax", as_token="2", sender_localpart="faxbot", url=None, namespaces={})
    services = register(tmp_path, registration(protocols=["irc"]), other)
    return await federation.start("a.example", application_services=services)


@pytest.fixture
async def bot(server: Server) -> Client:
    return server.with_token(AS_TOKEN)


async def rooms_of(client: Client, query: str = "", **body: Any) -> set[str]:
    answer = await client.ok("POST", f"publicRooms{query}", json=body)
    return {room["room_id"] for room in answer["chunk"]}


async def list_room(client: Client, room_id: str, network: str = "freenode", visibility: str = "public") -> None:
    await client.ok("PUT", f"{LIST}/{network}/{room_id}", json={"visibility": visibility})


async def test_a_network_has_a_directory_of_its_own(server: Server, alice: Client, bot: Client) -> None:
    ours = await public_room(alice, visibility="public")
    theirs, other = await public_room(bot), await public_room(bot)
    await list_room(bot, theirs)
    await list_room(bot, other, "oftc")
    assert await rooms_of(alice) == {ours}
    assert await rooms_of(alice, third_party_instance_id="irc|freenode") == {theirs}
    assert await rooms_of(alice, third_party_instance_id="freenode") == {theirs}
    assert await rooms_of(alice, third_party_instance_id="fax|freenode") == set()
    assert await rooms_of(alice, include_all_networks=True) == {ours, theirs, other}
    both = {"include_all_networks": True, "third_party_instance_id": "freenode"}
    assert await alice.refused("POST", "publicRooms", json=both) == (400, "M_INVALID_PARAM")
    await list_room(bot, theirs, visibility="private")
    assert await rooms_of(alice, third_party_instance_id="irc|freenode") == set()


async def test_each_application_service_lists_for_itself(server: Server, alice: Client, bot: Client) -> None:
    fax = server.with_token("2")
    room_id = await public_room(bot, fax)
    await list_room(bot, room_id)
    await list_room(fax, room_id)
    await list_room(fax, room_id, visibility="private")
    assert await rooms_of(alice, third_party_instance_id="irc|freenode") == {room_id}
    assert await rooms_of(alice, third_party_instance_id="fax|freenode") == set()


async def test_only_application_services_list_rooms_and_only_theirs(server: Server, alice: Client, bot: Client) -> None:
    room_id = await create(alice, preset="private_chat")
    public = {"visibility": "public"}
    assert await alice.refused("PUT", f"{LIST}/freenode/{room_id}", json=public) == (403, "M_FORBIDDEN")
    assert await bot.refused("PUT", f"{LIST}/freenode/{room_id}", json=public) == (403, "M_FORBIDDEN")
    unknown = await bot.refused("PUT", f"{LIST}/freenode/!unknown:a.example", json=public)
    assert unknown == (404, "M_NOT_FOUND")
    own = await public_room(bot)
    assert await bot.refused("PUT", f"{LIST}/{'n' * 256}/{own}", json=public) == (400, "M_INVALID_PARAM")
    assert await bot.refused("PUT", f"{LIST}/freenode/{own}", json={}) == (400, "M_MISSING_PARAM")


async def test_networks_are_listed_for_other_servers_too(
    federation: Federation, server: Server, alice: Client, bot: Client
) -> None:
    bob = await (await federation.start("b.example")).register("bob")
    room_id = await public_room(bot)
    await list_room(bot, room_id)
    assert await rooms_of(bob, "?server=a.example", third_party_instance_id="irc|freenode") == {room_id}
    assert await rooms_of(bob, "?server=a.example") == set()
