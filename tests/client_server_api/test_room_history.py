"""Spec: client-server-api/#get_matrixclientv3roomsroomidmessages, its /context, /event and /timestamp_to_event"""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio

from tests.support.homeservers import Client, Server
from tests.support.people import (
    act,
    all_messages,
    create,
    get_event,
    ids,
    join,
    leave,
    messages,
    path_of,
    public_room,
    redact,
    say,
    send,
    set_state,
    sync,
    texts,
    timeline,
)
from tests.support.rows import row

FORBIDDEN = (403, "M_FORBIDDEN")
NOT_FOUND = (404, "M_NOT_FOUND")


def history_visibility(value: str) -> dict[str, Any]:
    """An initial m.room.history_visibility."""
    return {"type": "m.room.history_visibility", "state_key": "", "content": {"history_visibility": value}}


async def context(client: Client, room_id: str, event_id: str, **query: Any) -> dict[str, Any]:
    return dict(await client.ok("GET", path_of(room_id, "context", event_id), params=query))


@pytest.mark.parametrize("limit", [1, 2, 7, 100])
async def test_the_pages_contain_every_event_once(server: Server, limit: int) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice)
    await say(alice, room_id, "1", "2", "3")
    await join(bob, room_id)
    await say(bob, room_id, "4", "5", "6", "7")
    forwards = await all_messages(bob, room_id, "f", limit=limit)
    backwards = await all_messages(bob, room_id, "b", limit=limit)
    assert ids(forwards) == ids(backwards)[::-1]
    assert len(set(ids(forwards))) == len(forwards)
    assert texts(forwards) == ["1", "2", "3", "4", "5", "6", "7"]
    assert forwards[0]["type"] == "m.room.create"
    assert len(forwards) == 7 + 7  # six at the creation, and a join


