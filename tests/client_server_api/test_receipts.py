"""Spec: client-server-api/#receipts, #fully-read-markers, #threaded-read-receipts"""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from homeserver import limits
from homeserver.users.receipts import SPAN_BY_POSITION_MAX
from tests.support.homeservers import Client, Server
from tests.support.people import act, ephemeral, join, leave, path_of, public_room, room_in, say, send, sync
from tests.support.rows import row

FORBIDDEN = (403, "M_FORBIDDEN")
NOT_FOUND = (404, "M_NOT_FOUND")
READ, PRIVATE, FULLY_READ = "m.read", "m.read.private", "m.fully_read"


def receipt_path(room_id: str, event_id: str, kind: str = READ) -> str:
    return path_of(room_id, "receipt", kind, event_id)


async def read(client: Client, room_id: str, event_id: str, kind: str = READ, **body: Any) -> None:
    assert await client.ok("POST", receipt_path(room_id, event_id, kind), json=body) == {}


async def receipts(viewer: Client, room_id: str, of: Client, kind: str = READ) -> dict[str, str]:
    """Thread ("" for none) → event, of all receipts of that user which the viewer's first sync has."""
    events = room_in(await sync(viewer), room_id).get("ephemeral", {}).get("events", [])
    return {
        by_user[of.user_id].get("thread_id", ""): event_id
        for event in events
        if event["type"] == "m.receipt"
        for event_id, by_kind in event["content"].items()
        if of.user_id in (by_user := by_kind.get(kind, {}))
    }


async def fully_read(client: Client, room_id: str) -> str | None:
    path = f"user/{client.user_id}/rooms/{room_id}/account_data/m.fully_read"
    response = await client.get(path)
    return None if response.status_code == 404 else str(response.json()["event_id"])


async def test_all_members_see_a_public_receipt(server: Server) -> None:
    alice, bob, carol = [await server.register(name) for name in ("alice", "bob", "carol")]
    room_id = await public_room(alice, bob)
    event_id = await send(alice, room_id)
    since = {client.user_id: (await sync(client))["next_batch"] for client in (alice, bob, carol)}
    await read(bob, room_id, event_id)
    for client in (alice, bob):
        told = ephemeral(await sync(client, since[client.user_id]), room_id, "m.receipt")
        assert told is not None
        receipt = told[event_id][READ][bob.user_id]
        assert receipt.keys() == {"ts"}
        assert abs(receipt["ts"] - server.hs.now_ms()) < 60_000
    assert room_in(await sync(carol, since[carol.user_id]), room_id) == {}


