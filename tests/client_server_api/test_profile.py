"""Spec: client-server-api/#profiles"""

from __future__ import annotations

from typing import Any

import pytest

from homeserver import limits
from homeserver.authenticate import AccountFlags, store_account_flags
from homeserver.config import Registration
from homeserver.errors import MatrixError
from homeserver.features.profile import FEATURE
from homeserver.federation.identifiers import RoomID
from homeserver.rooms.heads import find_head, state_content
from homeserver.users.profile_changes import finish_update
from tests.support.homeservers import Client, Homeservers, Server
from tests.support.rows import row


async def member_content(server: Server, room_id: RoomID, user_id: str) -> dict[str, Any]:
    """The content of the user's current member event."""

    def read(tx: Any) -> dict[str, Any]:
        head = find_head(tx, room_id)
        assert head is not None
        return dict(state_content(tx, head.state_root, "m.room.member", user_id) or {})

    return await server.read(read)


NEW = {"displayname": "alice"}
"""The profile of a new user."""


async def test_the_display_name_of_a_new_user_is_the_localpart(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    assert await homeserver.anonymous.ok("GET", f"profile/{alice.user_id}") == NEW
    for field in ("avatar_url", "m.tz", "org.example.a"):
        assert await alice.refused("GET", f"profile/{alice.user_id}/{field}") == (404, "M_NOT_FOUND")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("displayname", "Alice Ü 🦊"),
        ("avatar_url", "mxc://example.org/SDGdghriugerRg"),
        ("m.tz", "Europe/London"),
        ("org.example.job-title", {"any": ["json", 1.5, None]}),
        ("org.example.nothing", None),
    ],
)
async def test_fields_can_be_set_and_removed(homeserver: Server, field: str, value: Any) -> None:
    alice = await homeserver.register("alice")
    path = f"profile/{alice.user_id}/{field}"
    assert await alice.ok("PUT", path, json={field: value}) == {}
    assert await homeserver.anonymous.ok("GET", path) == {field: value}
    assert await homeserver.anonymous.ok("GET", f"profile/{alice.user_id}") == {**NEW, field: value}
    assert await alice.ok("DELETE", path) == {}
    assert await alice.ok("DELETE", path) == {}
    assert await alice.refused("GET", path) == (404, "M_NOT_FOUND")


