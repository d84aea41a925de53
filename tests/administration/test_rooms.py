"""The admin API for rooms: lists, details, history, and blocked rooms."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest

from tests.support.homeservers import Client, Server
from tests.support.people import act, create, invite, join, public_room, redact, say, send, set_state, state, texts

V1 = "/_synapse/admin/v1"
Json = dict[str, Any]


def names(answer: Json) -> list[str]:
    return [each["name"] for each in answer["rooms"]]


def room(room_id: str, rest: str = "") -> str:
    return f"{V1}/rooms/{quote(room_id, safe='')}{rest}"


@pytest.fixture
async def bob(server: Server) -> Client:
    return await server.register("bob")


async def test_lists_of_rooms_are_searched_sorted_and_come_in_pages(boss: Client, alice: Client, bob: Client) -> None:
    tea = await public_room(alice, bob, name="Tea", visibility="public", room_alias_name="oolong", room_version="11")
    await create(alice, name="cake", creation_content={"m.federate": False})
    empty = await create(bob, name="Empty")
    await act(bob, empty, "leave")
    listed = await boss.ok("GET", f"{V1}/rooms")
    assert (names(listed), listed["total_rooms"], listed["offset"]) == (["cake", "Empty", "Tea"], 3, 0)
    assert listed["rooms"][2] == {
        "room_id": tea, "name": "Tea", "canonical_alias": "#oolong:test.example", "joined_members": 2,
        "joined_local_members": 2, "version": "11", "creator": alice.user_id, "encryption": None, "federatable": True,
        "public": True, "join_rules": "public", "guest_access": "forbidden", "history_visibility": "shared",
        "state_events": 9, "room_type": None,
    }  # fmt: skip
    for query, found in (
        ("dir=b", ["Tea", "Empty", "cake"]),
        ("order_by=joined_members", ["Tea", "cake", "Empty"]),
        ("order_by=joined_members&dir=b", ["Empty", "cake", "Tea"]),
        ("order_by=size&limit=1", ["Tea"]),
        ("order_by=size&limit=1&from=1", ["cake"]),
        ("from=100", []),
        ("search_term=TEA", ["Tea"]),
        ("search_term=oolo", ["Tea"]),
        (f"search_term={quote(tea[1:9])}", ["Tea"]),
        ("public_rooms=true", ["Tea"]),
        ("public_rooms=false", ["cake", "Empty"]),
        ("empty_rooms=true", ["Empty"]),
        ("empty_rooms=false", ["cake", "Tea"]),
        ("order_by=federatable", ["cake", "Empty", "Tea"]),
        ("order_by=state_events", ["Tea", "cake", "Empty"]),
    ):
        answer = await boss.ok("GET", f"{V1}/rooms?{query}")
        assert sorted(names(answer)) == sorted(found) and names(answer)[:1] == found[:1], (query, names(answer))
    page = await boss.ok("GET", f"{V1}/rooms?limit=2&from=1")
    assert (page["offset"], page["prev_batch"], "next_batch" in page) == (1, 0, False)
    assert (await boss.ok("GET", f"{V1}/rooms?limit=2"))["next_batch"] == 2
    for query in ("limit=0", "from=-1", f"from={2**60}", "order_by=x", f"search_term={'x' * 300}"):
        assert await boss.refused("GET", f"{V1}/rooms?{query}") == (400, "M_INVALID_PARAM"), query


async def test_a_room_is_shown_with_its_details_members_and_state(boss: Client, alice: Client, bob: Client) -> None:
    room_id = await public_room(alice, bob, name="Tea", topic="Leaves")
    shown = await boss.ok("GET", room(room_id))
    assert (shown["topic"], shown["joined_local_devices"], shown["forgotten"], shown["tombstoned"]) == (
        "Leaves", 2, False, False,
    )  # fmt: skip
    assert await boss.ok("GET", room(room_id, "/members")) == {"members": [alice.user_id, bob.user_id], "total": 2}
    members = (await boss.ok("GET", room(room_id, "/state?type=m.room.member")))["state"]
    assert {each["state_key"] for each in members} == {alice.user_id, bob.user_id}
    whole = (await boss.ok("GET", room(room_id, "/state")))["state"]
    assert {(each["type"], each["state_key"]) for each in whole} == set(await state(alice, room_id))
    assert (await boss.ok("GET", room(room_id, "/state?type=unknown")))["state"] == []
    ends = await boss.ok("GET", room(room_id, "/forward_extremities"))
    assert (ends["count"], len(ends["results"])) == (1, 1)
    assert await boss.ok("DELETE", room(room_id, "/forward_extremities")) == {"deleted": 0}
    for rest in ("", "/members", "/state", "/messages", "/forward_extremities", "/timestamp_to_event?ts=1"):
        assert await boss.refused("GET", room("!unknown:test.example", rest)) == (404, "M_NOT_FOUND"), rest


async def test_history_is_shown_to_administrators_who_are_not_in_the_room(boss: Client, alice: Client) -> None:
    room_id = await create(alice, name="Secret", initial_state=[
        {"type": "m.room.history_visibility", "content": {"history_visibility": "joined"}},
    ])  # fmt: skip
    ids = await say(alice, room_id, *(f"m{number}" for number in range(5)))
    await redact(alice, room_id, ids[1])
    found, start = [], ""
    while start is not None:
        page = await boss.ok("GET", room(room_id, f"/messages?limit=3&dir=b{start and '&from=' + start}"))
        found += page["chunk"]
        start = page.get("end")
    assert texts(found) == ["m4", "m3", "m2", "", "m0"]
    forwards = await boss.ok("GET", room(room_id, "/messages?limit=100"))
    assert texts(forwards["chunk"]) == ["m0", "", "m2", "m3", "m4"]
    around = await boss.ok("GET", room(room_id, f"/context/{quote(ids[2])}?limit=2"))
    assert (around["event"]["event_id"], texts(around["events_before"]), texts(around["events_after"])) == (
        ids[2], [""], ["m3"],
    )  # fmt: skip
    assert any(each["type"] == "m.room.create" for each in around["state"])
    nearest = await boss.ok("GET", room(room_id, "/timestamp_to_event?ts=9999999999999&dir=b"))
    assert nearest["event_id"].startswith("$")
    event = (await boss.ok("GET", f"{V1}/fetch_event/{quote(ids[0])}"))["event"]
    assert event["content"]["body"] == "m0" and event["signatures"]
    assert await boss.refused("GET", f"{V1}/fetch_event/$unknown") == (404, "M_NOT_FOUND")
    assert await boss.refused("GET", room(room_id, "/context/$unknown")) == (404, "M_NOT_FOUND")
    for query in ("from=nonsense", "limit=-1", "dir=x", "filter=nonsense"):
        assert (await boss.refused("GET", room(room_id, f"/messages?{query}")))[0] == 400, query


async def test_nobody_enters_a_blocked_room(boss: Client, alice: Client, bob: Client) -> None:
    room_id = await public_room(alice)
    block = room(room_id, "/block")
    assert await boss.ok("GET", block) == {"block": False}
    assert await boss.ok("PUT", block, json={"block": True}) == {"block": True}
    assert await boss.ok("GET", block) == {"block": True, "user_id": boss.user_id}
    assert await bob.refused("POST", f"join/{quote(room_id)}", json={}) == (403, "M_FORBIDDEN")
    assert await bob.refused("POST", f"knock/{quote(room_id)}", json={}) == (403, "M_FORBIDDEN")
    invited = await alice.refused("POST", f"rooms/{quote(room_id)}/invite", json={"user_id": bob.user_id})
    assert invited == (403, "M_FORBIDDEN")
    await send(alice, room_id)  # members go on
    await alice.ok("PUT", f"profile/{alice.user_id}/displayname", json={"displayname": "Al"})
    assert await boss.ok("PUT", block, json={"block": False}) == {"block": False}
    await invite(alice, room_id, bob)
    await join(bob, room_id)
    unknown = room("!unknown:elsewhere.example", "/block")
    await boss.ok("PUT", unknown, json={"block": True})
    assert (await boss.ok("GET", unknown))["block"]
    assert await boss.refused("PUT", block, json={}) == (400, "M_MISSING_PARAM")
    assert await boss.refused("PUT", block, json={"block": "yes"}) == (400, "M_BAD_JSON")


async def test_a_room_that_all_have_left_and_forgotten_says_so(boss: Client, alice: Client) -> None:
    room_id = await create(alice)
    await set_state(alice, room_id, "m.room.tombstone", {"body": "x", "replacement_room": "!new:test.example"})
    await act(alice, room_id, "leave")
    await act(alice, room_id, "forget")
    shown = await boss.ok("GET", room(room_id))
    assert (shown["forgotten"], shown["tombstoned"], shown["replacement_room"]) == (True, True, "!new:test.example")
