"""Spec: client-server-api/#syncing, #filtering, #lazy-loading-room-members

That every answer together with those before it gives the state of the rooms is a property: tests/sync/.
"""

from __future__ import annotations

from typing import Any

import pytest
import trio

from tests.support.homeservers import Client, Server
from tests.support.people import (
    act,
    create,
    ids,
    invite,
    join,
    knock,
    leave,
    messages,
    path_of,
    public_room,
    redact,
    room_in,
    say,
    send,
    set_state,
    state,
    sync,
    texts,
    timeline,
)

LAZY = {"room": {"state": {"lazy_load_members": True}}}


async def people(server: Server, count: int) -> list[Client]:
    return [await server.register(f"user{number}") for number in range(count)]


def members_told(answer: dict[str, Any], room_id: str) -> set[str]:
    """Returns the users whose member events are in the state of the room."""
    events = room_in(answer, room_id)["state"]["events"]
    return {event["state_key"] for event in events if event["type"] == "m.room.member"}


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]


# Lazy loading


async def test_lazy_loading_returns_senders_and_heroes(server: Server) -> None:
    reader, *others = await people(server, 9)
    room_id = await public_room(reader, *others)
    await say(others[7], room_id, *["hello"] * 10)
    whole = await sync(reader, filter={"room": {"timeline": {"limit": 10}}})
    assert members_told(whole, room_id) == {each.user_id for each in (reader, *others)}
    lazy = await sync(reader, filter={"room": {**LAZY["room"], "timeline": {"limit": 10}}})
    heroes = room_in(lazy, room_id)["summary"]["m.heroes"]
    assert heroes == [each.user_id for each in others[:5]]
    assert members_told(lazy, room_id) == {reader.user_id, others[7].user_id, *heroes}
    assert room_in(lazy, room_id)["summary"]["m.joined_member_count"] == 9
    assert "m.room.create" in kinds(room_in(lazy, room_id)["state"]["events"])


async def test_lazy_loading_returns_new_senders(server: Server) -> None:
    reader, *others = await people(server, 9)
    room_id = await public_room(reader, *others)
    await say(reader, room_id, *["hello"] * 10)
    since = (await sync(reader, filter=LAZY))["next_batch"]
    await say(others[6], room_id, "I am here too")
    answer = await sync(reader, since, filter=LAZY)
    assert members_told(answer, room_id) == {others[6].user_id}
    await set_state(reader, room_id, "m.room.topic", {"topic": "Tea"})
    answer = await sync(reader, answer["next_batch"], filter=LAZY)
    assert members_told(answer, room_id) <= {reader.user_id}


# Filters


async def test_state_and_timeline_can_be_filtered(server: Server) -> None:
    (alice,) = await people(server, 1)
    room_id = await public_room(alice, name="Room", topic="Tea")
    await say(alice, room_id, *["hello"] * 3)
    room_filter = {"state": {"types": ["m.room.n*"]}, "timeline": {"types": ["m.room.message"], "limit": 2}}
    room = room_in(await sync(alice, filter={"room": room_filter}), room_id)
    assert kinds(room["state"]["events"]) == ["m.room.name"]
    assert kinds(room["timeline"]["events"]) == ["m.room.message"] * 2
    assert room["timeline"]["limited"] is True


@pytest.mark.parametrize("part", ["room", "timeline", "state", "ephemeral", "account_data"])
@pytest.mark.parametrize("by", ["rooms", "not_rooms"])
async def test_rooms_can_be_filtered(server: Server, part: str, by: str) -> None:
    alice, bob = await people(server, 2)
    wanted, unwanted = await public_room(alice, bob), await public_room(alice, bob)
    for room_id in (wanted, unwanted):
        (event_id,) = await say(alice, room_id, "hello")
        await bob.ok("POST", path_of(room_id, "receipt", "m.read", event_id), json={})
        await alice.ok("PUT", f"user/{alice.user_id}/" + path_of(room_id, "tags", "u.a"), json={})
    condition = {by: [wanted] if by == "rooms" else [unwanted]}
    answer = await sync(alice, filter={"room": condition if part == "room" else {part: condition}})
    rooms = answer["rooms"]["join"]
    if part == "room":
        assert rooms.keys() == {wanted}
    elif part == "state":
        short = await sync(alice, filter={"room": {"timeline": {"limit": 1}, "state": condition}})
        rooms = short["rooms"]["join"]
        assert rooms[wanted]["state"]["events"] and not rooms[unwanted]["state"]["events"]
    else:
        assert rooms[wanted][part]["events"]
        assert not rooms[unwanted].get(part, {}).get("events")


async def test_presence_and_account_data_can_be_filtered(server: Server) -> None:
    alice, bob = await people(server, 2)
    await public_room(alice, bob)
    await sync(bob)
    for kind in ("org.example.a", "org.example.b"):
        await alice.ok("PUT", f"user/{alice.user_id}/account_data/{kind}", json={})
    answer = await sync(alice, filter={"account_data": {"types": ["org.example.b"]}, "presence": {"types": []}})
    assert kinds(answer["account_data"]["events"]) == ["org.example.b"]
    assert "presence" not in answer
    answer = await sync(alice, filter={"presence": {"not_senders": [alice.user_id]}})
    assert [event["sender"] for event in answer["presence"]["events"]] == [bob.user_id]


