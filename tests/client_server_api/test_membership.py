"""Spec: client-server-api/#room-membership"""

from __future__ import annotations

from itertools import product
from typing import Any
from urllib.parse import quote

import pytest

from tests.support.homeservers import Client, Server
from tests.support.people import (
    act,
    create,
    get_state,
    join,
    leave,
    membership,
    messages,
    path_of,
    public_room,
    send,
    set_state,
    state,
    sync,
)
from tests.support.rows import row

FORBIDDEN = (403, "M_FORBIDDEN")
NOT_FOUND = (404, "M_NOT_FOUND")
UNKNOWN_ROOM = "!unknown:test.example"


async def people(server: Server, *names: str) -> list[Client]:
    return [await server.register(name) for name in names]


async def try_to(client: Client, action: str, room_id: str, target: Client | None = None) -> tuple[int, str]:
    """The refusal of a change of membership."""
    body = {} if target is None else {"user_id": target.user_id}
    return await client.refused("POST", path_of(room_id, action), json=body)


async def test_anyone_can_join_a_public_room(server: Server) -> None:
    alice, bob = await people(server, "alice", "bob")
    await bob.ok("PUT", f"profile/{bob.user_id}/displayname", json={"displayname": "Bob"})
    room_id = await public_room(alice)
    assert await bob.ok("POST", path_of(room_id, "join"), json={"reason": "tea"}) == {"room_id": room_id}
    content = await get_state(alice, room_id, "m.room.member", bob.user_id)
    assert content == {"membership": "join", "displayname": "Bob", "reason": "tea"}
    assert await bob.ok("GET", "joined_rooms") == {"joined_rooms": [room_id]}


async def test_joining_twice_changes_nothing(server: Server) -> None:
    alice, bob = await people(server, "alice", "bob")
    room_id = await public_room(alice, bob)
    before = (await state(bob, room_id))["m.room.member", bob.user_id]["event_id"]
    await join(bob, room_id)
    assert (await state(bob, room_id))["m.room.member", bob.user_id]["event_id"] == before


async def test_joining_needs_no_body(server: Server) -> None:
    alice, bob = await people(server, "alice", "bob")
    room_id = await public_room(alice)
    assert await bob.ok("POST", path_of(room_id, "join")) == {"room_id": room_id}
    await bob.ok("POST", path_of(room_id, "leave"))
    assert await membership(alice, room_id, bob.user_id) == "leave"


async def test_rooms_can_be_joined_by_alias_or_id(server: Server) -> None:
    alice, bob, carol = await people(server, "alice", "bob", "carol")
    room_id = await public_room(alice, room_alias_name="pub")
    assert await bob.ok("POST", f"join/{quote('#pub:test.example', safe='')}", json={}) == {"room_id": room_id}
    assert await carol.ok("POST", f"join/{quote(room_id, safe='')}?via=test.example", json={}) == {"room_id": room_id}


async def test_joining_an_unknown_room_fails(server: Server) -> None:
    (alice,) = await people(server, "alice")
    assert await try_to(alice, "join", UNKNOWN_ROOM) == NOT_FOUND
    assert await alice.refused("POST", f"join/{quote('#nope:test.example', safe='')}", json={}) == NOT_FOUND
    assert await alice.refused("POST", "join/nonsense", json={}) == (400, "M_INVALID_PARAM")
    assert await alice.refused("POST", f"join/{UNKNOWN_ROOM}?via=no%20name", json={}) == (400, "M_INVALID_PARAM")


async def test_only_invited_users_can_join_a_private_room(server: Server) -> None:
    alice, bob, carol = await people(server, "alice", "bob", "carol")
    room_id = await create(alice)
    assert await try_to(bob, "join", room_id) == FORBIDDEN
    await act(alice, room_id, "invite", bob, reason="tea?")
    assert (await get_state(alice, room_id, "m.room.member", bob.user_id))["reason"] == "tea?"
    assert await try_to(carol, "join", room_id) == FORBIDDEN
    await join(bob, room_id)
    assert await membership(alice, room_id, bob.user_id) == "join"


async def test_after_leaving_a_private_room_a_new_invitation_is_needed(server: Server) -> None:
    alice, bob = await people(server, "alice", "bob")
    room_id = await create(alice, invite=[bob.user_id])
    await leave(bob, room_id)
    assert await membership(alice, room_id, bob.user_id) == "leave"
    assert await try_to(bob, "join", room_id) == FORBIDDEN


