"""Spec: client-server-api/#token-revocation, RFC 7009"""

from __future__ import annotations

import pytest

from homeserver.users.oauth.sessions import list_sessions
from tests.support.homeservers import PASSWORD, Homeservers
from tests.support.oauth import REVOKE, post_form, refused, register_app


@pytest.mark.parametrize("kind", ["access_token", "refresh_token"])
async def test_revoking_either_token_ends_the_session_and_its_device(homeservers: Homeservers, kind: str) -> None:
    server = await homeservers.start()
    alice = await server.register("alice")
    app = await register_app(server)
    session, other = await app.log_in(alice.user_id), await app.log_in(alice.user_id, "OTHER")
    for _ in range(2):  # "already revoked or invalid": 200
        answer = await session.send_revocation(kind)
        assert (answer.status_code, answer.json()) == (200, {})
    assert await session.client.refused("GET", "account/whoami") == (401, "M_UNKNOWN_TOKEN")
    assert (await session.send_refresh()).status_code == 400
    assert {each["device_id"] for each in (await alice.ok("GET", "devices"))["devices"]} == {alice.device_id, "OTHER"}
    await other.client.ok("GET", "account/whoami")


async def test_a_token_that_was_found_can_be_revoked_without_a_client_id(homeservers: Homeservers) -> None:
    server = await homeservers.start()
    alice = await server.register("alice")
    session = await (await register_app(server)).log_in(alice.user_id)
    answer = await post_form(server, REVOKE, token=session.refresh_token, client_id="somebody else")
    assert answer.status_code == 200
    assert await session.client.refused("GET", "account/whoami") == (401, "M_UNKNOWN_TOKEN")


async def test_tokens_of_other_log_ins_are_left_alone(homeservers: Homeservers) -> None:
    server = await homeservers.start()
    alice = await server.register("alice")
    for token in (str(alice.token), "nonsense", "x" * 5_000):
        assert (await post_form(server, REVOKE, token=token)).status_code == 200
    await alice.ok("GET", "account/whoami")
    assert await refused(server, REVOKE) == (400, "invalid_request")


async def test_a_session_ends_with_its_device(homeservers: Homeservers) -> None:
    server = await homeservers.start()
    alice = await server.register("alice")
    app = await register_app(server)
    ended = [await app.log_in(alice.user_id, device_id) for device_id in ("ONE", "TWO", "THREE")]
    await ended[0].client.ok("POST", "logout")
    assert (await alice.delete("devices/TWO", json={"auth": alice.password_auth()})).status_code == 200
    legacy = await server.log_in("alice", PASSWORD, device_id="THREE")  # the device is another client's now
    assert await server.read(list_sessions, alice.user_id) == []
    for session in ended:
        assert (await session.send_refresh()).json()["error"] == "invalid_grant"
        assert await session.client.refused("GET", "account/whoami") == (401, "M_UNKNOWN_TOKEN")
    await legacy.ok("GET", "account/whoami")
    session = await app.log_in(alice.user_id, "THREE")
    assert await legacy.refused("GET", "account/whoami") == (401, "M_UNKNOWN_TOKEN")
    await session.client.ok("POST", "logout/all")
    assert await server.read(list_sessions, alice.user_id) == []
