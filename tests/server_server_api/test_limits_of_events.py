"""What is accepted can be carried: nothing that fits by itself is too deep or too large for what it travels in.

Spec: server-server-api/#pdus, client-server-api/#size-limits, appendices/#canonical-json
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import pytest

from homeserver.federation.canonical_json import DEPTH_MAX
from homeserver.federation.identifiers import ServerName
from tests.support.federation import (
    Federation,
    checked,
    create_room,
    invite,
    join,
    send_text,
    sync,
    texts,
    until,
    wait_text,
)
from tests.support.homeservers import Client
from tests.support.stranger import Stranger

MALLORY = ServerName("mallory.example")
# The depth of an event's content: the event around it adds one level.
CONTENT_DEPTH_MAX = DEPTH_MAX - 1


def nested(depth: int) -> dict[str, Any]:
    """Returns content with this many levels."""
    value: Any = 0
    for _ in range(depth - 1):
        value = [value]
    return {"msgtype": "m.text", "body": f"{depth} deep", "a": value}


async def send(client: Client, room_id: str, content: dict[str, Any], txn_id: str) -> int:
    path = f"rooms/{quote(room_id)}/send/m.room.message/{txn_id}"
    return (await client.request("PUT", path, json=content)).status_code


@pytest.mark.parametrize("version", ["1", "5", "6", "10", "12"])
async def test_every_event_accepted_from_a_client_is_delivered(federation: Federation, version: str) -> None:
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice, preset="public_chat", room_version=version)
    await join(bob, room_id, "a.example")
    for depth in range(CONTENT_DEPTH_MAX - 6, CONTENT_DEPTH_MAX + 3):
        status = await send(alice, room_id, nested(depth), f"deep{depth}")
        assert status == (200 if depth <= CONTENT_DEPTH_MAX else 400)
        if status == 200:
            await wait_text(bob, room_id, f"{depth} deep")
        await send_text(alice, room_id, f"after {depth}")
        await wait_text(bob, room_id, f"after {depth}")


@pytest.mark.parametrize("version", ["1", "6", "12"])
async def test_the_deepest_state_survives_joins_invites_syncs_and_pagination(
    federation: Federation, version: str
) -> None:
    a, b, c = [await federation.start(f"{name}.example") for name in "abc"]
    alice, bob, carol = await a.register("alice"), await b.register("bob"), await c.register("carol")
    room_id = await create_room(alice, preset="private_chat", room_version=version)
    for event_type in ("m.room.name", "m.room.topic", "org.example.deep"):
        path = f"rooms/{quote(room_id)}/state/{event_type}"
        await alice.ok("PUT", path, json={**nested(CONTENT_DEPTH_MAX), "name": "N", "topic": "T"})
    assert await send(alice, room_id, nested(CONTENT_DEPTH_MAX), "1") == 200
    await invite(alice, room_id, bob.user_id)

    async def invited() -> Any:
        return (await sync(bob))["rooms"].get("invite", {}).get(room_id)

    stripped = (await until(invited))["invite_state"]["events"]
    assert any(event["content"].get("name") == "N" for event in stripped)
    await join(bob, room_id)
    state = await bob.ok("GET", f"rooms/{quote(room_id)}/state")
    assert any(event["type"] == "org.example.deep" for event in state)
    assert f"{CONTENT_DEPTH_MAX} deep" in await texts(bob, room_id)
    await send(bob, room_id, nested(CONTENT_DEPTH_MAX) | {"body": "and back"}, "2")
    await wait_text(alice, room_id, "and back")
    await invite(alice, room_id, carol.user_id)
    await join(carol, room_id, "a.example")
    assert "and back" in await texts(carol, room_id)


BAD = {
    "a number": 5,
    "a string": "event",
    "nothing": None,
    "an empty object": {},
    "a list": [],
}


@pytest.mark.parametrize("depth", [95, 98, 99, 100, 101, 120, 250, 600])
async def test_a_deep_event_of_a_peer_does_not_affect_its_neighbour(federation: Federation, depth: int) -> None:
    a = await federation.start("a.example")
    alice = await a.register("alice")
    room_id = await create_room(alice, preset="public_chat", room_version="10")
    mallory = Stranger(federation.network, MALLORY)
    room = await mallory.join("a.example", room_id, "mallory")
    good = room.text("good")
    bad = {**room.text("bad").pdu, "content": nested(depth)}
    results = await mallory.send("a.example", "1", [bad, good.pdu])
    assert results[good.event_id] == {}
    assert "good" in await texts(alice, room_id)


@pytest.mark.parametrize(
    "change",
    [
        {"room_id": 5},
        {"type": []},
        {"content": "x"},
        {"content": {"a": 1.5}},
        {"content": {"a": 10**400}},
        {"hashes": []},
        {"signatures": {}},
        {"prev_events": [5]},
        {"depth": -1},
        {"unsigned": 1},
    ],
)
async def test_a_malformed_event_does_not_affect_its_neighbours(federation: Federation, change: dict[str, Any]) -> None:
    a = await federation.start("a.example")
    alice = await a.register("alice")
    room_id = await create_room(alice, preset="public_chat", room_version="10")
    mallory = Stranger(federation.network, MALLORY)
    room = await mallory.join("a.example", room_id, "mallory")
    first, second = room.text("first"), room.text("second")
    bad = {**room.text("bad").pdu, **change}
    results = await mallory.send("a.example", "1", [first.pdu, bad, *BAD.values(), second.pdu])
    assert (results[first.event_id], results[second.event_id]) == ({}, {})
    assert {"first", "second"} <= set(await texts(alice, room_id))


async def test_a_malformed_edu_does_not_affect_its_neighbours(federation: Federation) -> None:
    a = await federation.start("a.example")
    alice = await a.register("alice")
    room_id = await create_room(alice, preset="public_chat")
    mallory = Stranger(federation.network, MALLORY)
    room = await mallory.join("a.example", room_id, "mallory")
    typing = {"room_id": room_id, "user_id": room.user_id, "typing": True}
    bad = [{"edu_type": "m.typing", "content": nested(depth)} for depth in (98, 120, 600)]
    edus = [*bad, *BAD.values(), {"edu_type": "m.typing", "content": typing}]
    await mallory.send("a.example", "1", edus=edus)
    ephemeral = (await sync(alice))["rooms"]["join"][room_id]["ephemeral"]["events"]
    assert {"type": "m.typing", "content": {"user_ids": [room.user_id]}} in ephemeral


@pytest.mark.parametrize("number", [1.5, 2**53, -(2**53), 1e300])
@pytest.mark.parametrize("version", ["7", "10", "12"])
async def test_numbers_outside_canonical_json_are_refused_as_bad_json(
    federation: Federation, version: str, number: float
) -> None:
    """Spec: rooms/v6/#canonical-json"""
    a = await federation.start("a.example")
    alice = await a.register("alice")
    room_id = await create_room(alice, preset="public_chat", room_version=version)
    mallory = Stranger(federation.network, MALLORY)
    room = await mallory.join("a.example", room_id, "mallory")
    target = {"send_join": "join", "send_leave": "leave", "send_knock": "knock"}
    for endpoint, membership in target.items():
        version_of = "v1" if endpoint == "send_knock" else "v2"
        pdu = {**room.last.pdu, "content": {"membership": membership, "number": number}}
        path = f"/_matrix/federation/{version_of}/{endpoint}/{quote(room_id, safe='')}/{quote('$some:event', safe='')}"
        status, answer = await mallory.put("a.example", path, pdu)
        assert (status, answer["errcode"]) == (400, "M_BAD_JSON"), endpoint
    invitation = {**room.last.pdu, "state_key": alice.user_id, "content": {"membership": "invite", "number": number}}
    body = {"event": invitation, "room_version": version, "invite_room_state": []}
    path = f"/_matrix/federation/v2/invite/{quote(room_id, safe='')}/{quote('$some:event', safe='')}"
    status, answer = await mallory.put("a.example", path, body)
    assert (status, answer["errcode"]) == (400, "M_BAD_JSON")
    joined = (await alice.ok("GET", f"rooms/{quote(room_id)}/joined_members"))["joined"]
    assert joined.keys() == {alice.user_id, room.user_id}