async def test_inviting_requires_membership_and_power(server: Server) -> None:
    alice, bob, carol, dave = await people(server, "alice", "bob", "carol", "dave")
    room_id = await public_room(alice, bob)
    assert await try_to(bob, "invite", room_id, carol) == FORBIDDEN  # public_chat asks for level 50
    assert await try_to(dave, "invite", room_id, carol) == FORBIDDEN
    assert await try_to(alice, "invite", UNKNOWN_ROOM, carol) == FORBIDDEN
    assert await try_to(alice, "invite", room_id, bob) == FORBIDDEN
    assert await try_to(alice, "invite", room_id, alice) == FORBIDDEN
    await act(alice, room_id, "ban", carol)
    assert await try_to(alice, "invite", room_id, carol) == FORBIDDEN
    for _ in range(2):
        await act(alice, room_id, "invite", dave)
    assert await membership(alice, room_id, dave.user_id) == "invite"


async def test_an_invitation_can_be_rejected(server: Server) -> None:
    alice, bob = await people(server, "alice", "bob")
    room_id = await create(alice, invite=[bob.user_id])
    first = await sync(bob)
    assert room_id in first["rooms"]["invite"]
    await bob.ok("POST", path_of(room_id, "leave"), json={"reason": "no"})
    assert room_id in (await sync(bob, first["next_batch"]))["rooms"]["leave"]
    assert (await get_state(alice, room_id, "m.room.member", bob.user_id))["reason"] == "no"


async def test_an_invitation_to_an_abandoned_room_can_be_rejected(server: Server) -> None:
    alice, bob = await people(server, "alice", "bob")
    room_id = await create(alice, invite=[bob.user_id])
    first = await sync(bob)
    await leave(alice, room_id)
    await leave(bob, room_id)
    (event,) = (await sync(bob, first["next_batch"]))["rooms"]["leave"][room_id]["timeline"]["events"]
    assert (event["state_key"], event["content"]["membership"]) == (bob.user_id, "leave")
    assert room_id not in (await sync(bob)).get("rooms", {}).get("invite", {})


async def test_an_invitation_can_be_withdrawn(server: Server) -> None:
    alice, bob = await people(server, "alice", "bob")
    room_id = await create(alice, invite=[bob.user_id])
    await act(alice, room_id, "kick", bob)
    assert await membership(alice, room_id, bob.user_id) == "leave"
    assert await try_to(bob, "join", room_id) == FORBIDDEN


async def test_members_can_leave(server: Server) -> None:
    alice, bob, carol = await people(server, "alice", "bob", "carol")
    room_id = await public_room(alice, bob)
    await bob.ok("POST", path_of(room_id, "leave"), json={"reason": "home"})
    content = await get_state(alice, room_id, "m.room.member", bob.user_id)
    assert content == {"membership": "leave", "reason": "home"}
    assert await bob.ok("GET", "joined_rooms") == {"joined_rooms": []}
    await leave(bob, room_id)
    assert await bob.refused("PUT", path_of(room_id, "send", "m.room.message", "1"), json={}) == FORBIDDEN
    assert await try_to(carol, "leave", room_id) == FORBIDDEN
    assert await try_to(carol, "leave", UNKNOWN_ROOM) == NOT_FOUND


async def test_the_last_member_can_leave(server: Server) -> None:
    alice, bob = await people(server, "alice", "bob")
    room_id = await public_room(alice, visibility="public")
    await leave(alice, room_id)
    assert (await alice.ok("GET", "publicRooms"))["chunk"] == []
    assert (await bob.refused("POST", path_of(room_id, "join"), json={}))[0] in (403, 404)


async def test_moderators_can_kick(server: Server) -> None:
    alice, bob, carol = await people(server, "alice", "bob", "carol")
    room_id = await public_room(alice, bob, carol)
    assert await try_to(bob, "kick", room_id, carol) == FORBIDDEN
    assert await try_to(bob, "kick", room_id, alice) == FORBIDDEN
    await act(alice, room_id, "kick", bob, reason="rude")
    member = (await state(alice, room_id))["m.room.member", bob.user_id]
    assert (member["sender"], member["content"]) == (alice.user_id, {"membership": "leave", "reason": "rude"})
    assert await try_to(alice, "kick", room_id, bob) == FORBIDDEN
    assert await try_to(bob, "kick", room_id, carol) == FORBIDDEN
    assert await try_to(alice, "kick", UNKNOWN_ROOM, carol) == FORBIDDEN
    await join(bob, room_id)


