"""Spec: client-server-api/#openid, server-server-api/#openid"""

from __future__ import annotations

import trio

from homeserver.authenticate import AccountFlags, store_account_flags
from tests.support.homeservers import Homeservers

USERINFO = "/_matrix/federation/v1/openid/userinfo"


async def test_a_token_tells_another_service_who_somebody_is(homeservers: Homeservers) -> None:
    server = await homeservers.start()
    alice = await server.register("alice")
    asked = await alice.ok("POST", f"user/{alice.user_id}/openid/request_token", json={})
    assert (asked["token_type"], asked["matrix_server_name"], asked["expires_in"]) == ("Bearer", server.name, 3600)
    told = f"{USERINFO}?access_token={asked['access_token']}"
    for _ in range(2):
        assert await server.anonymous.ok("GET", told) == {"sub": alice.user_id}
    await trio.sleep(3601)
    assert await server.anonymous.refused("GET", told) == (401, "M_UNKNOWN_TOKEN")


async def test_a_token_is_for_nothing_else(homeservers: Homeservers) -> None:
    server = await homeservers.start()
    alice, bob = await server.register("alice"), await server.register("bob")
    asked = await alice.ok("POST", f"user/{alice.user_id}/openid/request_token", json={})
    assert await server.with_token(asked["access_token"]).refused("GET", "account/whoami") == (401, "M_UNKNOWN_TOKEN")
    login = {"type": "m.login.token", "token": asked["access_token"]}
    assert await server.anonymous.refused("POST", "login", json=login) == (403, "M_FORBIDDEN")
    told = f"{USERINFO}?access_token={alice.token}"
    assert await server.anonymous.refused("GET", told) == (401, "M_UNKNOWN_TOKEN")
    assert await server.anonymous.refused("GET", USERINFO) == (401, "M_MISSING_TOKEN")
    for_alice = f"user/{alice.user_id}/openid/request_token"
    assert await bob.refused("POST", for_alice, json={}) == (403, "M_FORBIDDEN")


async def test_a_token_proves_nothing_while_its_account_is_locked(homeservers: Homeservers) -> None:
    server = await homeservers.start()
    alice = await server.register("alice")
    asked = await alice.ok("POST", f"user/{alice.user_id}/openid/request_token", json={})
    told = f"{USERINFO}?access_token={asked['access_token']}"
    await server.write(store_account_flags, alice.user_id, AccountFlags(is_locked=True))
    assert await server.anonymous.refused("GET", told) == (401, "M_UNKNOWN_TOKEN")
    await server.write(store_account_flags, alice.user_id, AccountFlags())
    assert await server.anonymous.ok("GET", told) == {"sub": alice.user_id}


async def test_a_token_ends_with_the_device_that_asked_for_it(homeservers: Homeservers) -> None:
    server = await homeservers.start()
    alice = await server.register("alice")
    asked = await alice.ok("POST", f"user/{alice.user_id}/openid/request_token", json={})
    await alice.ok("POST", "logout", json={})
    told = f"{USERINFO}?access_token={asked['access_token']}"
    assert await server.anonymous.refused("GET", told) == (401, "M_UNKNOWN_TOKEN")