async def test_event_fields_limits_the_fields_of_events(server: Server) -> None:
    (alice,) = await people(server, 1)
    room_id = await public_room(alice)
    await send(alice, room_id, {"msgtype": "m.text", "body": "hello", "a.b": {"c": 1, "d": 2}})
    filter_ = {"event_fields": ["type", "content.body", "content.a\\.b.c"], "room": {"timeline": {"limit": 1}}}
    (event,) = timeline(await sync(alice, filter=filter_), room_id)
    assert event["content"] == {"body": "hello", "a.b": {"c": 1}}
    required = {"type", "event_id", "sender", "origin_server_ts", "content"}  # more than was asked for is allowed
    assert event.keys() == required


# Timelines


async def test_a_gap_can_be_filled_from_prev_batch(server: Server) -> None:
    alice, bob = await people(server, 2)
    room_id = await public_room(alice, bob)
    since = (await sync(bob))["next_batch"]
    sent = await say(alice, room_id, *[str(number) for number in range(15)])
    room = room_in(await sync(bob, since), room_id)
    assert room["timeline"]["limited"] is True
    assert ids(room["timeline"]["events"]) == sent[5:]
    older = await messages(bob, room_id, start=room["timeline"]["prev_batch"], to=since, limit=100)
    assert ids(older["chunk"]) == sent[:5][::-1]
    assert "limited" not in room["timeline"] or timeline(await sync(bob, since), room_id)


async def test_the_state_is_that_before_or_after_the_timeline(server: Server) -> None:
    alice, bob = await people(server, 2)
    room_id = await public_room(alice, bob, name="first")
    since = (await sync(bob))["next_batch"]
    await set_state(alice, room_id, "m.room.name", {"name": "second"})
    await say(alice, room_id, *["hello"] * 10)
    newest = await set_state(alice, room_id, "m.room.name", {"name": "third"})
    before = room_in(await sync(bob, since), room_id)
    assert [event["content"]["name"] for event in before["state"]["events"]] == ["second"]
    assert ids(before["timeline"]["events"])[-1] == newest
    after = room_in(await sync(bob, since, use_state_after=True), room_id)
    assert [event["content"]["name"] for event in after["state_after"]["events"]] == ["third"]
    assert "state" not in after


async def test_full_state_is_returned_at_once(server: Server) -> None:
    (alice,) = await people(server, 1)
    room_id = await public_room(alice, name="Room")
    since = (await sync(alice))["next_batch"]
    began = trio.current_time()
    room = room_in(await sync(alice, since, full_state=True, timeout=60_000), room_id)
    assert trio.current_time() == began
    assert {"m.room.create", "m.room.name", "m.room.member"} <= set(kinds(room["state"]["events"]))
    assert room["timeline"]["events"] == []


