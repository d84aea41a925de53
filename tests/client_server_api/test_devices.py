"""Spec: client-server-api/#device-management"""

from __future__ import annotations

import pytest
import trio

from homeserver import limits
from homeserver.authenticate import Requester
from homeserver.database import Transaction
from homeserver.features.devices import DeviceBody, delete_device, update_device
from homeserver.federation.identifiers import UserID
from homeserver.users import accounts, devices
from homeserver.users.encryption.device_lists import list_device_list_updates
from tests.support.homeservers import CLIENT_IP, PASSWORD, Client, Server, now_ms
from tests.support.rows import row


async def begin(client: Client, method: str, path: str, body: dict | None = None) -> str:
    """The session of an operation that needs authentication."""
    response = await client.request(method, path, json=body)
    assert response.status_code == 401
    assert response.json()["flows"] == [{"stages": ["m.login.password"]}]
    return response.json()["session"]


async def test_devices_can_be_listed_and_renamed(homeserver: Server) -> None:
    alice = await homeserver.register("alice", device_id="PHONE", initial_device_display_name="phone")
    await homeserver.log_in("alice", device_id="LAPTOP")
    answer = (await alice.ok("GET", "devices"))["devices"]
    assert [(each["device_id"], each.get("display_name")) for each in answer] == [("LAPTOP", None), ("PHONE", "phone")]
    assert await alice.ok("PUT", "devices/LAPTOP", json={"display_name": "laptop"}) == {}
    assert (await alice.ok("GET", "devices/LAPTOP"))["display_name"] == "laptop"
    assert await alice.ok("PUT", "devices/LAPTOP", json={}) == {}
    assert (await alice.ok("GET", "devices/LAPTOP"))["display_name"] == "laptop"


