"""Addresses that users bind at identity servers, through their homeserver.

Spec: client-server-api/#adding-account-administrative-contact-information, identity-service-api
"""

from __future__ import annotations

from typing import Any

import pytest

from homeserver.database import Transaction
from tests.support.federation import Federation
from tests.support.homeservers import Client
from tests.support.identity_server import TOKEN, IdentityServer

ADDRESS = "alice@mail.example"
CREDS = {"sid": "1", "client_secret": "secret", "id_server": "identity.example", "id_access_token": TOKEN}


async def start(federation: Federation) -> tuple[Client, IdentityServer]:
    server, identity = await federation.start("a.example"), IdentityServer.on(federation.network)
    identity.validated["1", "secret"] = ADDRESS
    identity.homeservers[server.hs.server_name] = server.hs.signing_key
    return await server.register("alice"), identity


async def unbind(client: Client, **changes: Any) -> str:
    body = {"medium": "email", "address": ADDRESS, **changes}
    return str((await client.ok("POST", "account/3pid/unbind", json=body))["id_server_unbind_result"])


@pytest.mark.parametrize("path", ["account/3pid/bind", "account/3pid"])
async def test_an_address_is_bound_and_unbound(federation: Federation, path: str) -> None:
    alice, identity = await start(federation)
    await alice.ok("POST", path, json=CREDS if path.endswith("bind") else {"three_pid_creds": CREDS})
    assert identity.owners == {("email", ADDRESS): alice.user_id}
    assert (await alice.ok("GET", "account/3pid"))["threepids"] == []  # it is not added to the account
    assert await unbind(alice) == "success"  # where it was bound
    assert identity.owners == {}
    assert await unbind(alice) == "no-support"
    assert await unbind(alice, id_server=identity.name) == "success"


async def test_deleting_an_address_unbinds_it(federation: Federation) -> None:
    alice, identity = await start(federation)
    await alice.ok("POST", "account/3pid/bind", json=CREDS)
    answer = await alice.ok("POST", "account/3pid/delete", json={"medium": "email", "address": ADDRESS})
    assert answer == {"id_server_unbind_result": "success"}
    assert identity.owners == {}


async def test_errors_of_the_identity_server_are_passed_on(federation: Federation) -> None:
    alice, identity = await start(federation)
    wrong = {**CREDS, "sid": "2"}
    assert await alice.refused("POST", "account/3pid/bind", json=wrong) == (404, "M_NO_VALID_SESSION")
    wrong = {**CREDS, "id_access_token": "wrong"}
    assert await alice.refused("POST", "account/3pid/bind", json=wrong) == (403, "M_FORBIDDEN")
    for name in ("gone.example", "a b", "x/y"):
        wrong = {**CREDS, "id_server": name}
        assert (await alice.refused("POST", "account/3pid/bind", json=wrong))[0] == 400
    for answer in ((200, b"["), (200, {"medium": 1, "address": "a"}), (200, {"medium": "m", "address": "x" * 600})):
        identity.answers["3pid/bind"] = answer
        assert await alice.refused("POST", "account/3pid/bind", json=CREDS) == (400, "M_UNKNOWN")
    assert await alice.server.read(_count_bindings) == 0


async def test_identity_servers_need_not_support_unbinding(federation: Federation) -> None:
    alice, identity = await start(federation)
    await alice.ok("POST", "account/3pid/bind", json=CREDS)
    for status in (400, 404, 501):
        identity.answers["3pid/unbind"] = (status, {"errcode": "M_UNRECOGNIZED", "error": "No."})
        assert await unbind(alice) == "no-support"
    identity.answers.clear()
    assert await unbind(alice) == "success"


def _count_bindings(tx: Transaction) -> int:
    return len(tx.all("SELECT 1 FROM threepid_bindings"))