async def test_only_the_sending_device_gets_the_transaction_id(server: Server) -> None:
    alice = await server.register("alice")
    other, bob = await server.log_in("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    event_id = await send(alice, room_id, "hello", txn_id="mine")
    for client, expected in ((alice, "mine"), (other, None), (bob, None)):
        found = [event for event in timeline(await sync(client), room_id) if event["event_id"] == event_id]
        assert [event["unsigned"].get("transaction_id") for event in found] == [expected]


async def test_redacted_events_are_sent_in_redacted_form(server: Server) -> None:
    alice, bob = await people(server, 2)
    room_id = await public_room(alice, bob)
    (event_id,) = await say(alice, room_id, "oops")
    redaction = await redact(alice, room_id, event_id, reason="slip")
    told = {event["event_id"]: event for event in timeline(await sync(bob), room_id)}
    assert told[event_id]["content"] == {}
    assert told[event_id]["unsigned"]["redacted_because"]["event_id"] == redaction
    assert told[redaction]["content"] == {"redacts": event_id, "reason": "slip"}


# Other memberships


async def test_invitations_and_knocks_come_with_stripped_state(server: Server) -> None:
    alice, bob = await people(server, 2)
    room_id = await create(alice, preset="private_chat", name="Room", invite=[bob.user_id])
    answer = await sync(bob)
    state = room_in(answer, room_id, "invite")["invite_state"]["events"]
    assert {"m.room.create", "m.room.name", "m.room.member"} <= set(kinds(state))
    assert "rooms" not in await sync(bob, answer["next_batch"])
    await leave(bob, room_id)
    left = room_in(await sync(bob, answer["next_batch"]), room_id, "leave")
    assert [event["content"]["membership"] for event in left["timeline"]["events"]] == ["leave"]

    knocked_on = await create(alice, initial_state=[{"type": "m.room.join_rules", "content": {"join_rule": "knock"}}])
    await knock(bob, knocked_on, reason="please")
    state = room_in(await sync(bob), knocked_on, "knock")["knock_state"]["events"]
    (own,) = [event for event in state if event.get("state_key") == bob.user_id]
    assert own["content"] == {"membership": "knock", "reason": "please", "displayname": "user1"}


async def test_an_invitation_says_who_sent_it_and_when(server: Server) -> None:
    alice, bob = await people(server, 2)
    room_id = await create(alice, initial_state=[{"type": "m.room.join_rules", "content": {"join_rule": "knock"}}])
    await alice.ok("PUT", f"profile/{alice.user_id}/displayname", json={"displayname": "Alice"})
    await knock(bob, room_id)
    await act(alice, room_id, "invite", bob)
    room = room_in(await sync(bob), room_id, "invite")
    told = {(event["type"], event["state_key"]): event for event in room["invite_state"]["events"]}
    inviter = told["m.room.member", alice.user_id]
    assert inviter["content"] == {"membership": "join", "displayname": "Alice"}
    assert inviter.keys() == {"type", "sender", "state_key", "content"}
    own = told["m.room.member", bob.user_id]
    assert own["sender"] == alice.user_id
    invite_event = (await state(alice, room_id))["m.room.member", bob.user_id]
    assert own["event_id"] == invite_event["event_id"]
    assert own["origin_server_ts"] == invite_event["origin_server_ts"]
    assert own["unsigned"] == {"age": 0, "prev_content": {"membership": "knock", "displayname": "user1"}}
    assert room["state"]["events"] == [own]


async def test_the_inviters_redacted_profile_is_not_shown(server: Server) -> None:
    alice, bob = await people(server, 2)
    room_id = await create(alice)
    await alice.ok("PUT", f"profile/{alice.user_id}/displayname", json={"displayname": "rude"})
    await act(alice, room_id, "invite", bob)
    member = (await state(alice, room_id))["m.room.member", alice.user_id]
    assert "rude" in str(room_in(await sync(bob), room_id, "invite"))
    await redact(alice, room_id, member["event_id"])
    assert "rude" not in str(room_in(await sync(bob), room_id, "invite"))


@pytest.mark.parametrize("how", ["leave", "kick", "ban"])
async def test_a_left_room_is_shown_up_to_the_departure(server: Server, how: str) -> None:
    alice, bob = await people(server, 2)
    room_id = await public_room(alice, bob)
    since = (await sync(bob))["next_batch"]
    await say(alice, room_id, "before")
    await (leave(bob, room_id) if how == "leave" else act(alice, room_id, how, bob))
    await say(alice, room_id, "after")
    answer = await sync(bob, since)
    room = room_in(answer, room_id, "leave")
    assert texts(room["timeline"]["events"]) == ["before"]
    assert room["timeline"]["events"][-1]["state_key"] == bob.user_id
    assert room_in(answer, room_id) == {}
    assert "rooms" not in await sync(bob, answer["next_batch"])
    assert "leave" not in (await sync(bob)).get("rooms", {})
    archived = room_in(await sync(bob, filter={"room": {"include_leave": True}}), room_id, "leave")
    assert texts(archived["timeline"]["events"]) == ["before"]
    await act(bob, room_id, "forget")
    assert "rooms" not in await sync(bob, filter={"room": {"include_leave": True}})


async def test_a_rejoined_room_comes_with_its_full_state(server: Server) -> None:
    alice, bob = await people(server, 2)
    room_id = await public_room(alice, bob, name="Room")
    await leave(bob, room_id)
    since = (await sync(bob))["next_batch"]
    await join(bob, room_id)
    room = room_in(await sync(bob, since), room_id)
    events = room["state"]["events"] + room["timeline"]["events"]
    assert {"m.room.create", "m.room.name"} <= set(kinds(events))
    assert room["summary"]["m.joined_member_count"] == 2


# Ignored users, waiting


async def test_events_of_ignored_users_are_left_out(server: Server) -> None:
    alice, bob = await people(server, 2)
    room_id = await public_room(alice, bob)
    since = (await sync(alice))["next_batch"]
    content = {"ignored_users": {bob.user_id: {}}}
    await alice.ok("PUT", f"user/{alice.user_id}/account_data/m.ignored_user_list", json=content)
    await say(bob, room_id, "can you hear me?")
    invited_to = await create(bob, preset="private_chat")
    await invite(bob, invited_to, alice)
    await bob.ok("PUT", f"profile/{bob.user_id}/displayname", json={"displayname": "Bob!"})
    answer = await sync(alice, since)
    assert texts(timeline(answer, room_id)) == []
    assert "invite" not in answer["rooms"]
    assert [event["content"]["displayname"] for event in timeline(answer, room_id)] == ["Bob!"]


async def test_a_sync_waits_for_its_timeout(server: Server) -> None:
    (alice,) = await people(server, 1)
    await public_room(alice)
    since = (await sync(alice))["next_batch"]
    began = trio.current_time()
    answer = await sync(alice, since, timeout=20_000, set_presence="offline", filter={"presence": {"types": []}})
    assert "rooms" not in answer
    assert trio.current_time() - began >= 19
    assert await sync(alice, answer["next_batch"], timeout=0, set_presence="offline")