async def test_members_of_equal_or_higher_power_cannot_be_kicked_or_banned(server: Server) -> None:
    alice, bob, carol = await people(server, "alice", "bob", "carol")
    levels = {"users": {bob.user_id: 50, carol.user_id: 50}}
    room_id = await public_room(alice, bob, carol, power_level_content_override=levels)
    for action in ("kick", "ban"):
        assert await try_to(bob, action, room_id, carol) == FORBIDDEN
        assert await try_to(bob, action, room_id, alice) == FORBIDDEN
    assert await membership(alice, room_id, carol.user_id) == "join"


async def test_moderators_can_ban(server: Server) -> None:
    alice, bob, carol, dave = await people(server, "alice", "bob", "carol", "dave")
    room_id = await public_room(alice, bob, carol)
    assert await try_to(bob, "ban", room_id, carol) == FORBIDDEN
    assert await try_to(dave, "ban", room_id, carol) == FORBIDDEN
    assert await try_to(alice, "ban", UNKNOWN_ROOM, carol) == FORBIDDEN
    await act(alice, room_id, "ban", bob, reason="spam")
    await act(alice, room_id, "ban", dave)  # who has never been here
    content = await get_state(alice, room_id, "m.room.member", bob.user_id)
    assert (content["membership"], content["reason"]) == ("ban", "spam")
    for banned in (bob, dave):
        assert await try_to(banned, "join", room_id) == FORBIDDEN
        assert await try_to(banned, "leave", room_id) == FORBIDDEN
        assert await banned.refused("POST", f"knock/{room_id}", json={}) == FORBIDDEN
    assert await membership(alice, room_id, bob.user_id) == "ban"


async def test_moderators_can_unban(server: Server) -> None:
    alice, bob, carol = await people(server, "alice", "bob", "carol")
    room_id = await public_room(alice, carol)
    await act(alice, room_id, "ban", bob)
    assert await try_to(carol, "unban", room_id, bob) == FORBIDDEN
    assert await try_to(alice, "unban", room_id, carol) == (403, "M_BAD_STATE")
    await act(alice, room_id, "unban", bob, reason="sorry")
    content = await get_state(alice, room_id, "m.room.member", bob.user_id)
    assert content == {"membership": "leave", "reason": "sorry"}
    await join(bob, room_id)


async def test_users_can_forget_rooms_that_they_left(server: Server) -> None:
    alice, bob, carol = await people(server, "alice", "bob", "carol")
    room_id = await public_room(alice, bob)
    assert await bob.refused("POST", path_of(room_id, "forget")) == (400, "M_UNKNOWN")
    await leave(bob, room_id)
    assert (await messages(bob, room_id))["chunk"]
    for _ in range(2):
        assert await bob.ok("POST", path_of(room_id, "forget")) == {}
    assert await bob.refused("GET", path_of(room_id, "messages") + "?dir=b") == FORBIDDEN
    assert await bob.refused("GET", path_of(room_id, "state")) == FORBIDDEN
    filter_ = {"room": {"include_leave": True}}
    assert room_id not in (await sync(bob, filter=filter_)).get("rooms", {}).get("leave", {})
    assert await carol.refused("POST", path_of(room_id, "forget")) == NOT_FOUND
    await join(bob, room_id)
    assert (await messages(bob, room_id))["chunk"]


@pytest.mark.parametrize("how", ["leave", "ban", "reject"])
async def test_devices_that_were_away_see_that_a_forgotten_room_was_left(server: Server, how: str) -> None:
    alice, bob = await people(server, "alice", "bob")
    room_id = await public_room(alice)
    await (act(alice, room_id, "invite", bob) if how == "reject" else join(bob, room_id))
    since = (await sync(bob))["next_batch"]
    await send(alice, room_id, "before")
    await (act(alice, room_id, "ban", bob) if how == "ban" else leave(bob, room_id))
    await bob.ok("POST", path_of(room_id, "forget"))
    answer = await sync(bob, since)
    (told,) = answer["rooms"]["leave"][room_id]["timeline"]["events"]
    assert told["state_key"] == bob.user_id
    assert told["content"]["membership"] == ("ban" if how == "ban" else "leave")
    assert "rooms" not in await sync(bob, answer["next_batch"])


