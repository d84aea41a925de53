"""Registration with a shared secret, as tools of the Matrix world do it."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

import pytest
import trio

from homeserver.authenticate import get_account_flags
from homeserver.config import Registration
from homeserver.users import accounts
from tests.support.homeservers import Homeservers, Server

PATH = "/_synapse/admin/v1/register"
SECRET = "a secret"
PASSWORD = "a good password"


async def start(homeservers: Homeservers, folder: Path) -> Server:
    (folder / "secret").write_text(SECRET + "\n")
    return await homeservers.start(registration=Registration(shared_secret_file=str(folder / "secret")))


async def signed(server: Server, username: str = "alice", admin: bool = False, **fields: object) -> dict:
    nonce = (await server.anonymous.ok("GET", PATH))["nonce"]
    mac = hmac.new(SECRET.encode(), digestmod=hashlib.sha1)
    mac.update(b"\x00".join([nonce.encode(), username.encode(), PASSWORD.encode(), b"admin" if admin else b"notadmin"]))
    body = {"nonce": nonce, "username": username, "password": PASSWORD, "admin": admin, "mac": mac.hexdigest()}
    return {**body, **fields}


@pytest.mark.parametrize("admin", [False, True])
async def test_it_registers_accounts(homeservers: Homeservers, tmp_path: Path, admin: bool) -> None:
    server = await start(homeservers, tmp_path)
    answer = await server.anonymous.ok("POST", PATH, json=await signed(server, "Alice", admin))
    assert answer["user_id"] == "@alice:test.example"
    assert answer["home_server"] == "test.example"
    assert (await server.with_token(answer["access_token"]).ok("GET", "account/whoami"))["device_id"]
    assert (await server.read(get_account_flags, "@alice:test.example")).is_admin is admin
    await server.log_in("alice", PASSWORD)


async def test_a_display_name_and_a_device_can_be_given(homeservers: Homeservers, tmp_path: Path) -> None:
    server = await start(homeservers, tmp_path)
    body = await signed(server, displayname="Alice A.", device_id="TOOL")
    assert (await server.anonymous.ok("POST", PATH, json=body))["device_id"] == "TOOL"
    assert await server.anonymous.ok("GET", "profile/@alice:test.example") == {"displayname": "Alice A."}


async def test_a_refused_request_creates_nothing(homeservers: Homeservers, tmp_path: Path) -> None:
    server = await start(homeservers, tmp_path)
    good = await signed(server)
    cases = [
        ({**good, "mac": "0" * 40}, (403, "M_FORBIDDEN")),
        ({**good, "mac": "ünï"}, (403, "M_FORBIDDEN")),
        ({**good, "admin": True}, (403, "M_FORBIDDEN")),
        ({**good, "username": "bob"}, (403, "M_FORBIDDEN")),
        ({**good, "nonce": "nonsense"}, (400, "M_UNKNOWN")),
        ({**good, "nonce": good["nonce"] + "0"}, (400, "M_UNKNOWN")),
        ({**good, "nonce": 7}, (400, "M_BAD_JSON")),
        ({**good, "admin": "yes"}, (400, "M_BAD_JSON")),
        ({**good, "username": "a\u0000b"}, (400, "M_INVALID_PARAM")),
        ({"username": "alice"}, (400, "M_MISSING_PARAM")),
        (await signed(server, "not valid"), (400, "M_INVALID_USERNAME")),
        (await signed(server, device_id="\u0000"), (400, "M_INVALID_PARAM")),
        (await signed(server, device_id="x" * 256), (400, "M_INVALID_PARAM")),
    ]
    for body, refusal in cases:
        assert await server.anonymous.refused("POST", PATH, json=body) == refusal
    assert await server.read(accounts.list_users) == []


async def test_a_nonce_expires(homeservers: Homeservers, tmp_path: Path) -> None:
    server = await start(homeservers, tmp_path)
    body = await signed(server)
    await trio.sleep(61)
    assert await server.anonymous.refused("POST", PATH, json=body) == (400, "M_UNKNOWN")


async def test_a_repeated_request_creates_no_second_account(homeservers: Homeservers, tmp_path: Path) -> None:
    server = await start(homeservers, tmp_path)
    body = await signed(server)
    await server.anonymous.ok("POST", PATH, json=body)
    assert await server.anonymous.refused("POST", PATH, json=body) == (400, "M_USER_IN_USE")


async def test_the_endpoint_is_absent_without_a_secret(homeserver: Server) -> None:
    assert await homeserver.anonymous.refused("GET", PATH) == (404, "M_UNRECOGNIZED")
    body = {"nonce": "x", "username": "a", "password": "b", "mac": "c"}
    assert await homeserver.anonymous.refused("POST", PATH, json=body) == (404, "M_UNRECOGNIZED")
