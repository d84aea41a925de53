"""Spec: client-server-api/#login, #using-access-tokens"""

from __future__ import annotations

import httpx
import pytest
import trio

from homeserver import limits
from homeserver.authenticate import AccountFlags, store_account_flags
from homeserver.config import Passwords, Public, RateLimitsSection
from homeserver.log import ConsoleFormatter
from homeserver.users import accounts
from homeserver.users.passwords import HASHERS
from tests.support.homeservers import CLIENT_IP, PASSWORD, Homeservers, Server
from tests.support.rows import row


def by_name(user: str, password: str = PASSWORD, **fields: object) -> dict:
    return {
        "type": "m.login.password",
        "identifier": {"type": "m.id.user", "user": user},
        "password": password,
        **fields,
    }


async def test_login_flows_are_listed(homeserver: Server) -> None:
    flows = (await homeserver.anonymous.ok("GET", "login"))["flows"]
    assert {"type": "m.login.password"} in flows


@pytest.mark.parametrize("user", ["alice", "@alice:test.example", "ALICE", "@ALICE:test.example"])
async def test_users_log_in_by_localpart_or_user_id(homeserver: Server, user: str) -> None:
    await homeserver.register("alice")
    answer = await homeserver.anonymous.ok("POST", "login", json=by_name(user))
    assert answer["user_id"] == "@alice:test.example"
    owner = await homeserver.with_token(answer["access_token"]).ok("GET", "account/whoami")
    assert owner["device_id"] == answer["device_id"]
    assert answer["well_known"] == {"m.homeserver": {"base_url": "https://test.example"}}


async def test_the_deprecated_user_field_is_accepted(homeserver: Server) -> None:
    await homeserver.register("alice")
    body = {"type": "m.login.password", "user": "alice", "password": PASSWORD}
    assert (await homeserver.anonymous.ok("POST", "login", json=body))["user_id"] == "@alice:test.example"


async def test_login_returns_no_well_known_if_it_is_not_served(homeservers: Homeservers) -> None:
    server = await homeservers.start(public=Public(serve_well_known=False))
    await server.register("alice")
    assert "well_known" not in await server.anonymous.ok("POST", "login", json=by_name("alice"))


async def test_logging_in_again_keeps_the_device_name_and_revokes_its_tokens(homeserver: Server) -> None:
    first = await homeserver.register("alice", device_id="PHONE", initial_device_display_name="first")
    again = await homeserver.log_in("alice", device_id="PHONE", initial_device_display_name="second")
    assert again.device_id == "PHONE"
    assert (await again.ok("GET", "devices/PHONE"))["display_name"] == "first"
    assert await first.refused("GET", "account/whoami") == (401, "M_UNKNOWN_TOKEN")


async def test_other_devices_stay_logged_in(homeserver: Server) -> None:
    first = await homeserver.register("alice")
    await homeserver.log_in("alice")
    await first.ok("GET", "account/whoami")


async def test_unknown_users_and_wrong_passwords_are_refused(homeserver: Server) -> None:
    await homeserver.register("alice")
    for body in [
        by_name("alice", "wrong"),
        by_name("nobody"),
        by_name("@alice:other.example"),
        by_name("not a user"),
        by_name("alice", "x" * 513),
        {**by_name("alice"), "identifier": {"type": "m.id.thirdparty", "medium": "email", "address": "a@b.example"}},
        {"type": "m.login.password", "medium": "email", "address": "a@b.example", "password": PASSWORD},
        {**by_name("alice"), "identifier": {"type": "m.id.phone", "country": "GB", "phone": "123"}},
    ]:
        with row(body):
            assert await homeserver.anonymous.refused("POST", "login", json=body) == (403, "M_FORBIDDEN")


