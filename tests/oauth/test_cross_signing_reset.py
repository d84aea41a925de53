"""Spec: client-server-api/#oauth-authentication"""

from __future__ import annotations

import pytest
import trio

from homeserver import limits
from homeserver.users.oauth.cross_signing import note_reset_approved
from tests.support.homeservers import Client, Homeservers, Server
from tests.support.keys import CrossSigning
from tests.support.oauth import register_app

UPLOAD = "keys/device_signing/upload"


async def log_in_with_keys(server: Server) -> tuple[Client, Client]:
    """A user who has cross-signing keys: the client that knows the password, and one that came by OAuth."""
    alice = await server.register("alice")
    app = await (await register_app(server)).log_in(alice.user_id)
    await app.client.ok("POST", UPLOAD, json=CrossSigning(alice.user_id).body())  # the first keys need nothing
    return alice, app.client


def new_keys(alice: Client) -> dict:
    return CrossSigning(alice.user_id, "another").body()


async def test_a_reset_waits_for_the_account_page(homeservers: Homeservers) -> None:
    server = await homeservers.start()
    alice, app = await log_in_with_keys(server)
    body = new_keys(alice)
    refusal = await app.post(UPLOAD, json=body)
    assert refusal.status_code == 401
    asked = refusal.json()
    assert {"stages": ["m.oauth"]} in asked["flows"]
    assert {"stages": ["m.login.password"]} not in asked["flows"]
    url = asked["params"]["m.oauth"]["url"]
    assert url.endswith("/_homeserver/account/?action=org.matrix.cross_signing_reset")
    again = {**body, "auth": {"session": asked["session"]}}
    assert (await app.refused("POST", UPLOAD, json=again))[0] == 401
    password = {**body, "auth": {**alice.password_auth(asked["session"])}}
    assert (await app.refused("POST", UPLOAD, json=password))[0] == 401
    await server.write(note_reset_approved, alice.user_id)
    await app.ok("POST", UPLOAD, json=again)
    found = await app.ok("POST", "keys/query", json={"device_keys": {alice.user_id: []}})
    assert found["master_keys"][alice.user_id]["keys"] == body["master_key"]["keys"]


@pytest.mark.parametrize("stage", ["m.oauth", "org.matrix.cross_signing_reset"])
async def test_an_approval_is_good_for_one_reset(homeservers: Homeservers, stage: str) -> None:
    server = await homeservers.start()
    alice, app = await log_in_with_keys(server)
    await server.write(note_reset_approved, alice.user_id)
    for seed, status in (("one", 200), ("two", 401)):
        body = CrossSigning(alice.user_id, seed).body()
        session = (await app.post(UPLOAD, json=body)).json()["session"]
        answer = await app.post(UPLOAD, json={**body, "auth": {"session": session, "type": stage}})
        assert answer.status_code == status


async def test_an_approval_expires(homeservers: Homeservers) -> None:
    server = await homeservers.start()
    alice, app = await log_in_with_keys(server)
    await server.write(note_reset_approved, alice.user_id)
    await trio.sleep(limits.users.CROSS_SIGNING_RESET_MS / 1000)
    body = new_keys(alice)
    session = (await app.post(UPLOAD, json=body)).json()["session"]
    assert (await app.refused("POST", UPLOAD, json={**body, "auth": {"session": session}}))[0] == 401


async def test_an_approval_is_for_oauth_sessions_of_its_user(homeservers: Homeservers) -> None:
    server = await homeservers.start()
    alice, _ = await log_in_with_keys(server)
    bob = await server.register("bob")
    of_bob = (await (await register_app(server)).log_in(bob.user_id)).client
    await of_bob.ok("POST", UPLOAD, json=CrossSigning(bob.user_id).body())
    await server.write(note_reset_approved, alice.user_id)
    for client, user_id in ((alice, alice.user_id), (of_bob, bob.user_id)):
        body = CrossSigning(user_id, "another").body()
        session = (await client.post(UPLOAD, json=body)).json()["session"]
        assert (await client.refused("POST", UPLOAD, json={**body, "auth": {"session": session}}))[0] == 401