@pytest.mark.parametrize("version", ["1", "5"])
async def test_numbers_allowed_in_old_room_versions_are_accepted(federation: Federation, version: str) -> None:
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice, preset="public_chat", room_version=version)
    await join(bob, room_id, "a.example")
    assert await send(alice, room_id, {"msgtype": "m.text", "body": "odd", "n": [1.5, 2**60, -(10**300)]}, "1") == 200
    await wait_text(bob, room_id, "odd")


async def _page_through(client: Client, room_id: str) -> list[str]:
    """All messages of the room, oldest first, page by page."""
    found: list[str] = []
    token = ""
    while True:
        answer = await client.ok("GET", f"rooms/{quote(room_id)}/messages?dir=b&limit=100{token}")
        found += [event["content"]["body"] for event in answer["chunk"] if event["type"] == "m.room.message"]
        if "end" not in answer:
            return found[::-1]
        token = f"&from={answer['end']}"


async def _largest(client: Client, room_id: str, event_type: str, key: str) -> None:
    """Sets state of exactly the size that is still accepted."""
    path = f"rooms/{quote(room_id)}/state/{event_type}"
    low, high = 60_000, 66_000  # characters that are accepted, and not
    while high - low > 1:
        size = (low + high) // 2
        response = await client.request("PUT", path, json={key: "x" * size})
        assert response.status_code in (200, 413), response.text
        low, high = (size, high) if response.status_code == 200 else (low, size)
    await client.ok("PUT", path, json={key: "x" * low})