async def test_unknown_devices_are_not_found(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    bob = await homeserver.register("bob")
    for device_id in ("NONE", bob.device_id):
        assert await alice.refused("GET", f"devices/{device_id}") == (404, "M_NOT_FOUND")
        assert await alice.refused("PUT", f"devices/{device_id}", json={"display_name": "x"}) == (404, "M_NOT_FOUND")


@pytest.mark.parametrize(
    ("body", "errcode"),
    [({"display_name": 7}, "M_BAD_JSON"), ({"display_name": "x" * 256}, "M_TOO_LARGE"), ([], "M_BAD_JSON")],
)
async def test_malformed_names_are_refused(homeserver: Server, body: object, errcode: str) -> None:
    alice = await homeserver.register("alice", initial_device_display_name="phone")
    assert await alice.refused("PUT", f"devices/{alice.device_id}", json=body) == (400, errcode)
    assert (await alice.ok("GET", f"devices/{alice.device_id}"))["display_name"] == "phone"


async def test_logging_in_sets_last_seen(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    logged_in_ms = now_ms()
    await trio.sleep(1)
    phone = await homeserver.log_in("alice")
    devices = {each["device_id"]: each for each in (await phone.ok("GET", "devices"))["devices"]}
    assert devices[alice.device_id]["last_seen_ts"] == logged_in_ms
    assert devices[phone.device_id]["last_seen_ts"] == now_ms()
    assert {each["last_seen_ip"] for each in devices.values()} == {"192.0.2.7"}


async def test_last_seen_is_current_but_written_only_from_time_to_time(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    await alice.ok("GET", "account/whoami")
    seen = {"last_seen_ts": now_ms(), "last_seen_ip": CLIENT_IP}
    assert (await alice.ok("GET", f"devices/{alice.device_id}")).items() >= seen.items()
    stored = await homeserver.read(devices.find_device, alice.user_id, alice.device_id)
    assert stored.last_seen_ms is None
    await trio.sleep(limits.DEVICE_SEEN_INTERVAL_S + 1)
    stored = await homeserver.read(devices.find_device, alice.user_id, alice.device_id)
    assert (stored.last_seen_ms, stored.last_seen_ip) == (seen["last_seen_ts"], CLIENT_IP)


async def test_deleting_a_device_requires_the_password(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    other = await homeserver.log_in("alice", device_id="OTHER")
    session = await begin(alice, "DELETE", "devices/OTHER")

    wrong = await alice.delete("devices/OTHER", json={"auth": alice.password_auth(session, "wrong")})
    assert wrong.status_code == 401
    assert wrong.json()["errcode"] == "M_FORBIDDEN"
    assert wrong.json()["session"] == session

    await alice.ok("DELETE", "devices/OTHER", json={"auth": alice.password_auth(session)})
    assert await alice.refused("GET", "devices/OTHER") == (404, "M_NOT_FOUND")
    assert await other.refused("GET", "account/whoami") == (401, "M_UNKNOWN_TOKEN")


async def test_the_authenticating_user_must_be_the_requester(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    bob = await homeserver.register("bob")
    session = await begin(alice, "DELETE", f"devices/{alice.device_id}", {})
    body = {"auth": bob.password_auth(session)}
    assert await alice.refused("DELETE", f"devices/{alice.device_id}", json=body) == (403, "M_FORBIDDEN")
    await alice.ok("GET", "account/whoami")


async def test_a_session_is_bound_to_its_devices_and_its_user(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    bob = await homeserver.register("bob")
    await homeserver.log_in("alice", device_id="A")
    await homeserver.log_in("alice", device_id="B")
    session = await begin(alice, "POST", "delete_devices", {"devices": ["A"]})
    for client, wanted in ((alice, ["B"]), (alice, ["A", "B"]), (bob, ["A"])):
        body = {"devices": wanted, "auth": client.password_auth(session)}
        assert await client.refused("POST", "delete_devices", json=body) == (403, "M_FORBIDDEN")
    await alice.ok("POST", "delete_devices", json={"devices": ["A"], "auth": alice.password_auth(session)})
    assert {each["device_id"] for each in (await alice.ok("GET", "devices"))["devices"]} == {alice.device_id, "B"}


async def test_deleting_an_unknown_device_succeeds(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    body = {"devices": ["NONE"], "auth": alice.password_auth()}
    assert await alice.ok("POST", "delete_devices", json=body) == {}


async def test_wrong_types_are_refused(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    await homeserver.log_in("alice", device_id="A")
    for body, errcode in [
        ({}, "M_MISSING_PARAM"),
        ({"devices": "A"}, "M_BAD_JSON"),
        ({"devices": [7]}, "M_BAD_JSON"),
        ({"devices": ["A"], "auth": []}, "M_BAD_JSON"),
        ({"devices": ["A"], "auth": {"type": "m.login.password"}}, "M_MISSING_PARAM"),
        ({"devices": ["A"], "auth": {"type": "m.login.password", "password": 7}}, "M_BAD_JSON"),
        (
            {"devices": ["A"], "auth": {"type": "m.login.password", "password": "x", "identifier": "alice"}},
            "M_BAD_JSON",
        ),
    ]:
        with row(body, errcode):
            assert await alice.refused("POST", "delete_devices", json=body) == (400, errcode)
            assert len((await alice.ok("GET", "devices"))["devices"]) == 2


async def test_each_change_is_recorded_for_other_servers(homeserver: Server) -> None:
    alice = await homeserver.register("alice", device_id="A")
    since = homeserver.hs.stream.position
    await homeserver.log_in("alice", device_id="B")
    await alice.ok("PUT", "devices/A", json={"display_name": "a"})
    body = {"devices": ["B"], "auth": alice.password_auth()}
    await alice.ok("POST", "delete_devices", json=body)
    updates = await homeserver.read(list_device_list_updates, since, homeserver.hs.stream.position)
    assert [(each.user_id, each.device_id) for each in updates] == [(alice.user_id, name) for name in ("B", "A", "B")]
    assert [each.previous for each in updates[1:]] == [each.position for each in updates[:-1]]


async def test_an_application_service_creates_and_deletes_devices(homeserver: Server) -> None:
    await accounts.create_account(homeserver.hs, "bridged", None, appservice="bridge")
    requester = Requester(UserID("@bridged:test.example"), "", appservice="bridge")
    body = DeviceBody(display_name="bridge")
    for status in (201, 200):
        answer = await update_device(homeserver.hs, requester, "NEW", body)
        assert (answer.status, answer.body) == (status, {})
    await delete_device(homeserver.hs, requester, "NEW", None)
    assert await homeserver.read(devices.list_devices, requester.user_id) == []


async def test_the_number_of_devices_is_limited(homeserver: Server) -> None:
    alice = await homeserver.register("alice")

    def fill(tx: Transaction) -> None:
        for number in range(limits.DEVICES_PER_USER_MAX - 1):
            devices.create_device(tx, alice.user_id, f"D{number}", None)

    await homeserver.write(fill)
    body = {"type": "m.login.password", "user": "alice", "password": PASSWORD}
    assert await homeserver.anonymous.refused("POST", "login", json=body) == (403, "M_USER_LIMIT_EXCEEDED")
    await homeserver.log_in("alice", device_id="D0")
