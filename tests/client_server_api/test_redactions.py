"""Spec: client-server-api/#redactions"""

from __future__ import annotations

import json
from typing import Any

import pytest

from homeserver.federation.room_versions import ROOM_VERSIONS
from tests.support.homeservers import Client, Server
from tests.support.people import (
    act,
    get_event,
    get_state,
    messages,
    path_of,
    public_room,
    redact,
    send,
    set_state,
    sync,
)
from tests.support.rows import row

FORBIDDEN = (403, "M_FORBIDDEN")


def path(room_id: str, event_id: str, txn_id: str = "1") -> str:
    return path_of(room_id, "redact", event_id, txn_id)


async def test_users_can_redact_their_own_messages(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    for version in ROOM_VERSIONS:
        with row(version):
            room_id = await public_room(alice, bob, room_version=version)
            event_id = await send(bob, room_id, "secret")
            since = (await sync(alice))["next_batch"]
            redaction_id = await redact(bob, room_id, event_id, reason="a slip")
            event = await get_event(alice, room_id, event_id)
            assert event["content"] == {}
            because = event["unsigned"]["redacted_because"]
            assert (because["event_id"], because["sender"]) == (redaction_id, bob.user_id)
            assert because["content"]["reason"] == "a slip"
            assert because["redacts"] == because["content"]["redacts"] == event_id
            page = await messages(alice, room_id)
            assert "secret" not in str(page)
            (told,) = (await sync(alice, since))["rooms"]["join"][room_id]["timeline"]["events"]
            assert (told["type"], told["event_id"], told["redacts"]) == ("m.room.redaction", redaction_id, event_id)


async def test_moderators_can_redact_messages_of_others(server: Server) -> None:
    alice, bob, carol = [await server.register(name) for name in ("alice", "bob", "carol")]
    levels = {"users": {bob.user_id: 50}}
    room_id = await public_room(alice, bob, carol, power_level_content_override=levels)
    for moderator in (alice, bob):
        event_id = await send(carol, room_id, f"for {moderator.user_id}")
        await redact(moderator, room_id, event_id)
        assert (await get_event(carol, room_id, event_id))["content"] == {}
    of_alice = await send(alice, room_id, "hello")
    await redact(bob, room_id, of_alice)  # the level of whose event it is does not matter


@pytest.mark.parametrize("version", ["1", "2", "3", "10", "11", "12"])
async def test_users_without_power_cannot_redact_messages_of_others(server: Server, version: str) -> None:
    alice, bob, carol = [await server.register(name) for name in ("alice", "bob", "carol")]
    room_id = await public_room(alice, bob, room_version=version)
    event_id = await send(alice, room_id, "hello")
    for client in (bob, carol):
        assert await client.refused("PUT", path(room_id, event_id), json={}) == FORBIDDEN
    assert await server.anonymous.refused("PUT", path(room_id, event_id), json={}) == (401, "M_MISSING_TOKEN")
    assert (await get_event(bob, room_id, event_id))["content"]["body"] == "hello"


async def test_a_user_who_may_not_send_redactions_cannot_redact(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    levels = {"events": {"m.room.redaction": 10}}
    room_id = await public_room(alice, bob, power_level_content_override=levels)
    event_id = await send(bob, room_id, "hello")
    assert await bob.refused("PUT", path(room_id, event_id), json={}) == FORBIDDEN


async def test_redactions_sent_as_messages_need_the_same_power(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    event_id = await send(alice, room_id, "hello")
    body = {"redacts": event_id}
    assert await bob.refused("PUT", path_of(room_id, "send", "m.room.redaction", "1"), json=body) == FORBIDDEN
    assert (await get_event(bob, room_id, event_id))["content"]["body"] == "hello"
    await alice.ok("PUT", path_of(room_id, "send", "m.room.redaction", "1"), json=body)
    assert (await get_event(bob, room_id, event_id))["content"] == {}


async def test_former_members_cannot_redact(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    event_id = await send(bob, room_id, "hello")
    await act(alice, room_id, "kick", bob)
    assert await bob.refused("PUT", path(room_id, event_id), json={}) == FORBIDDEN


async def test_a_retry_returns_the_same_redaction(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    event_id = await send(alice, room_id, "hello")
    first = (await alice.ok("PUT", path(room_id, event_id), json={}))["event_id"]
    assert (await alice.ok("PUT", path(room_id, event_id), json={}))["event_id"] == first
    assert (await alice.ok("PUT", path(room_id, event_id, "2"), json={}))["event_id"] != first
    because = (await get_event(alice, room_id, event_id))["unsigned"]["redacted_because"]
    assert because["event_id"] == first


async def test_redacted_state_keeps_the_protected_keys(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    name = await set_state(alice, room_id, "m.room.name", {"name": "Secret"})
    await redact(alice, room_id, name)
    assert await get_state(bob, room_id, "m.room.name") == {}
    content = {"membership": "join", "displayname": "Secret"}
    member = await set_state(bob, room_id, "m.room.member", content, bob.user_id)
    await redact(alice, room_id, member)
    assert await get_state(bob, room_id, "m.room.member", bob.user_id) == {"membership": "join"}
    await send(bob, room_id, "I am still here")


async def test_events_of_other_rooms_cannot_be_redacted(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id, other = await public_room(alice, bob), await public_room(alice)
    event_id = await send(alice, room_id, "hello")
    await alice.request("PUT", path(other, event_id), json={})
    assert (await get_event(bob, room_id, event_id))["content"]["body"] == "hello"


async def test_malformed_bodies_are_refused(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    event_id = await send(alice, room_id, "hello")
    for content, errcode in [
        (b"{", "M_NOT_JSON"),
        (b"[]", "M_BAD_JSON"),
        (b'{"reason": 7}', "M_BAD_JSON"),
        (b'{"reason": {}}', "M_BAD_JSON"),
    ]:
        with row(content, errcode):
            assert await alice.refused("PUT", path(room_id, event_id), content=content) == (400, errcode)
            assert await alice.refused("PUT", path(room_id, "nonsense"), json={}) == (400, "M_INVALID_PARAM")
            assert (await get_event(alice, room_id, event_id))["content"]["body"] == "hello"


async def everything_shown(client: Client, room_id: str, near: str) -> str:
    """Returns everything that a user sees of the room's events, through every endpoint, as one text."""
    shown: list[Any] = [await sync(client), await messages(client, room_id), await messages(client, room_id, "f")]
    shown.append(await client.ok("GET", path_of(room_id, "context", near)))
    shown.append(await client.ok("GET", path_of(room_id, "state")))
    return json.dumps(shown)


@pytest.mark.parametrize("version", ["1", "10", "11", "12"])
@pytest.mark.parametrize("what", ["an unknown event", "an event of another room", "nothing"])
async def test_ineffective_redactions_are_not_shown(server: Server, version: str, what: str) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    other_room = await public_room(alice)
    room_id = await public_room(bob, alice, room_version=version)
    message = await send(alice, room_id, "hello")
    elsewhere = await send(alice, other_room, "in another room")
    since = (await sync(alice))["next_batch"]
    if what == "nothing":
        redaction = await send(bob, room_id, {"reason": "none"}, kind="m.room.redaction")
    else:
        redaction = await redact(bob, room_id, elsewhere if what != "an unknown event" else "$unknown:test.example")
    assert (await get_event(alice, other_room, elsewhere))["content"]["body"] == "in another room"
    for client in (alice, bob):
        assert redaction not in await everything_shown(client, room_id, message)
        assert await client.refused("GET", path_of(room_id, "event", redaction)) == (404, "M_NOT_FOUND")
    assert "rooms" not in await sync(alice, since)
    valid = await redact(bob, room_id, message)
    assert valid in await everything_shown(alice, room_id, message)
    again = await redact(bob, room_id, message, reason="once more")
    assert again in await everything_shown(alice, room_id, message)