@pytest.mark.parametrize("version", ["1", "5", "12"])  # the formats of events
async def test_the_largest_events_survive_joins_invites_syncs_and_pagination(
    federation: Federation, version: str
) -> None:
    a, b, c = [await federation.start(f"{name}.example") for name in "abc"]
    alice, bob, carol = await a.register("alice"), await b.register("bob"), await c.register("carol")
    room_id = await create_room(alice, preset="private_chat", room_version=version)
    for event_type, key in (("m.room.name", "name"), ("m.room.topic", "topic"), ("m.room.avatar", "url")):
        await _largest(alice, room_id, event_type, key)
    federation.network.leave("c.example")  # the first step of catching up is a full transaction
    for number in range(60):
        content = {"msgtype": "m.text", "body": f"{number} " + "x" * 64_000}
        assert await send(alice, room_id, content, str(number)) == 200
    await invite(alice, room_id, bob.user_id)

    async def invited() -> Any:
        return (await sync(bob))["rooms"].get("invite", {}).get(room_id)

    stripped = (await until(invited))["invite_state"]["events"]
    assert {"m.room.member", "m.room.create", "m.room.name"} <= {event["type"] for event in stripped}
    await join(bob, room_id)
    assert (await bob.ok("GET", f"rooms/{quote(room_id)}/state/m.room.topic"))["topic"].startswith("xxx")
    assert [text.partition(" ")[0] for text in await _page_through(bob, room_id)] == list(map(str, range(60)))
    await send(bob, room_id, {"msgtype": "m.text", "body": "back " + "x" * 64_000}, "b")

    async def heard() -> bool:
        return any(text.startswith("back ") for text in await texts(alice, room_id))

    await until(heard)
    federation.network.join("c.example", checked(c.app))
    await invite(bob, room_id, carol.user_id)
    await join(carol, room_id, "b.example")
    assert any(text.startswith("back ") for text in await texts(carol, room_id))


