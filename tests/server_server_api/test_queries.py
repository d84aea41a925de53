"""Queries for the profiles and aliases of another server. Spec: server-server-api/#querying-for-information"""

from __future__ import annotations

from urllib.parse import quote

from homeserver.federation.identifiers import ServerName
from tests.support.federation import Federation, create_room
from tests.support.stranger import Stranger

QUERY = "/_matrix/federation/v1/query"


async def test_profiles_can_be_queried(federation: Federation) -> None:
    a, stranger = await federation.start("a.example"), Stranger(federation.network, ServerName("stranger.example"))
    alice = await a.register("alice")
    await alice.ok("PUT", f"profile/{quote(alice.user_id)}/displayname", json={"displayname": "Alice"})
    path = f"{QUERY}/profile?user_id={quote(alice.user_id)}"
    status, answer = await stranger.get(a.name, path)
    assert (status, answer["displayname"]) == (200, "Alice")
    assert await stranger.get(a.name, f"{path}&field=displayname") == (200, {"displayname": "Alice"})
    status, answer = await stranger.get(a.name, f"{QUERY}/profile?user_id={quote('@nobody:a.example')}")
    assert (status, answer["errcode"]) == (404, "M_NOT_FOUND")


async def test_aliases_can_be_resolved(federation: Federation) -> None:
    a, stranger = await federation.start("a.example"), Stranger(federation.network, ServerName("stranger.example"))
    room_id = await create_room(await a.register("alice"), room_alias_name="kitchen")
    status, answer = await stranger.get(a.name, f"{QUERY}/directory?room_alias={quote('#kitchen:a.example')}")
    assert (status, answer) == (200, {"room_id": room_id, "servers": ["a.example"]})
    status, answer = await stranger.get(a.name, f"{QUERY}/directory?room_alias={quote('#cellar:a.example')}")
    assert (status, answer["errcode"]) == (404, "M_NOT_FOUND")


async def test_an_unknown_query_type_is_unrecognized(federation: Federation) -> None:
    a, stranger = await federation.start("a.example"), Stranger(federation.network, ServerName("stranger.example"))
    status, answer = await stranger.get(a.name, f"{QUERY}/weather?place=kitchen")
    assert (status, answer["errcode"]) == (404, "M_NOT_FOUND")
    assert await a.anonymous.refused("GET", f"{QUERY}/weather") == (401, "M_UNAUTHORIZED")
