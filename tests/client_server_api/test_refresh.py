"""Spec: client-server-api/#refreshing-access-tokens"""

from __future__ import annotations

import pytest
import trio

from homeserver import authenticate, limits
from homeserver.authenticate import AccountFlags
from homeserver.config import RateLimitsSection
from homeserver.federation.identifiers import UserID
from tests.support.homeservers import PASSWORD, Homeservers, Server


async def log_in(server: Server) -> dict:
    await server.register("alice")
    return await server.anonymous.ok(
        "POST",
        "login",
        json={"type": "m.login.password", "user": "alice", "password": PASSWORD, "refresh_token": True},
    )


async def refresh(server: Server, token: str) -> dict:
    return await server.anonymous.ok("POST", "refresh", json={"refresh_token": token})


async def test_many_devices_behind_one_address_can_refresh(homeservers: Homeservers) -> None:
    server = await homeservers.start(rate_limits=RateLimitsSection(enabled=True))
    tokens = await log_in(server)
    for _ in range(100):
        tokens = await refresh(server, tokens["refresh_token"])


async def test_refreshed_tokens_belong_to_the_same_device(homeserver: Server) -> None:
    first = await log_in(homeserver)
    assert first["expires_in_ms"] == limits.ACCESS_TOKEN_LIFETIME_MS
    second = await refresh(homeserver, first["refresh_token"])
    assert second["access_token"] != first["access_token"]
    assert second["refresh_token"] != first["refresh_token"]
    owner = await homeserver.with_token(second["access_token"]).ok("GET", "account/whoami")
    assert owner["device_id"] == first["device_id"]


async def test_the_old_refresh_token_works_until_a_new_token_is_used(homeserver: Server) -> None:
    first = await log_in(homeserver)
    await refresh(homeserver, first["refresh_token"])  # the answer is lost
    second = await refresh(homeserver, first["refresh_token"])
    await homeserver.with_token(second["access_token"]).ok("GET", "account/whoami")
    refusal = await homeserver.anonymous.refused("POST", "refresh", json={"refresh_token": first["refresh_token"]})
    assert refusal == (401, "M_UNKNOWN_TOKEN")


async def test_a_replayed_refresh_token_ends_all_tokens_of_its_device(homeserver: Server) -> None:
    first = await log_in(homeserver)
    second = await refresh(homeserver, first["refresh_token"])
    alice = homeserver.with_token(second["access_token"])
    await alice.ok("GET", "account/whoami")  # the first refresh token is spent now
    for token in (first["refresh_token"], second["refresh_token"]):
        refusal = await homeserver.anonymous.refused("POST", "refresh", json={"refresh_token": token})
        assert refusal == (401, "M_UNKNOWN_TOKEN")
    assert await alice.refused("GET", "account/whoami") == (401, "M_UNKNOWN_TOKEN")


async def test_a_locked_account_gets_no_new_tokens_and_keeps_its_old_ones(homeserver: Server) -> None:
    first = await log_in(homeserver)
    user_id = UserID(first["user_id"])
    await homeserver.write(authenticate.store_account_flags, user_id, AccountFlags(is_locked=True))
    answer = await homeserver.anonymous.post("refresh", json={"refresh_token": first["refresh_token"]})
    assert (answer.status_code, answer.json()["errcode"]) == (401, "M_USER_LOCKED")
    assert answer.json()["soft_logout"] is True
    await homeserver.write(authenticate.store_account_flags, user_id, AccountFlags())
    await refresh(homeserver, first["refresh_token"])


async def test_a_refresh_token_whose_answer_was_lost_ends_nothing(homeserver: Server) -> None:
    first = await log_in(homeserver)
    lost = await refresh(homeserver, first["refresh_token"])
    second = await refresh(homeserver, first["refresh_token"])
    alice = homeserver.with_token(second["access_token"])
    await alice.ok("GET", "account/whoami")
    refusal = await homeserver.anonymous.refused("POST", "refresh", json={"refresh_token": lost["refresh_token"]})
    assert refusal == (401, "M_UNKNOWN_TOKEN")
    await alice.ok("GET", "account/whoami")
    await refresh(homeserver, second["refresh_token"])


async def test_an_expired_access_token_causes_a_soft_logout(homeserver: Server) -> None:
    first = await log_in(homeserver)
    alice = homeserver.with_token(first["access_token"])
    await alice.ok("GET", "account/whoami")
    await trio.sleep(limits.ACCESS_TOKEN_LIFETIME_MS / 1000 + 1)
    answer = await alice.get("account/whoami")
    assert answer.status_code == 401
    assert answer.json()["soft_logout"] is True
    second = await refresh(homeserver, first["refresh_token"])
    await homeserver.with_token(second["access_token"]).ok("GET", "account/whoami")


async def test_logout_revokes_the_refresh_token(homeserver: Server) -> None:
    first = await log_in(homeserver)
    await homeserver.with_token(first["access_token"]).ok("POST", "logout")
    refusal = await homeserver.anonymous.refused("POST", "refresh", json={"refresh_token": first["refresh_token"]})
    assert refusal == (401, "M_UNKNOWN_TOKEN")


@pytest.mark.parametrize(
    ("body", "refusal"),
    [
        ({}, (400, "M_MISSING_PARAM")),
        ({"refresh_token": 7}, (400, "M_BAD_JSON")),
        ({"refresh_token": "nonsense"}, (401, "M_UNKNOWN_TOKEN")),
    ],
)
async def test_invalid_refresh_requests_are_refused(homeserver: Server, body: dict, refusal: tuple[int, str]) -> None:
    assert await homeserver.anonymous.refused("POST", "refresh", json=body) == refusal
