"""History from before a server was in the room. Spec: server-server-api/#backfilling-and-retrieving-missing-events"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any
from urllib.parse import quote, unquote

import pytest
import trio

from homeserver.federation.identifiers import ServerName
from tests.support.federation import (
    Federation,
    create_room,
    invite,
    join,
    send_state,
    send_text,
    state_of,
    sync,
    texts,
    wait_text,
)
from tests.support.homeservers import Client, Server
from tests.support.stranger import FakeRoom, Stranger


async def all_texts(client: Client, room_id: str, page: int) -> list[str]:
    """Every message to the beginning of the room, oldest first, page by page."""
    found: list[str] = []
    token = ""
    for _ in range(100):
        answer = await client.ok("GET", f"rooms/{quote(room_id)}/messages?dir=b&limit={page}{token}")
        found += [event["content"]["body"] for event in answer["chunk"] if event["type"] == "m.room.message"]
        if "end" not in answer:
            return found[::-1]
        token = f"&from={answer['end']}"
    raise AssertionError("the history has no beginning")


@pytest.mark.parametrize("version", ["1", "6", "11", "12"])
async def test_history_can_be_paginated_back_to_the_creation_of_the_room(federation: Federation, version: str) -> None:
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice, preset="public_chat", room_version=version)
    for number in range(25):
        await send_text(alice, room_id, f"message {number}")
        if number % 10 == 5:
            await send_state(alice, room_id, "m.room.topic", {"topic": f"topic {number}"})
    await join(bob, room_id, "a.example")
    await send_text(bob, room_id, "here I am")
    expected = [f"message {number}" for number in range(25)] + ["here I am"]
    assert await all_texts(bob, room_id, 7) == expected
    answer = await bob.ok("GET", f"rooms/{quote(room_id)}/messages?dir=b&limit=100")
    kinds = [event["type"] for event in answer["chunk"]]
    assert kinds[-1] == "m.room.create"
    theirs = await alice.ok("GET", f"rooms/{quote(room_id)}/messages?dir=b&limit=100")
    await wait_text(alice, room_id, "here I am")
    theirs = await alice.ok("GET", f"rooms/{quote(room_id)}/messages?dir=b&limit=100")
    assert [event["event_id"] for event in answer["chunk"]] == [event["event_id"] for event in theirs["chunk"]]
    assert await state_of(bob, room_id) == await state_of(alice, room_id)


async def test_servers_that_join_after_an_erasure_get_redacted_events(federation: Federation) -> None:
    a, b, c = [await federation.start(f"{name}.example") for name in "abc"]
    alice, dave = await a.register("alice"), await a.register("dave")
    bob, carol = await b.register("bob"), await c.register("carol")
    room_id = await create_room(alice, preset="public_chat")
    await join(dave, room_id, "a.example")
    await join(bob, room_id, "a.example")
    await send_text(dave, room_id, "my secret")
    await wait_text(bob, room_id, "my secret")
    await dave.ok("POST", "account/deactivate", json={"erase": True, "auth": dave.password_auth()})
    await send_text(alice, room_id, "farewell")
    await wait_text(bob, room_id, "farewell")
    assert "my secret" in await all_texts(bob, room_id, 100)
    await join(carol, room_id, "a.example")
    await federation.kill("b.example")  # which knows nothing of the erasure, and would serve what it has
    page = await carol.ok("GET", f"rooms/{quote(room_id)}/messages?dir=b&limit=100")
    said = [event["content"].get("body") for event in page["chunk"] if event["type"] == "m.room.message"]
    assert said == ["farewell", None]


async def test_backfilled_history_is_not_sent_to_clients_as_new(federation: Federation) -> None:
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice, preset="public_chat")
    for number in range(30):
        await send_text(alice, room_id, f"message {number}")
    await join(bob, room_id, "a.example")
    since = (await sync(bob))["next_batch"]
    await texts(bob, room_id)
    answer = await sync(bob, since)
    assert room_id not in answer.get("rooms", {}).get("join", {})


async def test_history_from_before_the_invite_stays_hidden(federation: Federation) -> None:
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice)
    await send_state(alice, room_id, "m.room.history_visibility", {"history_visibility": "invited"})
    await send_text(alice, room_id, "secret")
    await invite(alice, room_id, bob.user_id)
    await send_text(alice, room_id, "for bob")
    await join(bob, room_id)
    await send_text(bob, room_id, "thanks")
    assert await all_texts(bob, room_id, 10) == ["for bob", "thanks"]


async def test_servers_get_hidden_events_without_their_content(federation: Federation) -> None:
    a = await federation.start("a.example")
    alice = await a.register("alice")
    room_id = await create_room(alice, preset="public_chat")
    await send_state(alice, room_id, "m.room.history_visibility", {"history_visibility": "joined"})
    secret = await send_text(alice, room_id, "secret")
    stranger = Stranger(federation.network, ServerName("c.example"))
    room = await stranger.join("a.example", room_id, "carol")
    public = await send_text(alice, room_id, "public")
    place = quote(room_id, safe="")
    status, answer = await stranger.get(
        "a.example", f"/_matrix/federation/v1/backfill/{place}?v={quote(public, safe='')}&limit=100"
    )
    assert status == 200
    bodies = [pdu["content"].get("body") for pdu in answer["pdus"] if pdu["type"] == "m.room.message"]
    assert bodies == ["public", None]
    status, answer = await stranger.get("a.example", f"/_matrix/federation/v1/event/{quote(secret, safe='')}")
    assert answer["pdus"][0]["content"] == {}
    body = {"earliest_events": [], "latest_events": [room.last.event_id], "limit": 3}
    status, answer = await stranger.request(
        "a.example", "POST", f"/_matrix/federation/v1/get_missing_events/{place}", body
    )
    assert [pdu["content"].get("body") for pdu in answer["events"] if pdu["type"] == "m.room.message"] == [None]


async def test_a_gap_left_by_an_outage_is_filled_by_pagination(federation: Federation) -> None:
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id, "a.example")
    await send_text(alice, room_id, "before")
    await wait_text(bob, room_id, "before")
    federation.network.cut("a.example", "b.example")
    for number in range(300):
        await send_text(alice, room_id, f"message {number}")
    federation.network.heal()
    await wait_text(bob, room_id, "message 299")
    expected = ["before", *(f"message {number}" for number in range(300))]
    assert await all_texts(bob, room_id, 100) == expected


async def test_history_comes_from_another_server_if_one_is_away(federation: Federation) -> None:
    a, b, c = [await federation.start(f"{name}.example") for name in "abc"]
    alice, bob, carol = await a.register("alice"), await b.register("bob"), await c.register("carol")
    room_id = await create_room(alice, preset="public_chat")
    await send_text(alice, room_id, "long ago")
    await join(bob, room_id, "a.example")
    assert await all_texts(bob, room_id, 50) == ["long ago"]
    await join(carol, room_id, "b.example")
    federation.network.leave("a.example")
    assert await all_texts(carol, room_id, 50) == ["long ago"]


async def test_answers_to_backfill_follow_the_spec(federation: Federation) -> None:
    """/backfill has the events it starts from, /get_missing_events has not; /state is of before the event."""
    a = await federation.start("a.example")
    alice = await a.register("alice")
    room_id = await create_room(alice, preset="public_chat")
    stranger = Stranger(federation.network, ServerName("c.example"))
    await stranger.join("a.example", room_id, "carol")
    events = [await send_text(alice, room_id, str(number)) for number in range(5)]
    topic = await send_state(alice, room_id, "m.room.topic", {"topic": "tea"})
    last = await send_text(alice, room_id, "5")
    place = quote(room_id, safe="")
    status, answer = await stranger.get(
        "a.example", f"/_matrix/federation/v1/backfill/{place}?v={quote(last, safe='')}&limit=3"
    )
    _, single = await stranger.get("a.example", f"/_matrix/federation/v1/event/{quote(last, safe='')}")
    assert len(answer["pdus"]) == 3 and answer["pdus"][0] == single["pdus"][0]
    body = {"earliest_events": [events[2]], "latest_events": [last], "limit": 10}
    status, answer = await stranger.request(
        "a.example", "POST", f"/_matrix/federation/v1/get_missing_events/{place}", body
    )
    assert [pdu["content"].get("body", pdu["content"].get("topic")) for pdu in answer["events"]] == ["3", "4", "tea"]
    uri = f"/_matrix/federation/v1/state_ids/{place}?event_id="
    status, before = await stranger.get("a.example", uri + quote(topic, safe=""))
    status, after = await stranger.get("a.example", uri + quote(last, safe=""))
    assert set(after["pdu_ids"]) - set(before["pdu_ids"]) == {topic}
    assert set(before["auth_chain_ids"]) <= {*before["pdu_ids"]}
    status, whole = await stranger.get(
        "a.example", f"/_matrix/federation/v1/state/{place}?event_id={quote(last, safe='')}"
    )
    assert len(whole["pdus"]) == len(after["pdu_ids"])
    status, chain = await stranger.get("a.example", f"/_matrix/federation/v1/event_auth/{place}/{quote(last, safe='')}")
    # From room version 12 on nobody cites m.room.create, which the room id names.
    assert {pdu["type"] for pdu in chain["auth_chain"]} == {"m.room.member", "m.room.power_levels"}


async def test_only_ancestors_of_the_gap_are_accepted_as_history(federation: Federation) -> None:
    """A server adds an event of its own to the past, which nothing follows on."""
    b = await federation.start("b.example")
    bob = await b.register("bob")
    fake = FakeRoom(Stranger(federation.network, ServerName("mallory.example")))
    fake.serve(bob.user_id)
    room_id = str(fake.room_id)
    await join(bob, room_id, fake.server.name)
    create, member, levels, _ = fake.events
    past = list(fake.events)
    forged = fake.say("m.room.message", {"msgtype": "m.text", "body": "I was here"}, auth=[create, member, levels])
    place = quote(room_id, safe="")
    fake.server.answers["GET", f"/_matrix/federation/v1/backfill/{place}"] = {
        "origin": "mallory.example", "origin_server_ts": 0, "pdus": [event.pdu for event in [*past, forged]],
    }  # fmt: skip
    for event in past:
        known = [each.event_id for each in past[: past.index(event)]]
        fake.server.answers["GET", f"/_matrix/federation/v1/state_ids/{place}"] = {
            "pdu_ids": known, "auth_chain_ids": known,
        }  # fmt: skip
    assert await all_texts(bob, room_id, 10) == []
    answer = await bob.ok("GET", f"rooms/{quote(room_id)}/messages?dir=b&limit=100")
    assert forged.event_id not in {event["event_id"] for event in answer["chunk"]}
    assert create.event_id in {event["event_id"] for event in answer["chunk"]}


async def _long_past(federation: Federation) -> tuple[Server, Client, str, list[str]]:
    """A room of another server with a past of topics and messages in turn, whose IDs are given; bob has just come."""
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice, preset="public_chat")
    past = []
    for number in range(10):
        past.append(str(await send_state(alice, room_id, "m.room.topic", {"topic": f"topic {number}"})))
        past.append(str(await send_text(alice, room_id, f"message {number}")))
    await join(bob, room_id, "a.example")
    return a, bob, room_id, past


def _refuse(federation: Federation, server: Server, words: str, event_ids: Collection[str]) -> None:
    """From now on the server does not answer requests of that kind about these events."""

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        uri = unquote(f"{scope['raw_path'].decode()}?{scope['query_string'].decode()}")
        if words not in uri or not any(event_id in uri for event_id in event_ids):
            await server.app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 404, "headers": []})
        await send({"type": "http.response.body", "body": b'{"errcode":"M_NOT_FOUND","error":"No."}'})

    federation.network.join(server.name, serve)


async def test_state_withheld_for_one_event_is_requested_for_the_previous_one(federation: Federation) -> None:
    a, bob, room_id, past = await _long_past(federation)
    _refuse(federation, a, "/state_ids/", past[1::2])
    assert await all_texts(bob, room_id, 5) == [f"message {number}" for number in range(10)]


async def test_an_event_whose_state_is_unavailable_does_not_spoil_its_page(federation: Federation) -> None:
    a, bob, room_id, past = await _long_past(federation)
    _refuse(federation, a, "/state_ids/", past[:14])
    found = await texts(bob, room_id)
    assert found[-2:] == ["message 8", "message 9"]


async def test_history_comes_from_another_server_if_one_is_slow(federation: Federation) -> None:
    a, bob, room_id, _ = await _long_past(federation)
    c = await federation.start("c.example")
    carol = await c.register("carol")
    await join(carol, room_id, "a.example")
    assert len(await all_texts(carol, room_id, 50)) == 10

    async def silent(scope: Any, receive: Any, send: Any) -> None:
        await trio.sleep_forever()

    federation.network.join("a.example", silent)
    began_s = trio.current_time()
    assert len(await all_texts(bob, room_id, 50)) == 10
    assert trio.current_time() - began_s < 20
