"""Rooms that a user has left, and filters that want them or another format. Spec: client-server-api/#syncing"""

from __future__ import annotations

from typing import Any

from homeserver.federation.event import parse_event
from homeserver.federation.room_versions import ROOM_VERSIONS
from tests.support.homeservers import Client, Server
from tests.support.people import act, join, leave, path_of, public_room, redact, room_in, say, set_state, sync, texts

WITH_LEFT = {"room": {"include_leave": True}}
FEDERATION = {"event_format": "federation"}


async def note(client: Client, room_id: str, value: int) -> None:
    path = f"user/{client.user_id}/{path_of(room_id)}/account_data/org.example"
    await client.ok("PUT", path, json={"value": value})


def noted(entry: dict[str, Any]) -> list[int]:
    return [event["content"]["value"] for event in entry.get("account_data", {}).get("events", ())]


async def test_a_room_that_was_just_left_has_its_new_account_data(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    since = (await sync(bob))["next_batch"]
    await note(bob, room_id, 1)
    await leave(bob, room_id)
    answer = await sync(bob, since)
    assert noted(room_in(answer, room_id, "leave")) == [1]
    assert "rooms" not in await sync(bob, answer["next_batch"])


async def test_archived_rooms_have_their_timeline_state_and_account_data(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    await set_state(alice, room_id, "m.room.topic", {"topic": "then"})
    await note(bob, room_id, 1)
    await say(alice, room_id, "hello")
    await act(alice, room_id, "kick", bob)
    await set_state(alice, room_id, "m.room.topic", {"topic": "now"})
    await say(alice, room_id, "bob is gone")
    assert "rooms" not in await sync(bob)
    answer = await sync(bob, filter=WITH_LEFT)
    entry = room_in(answer, room_id, "leave")
    assert noted(entry) == [1] and texts(entry["timeline"]["events"]) == ["hello"]
    told = [*entry["state"]["events"], *entry["timeline"]["events"]]
    assert [event["content"] for event in told if event["type"] == "m.room.topic"] == [{"topic": "then"}]
    await note(bob, room_id, 2)
    later = await sync(bob, answer["next_batch"], filter=WITH_LEFT)
    assert room_in(later, room_id, "leave") == {"account_data": {"events": [event_of(2)]}}
    assert "rooms" not in await sync(bob, answer["next_batch"]), "only clients that want such rooms hear of it"
    await act(bob, room_id, "forget")
    assert "rooms" not in await sync(bob, filter=WITH_LEFT)


def event_of(value: int) -> dict[str, Any]:
    return {"type": "org.example", "content": {"value": value}}


async def test_the_filter_of_account_data_holds_for_left_rooms(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    await note(bob, room_id, 1)
    await leave(bob, room_id)
    entry = room_in(
        await sync(bob, filter={"room": {"include_leave": True, "account_data": {"types": []}}}), room_id, "leave"
    )
    assert "account_data" not in entry


async def test_a_room_that_was_joined_again_is_told_once(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    await note(bob, room_id, 1)
    await leave(bob, room_id)
    await join(bob, room_id)
    answer = await sync(bob, filter=WITH_LEFT)
    assert noted(room_in(answer, room_id)) == [1] and "leave" not in answer["rooms"]


async def test_events_in_the_format_of_federation(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    sent, secret = await say(alice, room_id, "hello", "secret")
    await redact(alice, room_id, secret)
    entry = room_in(await sync(alice, filter=FEDERATION), room_id)
    events = [*entry["state"]["events"], *entry["timeline"]["events"]]
    version = ROOM_VERSIONS["12"]
    for event in events:
        pdu = {key: event[key] for key in event if key not in ("event_id", "unsigned")}
        assert {"auth_events", "prev_events", "depth", "hashes", "signatures"} <= pdu.keys()
        assert parse_event(pdu, version).event_id == event["event_id"]
    shown = {event["event_id"]: event for event in events}
    assert shown[sent]["content"]["body"] == "hello" and "age" in shown[sent]["unsigned"]
    assert shown[secret]["content"] == {} and "redacted_because" in shown[secret]["unsigned"]
    state = room_in(await sync(alice, filter=FEDERATION, full_state=True, use_state_after=True), room_id)
    assert all("signatures" in event for event in state["state_after"]["events"])
