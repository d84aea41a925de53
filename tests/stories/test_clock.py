"""A server whose clock goes wrong, by an hour or a year, and is put right again: then all is as usual, soon."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import pytest
import trio

from homeserver import limits
from homeserver.config import RateLimitsSection
from homeserver.federation.identifiers import ServerName
from homeserver.users.accounts import store_admin
from tests.support.clock import let_days_pass
from tests.support.federation import (
    Federation,
    checked,
    create_room,
    invite,
    join,
    membership_in,
    send_text,
    sync,
    texts,
    until,
)
from tests.support.homeservers import PASSWORD, Client, Server, now_ms
from tests.support.stranger import Joined, Stranger

HOUR = 3600.0
DAY = 24 * HOUR
OFFSETS = [365 * DAY, 30 * DAY, HOUR, -HOUR, -365 * DAY]
by_offset = pytest.mark.parametrize("offset", OFFSETS)

MALLORY = ServerName("mallory.example")


@dataclass(slots=True)
class Clock:
    """The time of day as one server sees it."""

    offset_s: float = 0

    def __call__(self) -> int:
        return now_ms() + round(self.offset_s * 1000)


async def _with_peer(federation: Federation, clock: Clock) -> tuple[Client, Stranger, Joined]:
    """A room of alice that a user of another server is in."""
    a = await federation.start("a.example", clock=clock)
    alice = await a.register("alice")
    room_id = await create_room(alice, preset="public_chat")
    mallory = Stranger(federation.network, MALLORY)
    return alice, mallory, await mallory.join("a.example", room_id, "mallory")


async def _two_in_a_room(server: Server) -> tuple[Client, Client, str]:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id)
    return alice, bob, room_id


@by_offset
@pytest.mark.parametrize("failures", [1, 8])
async def test_a_destination_that_failed_meanwhile_is_retried_soon(
    federation: Federation, offset: float, failures: int
) -> None:
    clock = Clock()
    alice, mallory, room = await _with_peer(federation, clock)
    clock.offset_s = offset
    mallory.take = lambda body: (503, {"errcode": "M_UNKNOWN", "error": "busy"})
    await send_text(alice, room.room_id, "one")
    await trio.sleep(2 * 2**failures)
    clock.offset_s = 0
    heard: list[str] = []

    def take(body: Any) -> None:
        heard.extend(pdu["content"].get("body", "") for pdu in body["pdus"])

    mallory.take = take
    await send_text(alice, room.room_id, "two")

    async def has_all() -> bool:
        return {"one", "two"} <= set(heard)

    await until(has_all, seconds=15 if failures == 1 else 2**failures * 5)


@by_offset
async def test_a_peer_that_contacts_us_meanwhile_is_understood_afterwards(
    federation: Federation, offset: float
) -> None:
    clock = Clock()
    alice, mallory, room = await _with_peer(federation, clock)
    clock.offset_s = offset
    early = room.text("early")
    body = {"origin": MALLORY, "origin_server_ts": now_ms(), "pdus": [early.pdu], "edus": []}
    await mallory.put("a.example", "/_matrix/federation/v1/send/early", body)
    clock.offset_s = 0
    await trio.sleep(15)
    for number in range(12):
        event = room.text(f"late {number}")
        assert await mallory.send("a.example", f"late{number}", [early.pdu, event.pdu]) is not None
    assert f"late {11}" in await texts(alice, room.room_id)
    again = await mallory.send("a.example", "late11", [])
    assert event.event_id in again  # what it was answered is remembered


@by_offset
async def test_rate_limits_refill_as_usual(federation: Federation, offset: float) -> None:
    clock = Clock()
    a = await federation.start("a.example", clock=clock, rate_limits=RateLimitsSection())
    alice = await a.register("alice")
    clock.offset_s = offset
    await alice.ok("GET", "account/whoami")
    clock.offset_s = 0
    for _ in range(300):
        await alice.request("GET", "account/whoami")
    await trio.sleep(10)
    statuses = [(await alice.request("GET", "account/whoami")).status_code for _ in range(20)]
    assert statuses == [200] * 20


async def test_no_message_expires_by_a_wrong_clock(federation: Federation) -> None:
    clock = Clock()
    a = await federation.start("a.example", clock=clock)
    alice, _, room_id = await _two_in_a_room(a)
    content = {"max_lifetime": round(7 * DAY * 1000)}
    await alice.ok("PUT", f"rooms/{quote(room_id)}/state/m.room.retention/", json=content)
    await send_text(alice, room_id, "kept for a week")
    await trio.sleep(HOUR / 2)
    for pause in (4 * HOUR, 6 * HOUR):  # wrong when the server looks for what has expired, right before and afterwards
        clock.offset_s = 365 * DAY
        await trio.sleep(HOUR)
        clock.offset_s = 0
        await trio.sleep(pause)
    assert "kept for a week" in await texts(alice, room_id)
    await let_days_pass(8)
    assert "kept for a week" not in await texts(alice, room_id)


async def test_no_figures_of_recent_days_are_deleted_by_a_wrong_clock(federation: Federation) -> None:
    clock = Clock()
    a = await federation.start("a.example", clock=clock)
    alice, _, room_id = await _two_in_a_room(a)
    for _ in range(5):
        await send_text(alice, room_id, "Tea?")
        await let_days_pass(1)
    await a.write(store_admin, alice.user_id, True)
    admin = await a.log_in(alice.user_id)

    begin = now_ms() - round(3.5 * DAY * 1000)

    async def count_sent() -> int:
        path = f"/_homeserver/admin/v1/analytics?granularity=hour&from={begin}"
        return sum(hour["messages_sent"] for hour in (await admin.ok("GET", path))["periods"])

    assert await count_sent() == 3
    clock.offset_s = 365 * DAY
    await send_text(alice, room_id, "a year ahead")
    await trio.sleep(60)  # it is counted, and what is a year old is due to be deleted
    clock.offset_s = 0
    assert await count_sent() == 3
    await send_text(alice, room_id, "Tea again?")
    await trio.sleep(60)
    assert await count_sent() == 4


@by_offset
async def test_typing_ends(federation: Federation, offset: float) -> None:
    clock = Clock(offset)
    a = await federation.start("a.example", clock=clock)
    alice, bob, room_id = await _two_in_a_room(a)
    body = {"typing": True, "timeout": 30_000}
    await alice.ok("PUT", f"rooms/{quote(room_id)}/typing/{quote(alice.user_id)}", json=body)
    clock.offset_s = 0
    await trio.sleep(limits.TYPING_TIMEOUT_MS_MAX / 1000 + 60)
    answer = await sync(bob)
    ephemeral = answer["rooms"]["join"][room_id].get("ephemeral", {"events": []})["events"]
    assert [event for event in ephemeral if event["content"].get("user_ids")] == []
    await alice.ok("PUT", f"rooms/{quote(room_id)}/typing/{quote(alice.user_id)}", json=body)
    (typing,) = (await sync(bob, answer["next_batch"]))["rooms"]["join"][room_id]["ephemeral"]["events"]
    assert typing["content"]["user_ids"] == [alice.user_id]


@by_offset
async def test_presence_goes_offline_and_online(federation: Federation, offset: float) -> None:
    clock = Clock(offset)
    a = await federation.start("a.example", clock=clock)
    alice, bob, room_id = await _two_in_a_room(a)
    await sync(alice)
    clock.offset_s = 0
    await trio.sleep(2 * HOUR)

    async def status() -> Any:
        return (await bob.ok("GET", f"presence/{quote(alice.user_id)}/status"))["presence"]

    assert await status() == "offline"
    await sync(alice)
    await send_text(alice, room_id, "back")
    assert await status() == "online"


@by_offset
async def test_remote_presence_expires(federation: Federation, offset: float) -> None:
    clock = Clock()
    alice, mallory, room = await _with_peer(federation, clock)
    clock.offset_s = offset
    content = {"push": [{"user_id": room.user_id, "presence": "online", "last_active_ago": 0}]}
    edus = [{"edu_type": "m.presence", "content": content}]
    body = {"origin": MALLORY, "origin_server_ts": now_ms(), "pdus": [], "edus": edus}
    await mallory.put("a.example", "/_matrix/federation/v1/send/1", body)
    clock.offset_s = 0
    await trio.sleep(3 * HOUR)
    answer = await alice.ok("GET", f"presence/{quote(room.user_id)}/status")
    assert answer["presence"] == "offline"


@by_offset
async def test_tokens_and_sessions_do_not_live_longer(federation: Federation, offset: float) -> None:
    clock = Clock(offset)
    a = await federation.start("a.example", clock=clock)
    await a.register("alice")
    credentials = {"type": "m.login.password", "user": "alice", "password": PASSWORD, "refresh_token": True}
    tokens = await a.anonymous.ok("POST", "login", json=credentials)
    body = {"new_password": "another battery staple"}
    asked = await a.with_token(tokens["access_token"]).request("POST", "account/password", json=body)
    session = asked.json()["session"]
    clock.offset_s = 0
    await trio.sleep(2 * limits.ACCESS_TOKEN_LIFETIME_MS / 1000 + 120)  # one lifetime from when the clock is right
    response = await a.with_token(tokens["access_token"]).request("GET", "account/whoami")
    assert (response.status_code, response.json()["soft_logout"]) == (401, True)
    fresh = await a.anonymous.ok("POST", "refresh", json={"refresh_token": tokens["refresh_token"]})
    client = a.with_token(fresh["access_token"])
    await client.ok("GET", "account/whoami")
    await trio.sleep(limits.USER_INTERACTIVE_LIFETIME_MS / 1000)
    client = a.with_token((await a.anonymous.ok("POST", "login", json=credentials))["access_token"])
    auth = {"type": "m.login.password", "session": session, "password": PASSWORD,
            "identifier": {"type": "m.id.user", "user": "alice"}}  # fmt: skip
    late = await client.request("POST", "account/password", json={**body, "auth": auth})
    assert late.status_code == 401
    assert late.json()["session"] != session


@by_offset
async def test_created_uris_expire(federation: Federation, offset: float) -> None:
    clock = Clock(offset)
    a = await federation.start("a.example", clock=clock)
    alice = await a.register("alice")
    for _ in range(limits.MEDIA_PENDING_PER_USER_MAX):
        await alice.ok("POST", "/_matrix/media/v1/create")
    clock.offset_s = 0
    await trio.sleep(2 * limits.MEDIA_PENDING_LIFETIME_MS / 1000 + 120)
    await alice.ok("POST", "/_matrix/media/v1/create")


@by_offset
async def test_a_rejection_is_delivered_soon(federation: Federation, offset: float) -> None:
    clock = Clock()
    a, b = await federation.start("a.example"), await federation.start("b.example", clock=clock)
    alice, bob = await a.register("alice"), await b.register("bob")
    room_id = await create_room(alice)
    await invite(alice, room_id, bob.user_id)
    federation.network.leave("a.example")
    clock.offset_s = offset
    await bob.ok("POST", f"rooms/{quote(room_id)}/leave", json={})
    await trio.sleep(20)
    clock.offset_s = 0
    federation.network.join("a.example", checked(a.app))

    async def told() -> bool:
        path = f"rooms/{quote(room_id)}/state/m.room.member/{quote(bob.user_id)}"
        return (await alice.ok("GET", path))["membership"] == "leave"

    await until(told, seconds=120)
    assert membership_in(await sync(bob), room_id) is None


@by_offset
async def test_everything_works_after_a_restart_with_the_correct_clock(federation: Federation, offset: float) -> None:
    clock = Clock()
    alice, mallory, room = await _with_peer(federation, clock)
    clock.offset_s = offset
    mallory.take = lambda body: (503, {"errcode": "M_UNKNOWN", "error": "busy"})
    await send_text(alice, room.room_id, "one")
    await sync(alice)
    await trio.sleep(10)
    await federation.kill("a.example")
    clock.offset_s = 0
    a = await federation.start("a.example", clock=clock)
    heard: list[str] = []
    mallory.take = lambda body: heard.extend(pdu["content"].get("body", "") for pdu in body["pdus"])

    async def has_all() -> bool:
        return "one" in heard

    await until(has_all, seconds=60)
    assert len((await sync(a.with_token(alice.token)))["rooms"]["join"]) == 1
