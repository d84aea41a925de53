"""Analytics: figures about the server's use, for its administrators. Not in the spec: see docs/analytics.md."""

from __future__ import annotations

import csv
import io
import random
from typing import Any

import pytest
import trio

from homeserver.config import Analytics, RateLimitsSection
from homeserver.database import Transaction
from homeserver.federation.identifiers import ServerName
from homeserver.federation.server_keys import build_key_response
from homeserver.rooms.storage import list_stored
from homeserver.users.accounts import store_admin
from tests.support.clock import let_days_pass
from tests.support.federation import Federation, create_room, invite, join, send_text, sync
from tests.support.homeservers import Client, Server, now_ms
from tests.support.rows import row
from tests.support.stranger import Stranger

ANALYTICS = "/_homeserver/admin/v1/analytics"
HOUR_MS = 3_600_000


async def become_admin(server: Server, client: Client) -> Client:
    await server.write(store_admin, client.user_id, True)
    return await server.log_in(client.user_id)


async def report(admin: Client, **query: Any) -> dict[str, Any]:
    text = "&".join(f"{name.rstrip('_')}={value}" for name, value in query.items())
    answer: dict[str, Any] = await admin.ok("GET", f"{ANALYTICS}?{text}")
    return answer


async def today(admin: Client) -> dict[str, Any]:
    return dict((await report(admin))["periods"][-1])


async def test_figures_of_a_conversation_between_two_servers(federation: Federation) -> None:
    a, b, alice, bob = await federation.start_two()
    admin = await become_admin(a, alice)
    room_id = await create_room(alice)
    await invite(alice, room_id, bob.user_id)
    await join(bob, room_id, a.name)
    for number in range(3):
        await send_text(alice, room_id, f"tea {number}")
    await send_text(bob, room_id, "coffee")
    await alice.ok("PUT", f"rooms/{room_id}/send/m.call.invite/1", json={"call_id": "1", "version": "1", "lifetime": 1})
    await alice.post("/_matrix/media/v3/upload", content=b"x" * 100)
    await trio.sleep(5)
    row = await today(admin)
    expected = {
        "active_people": 1, "active_people_week": 1, "active_people_month": 1, "messages": 4, "messages_sent": 3,
        "messages_received": 1, "calls": 1, "joins": 2, "new_people": 1, "new_rooms": 1, "media_files": 1,
        "media_bytes": 100,
    }  # fmt: skip
    assert {name: row[name] for name in expected} == expected
    answer = await report(admin)
    (peer,) = answer["peers"]
    assert peer["server"] == b.name and peer["received"] == 2 and peer["sent"] >= 4
    assert answer["rooms"][0]["room_id"] == room_id
    assert answer["rooms"][0]["messages"] == 5
    assert answer["behind"] == 0


async def test_figures_are_the_same_before_and_after_the_tail_has_counted(federation: Federation) -> None:
    a, _, alice, bob = await federation.start_two()
    admin = await become_admin(a, alice)
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id, a.name)
    await send_text(alice, room_id, "tea")
    await trio.sleep(1)
    before = await today(admin)
    await trio.sleep(60)
    assert await today(admin) == before
    assert before["messages"] == 1


async def test_nothing_is_counted_twice_when_a_server_is_killed(federation: Federation) -> None:
    a = await federation.start("a.example")
    alice = await a.register("alice")
    admin = await become_admin(a, alice)
    room_id = await create_room(alice)
    for number in range(12):
        await send_text(admin, room_id, f"tea {number}")
        await trio.sleep(4)  # so that the server is killed before, while and after the tail counts
        await federation.kill("a.example")
        a = await federation.start("a.example")
        admin = a.with_token(admin.token)
    row = await today(admin)
    assert (row["messages"], row["joins"], row["new_rooms"]) == (12, 1, 1)


