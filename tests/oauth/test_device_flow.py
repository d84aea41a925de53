"""Spec: client-server-api/#device-authorisation-flow, RFC 8628"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import trio

from homeserver import authenticate, limits
from homeserver.authenticate import AccountFlags
from homeserver.config import RateLimitsSection
from homeserver.errors import MatrixError
from homeserver.users.oauth.device_grants import (
    approve_device_grant,
    find_device_grant,
    open_device_grant,
    refuse_device_grant,
)
from homeserver.users.oauth.sessions import list_sessions
from tests.support.homeservers import Client, Homeservers, Server
from tests.support.oauth import DEVICE, DEVICE_CODE, TOKEN, App, post_form, refused, register_app, scope_of

INTERVAL_S = limits.users.OAUTH_POLL_INTERVAL_MS / 1000


@pytest.fixture
async def server(homeservers: Homeservers) -> Server:
    return await homeservers.start()


@pytest.fixture
async def alice(server: Server) -> Client:
    return await server.register("alice")


@pytest.fixture
async def app(server: Server) -> App:
    return await register_app(server)


async def begin(app: App) -> Mapping[str, Any]:
    """The codes of a new device grant."""
    answer = await app.server.anonymous.post(
        DEVICE,
        content=f"client_id={app.client_id}&scope={scope_of('TELEVISION').replace(' ', '+')}".encode(),
        headers={"user-agent": "Television/1.0"},
    )
    assert answer.status_code == 200
    codes: Mapping[str, Any] = answer.json()
    return codes


def poll_fields(app: App, codes: Mapping[str, Any]) -> dict[str, str]:
    return {"grant_type": DEVICE_CODE, "device_code": codes["device_code"], "client_id": app.client_id}


async def poll(app: App, codes: Mapping[str, Any]) -> str:
    """The error of a poll; "" if it got tokens."""
    answer = await post_form(app.server, TOKEN, **poll_fields(app, codes))
    return str(answer.json().get("error", ""))


async def test_a_client_without_a_browser_logs_in(server: Server, alice: Client, app: App) -> None:
    codes = await begin(app)
    assert codes["interval"] == INTERVAL_S
    assert codes["verification_uri_complete"] == f"{codes['verification_uri']}?user_code={codes['user_code']}"
    assert await poll(app, codes) == "authorization_pending"
    typed = codes["user_code"].lower().replace("-", " ")
    grant = await open_device_grant(server.hs, alice.user_id, typed)
    assert (grant.client.name, grant.scope.device_id) == ("An App", "TELEVISION")
    assert (grant.address, grant.user_agent) == ("192.0.2.7", "Television/1.0")
    await server.write(approve_device_grant, grant, alice.user_id)
    await trio.sleep(INTERVAL_S)
    answer = await post_form(server, TOKEN, **poll_fields(app, codes))
    assert answer.json()["scope"] == scope_of("TELEVISION")
    owner = await server.with_token(answer.json()["access_token"]).ok("GET", "account/whoami")
    assert owner["device_id"] == "TELEVISION"


async def test_a_refusal_is_final(server: Server, alice: Client, app: App) -> None:
    codes = await begin(app)
    grant = await open_device_grant(server.hs, alice.user_id, codes["user_code"])
    await server.write(refuse_device_grant, grant)
    for _ in range(2):
        assert await poll(app, codes) == "access_denied"
    with pytest.raises(MatrixError, match="M_NOT_FOUND"):
        await server.write(approve_device_grant, grant, alice.user_id)
    assert await server.read(find_device_grant, codes["user_code"]) is None


async def test_a_client_that_polls_too_soon_has_to_slow_down(app: App) -> None:
    codes = await begin(app)
    assert await poll(app, codes) == "authorization_pending"
    await trio.sleep(INTERVAL_S - 1)
    assert await poll(app, codes) == "slow_down"
    await trio.sleep(INTERVAL_S + 1)
    assert await poll(app, codes) == "slow_down"  # the interval is ten seconds now
    await trio.sleep(3 * INTERVAL_S)
    assert await poll(app, codes) == "authorization_pending"


async def test_a_client_that_never_slows_down_loses_its_code(server: Server, alice: Client, app: App) -> None:
    codes = await begin(app)
    grant = await open_device_grant(server.hs, alice.user_id, codes["user_code"])
    for _ in range(limits.users.OAUTH_POLL_INTERVAL_MS_MAX // limits.users.OAUTH_POLL_INTERVAL_MS + 1):
        assert await poll(app, codes) in ("authorization_pending", "slow_down")
    await server.write(approve_device_grant, grant, alice.user_id)
    assert await poll(app, codes) == "expired_token"


async def test_polls_are_limited_by_code(homeservers: Homeservers) -> None:
    server = await homeservers.start(rate_limits=RateLimitsSection(enabled=True))
    app = await register_app(server)
    codes, others = await begin(app), await begin(app)
    statuses = {(await post_form(server, TOKEN, **poll_fields(app, codes))).status_code for _ in range(20)}
    assert 429 in statuses
    assert await poll(app, others) == "authorization_pending"


async def test_a_device_code_expires(server: Server, alice: Client, app: App) -> None:
    codes = await begin(app)
    grant = await open_device_grant(server.hs, alice.user_id, codes["user_code"])
    await trio.sleep(codes["expires_in"])
    assert await poll(app, codes) == "expired_token"
    with pytest.raises(MatrixError, match="M_NOT_FOUND"):
        await server.write(approve_device_grant, grant, alice.user_id)
    with pytest.raises(MatrixError, match="M_NOT_FOUND"):
        await open_device_grant(server.hs, alice.user_id, codes["user_code"])


async def test_a_replayed_device_code_ends_the_session_that_came_from_it(
    server: Server, alice: Client, app: App
) -> None:
    codes = await begin(app)
    grant = await open_device_grant(server.hs, alice.user_id, codes["user_code"])
    await server.write(approve_device_grant, grant, alice.user_id)
    assert await poll(app, codes) == ""
    assert len(await server.read(list_sessions, alice.user_id)) == 1
    assert await poll(app, codes) == "invalid_grant"
    assert await server.read(list_sessions, alice.user_id) == []


async def test_a_device_code_is_good_for_its_client_only(server: Server, alice: Client, app: App) -> None:
    other = await register_app(server, client_name="Another App")
    codes = await begin(app)
    grant = await open_device_grant(server.hs, alice.user_id, codes["user_code"])
    await server.write(approve_device_grant, grant, alice.user_id)
    assert await refused(server, TOKEN, **poll_fields(other, codes)) == (400, "invalid_grant")
    guess = {**poll_fields(app, codes), "device_code": "hsdc_guess"}
    assert await refused(server, TOKEN, **guess) == (400, "invalid_grant")
    assert await poll(app, codes) == ""


async def test_guessing_user_codes_is_limited(homeservers: Homeservers) -> None:
    server = await homeservers.start(rate_limits=RateLimitsSection(enabled=True))
    mallory = await server.register("mallory")
    errors = []
    for number in range(15):
        with pytest.raises(MatrixError) as caught:
            await open_device_grant(server.hs, mallory.user_id, f"BCDFGH{number}")
        errors.append(caught.value.errcode)
    assert errors == ["M_NOT_FOUND"] * 10 + ["M_LIMIT_EXCEEDED"] * 5


async def test_an_account_that_was_locked_after_its_approval_gets_no_tokens(
    server: Server, alice: Client, app: App
) -> None:
    codes = await begin(app)
    grant = await open_device_grant(server.hs, alice.user_id, codes["user_code"])
    await server.write(approve_device_grant, grant, alice.user_id)
    await server.write(authenticate.store_account_flags, alice.user_id, AccountFlags(is_locked=True))
    assert await poll(app, codes) == "access_denied"


async def test_device_codes_are_for_clients_that_have_registered_for_them(server: Server) -> None:
    app = await register_app(server, grant_types=["authorization_code"])
    scope = scope_of("TELEVISION")
    assert await refused(server, DEVICE, client_id=app.client_id, scope=scope) == (400, "unauthorized_client")
    assert await refused(server, DEVICE, client_id="unknown", scope=scope) == (400, "invalid_client")
    assert await refused(server, DEVICE, client_id=app.client_id) == (400, "invalid_request")
    other = await register_app(server)
    assert await refused(server, DEVICE, client_id=other.client_id, scope="openid") == (400, "invalid_scope")
