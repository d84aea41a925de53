"""Spec: client-server-api/#account-registration"""

from __future__ import annotations

import pytest
import trio

from homeserver import limits
from homeserver.config import RateLimitsSection, Registration
from homeserver.users import accounts
from tests.support.homeservers import PASSWORD, Homeservers, Server
from tests.support.rows import row

DUMMY = {"type": "m.login.dummy"}


async def test_registration_succeeds_after_the_dummy_stage(homeserver: Server) -> None:
    first = await homeserver.anonymous.post("register", json={"username": "alice", "password": PASSWORD})
    assert first.status_code == 401
    flows = first.json()
    assert flows["flows"] == [{"stages": ["m.login.dummy"]}]
    assert "errcode" not in flows and "completed" not in flows

    answer = await homeserver.anonymous.ok(
        "POST",
        "register",
        json={
            "username": "alice",
            "password": PASSWORD,
            "device_id": "PHONE",
            "initial_device_display_name": "Alice's phone",
            "auth": {**DUMMY, "session": flows["session"]},
        },
    )
    assert answer["user_id"] == "@alice:test.example"
    assert answer["device_id"] == "PHONE"
    assert "refresh_token" not in answer
    owner = await homeserver.with_token(answer["access_token"]).ok("GET", "account/whoami")
    assert owner == {"user_id": "@alice:test.example", "device_id": "PHONE", "is_guest": False}


async def test_a_session_can_be_used_once(homeserver: Server) -> None:
    session = (await homeserver.anonymous.post("register", json={})).json()["session"]
    auth = {**DUMMY, "session": session}
    await homeserver.anonymous.ok("POST", "register", json={"username": "alice", "password": PASSWORD, "auth": auth})
    again = await homeserver.anonymous.post("register", json={"username": "bob", "auth": auth})
    assert again.status_code == 401
    assert again.json()["session"] != session


async def test_registration_requires_a_password(homeserver: Server) -> None:
    session = (await homeserver.anonymous.post("register", json={})).json()["session"]
    body = {"username": "alice", "auth": {**DUMMY, "session": session}}
    assert await homeserver.anonymous.refused("POST", "register", json=body) == (400, "M_MISSING_PARAM")
    assert await homeserver.read(accounts.find_user, "@alice:test.example") is None
    await homeserver.anonymous.ok("POST", "register", json={**body, "password": PASSWORD})


async def test_a_registration_whose_answer_was_lost_can_be_repeated(homeserver: Server) -> None:
    session = (await homeserver.anonymous.post("register", json={})).json()["session"]
    body = {"username": "Alice", "password": PASSWORD, "auth": {**DUMMY, "session": session}}
    lost = await homeserver.anonymous.ok("POST", "register", json=body)
    again = await homeserver.anonymous.ok("POST", "register", json=body)
    assert (again["user_id"], again["device_id"]) == ("@alice:test.example", lost["device_id"])
    alice = homeserver.with_token(again["access_token"])
    assert len((await alice.ok("GET", "devices"))["devices"]) == 1
    assert await homeserver.with_token(lost["access_token"]).refused("GET", "devices") == (401, "M_UNKNOWN_TOKEN")
    for change in ({"password": "another password"}, {"auth": DUMMY}):
        refusal = await homeserver.anonymous.refused("POST", "register", json={**body, **change})
        assert refusal == (400, "M_USER_IN_USE"), change
    await trio.sleep(limits.USER_INTERACTIVE_LIFETIME_MS / 1000)
    assert await homeserver.anonymous.refused("POST", "register", json=body) == (400, "M_USER_IN_USE")


async def test_a_repeated_registration_with_inhibit_login_does_not_log_in(homeserver: Server) -> None:
    session = (await homeserver.anonymous.post("register", json={})).json()["session"]
    auth = {**DUMMY, "session": session}
    body = {"username": "alice", "password": PASSWORD, "inhibit_login": True, "auth": auth}
    for _ in range(2):
        assert await homeserver.anonymous.ok("POST", "register", json=body) == {"user_id": "@alice:test.example"}


async def test_usernames_are_lowercased(homeserver: Server) -> None:
    body = {"username": "User-UPPER", "password": PASSWORD, "auth": DUMMY}
    answer = await homeserver.anonymous.ok("POST", "register", json=body)
    assert answer["user_id"] == "@user-upper:test.example"


async def test_a_username_and_a_device_id_are_generated_by_default(homeserver: Server) -> None:
    answer = await homeserver.anonymous.ok("POST", "register", json={"password": PASSWORD, "auth": DUMMY})
    assert answer["user_id"].endswith(":test.example")
    assert answer["device_id"]


async def test_inhibit_login_returns_no_token(homeserver: Server) -> None:
    answer = await homeserver.anonymous.ok(
        "POST", "register", json={"username": "alice", "password": PASSWORD, "auth": DUMMY, "inhibit_login": True}
    )
    assert answer == {"user_id": "@alice:test.example"}
    assert await homeserver.read(accounts.is_active, "@alice:test.example")


async def test_a_refresh_token_is_returned_on_request(homeserver: Server) -> None:
    answer = await homeserver.anonymous.ok(
        "POST", "register", json={"username": "alice", "password": PASSWORD, "auth": DUMMY, "refresh_token": True}
    )
    assert answer["refresh_token"]
    assert answer["expires_in_ms"] > 0


async def test_malformed_usernames_are_refused_before_authentication(homeserver: Server) -> None:
    for username in ["", "a b", "bob!", "ünïcode", "a:b", "@alice", "a\u0000b", "x" * 250]:
        with row(username):
            refusal = await homeserver.anonymous.refused("POST", "register", json={"username": username})
            assert refusal == (400, "M_INVALID_USERNAME")


