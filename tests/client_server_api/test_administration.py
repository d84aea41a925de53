"""The admin API: registration tokens and accounts, for administrators of the server alone."""

from __future__ import annotations

import pytest

from homeserver.authenticate import AccountFlags, store_account_flags
from tests.support.homeservers import PASSWORD, Client, Homeservers, Server

TOKENS = "/_synapse/admin/v1/registration_tokens"
USERS = "/_synapse/admin/v2/users"


@pytest.fixture
async def server(homeservers: Homeservers) -> Server:
    return await homeservers.start()


@pytest.fixture
async def boss(server: Server) -> Client:
    client = await server.register("boss")
    await server.write(store_account_flags, client.user_id, AccountFlags(is_admin=True))
    return client


async def test_administrators_manage_registration_tokens(server: Server, boss: Client) -> None:
    made = await boss.ok("POST", f"{TOKENS}/new", json={"uses_allowed": 2})
    assert (made["uses_allowed"], made["completed"], made["expiry_time"]) == (2, 0, None)
    named = await boss.ok("POST", f"{TOKENS}/new", json={"token": "come-in"})
    assert named["token"] == "come-in"
    assert await boss.ok("GET", f"{TOKENS}/come-in") == named
    assert {each["token"] for each in (await boss.ok("GET", TOKENS))["registration_tokens"]} == {
        made["token"], "come-in",
    }  # fmt: skip
    assert await boss.ok("DELETE", f"{TOKENS}/come-in") == {}
    assert await boss.refused("DELETE", f"{TOKENS}/come-in") == (404, "M_NOT_FOUND")
    assert await boss.refused("GET", f"{TOKENS}/come-in") == (404, "M_NOT_FOUND")
    for body in ({"token": "a b"}, {"uses_allowed": 0}, {"expiry_time": 1}, {"token": made["token"]}):
        assert await boss.refused("POST", f"{TOKENS}/new", json=body) == (400, "M_INVALID_PARAM"), body


async def test_administrators_manage_users(server: Server, boss: Client) -> None:
    alice = await server.register("alice")
    first = await boss.ok("GET", f"{USERS}?limit=1")
    assert [each["name"] for each in first["users"]] == [alice.user_id]
    rest = await boss.ok("GET", f"{USERS}?from={first['next_token']}")
    assert [(each["name"], each["admin"]) for each in rest["users"]] == [(boss.user_id, True)]
    shown = await boss.ok("GET", f"{USERS}/{alice.user_id}")
    assert (shown["name"], shown["deactivated"], len(shown["devices"])) == (alice.user_id, False, 1)
    assert await boss.refused("GET", f"{USERS}/@nobody:test.example") == (404, "M_NOT_FOUND")
    assert await boss.refused("GET", f"{USERS}?limit=0") == (400, "M_INVALID_PARAM")


async def test_administrators_reset_passwords_and_deactivate_accounts(server: Server, boss: Client) -> None:
    alice = await server.register("alice")
    reset = f"/_synapse/admin/v1/reset_password/{alice.user_id}"
    assert await boss.refused("POST", reset, json={"new_password": "short"}) == (400, "M_WEAK_PASSWORD")
    await boss.ok("POST", reset, json={"new_password": "another password"})
    assert await alice.refused("GET", "account/whoami") == (401, "M_UNKNOWN_TOKEN")
    again = await server.log_in("alice", "another password")
    await boss.ok("POST", f"/_synapse/admin/v1/deactivate/{alice.user_id}", json={})
    assert await again.refused("GET", "account/whoami") == (401, "M_UNKNOWN_TOKEN")
    assert (await boss.ok("GET", f"{USERS}/{alice.user_id}"))["deactivated"]


async def test_only_administrators_are_allowed(server: Server, boss: Client) -> None:
    alice = await server.register("alice")
    for method, path, body in (
        ("GET", TOKENS, None),
        ("POST", f"{TOKENS}/new", {}),
        ("GET", f"{TOKENS}/x", None),
        ("DELETE", f"{TOKENS}/x", None),
        ("GET", USERS, None),
        ("GET", f"{USERS}/{boss.user_id}", None),
        ("POST", f"/_synapse/admin/v1/reset_password/{boss.user_id}", {"new_password": PASSWORD}),
        ("POST", f"/_synapse/admin/v1/deactivate/{boss.user_id}", {}),
    ):
        assert await alice.refused(method, path, json=body) == (403, "M_FORBIDDEN"), path
        assert await server.anonymous.refused(method, path, json=body) == (401, "M_MISSING_TOKEN"), path
