"""Which requests are limited together. Spec: client-server-api/#rate-limiting"""

from __future__ import annotations

import pytest

from homeserver.config import RateLimitsSection
from homeserver.feature import rate_limits_of
from homeserver.server import Homeserver, all_features
from tests.support.homeservers import Homeservers, NoWire, Server, config_for_tests, now_ms
from tests.support.people import create, path_of

RATE_LIMITS = rate_limits_of(all_features())
INVITES = int(RATE_LIMITS["invite"].burst)
INITIAL_SYNCS = int(RATE_LIMITS["initial_sync"].burst)
LIMITED = (429, "M_LIMIT_EXCEEDED")


@pytest.fixture
async def limited(homeservers: Homeservers) -> Server:
    """A server with its rate limits."""
    return await homeservers.start(rate_limits=RateLimitsSection(enabled=True))


def strangers(count: int) -> list[str]:
    return [f"@stranger{number}:test.example" for number in range(count)]


async def test_invitations_by_any_endpoint_are_limited(limited: Server) -> None:
    alice = await limited.register("alice")
    *many, last = strangers(INVITES + 1)
    room_id = await create(alice, invite=many[:5])
    for number, user_id in enumerate(many[5:]):
        if number % 2:
            await alice.ok("POST", path_of(room_id, "invite"), json={"user_id": user_id})
        else:
            path = path_of(room_id, "state", "m.room.member", user_id)
            await alice.ok("PUT", path, json={"membership": "invite"})
    path = path_of(room_id, "state", "m.room.member", last)
    assert await alice.refused("PUT", path, json={"membership": "invite"}) == LIMITED
    assert await alice.refused("POST", path_of(room_id, "invite"), json={"user_id": last}) == LIMITED
    assert await alice.refused("POST", "createRoom", json={"invite": [last]}) == LIMITED
    await create(alice)


async def test_a_new_room_may_exceed_the_burst_of_invitations(limited: Server) -> None:
    alice = await limited.register("alice")
    await create(alice, invite=strangers(INVITES + 1))
    assert await alice.refused("POST", "createRoom", json={"invite": strangers(1)}) == LIMITED


async def test_joins_by_any_endpoint_are_limited(limited: Server) -> None:
    alice = await limited.register("alice")
    room_id = await create(alice)
    path = path_of(room_id, "state", "m.room.member", alice.user_id)
    for number in range(int(RATE_LIMITS["join"].burst)):
        await alice.ok("PUT", path, json={"membership": "join", "displayname": str(number)})
    assert await alice.refused("PUT", path, json={"membership": "join"}) == LIMITED
    assert await alice.refused("POST", f"join/{room_id}", json={}) == LIMITED


async def test_all_endpoints_that_send_events_share_the_limit_of_messages(limited: Server) -> None:
    alice = await limited.register("alice")
    room_id = await create(alice)
    body = {"user_id": strangers(1)[0]}
    for number in range(int(RATE_LIMITS["message"].burst)):
        await alice.ok("POST", path_of(room_id, "unban" if number % 2 else "ban"), json=body)
    assert await alice.refused("POST", path_of(room_id, "ban"), json=body) == LIMITED
    path = path_of(room_id, "send", "m.room.message", "1")
    assert await alice.refused("PUT", path, json={"msgtype": "m.text", "body": "hello"}) == LIMITED


async def test_profile_changes_are_limited(limited: Server) -> None:
    alice = await limited.register("alice")
    path = f"profile/{alice.user_id}/displayname"
    for number in range(int(RATE_LIMITS["profile"].burst)):
        await alice.ok("PUT", path, json={"displayname": str(number)})
    assert await alice.refused("PUT", path, json={"displayname": "one too many"}) == LIMITED
    assert await alice.refused("DELETE", path) == LIMITED


async def test_an_embedding_program_is_not_limited(homeservers: Homeservers) -> None:
    config = config_for_tests("test.example", homeservers.folder, rate_limits=RateLimitsSection(enabled=True))
    async with Homeserver(config, wire=NoWire(), now_ms=now_ms, inline_database=True) as server:
        alice = await server.register("alice")
        for _ in range(3):
            await alice.create_room(invite=strangers(INVITES))


async def test_syncs_are_limited(limited: Server) -> None:
    alice = await limited.register("alice")
    since = (await alice.ok("GET", "sync"))["next_batch"]
    for path in ("sync", f"sync?since={since}&full_state=true") * (INITIAL_SYNCS // 2):
        last = await alice.get(path)
    assert (last.status_code, last.json()["errcode"]) == LIMITED
    path = f"sync?since={since}"
    for _ in range(int(RATE_LIMITS["sync"].burst) - 1 - INITIAL_SYNCS):
        await alice.ok("GET", path)
    assert await alice.refused("GET", path) == LIMITED