@pytest.mark.parametrize(
    "content",
    [
        {"topic": "," * 64_000},
        {"topic": "[{" * 32_000},
        {"topic": "\\" * 31_000},
        {"topic": "\0" * 10_000},
        {"topic": "\u2028" * 21_000},
        {"topic": "T", "a": [0] * 32_000},
        {"topic": "T", "a": [[]] * 21_000},
        {"topic": "T", "a": [{"": {}}] * 7_000},
        {"topic": "T", **{str(number): 0 for number in range(7_000)}},
        {"topic": "T", "n": [2**53 - 1, 1 - 2**53, 0]},
    ],
    ids=lambda content: str(content)[:20],
)
async def test_dense_events_survive_joins_invites_and_syncs(federation: Federation, content: dict[str, Any]) -> None:
    a, b, c = [await federation.start(f"{name}.example") for name in "abc"]
    alice, bob, carol = await a.register("alice"), await b.register("bob"), await c.register("carol")
    room_id = await create_room(alice, preset="private_chat")
    path = f"rooms/{quote(room_id)}/state/m.room.topic"
    await alice.ok("PUT", path, json=content)
    await invite(alice, room_id, bob.user_id)
    await join(bob, room_id)
    assert await bob.ok("GET", path) == content
    assert await send(alice, room_id, {"msgtype": "m.text", "body": "dense", **content}, "1") == 200
    await wait_text(bob, room_id, "dense")
    await alice.ok("PUT", path, json={**content, "again": True})

    async def changed() -> bool:
        return "again" in await bob.ok("GET", path)

    await until(changed)
    await invite(bob, room_id, carol.user_id)
    await join(carol, room_id)
    assert (await carol.ok("GET", path))["again"]
    assert "dense" in await _page_through(carol, room_id)
    assert (await sync(carol))["rooms"]["join"][room_id]


@pytest.mark.parametrize("version", ["1", "10", "12"])
async def test_an_invitation_leaves_room_for_the_signature_of_the_other_server(
    federation: Federation, version: str
) -> None:
    """One that is too large with it is refused before the other server has heard of it."""
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice, preset="private_chat", room_version=version)
    statuses = []
    for size in range(64_000, 65_600, 100):
        body = {"user_id": bob.user_id, "reason": "x" * size}
        before = await sync(bob)
        status = (await alice.request("POST", f"rooms/{quote(room_id)}/invite", json=body)).status_code
        statuses.append(status)
        after = await sync(bob, before["next_batch"])
        assert (room_id in after.get("rooms", {}).get("invite", {})) == (status == 200)
    assert set(statuses) == {200, 413}
    assert statuses == sorted(statuses)
    await join(bob, room_id)


@pytest.mark.parametrize("version", ["1", "6", "12"])
async def test_events_with_many_forward_extremities_are_delivered(federation: Federation, version: str) -> None:
    """An event follows on no more than 20 others, however many ends a peer has made."""
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice, preset="public_chat", room_version=version)
    await join(bob, room_id, "a.example")
    mallory = Stranger(federation.network, MALLORY)
    room = await mallory.join("a.example", room_id, "mallory")
    root = room.last
    for part in range(2):
        events = [room.text(f"end {part} {number}", after=[root]) for number in range(40)]
        await mallory.send("a.example", str(part), [event.pdu for event in events])
    await send_text(alice, room_id, "after all ends")
    await wait_text(bob, room_id, "after all ends")


async def test_many_large_receipts_are_delivered(federation: Federation) -> None:
    a, b, alice, bob = await federation.start_two()
    rooms = [await create_room(alice, preset="public_chat") for _ in range(30)]
    for room_id in rooms:
        await join(bob, room_id, "a.example")
    events = {room_id: await send_text(bob, room_id, "read this") for room_id in rooms}
    for room_id, event_id in events.items():
        await wait_text(alice, room_id, "read this")
        await alice.ok("POST", f"rooms/{quote(room_id)}/receipt/m.read/{quote(event_id)}", json={})

    async def all_read() -> bool:
        answer = await sync(bob)
        return all(
            any(alice.user_id in json.dumps(each) for each in room.get("ephemeral", {"events": []})["events"])
            for room in answer["rooms"]["join"].values()
        )

    await until(all_read)