@pytest.mark.parametrize("username", ["q3._=-/+", "0", "x" * 200])
async def test_usernames_may_contain_every_allowed_character(homeserver: Server, username: str) -> None:
    assert (await homeserver.register(username)).user_id == f"@{username}:test.example"


async def test_a_taken_username_is_refused_before_authentication(homeserver: Server) -> None:
    await homeserver.register("alice")
    for username in ("alice", "ALICE"):
        assert await homeserver.anonymous.refused("POST", "register", json={"username": username}) == (
            400,
            "M_USER_IN_USE",
        )


async def test_the_availability_of_a_username_can_be_checked(homeserver: Server) -> None:
    ask = homeserver.anonymous
    assert await ask.ok("GET", "register/available?username=alice") == {"available": True}
    await homeserver.register("alice")
    assert await ask.refused("GET", "register/available?username=alice") == (400, "M_USER_IN_USE")
    assert await ask.refused("GET", "register/available?username=a%20b") == (400, "M_INVALID_USERNAME")
    assert await ask.refused("GET", "register/available") == (400, "M_MISSING_PARAM")


async def test_wrong_types_are_refused_and_store_nothing(homeserver: Server) -> None:
    for body, errcode in [
        ({"username": 7}, "M_BAD_JSON"),
        ({"password": ["x"]}, "M_BAD_JSON"),
        ({"password": ""}, "M_WEAK_PASSWORD"),
        ({"password": "7 chars"}, "M_WEAK_PASSWORD"),
        ({"password": "x" * 513}, "M_INVALID_PARAM"),
        ({"device_id": 7}, "M_BAD_JSON"),
        ({"device_id": ""}, "M_INVALID_PARAM"),
        ({"device_id": "x" * 256}, "M_INVALID_PARAM"),
        ({"device_id": "a\nb"}, "M_INVALID_PARAM"),
        ({"initial_device_display_name": {}}, "M_BAD_JSON"),
        ({"inhibit_login": "yes"}, "M_BAD_JSON"),
        ({"refresh_token": 1}, "M_BAD_JSON"),
        ({"auth": "m.login.dummy"}, "M_BAD_JSON"),
        ({"auth": {"type": 7}}, "M_BAD_JSON"),
        ({"auth": {"type": "m.login.dummy", "session": 7}}, "M_BAD_JSON"),
        ({"type": 7}, "M_BAD_JSON"),
    ]:
        with row(body, errcode):
            full = {"username": "alice", "password": PASSWORD, "auth": DUMMY, **body}
            status, code = await homeserver.anonymous.refused("POST", "register", json=full)
            assert (status, code) == (400, errcode)
            assert await homeserver.read(accounts.find_user, "@alice:test.example") is None


@pytest.mark.parametrize(("content", "errcode"), [(b"", "M_NOT_JSON"), (b"{", "M_NOT_JSON"), (b"[]", "M_BAD_JSON")])
async def test_the_body_must_be_a_json_object(homeserver: Server, content: bytes, errcode: str) -> None:
    assert await homeserver.anonymous.refused("POST", "register", content=content) == (400, errcode)


async def test_an_unknown_kind_is_refused(homeserver: Server) -> None:
    assert await homeserver.anonymous.refused("POST", "register?kind=admin", json={}) == (400, "M_INVALID_PARAM")


async def test_registration_can_be_disabled(homeservers: Homeservers) -> None:
    server = await homeservers.start(registration=Registration(enabled=False))
    assert await server.anonymous.refused("POST", "register", json={}) == (403, "M_FORBIDDEN")
    assert await server.anonymous.refused("POST", "register?kind=guest", json={}) == (403, "M_GUEST_ACCESS_FORBIDDEN")


async def test_guests_can_register(homeservers: Homeservers) -> None:
    server = await homeservers.start(registration=Registration(enabled=True, guests=True))
    answer = await server.anonymous.ok(
        "POST",
        "register?kind=guest",
        json={"username": "chosen", "device_id": "CHOSEN", "initial_device_display_name": "tab"},
    )
    assert answer["device_id"] != "CHOSEN"
    assert "chosen" not in answer["user_id"]
    guest = server.with_token(answer["access_token"])
    assert (await guest.ok("GET", "account/whoami"))["is_guest"] is True
    devices = (await guest.ok("GET", "devices"))["devices"]
    assert [device["display_name"] for device in devices] == ["tab"]
    refusal = await guest.refused("POST", "account/password", json={"new_password": "x"})
    assert refusal == (403, "M_GUEST_ACCESS_FORBIDDEN")


async def test_a_guest_becomes_a_user(homeservers: Homeservers) -> None:
    server = await homeservers.start(registration=Registration(enabled=True, guests=True))
    guest = await server.anonymous.ok("POST", "register?kind=guest", json={})
    localpart = guest["user_id"][1:].partition(":")[0]
    upgrade = {"username": localpart, "password": PASSWORD, "auth": DUMMY}
    wrong = await server.anonymous.refused("POST", "register", json={**upgrade, "guest_access_token": "nonsense"})
    assert wrong == (403, "M_FORBIDDEN")
    answer = await server.anonymous.ok(
        "POST", "register", json={**upgrade, "guest_access_token": guest["access_token"]}
    )
    assert answer["user_id"] == guest["user_id"]
    alice = await server.log_in(localpart)
    assert (await alice.ok("GET", "account/whoami"))["is_guest"] is False


async def test_registrations_are_limited(homeservers: Homeservers) -> None:
    server = await homeservers.start(rate_limits=RateLimitsSection(enabled=True))
    for _ in range(5):
        await server.anonymous.post("register", json={})
    response = await server.anonymous.post("register", json={})
    assert response.status_code == 429
    assert response.json()["errcode"] == "M_LIMIT_EXCEEDED"
    assert int(response.headers["retry-after"]) > 0
