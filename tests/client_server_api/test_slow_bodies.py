"""Requests whose body is still on its way when their device is logged out or their account ends.

Spec: client-server-api/#client-authentication, #account-deactivation
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import pytest

from tests.support.homeservers import PASSWORD, Client, Server


async def ask_slowly(client: Client, method: str, path: str, body: bytes, act: Any) -> tuple[int, str]:
    """Status and errcode of a request for which something is done when half of its body has arrived."""

    async def halves() -> AsyncIterator[bytes]:
        yield body[: len(body) // 2]
        await act()
        yield body[len(body) // 2 :]

    headers = {"content-type": "application/json"}
    response = await client.request(method, path, content=halves(), headers=headers)
    return response.status_code, response.json().get("errcode", "")


def requests(room_id: str, user_id: str) -> list[tuple[str, str]]:
    """One request for each place where something of the user would be stored."""
    room, user = f"rooms/{quote(room_id)}", quote(user_id)
    return [
        ("PUT", f"{room}/send/m.room.message/1"),
        ("POST", f"join/{quote(room_id)}"),
        ("POST", "createRoom"),
        ("PUT", f"user/{user}/account_data/x"),
        ("PUT", f"user/{user}/{room}/tags/u.x"),
        ("POST", f"user/{user}/filter"),
        ("POST", "/_matrix/media/v3/upload"),
    ]


@pytest.mark.parametrize("number", range(7))
async def test_a_slow_request_does_nothing_after_its_account_was_deactivated(homeserver: Server, number: int) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await homeserver.make_room(bob)
    laptop = await homeserver.log_in("alice")

    async def deactivate() -> None:
        await laptop.ok("POST", "account/deactivate", json={"auth": laptop.password_auth(), "erase": True})

    method, path = requests(room_id, alice.user_id)[number]
    refused = await ask_slowly(alice, method, path, b'{"x":"' + b"y" * 200 + b'"}', deactivate)
    assert refused == (401, "M_UNKNOWN_TOKEN")
    joined = (await bob.ok("GET", f"rooms/{quote(room_id)}/joined_members"))["joined"]
    assert list(joined) == [bob.user_id]


@pytest.mark.parametrize("path", ["createRoom", "/_matrix/media/v3/upload"])
async def test_a_slow_request_does_nothing_after_its_device_was_logged_out(homeserver: Server, path: str) -> None:
    alice = await homeserver.register("alice")
    laptop = await homeserver.log_in("alice")

    async def log_out() -> None:
        await laptop.ok("POST", "logout/all")

    assert await ask_slowly(alice, "POST", path, b"{}" + b" " * 200, log_out) == (401, "M_UNKNOWN_TOKEN")


@pytest.mark.parametrize("path", ["createRoom", "/_matrix/media/v3/upload"])
async def test_a_slow_request_succeeds_although_its_token_was_refreshed(homeserver: Server, path: str) -> None:
    await homeserver.register("alice")
    body = {
        "type": "m.login.password",
        "identifier": {"type": "m.id.user", "user": "alice"},
        "password": PASSWORD,
        "refresh_token": True,
    }
    login = await homeserver.anonymous.ok("POST", "login", json=body)
    alice = homeserver.with_token(login["access_token"])

    async def refresh() -> None:
        body = {"refresh_token": login["refresh_token"]}
        renewed = await homeserver.anonymous.ok("POST", "refresh", json=body)
        headers = {"authorization": f"Bearer {renewed['access_token']}"}
        await homeserver.anonymous.ok("GET", "account/whoami", headers=headers)

    assert (await ask_slowly(alice, "POST", path, b"{}" + b" " * 200, refresh))[0] == 200
    assert await alice.refused("GET", "account/whoami") == (401, "M_UNKNOWN_TOKEN")