@pytest.mark.parametrize("join_rule", ["knock", "knock_restricted"])
async def test_users_can_knock(server: Server, join_rule: str) -> None:
    alice, bob = await people(server, "alice", "bob")
    room_id = await create(alice, name="Room", room_alias_name="pub")
    await set_state(alice, room_id, "m.room.join_rules", {"join_rule": join_rule})
    knocked = await bob.ok("POST", f"knock/{quote('#pub:test.example', safe='')}", json={"reason": "please"})
    assert knocked == {"room_id": room_id}
    content = await get_state(alice, room_id, "m.room.member", bob.user_id)
    assert content == {"membership": "knock", "reason": "please", "displayname": "bob"}
    told = (await sync(bob))["rooms"]["knock"][room_id]["knock_state"]["events"]
    assert {"name": "Room"} in [event["content"] for event in told]
    assert await try_to(bob, "join", room_id) == FORBIDDEN
    await act(alice, room_id, "invite", bob)
    assert await bob.refused("POST", f"knock/{room_id}", json={}) == FORBIDDEN
    await join(bob, room_id)
    assert await bob.refused("POST", f"knock/{room_id}", json={}) == FORBIDDEN


async def test_a_knock_can_be_withdrawn_or_denied(server: Server) -> None:
    alice, bob, carol = await people(server, "alice", "bob", "carol")
    rules = {"type": "m.room.join_rules", "content": {"join_rule": "knock"}}
    room_id = await create(alice, initial_state=[rules])
    for client in (bob, carol):
        await client.ok("POST", f"knock/{room_id}", json={})
    await leave(bob, room_id)
    await act(alice, room_id, "kick", carol)
    assert await membership(alice, room_id, bob.user_id) == await membership(alice, room_id, carol.user_id) == "leave"


@pytest.mark.parametrize(("preset", "version"), [("private_chat", "12"), ("public_chat", "12"), ("private_chat", "6")])
async def test_knocking_is_refused_if_the_join_rules_forbid_it(server: Server, preset: str, version: str) -> None:
    alice, bob = await people(server, "alice", "bob")
    room_id = await create(alice, preset=preset, room_version=version)
    assert await bob.refused("POST", f"knock/{room_id}", json={}) == FORBIDDEN
    assert await bob.refused("POST", f"knock/{UNKNOWN_ROOM}", json={}) == NOT_FOUND
    assert await bob.refused("POST", f"knock/{quote('#nope:test.example', safe='')}", json={}) == NOT_FOUND


@pytest.mark.parametrize("version", ["8", "10", "12"])
async def test_members_of_an_allowed_room_can_join_a_restricted_room(server: Server, version: str) -> None:
    alice, bob, carol = await people(server, "alice", "bob", "carol")
    club = await public_room(alice, bob)
    allow = [{"type": "m.room_membership", "room_id": club}, {"type": "org.example.unknown"}]
    rules = {"type": "m.room.join_rules", "content": {"join_rule": "restricted", "allow": allow}}
    room_id = await create(alice, room_version=version, initial_state=[rules])
    await join(bob, room_id)
    content = await get_state(alice, room_id, "m.room.member", bob.user_id)
    assert content["join_authorised_via_users_server"] == alice.user_id
    assert await try_to(carol, "join", room_id) == FORBIDDEN
    await act(alice, room_id, "invite", carol)
    await join(carol, room_id)
    assert "join_authorised_via_users_server" not in await get_state(alice, room_id, "m.room.member", carol.user_id)


@pytest.mark.parametrize("vouching", ["@somebody:elsewhere.example", "@nobody:test.example", "nobody", 7])
async def test_clients_cannot_choose_who_authorises_a_restricted_join(server: Server, vouching: Any) -> None:
    """Else the event would need the signature of another server, and be dropped by all but this one."""
    alice, bob = await people(server, "alice", "bob")
    club = await public_room(alice, bob)
    allow = [{"type": "m.room_membership", "room_id": club}]
    rules = {"type": "m.room.join_rules", "content": {"join_rule": "restricted", "allow": allow}}
    room_id = await create(alice, initial_state=[rules])
    content = {"membership": "join", "join_authorised_via_users_server": vouching}
    await set_state(bob, room_id, "m.room.member", content, bob.user_id)
    joined = await get_state(alice, room_id, "m.room.member", bob.user_id)
    assert joined == {"membership": "join", "join_authorised_via_users_server": alice.user_id}
    await set_state(bob, room_id, "m.room.member", {**content, "displayname": "Bob"}, bob.user_id)
    named = await get_state(alice, room_id, "m.room.member", bob.user_id)
    assert named == {"membership": "join", "displayname": "Bob"}
    banned = {"membership": "ban", "join_authorised_via_users_server": vouching}
    await set_state(alice, room_id, "m.room.member", banned, bob.user_id)
    assert await get_state(alice, room_id, "m.room.member", bob.user_id) == {"membership": "ban"}