async def test_hours_are_those_in_which_something_happened(federation: Federation) -> None:
    a = await federation.start("a.example", rate_limits=RateLimitsSection(enabled=False))
    alice, bob = await a.register("alice"), await a.register("bob")
    admin = await become_admin(a, alice)
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id)
    for _ in range(40):
        await send_text(alice, room_id, "tea")
        await trio.sleep(3600)
    await send_text(bob, room_id, "coffee")
    periods = (await report(admin, granularity="hour"))["periods"]
    assert len(periods) == 48
    assert [each["messages"] for each in periods[-41:]] == [1] * 41
    assert [each["active_people"] for each in periods[-41:]] == [2, *[1] * 40]
    assert [each["start_ts"] // HOUR_MS % 24 == int(each["start"][11:13]) for each in periods]


async def test_a_reader_is_active_without_saying_anything(federation: Federation) -> None:
    a = await federation.start("a.example")
    alice, bob = await a.register("alice"), await a.register("bob")
    admin = await become_admin(a, alice)
    room_id = await create_room(alice, preset="public_chat")
    event_id = await send_text(alice, room_id, "tea")
    await join(bob, room_id)
    await let_days_pass(3)
    assert (await today(admin))["active_people"] == 0
    await bob.ok("POST", f"rooms/{room_id}/receipt/m.read/{event_id}", json={})
    row = await today(admin)
    assert (row["active_people"], row["active_people_week"]) == (1, 2)


async def test_days_that_are_over_keep_their_figures_and_rows_of_people_go(federation: Federation) -> None:
    a = await federation.start("a.example", rate_limits=RateLimitsSection(enabled=False))
    alice, bob = await a.register("alice"), await a.register("bob")
    admin = await become_admin(a, alice)
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id)
    for number in range(40):
        await send_text(bob if number == 3 else alice, room_id, "tea")
        await let_days_pass(1)
    await send_text(alice, room_id, "tea")
    await trio.sleep(60)
    periods = (await report(admin, from_=(await report(admin))["to_ts"] - 41 * 24 * HOUR_MS))["periods"]
    assert [each["active_people"] for each in periods] == [2, *[1] * 40]
    assert [each["active_people_week"] for each in periods] == [2] * 10 + [1] * 31
    assert [each["active_people_month"] for each in periods] == [2] * 33 + [1] * 8
    assert (await a.read(lambda tx: tx.values("SELECT COUNT(*) FROM active_people")))[0] <= 34


@pytest.mark.parametrize("ahead_ms", [-400 * 24 * HOUR_MS, 20 * HOUR_MS])
async def test_a_server_with_a_wrong_clock_changes_no_other_day(federation: Federation, ahead_ms: int) -> None:
    a = await federation.start("a.example")
    alice = await a.register("alice")
    admin = await become_admin(a, alice)
    room_id = await create_room(alice, preset="public_chat")
    mallory = Stranger(federation.network, ServerName("mallory.example"))
    valid_until = now_ms() + 7 * 24 * HOUR_MS
    mallory.answers["GET", "/_matrix/key/v2/server"] = build_key_response(mallory.name, mallory.key, {}, valid_until)
    room = await mallory.join(a.name, room_id, "mallory")
    pdu = {**room.text("tea").pdu, "origin_server_ts": now_ms() + ahead_ms}
    event = mallory.sign({key: pdu[key] for key in pdu.keys() - {"hashes", "signatures"}}, room.version)
    assert await mallory.send(a.name, "1", [event.pdu]) == {event.event_id: {}}
    await trio.sleep(60)
    assert (await today(admin))["messages_received"] == 1
    start = (await report(admin))["to_ts"] - 1000 * 24 * HOUR_MS
    others = (await report(admin, from_=start, to=start + 2000 * 24 * HOUR_MS))["periods"]
    assert sum(each["messages"] for each in others) == 1