async def test_wrong_types_are_refused_and_create_no_device(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    for body, errcode in [
        ({}, "M_MISSING_PARAM"),
        ({"type": 7}, "M_BAD_JSON"),
        ({"type": "m.login.nonsense"}, "M_UNKNOWN"),
        ({"type": "m.login.password"}, "M_MISSING_PARAM"),
        ({"type": "m.login.password", "user": "alice"}, "M_MISSING_PARAM"),
        (by_name("alice", device_id=7), "M_BAD_JSON"),
        (by_name("alice", device_id=""), "M_INVALID_PARAM"),
        (by_name("alice", initial_device_display_name=[]), "M_BAD_JSON"),
        (by_name("alice", refresh_token="yes"), "M_BAD_JSON"),
        ({**by_name("alice"), "password": 7}, "M_BAD_JSON"),
        ({**by_name("alice"), "identifier": "alice"}, "M_BAD_JSON"),
        ({**by_name("alice"), "identifier": {"type": "m.id.user"}}, "M_MISSING_PARAM"),
        ({**by_name("alice"), "identifier": {"type": "m.id.user", "user": 7}}, "M_BAD_JSON"),
        ({**by_name("alice"), "identifier": {"type": "m.id.nonsense"}}, "M_UNKNOWN"),
    ]:
        with row(body, errcode):
            assert await homeserver.anonymous.refused("POST", "login", json=body) == (400, errcode)
            assert len((await alice.ok("GET", "devices"))["devices"]) == 1


async def test_accounts_without_a_password_cannot_log_in(homeserver: Server) -> None:
    await accounts.create_account(homeserver.hs, "alice", None)
    assert await homeserver.anonymous.refused("POST", "login", json=by_name("alice", "")) == (403, "M_FORBIDDEN")


async def test_a_hash_with_outdated_parameters_is_replaced_at_login(homeservers: Homeservers) -> None:
    server = await homeservers.start(passwords=Passwords(hash_cost="default"))
    cheap = HASHERS["minimal"].hash(PASSWORD)
    await server.write(accounts.create_user, "@alice:test.example", cheap)
    await server.log_in("alice")
    user = await server.read(accounts.find_user, "@alice:test.example")
    assert user.password_hash != cheap
    assert "m=19456,t=2,p=1" in user.password_hash
    await server.log_in("alice")


async def guess(server: Server, address: str, count: int, password: str = "wrong") -> list[int]:
    """The status of each attempt to log in as alice from an address. `count`: no more than `login` allows at once."""
    transport = httpx.ASGITransport(server.app, client=(address, 4711))
    async with httpx.AsyncClient(transport=transport, base_url="https://test.example") as http:
        answers = [await http.post("/_matrix/client/v3/login", json=by_name("alice", password)) for _ in range(count)]
    return [answer.status_code for answer in answers]


async def test_password_guesses_are_limited_per_account_and_address(homeservers: Homeservers) -> None:
    server = await homeservers.start(rate_limits=RateLimitsSection(enabled=True))
    await accounts.create_account(server.hs, "alice", PASSWORD)
    assert await guess(server, "192.0.2.1", 10) == [403] * 10
    await trio.sleep(5 / limits.RATE_LIMITS["login"].per_second)
    assert await guess(server, "192.0.2.1", 5) == [403, 429, 429, 429, 429]


async def test_guessing_does_not_lock_the_user_out(homeservers: Homeservers) -> None:
    server = await homeservers.start(rate_limits=RateLimitsSection(enabled=True))
    alice = await server.register("alice")
    for _ in range(20):  # as fast as one address may
        await guess(server, "203.0.113.1", 5)
        await trio.sleep(5 / limits.RATE_LIMITS["login"].per_second)
    assert await guess(server, "192.0.2.1", 1, PASSWORD) == [200]
    body = {"new_password": "a better one", "auth": alice.password_auth()}
    await alice.ok("POST", "account/password", json=body)


async def test_password_guesses_from_many_addresses_are_limited(homeservers: Homeservers) -> None:
    server = await homeservers.start(rate_limits=RateLimitsSection(enabled=True))
    await accounts.create_account(server.hs, "alice", PASSWORD)
    for number in range(5):
        assert await guess(server, f"203.0.113.{number}", 10) == [403] * 10
    assert await guess(server, "203.0.113.99", 1) == [429]


@pytest.mark.parametrize(
    ("headers", "errcode"),
    [
        ({}, "M_MISSING_TOKEN"),
        ({"authorization": "Bearer nonsense"}, "M_UNKNOWN_TOKEN"),
        ({"authorization": "Basic nonsense"}, "M_MISSING_TOKEN"),
    ],
)
async def test_missing_and_unknown_access_tokens_are_refused(homeserver: Server, headers: dict, errcode: str) -> None:
    assert await homeserver.anonymous.refused("GET", "account/whoami", headers=headers) == (401, errcode)


async def test_logout_deletes_the_device(homeserver: Server) -> None:
    first = await homeserver.register("alice")
    second = await homeserver.log_in("alice")
    await second.ok("POST", "logout")
    assert await second.refused("GET", "account/whoami") == (401, "M_UNKNOWN_TOKEN")
    devices = (await first.ok("GET", "devices"))["devices"]
    assert [device["device_id"] for device in devices] == [first.device_id]


async def test_logout_all_deletes_all_devices(homeserver: Server) -> None:
    clients = [await homeserver.register("alice"), await homeserver.log_in("alice"), await homeserver.log_in("alice")]
    await clients[1].ok("POST", "logout/all")
    for client in clients:
        assert await client.refused("GET", "account/whoami") == (401, "M_UNKNOWN_TOKEN")
    alice = await homeserver.log_in("alice")
    assert len((await alice.ok("GET", "devices"))["devices"]) == 1


async def test_a_locked_user_can_only_log_out(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    flags = AccountFlags(is_locked=True)
    await homeserver.write(store_account_flags, alice.user_id, flags)
    answer = await alice.get("devices")
    assert (answer.status_code, answer.json()["errcode"]) == (401, "M_USER_LOCKED")
    assert answer.json()["soft_logout"] is True
    await alice.ok("POST", "logout")
    assert await alice.refused("GET", "devices") == (401, "M_UNKNOWN_TOKEN")


@pytest.mark.parametrize(
    ("user", "shown"),
    [
        ("alice", "alice"),
        ("nobody", "nobody"),
        ("@a:b.example", "@a:b.example"),
        ("x\n2026 login failed address=6.6.6.6", "'x\\n2026 login failed address=6.6.6.6'"),
    ],
)
async def test_a_failed_login_is_logged_with_address_and_name(
    homeserver: Server, caplog: pytest.LogCaptureFixture, user: str, shown: str
) -> None:
    await homeserver.register("alice")
    identifier = {"type": "m.id.user", "user": user}
    body = {"type": "m.login.password", "identifier": identifier, "password": "wrong"}
    assert (await homeserver.anonymous.refused("POST", "login", json=body))[0] == 403
    (record,) = [each for each in caplog.records if each.getMessage() == "login failed"]
    line = ConsoleFormatter().format(record)
    assert line.endswith(f" login failed address={CLIENT_IP} user={shown} errcode=M_FORBIDDEN")
    assert "\n" not in line
    counted = homeserver.hs.metrics.counters()[("homeserver_logins_total", (("outcome", "refused"),))]
    assert counted == 1
