"""Spec: client-server-api/#reporting-content; and what administrators see of it."""

from __future__ import annotations

from typing import Any

import pytest

from homeserver import limits
from homeserver.authenticate import AccountFlags, store_account_flags
from homeserver.config import RateLimitsSection
from homeserver.features.reports import Report, count_reports, store_report
from homeserver.federation.identifiers import UserID
from tests.support.homeservers import Client, Homeservers, Server
from tests.support.people import act, create, join, leave, path_of, public_room, send, set_state

EVENTS = "/_synapse/admin/v1/event_reports"
ROOMS = "/_synapse/admin/v1/room_reports"
USERS = "/_synapse/admin/v1/user_reports"
NOT_THERE = (404, "M_NOT_FOUND")


@pytest.fixture
async def boss(server: Server) -> Client:
    client = await server.register("boss")
    await server.write(store_account_flags, client.user_id, AccountFlags(is_admin=True))
    return client


async def report_event(client: Client, room_id: str, event_id: str, **body: Any) -> None:
    assert await client.ok("POST", path_of(room_id, "report", event_id), json=body) == {}


async def report_room(client: Client, room_id: str, reason: str = "") -> None:
    assert await client.ok("POST", path_of(room_id, "report"), json={"reason": reason}) == {}


async def report_user(client: Client, user_id: str, reason: str = "") -> None:
    assert await client.ok("POST", f"users/{user_id}/report", json={"reason": reason}) == {}


async def test_a_member_reports_an_event(server: Server, boss: Client) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob, name="Tea", room_alias_name="tea")
    event_id = await send(alice, room_id, "coffee!")
    # `score` is what clients of before v1.18 send
    await report_event(bob, room_id, event_id, reason="off topic", score=-100)
    (report,) = (await boss.ok("GET", EVENTS))["event_reports"]
    assert report.pop("received_ts") > 0
    assert report == {
        "id": report["id"], "user_id": bob.user_id, "reason": "off topic", "room_id": room_id, "name": "Tea",
        "canonical_alias": "#tea:test.example", "event_id": event_id, "sender": alice.user_id,
    }  # fmt: skip
    shown = await boss.ok("GET", f"{EVENTS}/{report['id']}")
    assert shown["event_json"]["content"]["body"] == "coffee!"
    assert await boss.ok("DELETE", f"{EVENTS}/{report['id']}") == {}
    assert await boss.refused("GET", f"{EVENTS}/{report['id']}") == NOT_THERE
    assert await boss.refused("DELETE", f"{EVENTS}/{report['id']}") == NOT_THERE
    assert await boss.ok("GET", EVENTS) == {"event_reports": [], "total": 0}


