"""Spec: client-server-api/#server-administration, #account-locking, #account-suspension"""

from __future__ import annotations

from typing import Any

import pytest

from homeserver.authenticate import AccountFlags, store_account_flags
from tests.support.homeservers import PASSWORD, Client, Homeservers, Server

ADMIN = "/_matrix/client/v1/admin"
FORBIDDEN = (403, "M_FORBIDDEN")


@pytest.fixture
async def server(homeservers: Homeservers) -> Server:
    return await homeservers.start()


@pytest.fixture
async def boss(server: Server) -> Client:
    client = await server.register("boss")
    await server.write(store_account_flags, client.user_id, AccountFlags(is_admin=True))
    return client


@pytest.fixture
async def mallory(server: Server) -> Client:
    return await server.register("mallory")


async def test_an_administrator_locks_an_account_and_unlocks_it(boss: Client, mallory: Client) -> None:
    path = f"{ADMIN}/lock/{mallory.user_id}"
    assert await boss.ok("GET", path) == {"locked": False}
    assert await boss.ok("PUT", path, json={"locked": True}) == {"locked": True}
    assert await boss.ok("GET", path) == {"locked": True}
    refused = await mallory.get("sync")
    assert (refused.status_code, refused.json()["errcode"]) == (401, "M_USER_LOCKED")
    assert refused.json()["soft_logout"] is True
    assert await boss.ok("PUT", path, json={"locked": False}) == {"locked": False}
    await mallory.ok("GET", "sync")


async def test_a_locked_user_can_log_out(boss: Client, mallory: Client) -> None:
    await boss.ok("PUT", f"{ADMIN}/lock/{mallory.user_id}", json={"locked": True})
    await mallory.ok("POST", "logout", json={})


async def test_an_administrator_suspends_an_account_and_lifts_it(boss: Client, mallory: Client) -> None:
    path = f"{ADMIN}/suspend/{mallory.user_id}"
    assert await boss.ok("PUT", path, json={"suspended": True}) == {"suspended": True}
    assert await boss.ok("GET", path) == {"suspended": True}
    assert await mallory.refused("POST", "createRoom", json={}) == (403, "M_USER_SUSPENDED")
    await boss.ok("PUT", path, json={"suspended": False})
    await mallory.ok("POST", "createRoom", json={})


async def test_locking_leaves_a_suspension_as_it_is(boss: Client, mallory: Client) -> None:
    await boss.ok("PUT", f"{ADMIN}/suspend/{mallory.user_id}", json={"suspended": True})
    for locked in (True, False):
        await boss.ok("PUT", f"{ADMIN}/lock/{mallory.user_id}", json={"locked": locked})
    assert await boss.ok("GET", f"{ADMIN}/suspend/{mallory.user_id}") == {"suspended": True}


@pytest.mark.parametrize(("what", "flag"), [("lock", "locked"), ("suspend", "suspended")])
async def test_nobody_else_may_and_nobody_learns_which_accounts_exist(
    server: Server, boss: Client, mallory: Client, what: str, flag: str
) -> None:
    body: dict[str, Any] = {flag: True}
    for user_id in (boss.user_id, mallory.user_id, f"@nobody:{server.name}", "@bob:elsewhere.example"):
        path = f"{ADMIN}/{what}/{user_id}"
        assert await mallory.refused("GET", path) == FORBIDDEN
        assert await mallory.refused("PUT", path, json=body) == FORBIDDEN
    for user_id, error in (
        (boss.user_id, FORBIDDEN),
        (f"@nobody:{server.name}", (404, "M_NOT_FOUND")),
        ("@bob:elsewhere.example", (400, "M_INVALID_PARAM")),
    ):
        assert await boss.refused("PUT", f"{ADMIN}/{what}/{user_id}", json=body) == error
    other = await server.register("other")
    await server.write(store_account_flags, other.user_id, AccountFlags(is_admin=True))
    assert await boss.refused("PUT", f"{ADMIN}/{what}/{other.user_id}", json=body) == FORBIDDEN


async def test_administrators_are_told_that_they_may_moderate_accounts(boss: Client, mallory: Client) -> None:
    told = (await boss.ok("GET", "capabilities"))["capabilities"]
    assert told["m.account_moderation"] == {"lock": True, "suspend": True}
    assert "m.account_moderation" not in (await mallory.ok("GET", "capabilities"))["capabilities"]


async def test_an_administrator_sees_where_a_user_is_logged_in(server: Server, boss: Client, mallory: Client) -> None:
    await server.log_in("mallory", PASSWORD)
    shown = await boss.ok("GET", f"admin/whois/{mallory.user_id}")
    assert (shown["user_id"], len(shown["devices"])) == (mallory.user_id, 2)
    ((connection,),) = [each["connections"] for each in shown["devices"][mallory.device_id]["sessions"]]
    assert connection["ip"] == "192.0.2.7"


async def test_users_see_where_they_are_logged_in_themselves_only(boss: Client, mallory: Client) -> None:
    await mallory.ok("GET", f"admin/whois/{mallory.user_id}")
    assert await mallory.refused("GET", f"admin/whois/{boss.user_id}") == FORBIDDEN
