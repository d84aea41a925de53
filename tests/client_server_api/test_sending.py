"""Spec: client-server-api/#sending-events-to-a-room, #transaction-identifiers"""

from __future__ import annotations

from typing import Any

import pytest

from homeserver import limits
from tests.support.homeservers import Server
from tests.support.people import create, join, messages, path_of, public_room, send, sync, texts
from tests.support.rows import row

FORBIDDEN = (403, "M_FORBIDDEN")


def path(room_id: str, txn_id: str, event_type: str = "m.room.message") -> str:
    return path_of(room_id, "send", event_type, txn_id)


async def test_messages_are_read_as_they_were_sent(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    content = {"body": "Ünïcödé 🦊", "nested": {"list": [1, None, True, {"a": "b"}]}, "": "empty key"}
    sent = await alice.ok("PUT", path(room_id, "1", "org.example.ü/type"), json=content)
    event = await bob.ok("GET", path_of(room_id, "event", sent["event_id"]))
    assert event["content"] == content
    assert (event["type"], event["sender"], event["room_id"]) == ("org.example.ü/type", alice.user_id, room_id)
    assert "state_key" not in event


async def test_only_the_sending_device_sees_the_transaction_id(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    laptop = await server.log_in("alice")
    room_id = await public_room(alice, bob)
    event_id = await send(alice, room_id, txn_id="txn")
    for client, expected in ((alice, "txn"), (laptop, None), (bob, None)):
        event = await client.ok("GET", path_of(room_id, "event", event_id))
        assert event["unsigned"].get("transaction_id") == expected
        timeline = (await sync(client))["rooms"]["join"][room_id]["timeline"]["events"]
        assert timeline[-1]["unsigned"].get("transaction_id") == expected


async def test_a_retry_returns_the_same_event(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await create(alice)
    first = await alice.ok("PUT", path(room_id, "t/1 ü"), json={"body": "hello"})
    for content in ({"body": "hello"}, {"body": "another"}):
        assert await alice.ok("PUT", path(room_id, "t/1 ü"), json=content) == first
    assert texts((await messages(alice, room_id))["chunk"]) == ["hello"]


async def test_transaction_ids_are_scoped_to_device_room_and_event_type(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    laptop = await server.log_in("alice")
    room_id, other = await public_room(alice, bob), await public_room(alice)
    sent = [
        await client.ok("PUT", path(where, txn_id, event_type), json={"body": "hello"})
        for client, where, txn_id, event_type in (
            (alice, room_id, "1", "m.room.message"),
            (alice, room_id, "2", "m.room.message"),
            (alice, room_id, "1", "org.example"),
            (alice, other, "1", "m.room.message"),
            (laptop, room_id, "1", "m.room.message"),
            (bob, room_id, "1", "m.room.message"),
        )
    ]
    assert len({answer["event_id"] for answer in sent}) == len(sent)


async def test_transaction_ids_outlive_a_refreshed_token(server: Server) -> None:
    alice = await server.register("alice", refresh_token=True)
    tokens = await server.log_in("alice", device_id=alice.device_id)
    room_id = await create(tokens)
    first = await send(tokens, room_id, txn_id="1")
    again = await server.log_in("alice", device_id=alice.device_id)
    assert await send(again, room_id, txn_id="1") == first


async def test_a_refused_event_may_be_sent_again(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice)
    assert await bob.refused("PUT", path(room_id, "1"), json={"body": "hello"}) == FORBIDDEN
    await join(bob, room_id)
    assert "event_id" in await bob.ok("PUT", path(room_id, "1"), json={"body": "hello"})


async def test_only_members_with_the_required_level_may_send(server: Server) -> None:
    alice, bob, carol = [await server.register(name) for name in ("alice", "bob", "carol")]
    levels = {"events_default": 10, "events": {"org.example.open": 0, "org.example.high": 90}}
    room_id = await public_room(alice, bob, power_level_content_override=levels)
    assert await carol.refused("PUT", path(room_id, "1"), json={}) == FORBIDDEN
    assert await bob.refused("PUT", path(room_id, "1"), json={}) == FORBIDDEN
    assert await bob.refused("PUT", path(room_id, "1", "org.example.high"), json={}) == FORBIDDEN
    await bob.ok("PUT", path(room_id, "1", "org.example.open"), json={})
    assert (await bob.refused("PUT", path("!unknown:test.example", "1"), json={}))[0] in (403, 404)
    assert await server.anonymous.refused("PUT", path(room_id, "1"), json={}) == (401, "M_MISSING_TOKEN")


@pytest.mark.parametrize("event_type", ["m.room.create", "m.room.member"])
async def test_state_events_cannot_be_sent_as_messages(server: Server, event_type: str) -> None:
    alice = await server.register("alice")
    room_id = await create(alice)
    status, _ = await alice.refused("PUT", path(room_id, "1", event_type), json={"membership": "join"})
    assert status in (400, 403)


async def test_content_must_be_a_json_object(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await create(alice)
    for content, errcode in [
        (b"", "M_NOT_JSON"),
        (b"{", "M_NOT_JSON"),
        (b'"text"', "M_BAD_JSON"),
        (b"[]", "M_BAD_JSON"),
        (b"null", "M_BAD_JSON"),
        (b'{"n": 1.5}', "M_BAD_JSON"),
        (b'{"n": 9007199254740992}', "M_BAD_JSON"),
        (b'{"n": -9007199254740992}', "M_BAD_JSON"),
        (b'{"n": 1e400}', "M_BAD_JSON"),
        (b'{"n": 1' + b"0" * 5_000 + b"}", "M_BAD_JSON"),
        (b'{"n": -1e999, "m": ', "M_BAD_JSON"),
        (b'{"n": NaN}', "M_NOT_JSON"),
        (b'{"a": 1, "a": 2}', "M_NOT_JSON"),
        (b'{"s": "\\ud800"}', "M_NOT_JSON"),
        (b'{"s": "\xff"}', "M_NOT_JSON"),
        (b'{"a": ' * 200 + b"1" + b"}" * 200, "M_NOT_JSON"),
    ]:
        with row(content, errcode):
            assert await alice.refused("PUT", path(room_id, "1"), content=content) == (400, errcode)
            assert texts((await messages(alice, room_id))["chunk"]) == []


async def test_rooms_of_old_versions_accept_any_number(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await create(alice, room_version="5")
    sent = await alice.ok("PUT", path(room_id, "1"), json={"n": 1.5, "large": 2**60})
    event = await alice.ok("GET", path_of(room_id, "event", sent["event_id"]))
    assert event["content"] == {"n": 1.5, "large": 2**60}


async def test_events_have_a_maximum_size(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await create(alice)
    too_large: list[tuple[str, Any]] = [
        (path(room_id, "1"), {"body": "x" * 65_536}),
        (path(room_id, "1", "t" * 256), {}),
        (path(room_id, "1", "ü" * 128), {}),
    ]
    for where, content in too_large:
        assert await alice.refused("PUT", where, json=content) == (413, "M_TOO_LARGE")
    long_id = "t" * (limits.TXN_ID_BYTES_MAX + 1)
    assert await alice.refused("PUT", path(room_id, long_id), json={}) == (400, "M_INVALID_PARAM")
    await alice.ok("PUT", path(room_id, "1", "t" * 255), json={"body": "x" * 60_000})


async def test_malformed_room_ids_are_refused(server: Server) -> None:
    alice = await server.register("alice")
    for room_id in ("room", "#alias:test.example", "!" + "r" * 300):
        assert await alice.refused("PUT", path(room_id, "1"), json={}) == (400, "M_INVALID_PARAM")