async def test_only_members_report_events_and_only_those_that_they_see(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await create(alice, preset="public_chat")
    await set_state(alice, room_id, "m.room.history_visibility", {"history_visibility": "joined"})
    unseen = await send(alice, room_id, "before bob")
    elsewhere = await send(alice, await create(alice), "elsewhere")

    async def refusals(*event_ids: str) -> set[tuple[int, str, str]]:
        answers = [await bob.post(path_of(room_id, "report", each), json={}) for each in event_ids]
        return {(each.status_code, each.json()["errcode"], each.json()["error"]) for each in answers}

    # nothing that exists is told from what does not
    told = await refusals(unseen, elsewhere, "$nothing")
    await join(bob, room_id)
    assert told == await refusals(unseen, elsewhere, "$nothing")
    assert len(told) == 1 and next(iter(told))[:2] == NOT_THERE
    seen = await send(alice, room_id, "after bob")
    await report_event(bob, room_id, seen)
    await leave(bob, room_id)
    assert await refusals(seen) == told
    assert await server.read(count_reports) == 1


async def test_rooms_and_users_are_reported_by_anyone_whether_they_exist_or_not(server: Server, boss: Client) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    secret = await create(alice, name="Secret")
    for room_id in (secret, "!nowhere:test.example", "!remote:other.example"):
        await report_room(bob, room_id, "heard of it")
    for user_id in (alice.user_id, "@nobody:test.example", "@remote:other.example"):
        await report_user(bob, user_id)
    rooms = (await boss.ok("GET", f"{ROOMS}?dir=f"))["room_reports"]
    assert [(each["room_id"], each["name"]) for each in rooms] == [
        (secret, "Secret"), ("!nowhere:test.example", None), ("!remote:other.example", None),
    ]  # fmt: skip
    users = (await boss.ok("GET", USERS))["user_reports"]
    assert [each["target_user_id"] for each in users] == [
        "@remote:other.example", "@nobody:test.example", alice.user_id,
    ]  # fmt: skip
    assert await boss.refused("GET", f"{EVENTS}/{users[0]['id']}") == NOT_THERE
    assert await boss.ok("DELETE", f"{USERS}/{users[0]['id']}") == {}
    assert (await boss.ok("GET", USERS))["total"] == 2


async def test_a_banned_user_can_still_report_the_room(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    await act(alice, room_id, "ban", bob)
    await report_room(bob, room_id, "they banned me")


async def test_the_lists_have_pages_and_filters(server: Server, boss: Client) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    sent = [await send(alice, room_id, f"{number}") for number in range(5)]
    for event_id in sent:
        await report_event(bob, room_id, event_id)
    await report_event(alice, room_id, sent[0])
    first = await boss.ok("GET", f"{EVENTS}?limit=4&user_id={bob.user_id}")
    assert [each["event_id"] for each in first["event_reports"]] == sent[:0:-1]
    assert (first["total"], first["next_token"]) == (5, 4)
    last = await boss.ok("GET", f"{EVENTS}?limit=4&user_id={bob.user_id}&from={first['next_token']}")
    assert [each["event_id"] for each in last["event_reports"]] == [sent[0]]
    assert "next_token" not in last
    assert (await boss.ok("GET", f"{EVENTS}?room_id={room_id}"))["total"] == 6
    assert (await boss.ok("GET", f"{EVENTS}?room_id=!other:test.example"))["total"] == 0
    assert (await boss.ok("GET", f"{EVENTS}?user_id=@nobody:test.example"))["total"] == 0
    for query in ("limit=0", "limit=1001", "from=-1", "from=x", "dir=up", f"from={2**60}"):
        assert await boss.refused("GET", f"{EVENTS}?{query}") == (400, "M_INVALID_PARAM"), query


async def test_a_repeated_report_replaces_the_first(server: Server, boss: Client) -> None:
    alice = await server.register("alice")
    for reason in ("rude", "very rude"):
        await report_user(alice, "@bob:test.example", reason)
    (report,) = (await boss.ok("GET", USERS))["user_reports"]
    assert report["reason"] == "very rude"


async def test_the_oldest_reports_of_a_user_are_dropped(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    await report_user(bob, "@a:test.example")

    def report_much(tx: Any) -> None:
        for number in range(limits.users.REPORTS_PER_USER_MAX + 5):
            store_report(tx, Report(0, "user", alice.user_id, "", 1, target=UserID(f"@{number}:test.example")))

    await server.write(report_much)
    assert await server.read(count_reports) == limits.users.REPORTS_PER_USER_MAX + 1


async def test_reasons(server: Server, boss: Client) -> None:
    alice = await server.register("alice")
    user, room = "users/@bob:test.example/report", path_of("!a:test.example", "report")
    for path in (user, room):
        assert await alice.refused("POST", path, json={}) == (400, "M_MISSING_PARAM")
        assert await alice.refused("POST", path, json={"reason": 7}) == (400, "M_BAD_JSON")
        too_long = {"reason": "é" * limits.users.REPORT_REASON_BYTES_MAX}
        assert await alice.refused("POST", path, json=too_long) == (413, "M_TOO_LARGE")
    await report_user(alice, "@bob:test.example", "a \0 in ünïcode 🫖")
    (report,) = (await boss.ok("GET", USERS))["user_reports"]
    assert report["reason"] == "a \0 in ünïcode 🫖"


async def test_reports_are_for_administrators_only(server: Server) -> None:
    alice = await server.register("alice")
    for method, path in (
        ("GET", EVENTS),
        ("GET", ROOMS),
        ("GET", USERS),
        ("GET", f"{EVENTS}/1"),
        ("DELETE", f"{ROOMS}/1"),
    ):
        assert await alice.refused(method, path) == (403, "M_FORBIDDEN")
        assert await server.anonymous.refused(method, path) == (401, "M_MISSING_TOKEN")
    assert await server.anonymous.refused("POST", "users/@a:b/report", json={"reason": ""}) == (401, "M_MISSING_TOKEN")


async def test_reports_are_rate_limited(homeservers: Homeservers) -> None:
    server = await homeservers.start(rate_limits=RateLimitsSection(enabled=True))
    alice = await server.register("alice")
    answers = [
        await alice.post(f"users/@user{number}:test.example/report", json={"reason": ""}) for number in range(25)
    ]
    assert {each.status_code for each in answers} == {200, 429}