async def test_only_the_reader_sees_a_private_receipt(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    event_id = await send(alice, room_id)
    since = (await sync(alice))["next_batch"]
    await read(bob, room_id, event_id, PRIVATE)
    assert ephemeral(await sync(alice, since), room_id, "m.receipt") is None
    assert await receipts(alice, room_id, bob, PRIVATE) == {}
    assert await receipts(bob, room_id, bob, PRIVATE) == {"": event_id}
    laptop = await server.log_in("bob")
    assert await receipts(laptop, room_id, bob, PRIVATE) == {"": event_id}


@pytest.mark.parametrize("kind", [READ, PRIVATE])
async def test_receipts_never_go_backwards(server: Server, kind: str) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    first, second, third = await say(alice, room_id, "1", "2", "3")
    for event_id, expected in ((second, second), (first, second), (second, second), (third, third)):
        await read(bob, room_id, event_id, kind)
        assert await receipts(bob, room_id, bob, kind) == {"": expected}


async def test_public_and_private_receipts_are_independent(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    first, second = await say(alice, room_id, "1", "2")
    await read(bob, room_id, second, PRIVATE)
    await read(bob, room_id, first, READ)
    assert await receipts(alice, room_id, bob) == {"": first}
    assert await receipts(bob, room_id, bob, PRIVATE) == {"": second}


async def test_each_thread_has_its_own_receipt(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    root, main = await say(alice, room_id, "root", "main")
    relates = {"m.relates_to": {"rel_type": "m.thread", "event_id": root}}
    first = await send(alice, room_id, {"msgtype": "m.text", "body": "1", **relates})
    second = await send(alice, room_id, {"msgtype": "m.text", "body": "2", **relates})
    await read(bob, room_id, second, thread_id=root)
    await read(bob, room_id, main, thread_id="main")
    await read(bob, room_id, first)
    expected = {root: second, "main": main, "": first}
    assert await receipts(alice, room_id, bob) == expected
    await read(bob, room_id, first, thread_id=root)
    await read(bob, room_id, root, thread_id="main")
    await read(bob, room_id, main)
    assert await receipts(alice, room_id, bob) == expected


async def test_the_thread_of_a_receipt_must_be_that_of_its_event(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    root, other, plain = await say(alice, room_id, "root", "other", "plain")
    reply = await send(alice, room_id, {"body": "1", "m.relates_to": {"rel_type": "m.thread", "event_id": root}})
    reaction = {"m.relates_to": {"rel_type": "m.annotation", "event_id": reply, "key": "+"}}
    reacted = await send(alice, room_id, reaction, kind="m.reaction")
    beside = await send(alice, room_id, {**reaction, "m.relates_to": {"rel_type": "m.reference", "event_id": plain}})
    for event_id, thread_id in ((plain, "$invented"), (plain, root), (reply, other), (beside, root), (reply, plain)):
        refusal = await bob.refused("POST", receipt_path(room_id, event_id), json={"thread_id": thread_id})
        assert refusal == (400, "M_INVALID_PARAM")
    assert await receipts(alice, room_id, bob) == {}
    await read(bob, room_id, root, thread_id=root)  # the root is in the main timeline: nothing is read by that
    assert await receipts(alice, room_id, bob) == {}
    await read(bob, room_id, reacted, thread_id=root)  # what relates to a reply is in its thread
    assert await receipts(alice, room_id, bob) == {root: reacted}


async def test_only_the_receipts_of_the_most_recently_read_threads_are_kept(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    roots = await say(alice, room_id, *(f"root {number}" for number in range(limits.users.RECEIPT_THREADS_MAX + 2)))
    for root in roots:
        relation = {"rel_type": "m.thread", "event_id": root}
        reply = await send(alice, room_id, {"body": "reply", "m.relates_to": relation})
        await read(bob, room_id, reply, thread_id=root)
    await read(bob, room_id, roots[0], thread_id="main")
    assert (await receipts(alice, room_id, bob)).keys() == {"main", *roots[2:]}


async def test_sync_groups_receipts_by_room(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    first, second = await say(alice, room_id, "1", "2")
    since = (await sync(alice))["next_batch"]
    await read(bob, room_id, first)
    await read(alice, room_id, second)
    events = room_in(await sync(alice, since), room_id)["ephemeral"]["events"]
    (told,) = [event for event in events if event["type"] == "m.receipt"]
    assert told["content"].keys() == {first, second}


async def test_the_fully_read_marker_is_account_data_of_the_room(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    first, second, third = await say(alice, room_id, "1", "2", "3")
    assert await fully_read(bob, room_id) is None
    since = (await sync(bob))["next_batch"]
    await read(bob, room_id, first, FULLY_READ)
    answer = await sync(bob, since)
    events = room_in(answer, room_id)["account_data"]["events"]
    assert events == [{"type": FULLY_READ, "content": {"event_id": first}}]
    assert ephemeral(answer, room_id, "m.receipt") is None
    assert await fully_read(alice, room_id) is None
    await bob.ok("POST", path_of(room_id, "read_markers"), json={FULLY_READ: third})
    for event_id in (second, first):
        await bob.ok("POST", path_of(room_id, "read_markers"), json={FULLY_READ: event_id})
        await read(bob, room_id, event_id, FULLY_READ)
        assert await fully_read(bob, room_id) == third


async def test_all_markers_can_be_set_at_once(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    first, second, third = await say(alice, room_id, "1", "2", "3")
    path = path_of(room_id, "read_markers")
    assert await bob.ok("POST", path, json={FULLY_READ: first, READ: second, PRIVATE: third}) == {}
    assert await fully_read(bob, room_id) == first
    assert await receipts(bob, room_id, bob) == {"": second}
    assert await receipts(bob, room_id, bob, PRIVATE) == {"": third}
    assert await bob.ok("POST", path, json={}) == {}
    assert await bob.ok("POST", path, json={READ: third}) == {}
    assert await receipts(alice, room_id, bob) == {"": third}


async def test_either_all_markers_are_set_or_none(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id, other = await public_room(alice, bob), await public_room(alice)
    (event_id,), (elsewhere,) = await say(alice, room_id, "1"), await say(alice, other, "2")
    body = {FULLY_READ: event_id, READ: event_id, PRIVATE: elsewhere}
    assert await bob.refused("POST", path_of(room_id, "read_markers"), json=body) == NOT_FOUND
    assert await fully_read(bob, room_id) is None
    assert await receipts(bob, room_id, bob) == {}


async def test_joining_members_see_receipts_and_theirs_are_seen(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice)
    event_id = await send(alice, room_id)
    await read(alice, room_id, event_id)
    since = (await sync(bob))["next_batch"]
    await join(bob, room_id)
    told = ephemeral(await sync(bob, since), room_id, "m.receipt")
    assert told is not None
    assert alice.user_id in told[event_id][READ]


@pytest.mark.parametrize("kind", [READ, PRIVATE, FULLY_READ])
async def test_only_members_may_send_receipts(server: Server, kind: str) -> None:
    alice, bob, carol, dave = [await server.register(name) for name in ("alice", "bob", "carol", "dave")]
    room_id = await public_room(alice, bob)
    event_id = await send(alice, room_id)
    await leave(bob, room_id)
    await act(alice, room_id, "invite", dave)
    for client in (bob, carol, dave):
        assert await client.refused("POST", receipt_path(room_id, event_id, kind), json={}) == FORBIDDEN
        assert await client.refused("POST", path_of(room_id, "read_markers"), json={kind: event_id}) == FORBIDDEN
        assert await fully_read(client, room_id) is None
    assert await server.anonymous.refused("POST", receipt_path(room_id, event_id), json={}) == (401, "M_MISSING_TOKEN")


async def test_receipts_for_events_of_other_rooms_are_refused(server: Server) -> None:
    alice = await server.register("alice")
    room_id, other = await public_room(alice), await public_room(alice)
    elsewhere = await send(alice, other)
    for event_id in (elsewhere, "$unknown", "$unknown:test.example"):
        for kind in (READ, PRIVATE, FULLY_READ):
            assert await alice.refused("POST", receipt_path(room_id, event_id, kind), json={}) == NOT_FOUND
            assert await alice.refused("POST", path_of(room_id, "read_markers"), json={kind: event_id}) == NOT_FOUND


async def test_a_receipt_request_needs_no_body(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    event_id = await send(alice, room_id)
    assert await alice.ok("POST", receipt_path(room_id, event_id)) == {}


async def test_malformed_receipts_are_refused(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    event_id = await send(alice, room_id)
    for kind, content, errcode in [
        (READ, b'{"thread_id": 7}', "M_BAD_JSON"),
        (READ, b'{"thread_id": ["main"]}', "M_BAD_JSON"),
        (READ, b'{"thread_id": ""}', "M_INVALID_PARAM"),
        (READ, b'{"thread_id": "nonsense"}', "M_INVALID_PARAM"),
        (FULLY_READ, b'{"thread_id": "main"}', "M_INVALID_PARAM"),
        (READ, b"[]", "M_BAD_JSON"),
        (READ, b"{", "M_NOT_JSON"),
        ("m.unread", b"{}", "M_INVALID_PARAM"),
    ]:
        with row(kind, content, errcode):
            assert await alice.refused("POST", receipt_path(room_id, event_id, kind), content=content) == (400, errcode)
            assert await receipts(alice, room_id, alice) == {}
            assert await fully_read(alice, room_id) is None


async def test_malformed_markers_are_refused(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    event_id = await send(alice, room_id)
    for (value, errcode), kind in product(
        [(7, "M_BAD_JSON"), ({}, "M_BAD_JSON"), ([], "M_BAD_JSON"), ("nonsense", "M_INVALID_PARAM")],
        [READ, PRIVATE, FULLY_READ],
    ):
        with row(value, errcode, kind):
            body = {READ: event_id, PRIVATE: event_id, FULLY_READ: event_id, kind: value}
            assert await alice.refused("POST", path_of(room_id, "read_markers"), json=body) == (400, errcode)
            assert await receipts(alice, room_id, alice) == {}
            assert await fully_read(alice, room_id) is None


async def test_an_event_can_be_read_in_its_thread_and_outside_threads(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    (event_id,) = await say(alice, room_id, "root")
    await read(bob, room_id, event_id)
    await read(bob, room_id, event_id, thread_id="main")
    assert await receipts(alice, room_id, bob) == {"": event_id, "main": event_id}


async def test_a_client_that_was_away_gets_receipts_of_its_own_rooms_only(server: Server) -> None:
    alice, bob, carol = [await server.register(name) for name in ("alice", "bob", "carol")]
    room_id, other = await public_room(alice, bob), await public_room(bob, carol)
    (event_id,) = await say(alice, room_id, "1")
    (elsewhere,) = await say(carol, other, "2")
    since = (await sync(alice))["next_batch"]
    await read(bob, other, elsewhere)
    await read(bob, room_id, event_id)
    await server.write(lambda tx: [tx.next_position() for _ in range(2 * SPAN_BY_POSITION_MAX)])
    answer = await sync(alice, since)
    assert answer["rooms"]["join"].keys() == {room_id}
    assert event_id in (ephemeral(answer, room_id, "m.receipt") or {})