async def test_an_empty_name_or_avatar_removes_it(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    for field, value in (("displayname", "Alice"), ("avatar_url", "mxc://example.org/a")):
        await alice.ok("PUT", f"profile/{alice.user_id}/{field}", json={field: value})
        await alice.ok("PUT", f"profile/{alice.user_id}/{field}", json={field: ""})
    assert await alice.ok("GET", f"profile/{alice.user_id}") == {}


async def test_malformed_fields_are_refused(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    for field, body, errcode in [
        ("displayname", {}, "M_MISSING_PARAM"),
        ("displayname", {"avatar_url": "mxc://a/b"}, "M_MISSING_PARAM"),
        ("displayname", {"displayname": 7}, "M_BAD_JSON"),
        ("displayname", {"displayname": None}, "M_BAD_JSON"),
        ("displayname", {"displayname": "x" * 257}, "M_INVALID_PARAM"),
        ("avatar_url", {"avatar_url": {}}, "M_BAD_JSON"),
        ("avatar_url", {"avatar_url": "https://example.org/a.png"}, "M_INVALID_PARAM"),
        ("avatar_url", {"avatar_url": "mxc://example.org/" + "a" * 1000}, "M_INVALID_PARAM"),
        ("m.tz", {"m.tz": 7}, "M_BAD_JSON"),
        ("unnamespaced", {"unnamespaced": "x"}, "M_INVALID_PARAM"),
        ("Org.Example", {"Org.Example": "x"}, "M_INVALID_PARAM"),
        ("org.example.ü", {"org.example.ü": "x"}, "M_INVALID_PARAM"),
        ("org." + "x" * 252, {"org." + "x" * 252: "x"}, "M_KEY_TOO_LARGE"),
        ("org.example.big", {"org.example.big": "x" * 65536}, "M_PROFILE_TOO_LARGE"),
        ("displayname", [], "M_BAD_JSON"),
    ]:
        with row(field, body, errcode):
            assert await alice.refused("PUT", f"profile/{alice.user_id}/{field}", json=body) == (400, errcode)
            assert await alice.ok("GET", f"profile/{alice.user_id}") == NEW


async def test_the_whole_profile_has_a_maximum_size(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    half = "x" * 32_700
    await alice.ok("PUT", f"profile/{alice.user_id}/org.example.a", json={"org.example.a": half})
    await alice.ok("PUT", f"profile/{alice.user_id}/org.example.b", json={"org.example.b": half})
    body = {"org.example.c": "x" * 200}
    refusal = await alice.refused("PUT", f"profile/{alice.user_id}/org.example.c", json=body)
    assert refusal == (400, "M_PROFILE_TOO_LARGE")


async def test_users_can_change_only_their_own_profile(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    bob = await homeserver.register("bob")
    path = f"profile/{alice.user_id}/displayname"
    assert await bob.refused("PUT", path, json={"displayname": "x"}) == (403, "M_FORBIDDEN")
    assert await bob.refused("DELETE", path) == (403, "M_FORBIDDEN")
    assert await homeserver.anonymous.refused("PUT", path, json={"displayname": "x"}) == (401, "M_MISSING_TOKEN")


async def test_guests_may_change_their_display_name_only(homeservers: Homeservers) -> None:
    server = await homeservers.start(registration=Registration(enabled=True, guests=True))
    answer = await server.anonymous.ok("POST", "register?kind=guest", json={})
    guest, user_id = server.with_token(answer["access_token"]), answer["user_id"]
    await guest.ok("PUT", f"profile/{user_id}/displayname", json={"displayname": "A guest"})
    body = {"avatar_url": "mxc://example.org/a"}
    assert await guest.refused("PUT", f"profile/{user_id}/avatar_url", json=body) == (403, "M_FORBIDDEN")


async def test_profiles_of_unknown_users_are_not_found(homeserver: Server) -> None:
    assert await homeserver.anonymous.refused("GET", "profile/@nobody:test.example") == (404, "M_NOT_FOUND")
    assert await homeserver.anonymous.refused("GET", "profile/nobody") == (400, "M_INVALID_PARAM")


async def test_a_change_is_sent_to_every_room_of_the_user(homeserver: Server) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    rooms = [await homeserver.make_room(bob, alice) for _ in range(limits.users.PROFILE_ROOMS_PER_WRITE + 3)]
    left = await homeserver.make_room(bob)
    await alice.ok("PUT", f"profile/{alice.user_id}/displayname", json={"displayname": "Alice"})
    for room_id in rooms:
        content = await member_content(homeserver, room_id, alice.user_id)
        assert content == {"membership": "join", "displayname": "Alice"}
    await alice.ok("PUT", f"profile/{alice.user_id}/avatar_url", json={"avatar_url": "mxc://example.org/a"})
    await alice.ok("DELETE", f"profile/{alice.user_id}/displayname")
    for room_id in rooms:
        content = await member_content(homeserver, room_id, alice.user_id)
        assert content == {"membership": "join", "avatar_url": "mxc://example.org/a"}
    assert await member_content(homeserver, left, alice.user_id) == {}


async def test_setting_the_same_name_again_sends_nothing(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    room_id = await homeserver.make_room(alice)
    body = {"displayname": "Alice"}
    await alice.ok("PUT", f"profile/{alice.user_id}/displayname", json=body)
    before = await homeserver.read(find_head, room_id)
    await alice.ok("PUT", f"profile/{alice.user_id}/displayname", json=body)
    await alice.ok("PUT", f"profile/{alice.user_id}/m.tz", json={"m.tz": "Europe/Berlin"})
    assert await homeserver.read(find_head, room_id) == before


async def test_rooms_not_updated_before_a_crash_are_updated_at_the_next_start(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    await alice.ok("PUT", f"profile/{alice.user_id}/displayname", json={"displayname": "Alice"})
    room_id = await homeserver.make_room(alice)

    def forget(tx: Any) -> None:
        nid = tx.find(alice.user_id)
        tx.run("UPDATE profiles SET value = ? WHERE user_nid = ?", b'"Alice II"', nid)
        tx.run("INSERT INTO profile_updates (user_nid) VALUES (?)", nid)

    await homeserver.write(forget)
    await finish_update(homeserver.hs, alice.user_id)
    assert (await member_content(homeserver, room_id, alice.user_id))["displayname"] == "Alice II"
    assert await homeserver.read(lambda tx: tx.all("SELECT user_nid FROM profile_updates")) == []


async def test_members_see_the_new_name_in_sync(homeserver: Server) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await homeserver.make_room(bob, alice)
    since = (await bob.ok("GET", "sync"))["next_batch"]
    await alice.ok("PUT", f"profile/{alice.user_id}/displayname", json={"displayname": "Alice"})
    answer = await bob.ok("GET", f"sync?since={since}")
    (event,) = answer["rooms"]["join"][room_id]["timeline"]["events"]
    assert (event["type"], event["sender"]) == ("m.room.member", alice.user_id)
    assert event["content"]["displayname"] == "Alice"


async def ask_as_server(server: Server, **query: str) -> dict[str, Any]:
    return await FEATURE.queries["profile"](server.hs, "other.example", query)


async def test_other_servers_can_query_profiles(homeserver: Server) -> None:
    alice: Client = await homeserver.register("alice")
    await alice.ok("PUT", f"profile/{alice.user_id}/displayname", json={"displayname": "Alice"})
    await alice.ok("PUT", f"profile/{alice.user_id}/m.tz", json={"m.tz": "Europe/Berlin"})
    whole = {"displayname": "Alice", "m.tz": "Europe/Berlin"}
    assert await ask_as_server(homeserver, user_id=alice.user_id) == whole
    assert await ask_as_server(homeserver, user_id=alice.user_id, field="displayname") == {"displayname": "Alice"}
    assert await ask_as_server(homeserver, user_id=alice.user_id, field="avatar_url") == {}


async def test_malformed_queries_of_other_servers_are_refused(homeserver: Server) -> None:
    for query, errcode in [
        ({}, "M_MISSING_PARAM"),
        ({"user_id": "alice"}, "M_INVALID_PARAM"),
        ({"user_id": "@nobody:test.example"}, "M_NOT_FOUND"),
        ({"user_id": "@alice:third.example"}, "M_NOT_FOUND"),
    ]:
        with row(query, errcode):
            with pytest.raises(MatrixError, match=errcode):
                await ask_as_server(homeserver, **query)


async def test_a_suspended_user_cannot_change_the_profile(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    flags = AccountFlags(is_suspended=True)
    await homeserver.write(store_account_flags, alice.user_id, flags)
    body = {"displayname": "x"}
    refusal = await alice.refused("PUT", f"profile/{alice.user_id}/displayname", json=body)
    assert refusal == (403, "M_USER_SUSPENDED")
