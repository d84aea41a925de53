"""Spec: client-server-api/#token-authenticated-registration"""

from __future__ import annotations

import pytest
import trio

from homeserver.config import Registration
from homeserver.errors import MatrixError
from homeserver.users import registration_tokens
from tests.support.homeservers import PASSWORD, Homeservers, Server, now_ms
from tests.support.rows import row

VALIDITY = "/_matrix/client/v1/register/m.login.registration_token/validity"


async def invited_only(homeservers: Homeservers) -> Server:
    return await homeservers.start(registration=Registration(enabled=True, require_token=True))


async def register(server: Server, username: str, token: object) -> tuple[int, str]:
    auth = {"type": "m.login.registration_token", "token": token}
    response = await server.anonymous.post("register", json={"username": username, "password": PASSWORD, "auth": auth})
    return response.status_code, response.json().get("errcode", "")


async def test_registration_requires_a_token(homeservers: Homeservers) -> None:
    server = await invited_only(homeservers)
    flows = (await server.anonymous.post("register", json={})).json()["flows"]
    assert flows == [{"stages": ["m.login.registration_token"]}]
    await server.write(registration_tokens.create_token, "fBVFdqVE")
    assert await register(server, "alice", "nonsense") == (401, "M_UNAUTHORIZED")
    assert await register(server, "alice", 7) == (400, "M_BAD_JSON")
    assert await register(server, "alice", None) == (400, "M_MISSING_PARAM")
    assert await register(server, "alice", "fBVFdqVE") == (200, "")
    dummy = await server.anonymous.post("register", json={"username": "bob", "auth": {"type": "m.login.dummy"}})
    assert dummy.status_code == 401


async def test_uses_of_a_token_are_counted(homeservers: Homeservers) -> None:
    server = await invited_only(homeservers)
    await server.write(registration_tokens.create_token, "twice", 2)
    assert await register(server, "a", "twice") == (200, "")
    assert await register(server, "a", "twice") == (400, "M_USER_IN_USE")
    assert await register(server, "b", "twice") == (200, "")
    assert await register(server, "c", "twice") == (401, "M_UNAUTHORIZED")
    (token,) = await server.read(registration_tokens.list_tokens)
    assert (token.uses, token.uses_allowed) == (2, 2)


async def test_the_validity_of_a_token_can_be_checked(homeservers: Homeservers) -> None:
    server = await invited_only(homeservers)
    ask = server.anonymous
    await server.write(registration_tokens.create_token, "short", None, now_ms() + 1000)
    assert await ask.ok("GET", f"{VALIDITY}?token=short") == {"valid": True}
    assert await ask.ok("GET", f"{VALIDITY}?token=none") == {"valid": False}
    assert await ask.refused("GET", VALIDITY) == (400, "M_MISSING_PARAM")
    await trio.sleep(1)
    assert await ask.ok("GET", f"{VALIDITY}?token=short") == {"valid": False}
    assert await server.write(registration_tokens.delete_token, "short")
    assert not await server.write(registration_tokens.delete_token, "short")


async def test_validity_is_refused_if_registration_is_disabled(homeservers: Homeservers) -> None:
    server = await homeservers.start(registration=Registration(enabled=False))
    assert await server.anonymous.refused("GET", f"{VALIDITY}?token=x") == (403, "M_FORBIDDEN")


async def test_malformed_tokens_cannot_be_created(homeserver: Server) -> None:
    await homeserver.write(registration_tokens.create_token, "taken")
    for token, uses in [("", None), ("a b", None), ("x" * 65, None), ("fine", 0), ("taken", None)]:
        with row(token, uses):
            with pytest.raises(MatrixError, match="M_INVALID_PARAM"):
                await homeserver.write(registration_tokens.create_token, token, uses)
            assert len(await homeserver.read(registration_tokens.list_tokens)) == 1


async def test_a_random_token_is_generated_by_default(homeserver: Server) -> None:
    made = await homeserver.write(registration_tokens.create_token)
    assert await homeserver.read(registration_tokens.is_valid_token, made.token)