async def test_pages_are_stable_while_the_room_grows(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    before = await say(alice, room_id, *[str(number) for number in range(10)])
    found: list[str] = []
    query: dict[str, Any] = {}
    for number in range(5):
        page = await messages(alice, room_id, limit=2, **query)
        found += ids(page["chunk"])
        query = {"start": page["end"]}
        await send(alice, room_id, f"later {number}")
    assert found == before[::-1]


async def test_paginating_in_either_direction_continues_from_the_same_point(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    sent = await say(alice, room_id, *[str(number) for number in range(8)])
    page = await messages(alice, room_id, limit=4)
    assert ids(page["chunk"]) == sent[:3:-1]
    older = await messages(alice, room_id, start=page["end"], limit=4)
    newer = await messages(alice, room_id, "f", start=page["end"], limit=100)
    assert ids(older["chunk"]) == sent[3::-1]
    assert ids(newer["chunk"]) == sent[4:]
    assert older["start"] == newer["start"] == page["end"]
    again = await messages(alice, room_id, "f", start=page["start"])
    assert again["chunk"] == []


async def test_the_last_page_has_no_end_token(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    await say(alice, room_id, "1")
    for direction in ("b", "f"):
        assert "end" not in await messages(alice, room_id, direction, limit=100)
        assert "end" in await messages(alice, room_id, direction, limit=2)


async def test_pagination_can_start_at_tokens_of_sync(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    early = await say(alice, room_id, "1", "2")
    since = (await sync(alice))["next_batch"]
    late = await say(alice, room_id, *[f"later {number}" for number in range(15)])
    answer = await sync(alice, since)
    shown = ids(timeline(answer, room_id))
    prev_batch = answer["rooms"]["join"][room_id]["timeline"]["prev_batch"]
    gap = await messages(alice, room_id, start=prev_batch, to=since, limit=100)
    assert ids(gap["chunk"])[::-1] + shown == late
    page = await messages(alice, room_id, start=since, limit=2)
    assert (ids(page["chunk"]), page["start"]) == (early[::-1], since)
    assert ids((await messages(alice, room_id, "f", start=since, limit=100))["chunk"]) == late
    assert (await messages(alice, room_id, "f", start=answer["next_batch"]))["chunk"] == []


async def test_the_default_limit_is_ten_events(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    await say(alice, room_id, *[str(number) for number in range(12)])
    assert len((await messages(alice, room_id))["chunk"]) == 10
    assert len((await messages(alice, room_id, limit=10**9))["chunk"]) > 12


@pytest.mark.parametrize(
    ("filter_", "expected"),
    [
        ({"types": ["m.room.message"]}, ["a1", "b1", "b2"]),
        ({"types": ["m.room.message"], "senders": ["@bob:test.example"]}, ["b1", "b2"]),
        ({"not_senders": ["@bob:test.example"]}, ["a1"]),
        ({"contains_url": True}, ["b2"]),
        ({"types": ["m.room.message"], "contains_url": False}, ["a1", "b1"]),
        ({"not_types": ["m.room.*"]}, []),
        ({"types": ["m.*.message"]}, ["a1", "b1", "b2"]),
        ({"types": []}, []),
    ],
)
async def test_messages_can_be_filtered(server: Server, filter_: dict[str, Any], expected: list[str]) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    await say(alice, room_id, "a1")
    await say(bob, room_id, "b1")
    await send(bob, room_id, {"msgtype": "m.file", "body": "b2", "url": "mxc://test.example/a"})
    for limit in (1, 3, 100):
        assert texts(await all_messages(alice, room_id, "f", limit=limit, filter=filter_)) == expected
        assert texts(await all_messages(alice, room_id, "b", limit=limit, filter=filter_)) == expected[::-1]


async def test_rooms_can_be_filtered(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    _, second, _ = await say(alice, room_id, "1", "2", "3")
    for filter_ in ({"rooms": [room_id]}, {"not_rooms": ["!other:test.example"]}):
        assert texts((await messages(alice, room_id, filter=filter_))["chunk"]) == ["3", "2", "1"]
    for filter_ in ({"rooms": []}, {"not_rooms": [room_id]}, {"rooms": [room_id], "not_rooms": [room_id]}):
        assert await all_messages(alice, room_id, filter=filter_) == []
        around = await context(alice, room_id, second, limit=2, filter=json.dumps(filter_))
        assert around["event"]["event_id"] == second
        assert around["events_before"] == around["events_after"] == around["state"] == []


async def test_messages_of_ignored_users_are_left_out(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    (event_id,) = await say(alice, room_id, "a1")
    (ignored,) = await say(bob, room_id, "b1")
    await say(alice, room_id, "a2")
    content = {"ignored_users": {bob.user_id: {}}}
    await alice.ok("PUT", f"user/{alice.user_id}/account_data/m.ignored_user_list", json=content)
    told = await all_messages(alice, room_id)
    assert texts(told) == ["a2", "a1"]
    assert bob.user_id in {event.get("state_key") for event in told}
    around = await context(alice, room_id, event_id, limit=10)
    assert texts(around["events_after"]) == ["a2"]
    assert (await get_event(alice, room_id, ignored))["content"]["body"] == "b1"


async def test_contains_url_matches_a_url_of_any_json_type(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    await send(alice, room_id, {"msgtype": "m.text", "body": "link", "url": 7})
    assert texts((await messages(alice, room_id, filter={"contains_url": True}))["chunk"]) == ["link"]


async def test_lazy_loading_returns_the_senders_members(server: Server) -> None:
    alice, bob, carol = [await server.register(name) for name in ("alice", "bob", "carol")]
    room_id = await public_room(alice, bob, carol)
    await say(alice, room_id, "1")
    (event_id,) = await say(bob, room_id, "2")
    lazy = {"lazy_load_members": True}
    page = await messages(carol, room_id, limit=2, filter=lazy)
    assert {event["state_key"] for event in page["state"]} == {alice.user_id, bob.user_id}
    page = await messages(carol, room_id, limit=1, filter=lazy)
    assert {event["state_key"] for event in page["state"]} == {bob.user_id}
    assert "state" not in await messages(carol, room_id, limit=1)
    around = await context(carol, room_id, event_id, limit=0, filter=json.dumps(lazy))
    members = {event["state_key"] for event in around["state"] if event["type"] == "m.room.member"}
    assert members == {bob.user_id}
    assert "m.room.create" in {event["type"] for event in around["state"]}


@pytest.mark.parametrize(("limit", "before", "after"), [(0, 0, 0), (2, 1, 1), (6, 3, 3), (100, 4, 4)])
async def test_context_returns_events_before_and_after(server: Server, limit: int, before: int, after: int) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    sent = await say(alice, room_id, *[str(number) for number in range(9)])
    around = await context(alice, room_id, sent[4], limit=limit, filter=json.dumps({"types": ["m.room.message"]}))
    assert around["event"]["event_id"] == sent[4]
    assert ids(around["events_before"]) == sent[4 - before : 4][::-1]
    assert ids(around["events_after"]) == sent[5 : 5 + after]
    if limit <= 6:
        older = await messages(alice, room_id, start=around["start"], limit=1)
        newer = await messages(alice, room_id, "f", start=around["end"], limit=1)
        assert ids(older["chunk"]) == [sent[3 - before]]
        assert ids(newer["chunk"]) == [sent[5 + after]]


async def test_the_limit_of_a_context_covers_both_sides(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    sent = await say(alice, room_id, *[str(number) for number in range(30)])
    for limit in (1, 3, 5):
        around = await context(alice, room_id, sent[15], limit=limit)
        assert len(around["events_before"]) + len(around["events_after"]) == limit
    around = await context(alice, room_id, sent[15])
    assert len(around["events_before"]) + len(around["events_after"]) == 10


async def test_a_context_returns_the_state_at_its_end(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice, name="first")
    (event_id,) = await say(alice, room_id, "hello")
    await set_state(alice, room_id, "m.room.name", {"name": "second"})
    for limit, name in ((0, "first"), (2, "second")):
        around = await context(alice, room_id, event_id, limit=limit)
        names = [event["content"]["name"] for event in around["state"] if event["type"] == "m.room.name"]
        assert names == [name]


async def test_the_filter_of_a_context_does_not_apply_to_the_event_itself(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    _, event_id, _ = await say(alice, room_id, "1", "2", "3")
    around = await context(alice, room_id, event_id, limit=4, filter=json.dumps({"types": ["m.room.name"]}))
    assert around["event"]["event_id"] == event_id
    assert around["events_before"] == around["events_after"] == around["state"] == []


async def test_a_single_event_can_be_read(server: Server) -> None:
    alice = await server.register("alice")
    room_id, other = await public_room(alice), await public_room(alice)
    (event_id,) = await say(alice, room_id, "hello")
    event = await get_event(alice, room_id, event_id)
    assert (event["event_id"], event["room_id"], event["sender"]) == (event_id, room_id, alice.user_id)
    assert event["content"] == {"msgtype": "m.text", "body": "hello"}
    assert event["unsigned"]["age"] >= 0
    for path in (
        path_of(other, "event", event_id),
        path_of(other, "context", event_id),
        path_of(room_id, "event", "$unknown"),
        path_of(room_id, "context", "$unknown"),
        path_of("!unknown:test.example", "event", event_id),
    ):
        assert await alice.refused("GET", path) == NOT_FOUND


async def test_redacted_events_keep_their_place(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    first, second, third = await say(alice, room_id, "1", "2", "3")
    redaction = await redact(alice, room_id, second)
    chunk = (await messages(alice, room_id, limit=4))["chunk"]
    assert ids(chunk) == [redaction, third, second, first]
    assert chunk[2]["content"] == {}
    assert chunk[2]["unsigned"]["redacted_because"]["event_id"] == redaction


async def test_former_members_read_up_to_their_departure(server: Server) -> None:
    alice, bob, carol, dave = [await server.register(name) for name in ("alice", "bob", "carol", "dave")]
    room_id = await public_room(alice, bob, carol, dave)
    (last,) = await say(alice, room_id, "before")
    await leave(bob, room_id)
    await act(alice, room_id, "kick", carol)
    await act(alice, room_id, "ban", dave)
    later = await say(alice, room_id, *[f"after {number}" for number in range(12)])
    await set_state(alice, room_id, "m.room.name", {"name": "after"})
    for client in (bob, carol, dave):
        page = await messages(client, room_id, limit=4)
        assert page["chunk"][0]["state_key"] == client.user_id  # the newest that they may see: that they left
        everything = await all_messages(client, room_id, limit=3)
        assert texts(everything) == ["before"]
        assert texts(await all_messages(client, room_id, "f", limit=3)) == ["before"]
        ahead = await messages(client, room_id, start=f"s999999999_{server.hs.database.generation}", limit=4)
        assert ids(ahead["chunk"]) == ids(page["chunk"])
        for event_id in later:
            assert await client.refused("GET", path_of(room_id, "event", event_id)) == NOT_FOUND
        around = await context(client, room_id, last, limit=100)
        assert texts(around["events_after"]) == []
        assert "m.room.name" not in {event["type"] for event in around["state"]}


async def test_history_of_an_earlier_membership_stays_readable(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    await say(alice, room_id, "before")
    await leave(bob, room_id)
    await say(alice, room_id, "after")
    for change in ("invite", "kick", "ban", "unban", "invite"):
        await act(alice, room_id, change, bob)
        assert texts(await all_messages(bob, room_id)) == ["before"]
    await join(bob, room_id)
    assert texts(await all_messages(bob, room_id)) == ["after", "before"]


async def test_users_who_were_never_members_read_nothing(server: Server) -> None:
    alice, bob, carol, dave, emil = [await server.register(name) for name in ("alice", "bob", "carol", "dave", "emil")]
    room_id = await create(alice, invite=[bob.user_id, dave.user_id])
    (event_id,) = await say(alice, room_id, "secret")
    await leave(dave, room_id)
    await act(alice, room_id, "ban", emil)
    for client in (bob, carol, dave, emil):
        assert await client.refused("GET", path_of(room_id, "messages") + "?dir=b") == FORBIDDEN
        for what in ("event", "context"):
            assert await client.refused("GET", path_of(room_id, what, event_id)) == NOT_FOUND
    for path in (path_of(room_id, "messages") + "?dir=b", path_of(room_id, "event", event_id)):
        assert await server.anonymous.refused("GET", path) == (401, "M_MISSING_TOKEN")
    assert await alice.refused("GET", path_of("!unknown:test.example", "messages") + "?dir=b") == FORBIDDEN


async def test_malformed_parameters_are_refused(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    for query in [
        "dir=x",
        "dir=",
        "dir=b&limit=x",
        "dir=b&limit=-1",
        "dir=b&limit=1.5",
        "dir=b&from=nonsense",
        "dir=b&to=t",
        "dir=f&from=s-1x",
        "dir=b&from=" + "t" + "9" * 40,
    ]:
        with row(query):
            assert await alice.refused("GET", path_of(room_id, "messages") + "?" + query) == (400, "M_INVALID_PARAM")
            assert await alice.refused("GET", path_of(room_id, "messages")) == (400, "M_MISSING_PARAM")


async def test_malformed_filters_in_a_query_are_refused(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    (event_id,) = await say(alice, room_id, "hello")
    for filter_ in ["{", "7", "[]", '{"types": "m.room.message"}', '{"senders": [7]}', '{"contains_url": "yes"}']:
        with row(filter_):
            for path, query in (
                (path_of(room_id, "messages"), {"dir": "b", "filter": filter_}),
                (path_of(room_id, "context", event_id), {"filter": filter_}),
            ):
                assert await alice.refused("GET", path, params=query) in ((400, "M_BAD_JSON"), (400, "M_INVALID_PARAM"))
            for limit in ("x", "-1"):
                path = path_of(room_id, "context", event_id) + f"?limit={limit}"
                assert await alice.refused("GET", path) == (400, "M_INVALID_PARAM")


async def at_time(client: Client, room_id: str, ts: int, direction: str) -> str:
    """The event nearest to a time."""
    path = f"/_matrix/client/v1/{path_of(room_id, 'timestamp_to_event')}"
    found = await client.ok("GET", path, params={"ts": ts, "dir": direction})
    event = await get_event(client, room_id, found["event_id"])
    assert event["origin_server_ts"] == found["origin_server_ts"]
    return str(found["event_id"])


async def test_timestamps_resolve_to_the_nearest_event(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await create(alice)
    sent, times = [], []
    for text in ("breakfast", "lunch", "dinner"):
        await trio.sleep(6 * 3600)
        sent.append(await send(alice, room_id, text))
        times.append((await get_event(alice, room_id, sent[-1]))["origin_server_ts"])
    for ts in (times[1], times[1] - 1):
        assert await at_time(alice, room_id, ts, "f") == sent[1]
    for ts in (times[1], times[1] + 1):
        assert await at_time(alice, room_id, ts, "b") == sent[1]
    create_event = (await all_messages(alice, room_id, "f"))[0]["event_id"]
    assert await at_time(alice, room_id, 0, "f") == create_event
    assert await at_time(alice, room_id, 1 << 50, "b") == sent[2]
    path = f"/_matrix/client/v1/{path_of(room_id, 'timestamp_to_event')}"
    for query in ("ts=0&dir=b", f"ts={times[2] + 1}&dir=f"):
        assert await alice.refused("GET", f"{path}?{query}") == NOT_FOUND


async def test_timestamps_resolve_to_visible_events_only(server: Server) -> None:
    alice, bob, carol = [await server.register(name) for name in ("alice", "bob", "carol")]
    room_id = await public_room(alice, initial_state=[history_visibility("joined")])
    secret = await send(alice, room_id, "secret")
    await trio.sleep(60)
    await join(bob, room_id)
    seen = await send(alice, room_id, "welcome")
    await trio.sleep(60)
    await leave(bob, room_id)
    await trio.sleep(60)
    later = await send(alice, room_id, "gone")
    first = await at_time(bob, room_id, 0, "f")
    assert first not in (secret, seen, later) and first in ids(await all_messages(bob, room_id, "f"))
    last = await at_time(bob, room_id, 1 << 50, "b")
    assert (await get_event(bob, room_id, last))["content"] == {"membership": "leave"}
    path = f"/_matrix/client/v1/{path_of(room_id, 'timestamp_to_event')}"
    assert await carol.refused("GET", f"{path}?ts=0&dir=f") == FORBIDDEN


async def test_malformed_timestamps_are_refused(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await create(alice)
    path = f"/_matrix/client/v1/{path_of(room_id, 'timestamp_to_event')}"
    for query, errcode in [
        ("dir=f", "M_MISSING_PARAM"),
        ("ts=0", "M_MISSING_PARAM"),
        ("ts=0&dir=x", "M_INVALID_PARAM"),
        ("ts=noon&dir=f", "M_INVALID_PARAM"),
        (f"ts={1 << 80}&dir=f", "M_INVALID_PARAM"),
    ]:
        with row(query, errcode):
            assert await alice.refused("GET", f"{path}?{query}") == (400, errcode)


async def test_sync_messages_and_context_return_the_same_events(server: Server) -> None:
    """The same filter, the same ignored users and the same limit show the same events, whichever way they are read."""
    alice, bob, carol = [await server.register(name) for name in ("alice", "bob", "carol")]
    room_id = await public_room(alice, bob, carol)
    for number in range(30):
        await send(bob, room_id, {"n": number}, kind="org.example.rare" if number % 5 == 0 else "m.room.message")
        await send(carol, room_id, {"n": number}, kind="org.example.rare")
    path = f"user/{alice.user_id}/account_data/m.ignored_user_list"
    await alice.ok("PUT", path, json={"ignored_users": {carol.user_id: {}}})
    rare = {"types": ["org.example.rare"]}
    answer = await sync(alice, filter={"room": {"timeline": {**rare, "limit": 3}}})
    shown = ids(timeline(answer, room_id))
    assert len(shown) == 3
    page = await messages(alice, room_id, limit=3, filter=rare)
    assert ids(page["chunk"]) == shown[::-1]
    around = await context(alice, room_id, shown[1], limit=2, filter=json.dumps(rare))
    assert [ids(around[part]) for part in ("events_before", "events_after")] == [[shown[0]], [shown[2]]]
    older = await all_messages(alice, room_id, start=around["start"], filter=rare)
    assert [event["content"]["n"] for event in older] == [10, 5, 0]
    assert await all_messages(alice, room_id, "f", start=around["end"], filter=rare) == []


async def test_a_page_with_all_events_has_no_end_token(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    everything = await all_messages(alice, room_id)
    for direction in ("b", "f"):
        assert "end" not in await messages(alice, room_id, direction, limit=len(everything))
        assert "end" in await messages(alice, room_id, direction, limit=len(everything) - 1)