async def test_memberships_can_be_changed_by_state_events(server: Server) -> None:
    alice, bob, carol = await people(server, "alice", "bob", "carol")
    room_id = await create(alice)
    for each in ("invite", "leave", "ban", "leave"):
        await set_state(alice, room_id, "m.room.member", {"membership": each}, bob.user_id)
        assert await membership(alice, room_id, bob.user_id) == each
    path = f"rooms/{room_id}/state/m.room.member"
    assert await alice.refused("PUT", f"{path}/{bob.user_id}", json={"membership": "join"}) == FORBIDDEN
    assert await alice.refused("PUT", f"{path}/{carol.user_id}", json={"membership": "knock"}) == FORBIDDEN
    for content in ({}, {"membership": 7}, {"membership": "dance"}):
        status, _ = await alice.refused("PUT", f"{path}/{bob.user_id}", json=content)
        assert status in (400, 403)
    for state_key in ("", "nobody"):
        status, _ = await alice.refused("PUT", f"{path}/{state_key}", json={"membership": "invite"})
        assert status in (400, 403)


async def test_malformed_targets_are_refused(server: Server) -> None:
    alice, bob = await people(server, "alice", "bob")
    room_id = await public_room(alice, bob)
    for (body, errcode), action in product(
        [
            ({}, "M_MISSING_PARAM"),
            ({"reason": "x"}, "M_MISSING_PARAM"),
            ({"user_id": 7}, "M_BAD_JSON"),
            ({"user_id": None}, "M_BAD_JSON"),
            ({"user_id": "bob"}, "M_INVALID_PARAM"),
            ({"user_id": "@bob:test.example", "reason": 7}, "M_BAD_JSON"),
            ([], "M_BAD_JSON"),
        ],
        ["invite", "kick", "ban", "unban"],
    ):
        with row(body, errcode, action):
            assert await alice.refused("POST", path_of(room_id, action), json=body) == (400, errcode)
            assert await membership(alice, room_id, bob.user_id) == "join"


async def test_malformed_reasons_are_refused(server: Server) -> None:
    alice, bob, carol = await people(server, "alice", "bob", "carol")
    room_id = await public_room(alice, bob)
    for body in [{"reason": 7}, {"reason": []}, [], 7, {"reason": "x" * 70_000}]:
        with row(body):
            for client, path in (
                (bob, path_of(room_id, "leave")),
                (carol, path_of(room_id, "join")),
                (carol, f"join/{room_id}"),
                (carol, f"knock/{room_id}"),
            ):
                assert await client.refused("POST", path, json=body) in (
                    (400, "M_BAD_JSON"),
                    (413, "M_TOO_LARGE"),
                    FORBIDDEN if path.startswith("knock") and isinstance(body, dict) else (),
                )
            assert await membership(alice, room_id, bob.user_id) == "join"
            assert ("m.room.member", carol.user_id) not in await state(alice, room_id)


async def test_an_access_token_is_required(server: Server) -> None:
    (alice,) = await people(server, "alice")
    room_id = await public_room(alice)
    for action in ("join", "leave", "invite", "kick", "ban", "unban", "forget"):
        assert await try_to(server.anonymous, action, room_id, alice) == (401, "M_MISSING_TOKEN")


async def test_a_banned_user_sees_the_ban_and_nothing_later(server: Server) -> None:
    alice, bob = await people(server, "alice", "bob")
    room_id = await public_room(alice, bob)
    since = (await sync(bob))["next_batch"]
    await act(alice, room_id, "ban", bob)
    await send(alice, room_id, "gone")
    told = (await sync(bob, since))["rooms"]["leave"][room_id]["timeline"]["events"]
    assert [event["content"]["membership"] for event in told] == ["ban"]