@pytest.mark.parametrize("seed", range(3))
async def test_figures_are_those_that_the_events_give_when_counted_at_once(federation: Federation, seed: int) -> None:
    """Whatever happens, however the tail cuts the stream in spans, and whenever the server is killed."""
    chance = random.Random(seed)
    a = await federation.start("a.example", rate_limits=RateLimitsSection(enabled=False))
    people = [await a.register(name) for name in ("alice", "bob", "carol")]
    admin = await become_admin(a, people[0])
    room_id = await create_room(people[0], preset="public_chat")
    mallory = Stranger(federation.network, ServerName("mallory.example"))
    away = await mallory.join(a.name, room_id, "mallory")
    for number in range(60):
        person = chance.choice(people)
        action = chance.choice(("say", "say", "hear", "join", "leave", "rename", "create", "call", "wait", "kill"))
        if action == "say":
            await person.put(f"rooms/{room_id}/send/m.room.message/{number}", json={"msgtype": "m.text", "body": "x"})
        elif action == "hear":
            await mallory.send(a.name, str(number), [away.text(f"{number}").pdu])
        elif action in ("join", "leave") and person is not people[0]:
            await person.post(f"rooms/{room_id}/{action}", json={})
        elif action == "rename":
            await person.put(f"profile/{person.user_id}/displayname", json={"displayname": f"Name {number}"})
        elif action == "create":
            await create_room(person)
        elif action == "call":
            call = {"call_id": "1", "version": "1", "lifetime": 1, "offer": {"type": "offer", "sdp": ""}}
            await person.put(f"rooms/{room_id}/send/m.call.invite/{number}", json=call)
        elif action == "wait":
            await trio.sleep(chance.choice((1, 15, 1800, 7200, 40_000)))
        elif action == "kill":
            await federation.kill(a.name)
            a = await federation.start(a.name, rate_limits=RateLimitsSection(enabled=False))
            people = [a.with_token(each.token) for each in people]
            admin = a.with_token(admin.token)
    expected = await a.read(count_at_once)
    for granularity, unit_ms in (("hour", HOUR_MS), ("day", 24 * HOUR_MS)):
        start = (await report(admin))["to_ts"] - 30 * 24 * HOUR_MS
        rows = (await report(admin, from_=start, granularity=granularity))["periods"]
        for name in ("messages_sent", "messages_received", "calls", "joins", "new_rooms", "active_people"):
            counted = {row["start_ts"] // unit_ms: row[name] for row in rows if row[name]}
            by_unit: dict[int, set[Any]] = {}
            for moment, thing in expected.get(name, ()):
                by_unit.setdefault(moment // unit_ms, set()).add(thing)
            assert counted == {number: len(things) for number, things in by_unit.items()}, (granularity, name)


def count_at_once(tx: Transaction) -> dict[str, list[tuple[int, Any]]]:
    """The moments of everything that counts, each with the event's position, or the person who counts once."""
    found: dict[str, list[tuple[int, Any]]] = {}
    members: dict[tuple[str, str], Any] = {}
    positions = tx.values("SELECT position FROM events WHERE ordering IS NOT NULL ORDER BY ordering")
    events = list_stored(tx, positions)
    for event in (events[position] for position in positions):
        is_local = event.sender.endswith(":a.example")
        moment, names = event.origin_server_ts, []
        if event.type == "m.room.message":
            names.append("messages_sent" if is_local else "messages_received")
        if event.type == "m.call.invite":
            names.append("calls")
        if event.type == "m.room.create":
            names.append("new_rooms")
        if event.type == "m.room.member":
            key, membership = (event.room_id, str(event.state_key)), event.content["membership"]
            if membership == "join" and members.get(key) != "join":
                names.append("joins")
            members[key] = membership
        for name in names:
            found.setdefault(name, []).append((moment, event.position))
        if is_local:
            found.setdefault("active_people", []).append((moment, event.sender))
    return found


async def test_csv_has_a_line_for_each_period(federation: Federation) -> None:
    a = await federation.start("a.example")
    admin = await become_admin(a, await a.register("alice"))
    response = await admin.get(f"{ANALYTICS}?from=2026-11-01&to=2026-11-03&format=csv")
    assert response.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(response.text)))
    assert [row["start"] for row in rows] == ["2026-11-01", "2026-11-02", "2026-11-03"]
    assert {"messages", "delivery_ms_p99"} <= rows[0].keys()


async def test_only_administrators_get_figures_and_only_if_they_are_counted(federation: Federation) -> None:
    a = await federation.start("a.example")
    b = await federation.start("b.example", analytics=Analytics(enabled=False))
    alice, bob = await a.register("alice"), await b.register("bob")
    assert await alice.refused("GET", ANALYTICS) == (403, "M_FORBIDDEN")
    assert await a.anonymous.refused("GET", ANALYTICS) == (401, "M_MISSING_TOKEN")
    admin = await become_admin(b, bob)
    await create_room(bob)
    await admin.post("/_matrix/media/v3/upload", content=b"x")
    await trio.sleep(60)
    assert await admin.refused("GET", ANALYTICS) == (404, "M_NOT_FOUND")
    for table in ("hourly_figures", "daily_figures", "active_people", "peer_figures"):
        assert await b.read(lambda tx, table=table: tx.all(f"SELECT * FROM {table}")) == []


async def test_a_wrong_span_is_refused(federation: Federation) -> None:
    a = await federation.start("a.example")
    admin = await become_admin(a, await a.register("alice"))
    for query in [
        "from=yesterday",
        "from=2026-13-01",
        "to=" + "9" * 30,
        "from=2026-11-02&to=2026-11-01",
        "from=0001-01-01",
        "granularity=minute",
        "format=parquet",
        "from=1e400",
    ]:
        with row(query):
            assert await admin.refused("GET", f"{ANALYTICS}?{query}") == (400, "M_INVALID_PARAM")


async def test_the_time_until_a_message_is_delivered_is_a_percentile(federation: Federation) -> None:
    a = await federation.start("a.example")
    alice, bob = await a.register("alice"), await a.register("bob")
    admin = await become_admin(a, alice)
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id)
    since = (await sync(bob))["next_batch"]
    await trio.sleep(60)  # until nothing is under way
    await send_text(alice, room_id, "tea")
    await trio.sleep(10)
    for _ in range(3):  # a sync acknowledges the answer of the one before
        since = (await sync(bob, since))["next_batch"]
        await trio.sleep(1)
    await trio.sleep(60)
    row = await today(admin)
    assert row["delivered"] >= 1
    assert 8_000 < row["delivery_ms_p50"] < 16_000
