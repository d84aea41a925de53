"""Spec: client-server-api/#token-based, #post_matrixclientv1loginget_token"""

from __future__ import annotations

import pytest
import trio

from tests.support.homeservers import PASSWORD, Client, Server

GET_TOKEN = "/_matrix/client/v1/login/get_token"


@pytest.fixture
async def alice(homeserver: Server) -> Client:
    return await homeserver.register("alice")


async def get_token(client: Client) -> str:
    asked = await client.request("POST", GET_TOKEN, json={})
    assert asked.status_code == 401
    user = {"type": "m.id.user", "user": client.user_id}
    auth = {"type": "m.login.password", "identifier": user, "password": PASSWORD, "session": asked.json()["session"]}
    answer = await client.ok("POST", GET_TOKEN, json={"auth": auth})
    assert answer["expires_in_ms"] == 120_000
    return str(answer["login_token"])


async def test_a_device_lets_another_one_in(homeserver: Server, alice: Client) -> None:
    assert {"type": "m.login.token", "get_login_token": True} in (await alice.ok("GET", "login"))["flows"]
    assert (await alice.ok("GET", "capabilities"))["capabilities"]["m.get_login_token"] == {"enabled": True}
    body = {"type": "m.login.token", "token": await get_token(alice), "device_id": "TABLET"}
    answer = await homeserver.anonymous.ok("POST", "login", json=body)
    assert (answer["user_id"], answer["device_id"]) == (alice.user_id, "TABLET")
    assert (await homeserver.with_token(answer["access_token"]).ok("GET", "account/whoami"))["device_id"] == "TABLET"


async def test_a_token_lets_one_device_in(homeserver: Server, alice: Client) -> None:
    body = {"type": "m.login.token", "token": await get_token(alice)}
    await homeserver.anonymous.ok("POST", "login", json=body)
    assert await homeserver.anonymous.refused("POST", "login", json=body) == (403, "M_FORBIDDEN")


async def test_a_token_is_valid_for_two_minutes(homeserver: Server, alice: Client) -> None:
    body = {"type": "m.login.token", "token": await get_token(alice)}
    await trio.sleep(121)
    assert await homeserver.anonymous.refused("POST", "login", json=body) == (403, "M_FORBIDDEN")


async def test_a_token_ends_with_the_device_that_made_it(homeserver: Server, alice: Client) -> None:
    body = {"type": "m.login.token", "token": await get_token(alice)}
    await alice.ok("POST", "logout", json={})
    assert await homeserver.anonymous.refused("POST", "login", json=body) == (403, "M_FORBIDDEN")


async def test_each_token_needs_the_password_again(alice: Client) -> None:
    await get_token(alice)
    assert (await alice.request("POST", GET_TOKEN, json={})).status_code == 401


async def test_a_login_without_a_token_or_with_another_one_is_refused(homeserver: Server, alice: Client) -> None:
    refused = homeserver.anonymous.refused
    assert await refused("POST", "login", json={"type": "m.login.token"}) == (400, "M_MISSING_PARAM")
    for token in ("", "hslt_guessed", alice.token):
        assert await refused("POST", "login", json={"type": "m.login.token", "token": token}) == (403, "M_FORBIDDEN")
