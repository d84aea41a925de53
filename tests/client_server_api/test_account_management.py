"""Spec: client-server-api/#account-management"""

from __future__ import annotations

import json

import pytest

from homeserver.rooms.membership import find_membership
from homeserver.users import accounts
from tests.support.homeservers import PASSWORD, Server
from tests.support.people import (
    all_messages,
    get_event,
    join,
    leave,
    path_of,
    public_room,
    say,
    set_state,
    sync,
    texts,
)
from tests.support.rows import row

NEW = "Another one, if you please."


async def test_changing_the_password_logs_other_devices_out(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    other = await homeserver.log_in("alice")
    assert await alice.refused("POST", "account/password", json={"new_password": NEW}) == (401, "")
    await alice.ok("POST", "account/password", json={"new_password": NEW, "auth": alice.password_auth()})
    await alice.ok("GET", "account/whoami")
    assert await other.refused("GET", "account/whoami") == (401, "M_UNKNOWN_TOKEN")
    body = {"type": "m.login.password", "user": "alice", "password": PASSWORD}
    assert await homeserver.anonymous.refused("POST", "login", json=body) == (403, "M_FORBIDDEN")
    await homeserver.log_in("alice", NEW)


async def test_changing_the_password_can_keep_other_devices_logged_in(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    other = await homeserver.log_in("alice")
    body = {"new_password": NEW, "logout_devices": False, "auth": alice.password_auth()}
    await alice.ok("POST", "account/password", json=body)
    await other.ok("GET", "account/whoami")


async def test_wrong_types_are_refused(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    for body, errcode in [
        ({}, "M_MISSING_PARAM"),
        ({"new_password": 7}, "M_BAD_JSON"),
        ({"new_password": ""}, "M_WEAK_PASSWORD"),
        ({"new_password": "7 chars"}, "M_WEAK_PASSWORD"),
        ({"new_password": "x" * 513}, "M_INVALID_PARAM"),
        ({"new_password": NEW, "logout_devices": "no"}, "M_BAD_JSON"),
        ({"new_password": NEW, "auth": "x"}, "M_BAD_JSON"),
    ]:
        with row(body, errcode):
            full = {"auth": alice.password_auth(), **body}
            assert await alice.refused("POST", "account/password", json=full) == (400, errcode)
            await homeserver.log_in("alice")


async def test_an_access_token_is_required(homeserver: Server) -> None:
    for path, body in (("account/password", {"new_password": NEW}), ("account/deactivate", {})):
        assert await homeserver.anonymous.refused("POST", path, json=body) == (401, "M_MISSING_TOKEN")


async def test_deactivation_ends_all_sessions_and_memberships(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    bob = await homeserver.register("bob")
    room_id = await homeserver.make_room(bob, alice)
    wrong = await alice.post("account/deactivate", json={"auth": alice.password_auth(password="wrong")})
    assert (wrong.status_code, wrong.json()["errcode"]) == (401, "M_FORBIDDEN")

    answer = await alice.ok("POST", "account/deactivate", json={"auth": alice.password_auth()})
    assert answer == {"id_server_unbind_result": "success"}
    assert await alice.refused("GET", "account/whoami") == (401, "M_UNKNOWN_TOKEN")
    body = {"type": "m.login.password", "user": "alice", "password": PASSWORD}
    assert await homeserver.anonymous.refused("POST", "login", json=body) == (403, "M_USER_DEACTIVATED")
    assert await homeserver.anonymous.refused("POST", "register", json={"username": "alice"}) == (400, "M_USER_IN_USE")
    assert await bob.refused("GET", f"profile/{alice.user_id}") == (404, "M_NOT_FOUND")
    assert await homeserver.read(find_membership, room_id, alice.user_id) == "leave"
    account = await homeserver.read(accounts.find_user, alice.user_id)
    assert (account.is_deactivated, account.erased) == (True, False)


async def test_erasure_deletes_the_users_private_data(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    await alice.ok("PUT", f"user/{alice.user_id}/account_data/org.example.a", json={"a": 1})
    await alice.ok("PUT", f"profile/{alice.user_id}/displayname", json={"displayname": "Alice"})
    await alice.ok("POST", f"user/{alice.user_id}/filter", json={})
    await alice.ok("POST", "account/deactivate", json={"erase": True, "auth": alice.password_auth()})
    for table in ("account_data", "profiles", "filters"):
        statement = {
            "account_data": "SELECT COUNT(*) FROM account_data",
            "profiles": "SELECT COUNT(*) FROM profiles",
            "filters": "SELECT COUNT(*) FROM filters",
        }[table]
        assert await homeserver.read(lambda tx, sql=statement: tx.one(sql)) == (0,)
    assert (await homeserver.read(accounts.find_user, alice.user_id)).erased


async def test_users_who_join_after_the_erasure_see_redacted_events(server: Server) -> None:
    alice, bob, carol = [await server.register(name) for name in ("alice", "bob", "carol")]
    room_id = await public_room(bob, alice)
    await set_state(bob, room_id, "m.room.power_levels", {"state_default": 0})
    await set_state(alice, room_id, "m.room.topic", {"topic": "Alice was here"})
    (event_id,) = await say(alice, room_id, "my secret")
    await join(carol, room_id)
    await leave(carol, room_id)
    await set_state(bob, room_id, "m.room.topic", {"topic": "Tea"})
    await alice.ok("POST", "account/deactivate", json={"erase": True, "auth": alice.password_auth()})
    dave = await server.register("dave")
    await join(dave, room_id)
    await join(carol, room_id)
    for limit in (1, 100):
        assert "my secret" in texts(await all_messages(bob, room_id, limit=limit))
    for late in (carol, dave):
        for limit in (1, 100):
            assert "my secret" not in texts(await all_messages(late, room_id, limit=limit))
        assert (await get_event(late, room_id, event_id))["content"] == {}
        assert (await late.ok("GET", path_of(room_id, "context", event_id)))["event"]["content"] == {}
        told = json.dumps([await sync(late), await all_messages(late, room_id)])
        assert "my secret" not in told and "Alice was here" not in told
        members = {event["state_key"] for event in await all_messages(late, room_id) if "state_key" in event}
        assert alice.user_id in members


async def test_deactivated_accounts_cannot_be_invited(homeserver: Server) -> None:
    """They could never answer, so the invitation would stand for ever."""
    alice, bob, carol = [await homeserver.register(name) for name in ("alice", "bob", "carol")]
    room_id = await public_room(bob)
    await alice.ok("POST", "account/deactivate", json={"auth": alice.password_auth()})
    forbidden = (403, "M_FORBIDDEN")
    assert await bob.refused("POST", path_of(room_id, "invite"), json={"user_id": alice.user_id}) == forbidden
    path = path_of(room_id, "state", "m.room.member", alice.user_id)
    assert await bob.refused("PUT", path, json={"membership": "invite"}) == forbidden
    assert await bob.refused("GET", path) == (404, "M_NOT_FOUND")
    assert await bob.refused("POST", "createRoom", json={"invite": [alice.user_id]}) == forbidden
    made = (await bob.ok("POST", "createRoom", json={"invite": [alice.user_id, carol.user_id]}))["room_id"]
    invited = (await bob.ok("GET", path_of(made, "members"), params={"membership": "invite"}))["chunk"]
    assert [event["state_key"] for event in invited] == [carol.user_id]


@pytest.mark.parametrize("body", [{"erase": "yes"}, {"id_server": 7}, {"auth": 7}])
async def test_deactivation_requests_with_wrong_types_are_refused(homeserver: Server, body: dict) -> None:
    alice = await homeserver.register("alice")
    full = {"auth": alice.password_auth(), **body}
    assert await alice.refused("POST", "account/deactivate", json=full) == (400, "M_BAD_JSON")
    await alice.ok("GET", "account/whoami")
