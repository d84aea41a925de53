"""What clients ask every server for, of a server that has nothing of the kind: they go on without it.

Spec: client-server-api/#third-party-networks, #adding-account-administrative-contact-information,
#server-side-key-backups, #push-notifications, #voice-over-ip
"""

from __future__ import annotations

from tests.support.homeservers import Server


async def test_there_are_no_third_party_networks(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    assert await alice.ok("GET", "thirdparty/protocols") == {}
    for path in ("protocol/irc", "location/irc", "user/irc", "location?alias=%23a:b", "user?userid=@a:b"):
        assert await alice.refused("GET", f"thirdparty/{path}") == (404, "M_NOT_FOUND")


async def test_an_account_has_no_contact_information(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    assert await alice.ok("GET", "account/3pid") == {"threepids": []}
    assert (await alice.ok("GET", "capabilities"))["capabilities"]["m.3pid_changes"] == {"enabled": False}


async def test_there_is_no_turn_server(homeserver: Server) -> None:
    """Clients know an empty object from other servers that have none. The spec's schema has no word for that."""
    alice = await homeserver.register("alice")
    headers = {"authorization": f"Bearer {alice.token}"}
    response = await homeserver.http.get("/_matrix/client/v3/voip/turnServer", headers=headers)
    assert (response.status_code, response.json()) == (200, {})


async def test_all_of_these_endpoints_require_an_access_token(homeserver: Server) -> None:
    for path in ("thirdparty/protocols", "account/3pid", "voip/turnServer"):
        assert await homeserver.anonymous.refused("GET", path) == (401, "M_MISSING_TOKEN")
