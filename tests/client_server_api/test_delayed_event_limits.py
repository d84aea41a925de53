"""Spec: MSC4140: how many delayed events there may be, and when they are sent."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest
import trio

from homeserver.limits.users import (
    DELAY_MS_MAX,
    DELAYED_EVENTS_FINALISED_MAX,
    DELAYED_EVENTS_FINALISED_MS,
    DELAYED_EVENTS_MAX,
)
from tests.support.delayed import (
    CALL,
    UNSTABLE,
    act,
    said,
    scheduled,
    send_later,
    set_state_later,
)
from tests.support.federation import Federation
from tests.support.homeservers import Client, Homeservers, Server, now_ms
from tests.support.people import (
    all_messages,
    get_state,
    path_of,
    public_room,
    redact,
)

HOUR = 3600.0


# Limits


@pytest.mark.parametrize(
    ("delay", "refusal"),
    [
        (0, (400, "M_INVALID_PARAM")),
        (-1, (400, "M_INVALID_PARAM")),
        ("soon", (400, "M_INVALID_PARAM")),
        (1.5, (400, "M_INVALID_PARAM")),
        (10**30, (400, "M_INVALID_PARAM")),
        (DELAY_MS_MAX + 1, (403, "M_FORBIDDEN")),
    ],
)
async def test_a_delay_has_limits(server: Server, delay: Any, refusal: tuple[int, str]) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    params = {"org.matrix.msc4140.delay": delay}
    path = path_of(room_id, "send", "m.room.message", "t1")
    assert await alice.refused("PUT", path, json={}, params=params) == refusal
    path = path_of(room_id, "state", CALL, "")
    assert await alice.refused("PUT", path, json={}, params=params) == refusal
    assert await scheduled(alice) == []


async def test_content_that_can_never_be_an_event_is_refused_at_once(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice)
    params = {"org.matrix.msc4140.delay": 1_000}
    message = path_of(room_id, "send", "m.room.message", "t1")
    assert await alice.refused("PUT", message, json={"x": 1.5}, params=params) == (400, "M_BAD_JSON")
    assert await alice.refused("PUT", message, json={"x": "y" * 65_536}, params=params) == (413, "M_TOO_LARGE")
    long_type = path_of(room_id, "send", "x" * 256, "t1")
    assert await alice.refused("PUT", long_type, json={}, params=params) == (400, "M_BAD_JSON")
    long_txn = path_of(room_id, "send", "m.room.message", "t" * 256)
    assert await alice.refused("PUT", long_txn, json={}, params=params) == (400, "M_INVALID_PARAM")
    assert await bob.refused("PUT", message, json={}, params=params) == (403, "M_FORBIDDEN")
    unknown = path_of("!unknown:test.example", "send", "m.room.message", "t1")
    assert await alice.refused("PUT", unknown, json={}, params=params) == (403, "M_FORBIDDEN")
    assert await scheduled(alice) == []


async def test_a_user_schedules_a_limited_number_at_a_time(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    for number in range(DELAYED_EVENTS_MAX):
        await send_later(alice, room_id, 60_000 + number, txn_id=f"t{number}")
    params = {"org.matrix.msc4140.delay": 1_000}
    path = path_of(room_id, "send", "m.room.message", "more")
    answer = await alice.put(path, {}, params=params)
    assert (answer.status_code, answer.json()["errcode"]) == (429, "M_LIMIT_EXCEEDED")
    assert 55 <= int(answer.headers["retry-after"]) <= 61
    capabilities = (await alice.ok("GET", "capabilities"))["capabilities"]
    limits = {"max_delay_ms": DELAY_MS_MAX, "max_scheduled": DELAYED_EVENTS_MAX}
    assert capabilities["org.matrix.msc4140.delayed_events"] == limits
    await trio.sleep(60.001)
    await send_later(alice, room_id, 1_000, txn_id="more")


async def test_a_limited_number_of_finalised_events_is_kept(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    known = []
    for number in range(DELAYED_EVENTS_FINALISED_MAX + 2):
        known.append(await send_later(alice, room_id, 60_000, txn_id=f"t{number}"))
        await act(alice, known[-1], "cancel")
        await trio.sleep(0.1)
    kept = [(await alice.get(f"{UNSTABLE}/delayed_events/{each}")).status_code for each in known]
    assert kept == [404] * 2 + [200] * DELAYED_EVENTS_FINALISED_MAX


async def test_events_that_are_due_together_are_limited_like_messages(homeservers: Homeservers) -> None:
    server = await homeservers.start(rate_limits={"enabled": True})
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    for number in range(100):
        await trio.sleep(0.5)
        await send_later(alice, room_id, 100_000 - number * 500, txn_id=f"a{number}")
    await send_later(bob, room_id, 50_000, "bob's")
    for _ in range(20):
        await act(alice, (await scheduled(alice))[0]["delay_id"], "send")
    await trio.sleep(100)
    sent = await said(bob, room_id)
    assert "bob's" in sent
    assert len(sent) == 101
    assert await redact(alice, room_id, (await all_messages(alice, room_id))[0]["event_id"])


# Time


class Clock:
    """The time of day as the server sees it."""

    def __init__(self) -> None:
        self.offset_s = 0.0

    def __call__(self) -> int:
        return now_ms() + round(self.offset_s * 1000)


async def test_finalised_events_are_kept_for_some_days(federation: Federation) -> None:
    clock = Clock()
    server = await federation.start("a.example", clock=clock)
    alice = await server.register("alice")
    room_id = await public_room(alice)
    known = await send_later(alice, room_id, 1_000)
    await act(alice, known, "cancel")
    for late_ms in (-1, 1):
        clock.offset_s = (DELAYED_EVENTS_FINALISED_MS + late_ms) / 1000
        await act(alice, await send_later(alice, room_id, 1_000, txn_id=f"late{late_ms}"), "cancel")
        status = (await alice.get(f"{UNSTABLE}/delayed_events/{known}")).status_code
        assert status == (200 if late_ms < 0 else 404)


@pytest.mark.parametrize("jump_s", [365 * 24 * HOUR, 2 * HOUR, -2 * HOUR, -365 * 24 * HOUR])
async def test_a_clock_that_jumps_changes_no_delay(federation: Federation, jump_s: float) -> None:
    clock = Clock()
    server = await federation.start("a.example", clock=clock)
    alice = await server.register("alice")
    room_id = await public_room(alice)
    await send_later(alice, room_id, 3_600_000, "in an hour", "t1")
    await send_later(alice, room_id, 600_000, "in ten minutes", "t2")
    await trio.sleep(60)
    clock.offset_s = jump_s
    await send_later(alice, room_id, 60_000, "in a minute", "t3")
    await trio.sleep(59)
    assert await said(alice, room_id) == []
    await trio.sleep(2)
    assert await said(alice, room_id) == ["in a minute"]
    await trio.sleep(540 - 61 + 1)
    assert await said(alice, room_id) == ["in a minute", "in ten minutes"]
    await trio.sleep(HOUR - 600 - 5)
    assert len(await said(alice, room_id)) == 2
    await trio.sleep(5)
    assert len(await said(alice, room_id)) == 3


async def test_the_schedule_survives_the_end_of_the_server(federation: Federation) -> None:
    server = await federation.start("a.example", database={"url": "sqlite:homeserver.db"})
    alice = await server.register("alice")
    room_id = await public_room(alice)
    await send_later(alice, room_id, 300_000, "in time", "t1")
    await send_later(alice, room_id, 20_000, "second", "t2")
    await send_later(alice, room_id, 10_000, "first", "t3")
    await federation.kill("a.example")
    await trio.sleep(100)
    server = await federation.start("a.example", database={"url": "sqlite:homeserver.db"})
    alice = Client(server, alice.token, alice.user_id, alice.device_id)
    await trio.sleep(1)
    assert await said(alice, room_id) == ["first", "second"]
    await trio.sleep(198)
    assert await said(alice, room_id) == ["first", "second"]
    await trio.sleep(2)
    assert await said(alice, room_id) == ["first", "second", "in time"]


async def test_a_delay_of_a_wrong_clock_begins_again_after_a_restart(federation: Federation) -> None:
    clock = Clock()
    clock.offset_s = 12 * HOUR
    database = {"url": "sqlite:homeserver.db"}
    server = await federation.start("a.example", clock=clock, database=database)
    alice = await server.register("alice")
    room_id = await public_room(alice)
    await send_later(alice, room_id, 60_000)
    await federation.kill("a.example")
    clock.offset_s = 0
    server = await federation.start("a.example", clock=clock, database=database)
    alice = Client(server, alice.token, alice.user_id, alice.device_id)
    await trio.sleep(59)
    assert await said(alice, room_id) == []
    await trio.sleep(2)
    assert await said(alice, room_id) == ["later"]


async def test_delayed_events_of_another_server_are_events_here(federation: Federation) -> None:
    _, _, alice, bob = await federation.start_two()
    room_id = await public_room(alice, power_level_content_override={"events": {CALL: 0}})
    await bob.ok("POST", f"join/{quote(room_id)}?server_name=a.example", json={})
    await set_state_later(bob, room_id, 5_000, {"left": True})
    await trio.sleep(10)
    assert await get_state(alice, room_id, CALL, bob.user_id) == {"left": True}
