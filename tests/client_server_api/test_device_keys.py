"""Devices publish their keys, and others find and claim them. Spec: client-server-api/#key-management-api"""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from homeserver import limits
from homeserver.authenticate import Requester
from homeserver.errors import MatrixError
from homeserver.features.encryption_keys.uploads import UploadBody, upload_keys
from homeserver.federation.identifiers import UserID
from homeserver.users import accounts
from homeserver.users.devices import create_device
from tests.support.homeservers import Client, Server
from tests.support.keys import MEGOLM, SIGNED, Device
from tests.support.rows import row


async def device_of(client: Client, *, one_time: int = 0, **more: Any) -> Device:
    """The client's device, whose keys have been uploaded."""
    device = Device(client.user_id, client.device_id)
    body = {"device_keys": device.keys(), "one_time_keys": device.one_time_keys(one_time), **more}
    await client.ok("POST", "keys/upload", json=body)
    return device


async def query(client: Client, **users: Any) -> dict[str, Any]:
    """Returns the keys that the client sees of all devices of local users."""
    wanted = {f"@{name}:{client.server.name}": devices for name, devices in users.items()}
    answer: dict[str, Any] = await client.ok("POST", "keys/query", json={"device_keys": wanted})
    return answer


async def claim(client: Client, device: Device, algorithm: str = SIGNED) -> dict[str, Any]:
    """The key that the client gets of a device, by its name; nothing if there is none."""
    body = {"one_time_keys": {device.user_id: {device.device_id: algorithm}}, "timeout": 10_000}
    answer = await client.ok("POST", "keys/claim", json=body)
    assert answer["failures"] == {}
    key: dict[str, Any] = answer["one_time_keys"].get(device.user_id, {}).get(device.device_id, {})
    return key


async def sync(client: Client, since: str = "") -> dict[str, Any]:
    answer: dict[str, Any] = await client.ok("GET", "sync?timeout=0" + (f"&since={since}" if since else ""))
    return answer


# --- identity keys ---


async def test_a_key_query_returns_the_device_keys_and_the_device_name(homeserver: Server) -> None:
    alice = await homeserver.register("alice", initial_device_display_name="Alice's phone")
    bob = await homeserver.register("bob")
    device = await device_of(alice)
    answer = await query(bob, alice=[])
    shown = answer["device_keys"][alice.user_id][alice.device_id]
    assert shown == {**device.keys(), "unsigned": {"device_display_name": "Alice's phone"}}
    assert answer["failures"] == {}


async def test_a_key_query_covers_all_devices_or_selected_ones(homeserver: Server) -> None:
    alice = await homeserver.register("alice", device_id="PHONE")
    laptop = await homeserver.log_in("alice", device_id="LAPTOP")
    await homeserver.log_in("alice", device_id="NO_KEYS")
    for client in (alice, laptop):
        await device_of(client)
    assert (await query(alice, alice=[]))["device_keys"][alice.user_id].keys() == {"PHONE", "LAPTOP"}
    for wanted, found in ((["PHONE"], {"PHONE"}), (["NO_KEYS"], set()), (["LAPTOP", "NONE"], {"LAPTOP"})):
        assert (await query(alice, alice=wanted))["device_keys"][alice.user_id].keys() == found


async def test_users_without_keys_are_listed_and_unknown_users_are_not(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    assert (await query(alice, alice=[], nobody=[]))["device_keys"] == {alice.user_id: {}}


async def test_unsigned_data_of_a_device_is_not_passed_on(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    device = Device(alice.user_id, alice.device_id)
    keys = {**device.keys(), "unsigned": {"device_display_name": "Bob's phone"}}
    keys["signatures"]["@bob:test.example"] = {"ed25519:X": "c2lnbmF0dXJl"}
    await alice.ok("POST", "keys/upload", json={"device_keys": keys})
    assert (await query(alice, alice=[]))["device_keys"][alice.user_id][alice.device_id] == device.keys()


async def test_keys_of_another_device_are_refused(homeserver: Server) -> None:
    alice = await homeserver.register("alice", device_id="DEVICE")
    device = Device(alice.user_id, alice.device_id)
    for change, errcode in [
        ({"user_id": "@bob:test.example"}, "M_INVALID_PARAM"),
        ({"device_id": "OTHER"}, "M_INVALID_PARAM"),
        ({"algorithms": "m.olm"}, "M_INVALID_PARAM"),
        ({"algorithms": [7]}, "M_INVALID_PARAM"),
        ({"keys": {}}, "M_INVALID_PARAM"),
        ({"keys": {"ed25519:DEVICE": "short"}}, "M_INVALID_PARAM"),
        ({"keys": {"ed25519:DEVICE": 7}}, "M_INVALID_PARAM"),
        ({"signatures": None}, "M_INVALID_PARAM"),
        ({"signatures": {"@alice:test.example": {"ed25519:DEVICE": 7}}}, "M_INVALID_PARAM"),
        ({"signatures": {}}, "M_INVALID_SIGNATURE"),
        ({"signatures": {"@alice:test.example": {"ed25519:DEVICE": "A" * 86}}}, "M_INVALID_SIGNATURE"),
        ({"algorithms": [MEGOLM]}, "M_INVALID_SIGNATURE"),
        ({"more": "x" * limits.encryption.DEVICE_KEYS_BYTES_MAX}, "M_INVALID_SIGNATURE"),
    ]:
        with row(change, errcode):
            body = {"device_keys": {**device.keys(), **change}, "one_time_keys": device.one_time_keys(1)}
            assert await alice.refused("POST", "keys/upload", json=body) == (400, errcode)
            assert (await query(alice, alice=[]))["device_keys"] == {alice.user_id: {}}
            assert await claim(alice, device) == {}


async def test_device_keys_have_a_maximum_size(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    keys = Device(alice.user_id, alice.device_id).keys(more="x" * limits.encryption.DEVICE_KEYS_BYTES_MAX)
    assert await alice.refused("POST", "keys/upload", json={"device_keys": keys}) == (400, "M_TOO_LARGE")


async def test_deleting_a_device_deletes_its_keys(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    other = await homeserver.log_in("alice", device_id="OTHER")
    device = await device_of(other, one_time=2, fallback_keys=Device(other.user_id, "OTHER").fallback_key("F"))
    await alice.ok("DELETE", "devices/OTHER", json={"auth": alice.password_auth()})
    assert (await query(alice, alice=[]))["device_keys"] == {alice.user_id: {}}
    assert await claim(alice, device) == {}
    again = await homeserver.log_in("alice", device_id="OTHER")
    assert (await sync(again))["device_one_time_keys_count"] == {SIGNED: 0}


async def test_an_in_process_client_becomes_a_device_when_it_uploads_keys(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    device = Device(alice.user_id, "EMBEDDED")
    await upload_keys(homeserver.hs, Requester(alice.user_id, "EMBEDDED"), UploadBody(device.keys()))
    assert (await query(alice, alice=[]))["device_keys"][alice.user_id] == {"EMBEDDED": device.keys()}
    await alice.ok("DELETE", "devices/EMBEDDED", json={"auth": alice.password_auth()})
    assert (await query(alice, alice=[]))["device_keys"][alice.user_id] == {}


async def test_an_application_service_uploads_keys_for_existing_devices_only(homeserver: Server) -> None:
    user_id = UserID("@bridged:test.example")
    await accounts.create_account(homeserver.hs, "bridged", None, appservice="bridge")
    body = UploadBody(Device(user_id, "D").keys())
    for device_id, errcode in (("", "M_INVALID_PARAM"), ("D", "M_NOT_FOUND")):
        with pytest.raises(MatrixError, match=errcode):
            await upload_keys(homeserver.hs, Requester(user_id, device_id, appservice="bridge"), body)
    await homeserver.write(create_device, user_id, "D", None)
    await upload_keys(homeserver.hs, Requester(user_id, "D", appservice="bridge"), body)


# --- one-time keys ---


async def test_a_key_upload_returns_the_one_time_key_counts(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    assert await alice.ok("POST", "keys/upload", json={}) == {"one_time_key_counts": {SIGNED: 0}}
    device = await device_of(alice, one_time=3)
    keys = {**device.one_time_keys(2), "curve25519:A": device.keys()["keys"][f"curve25519:{alice.device_id}"]}
    counts = await alice.ok("POST", "keys/upload", json={"one_time_keys": keys})
    assert counts == {"one_time_key_counts": {SIGNED: 5, "curve25519": 1}}


async def test_each_one_time_key_is_issued_once_in_the_order_of_uploads(homeserver: Server) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    device = await device_of(alice)
    batches = [device.one_time_keys(3), device.one_time_keys(2)][::-1]  # names do not decide
    for batch in batches:
        await alice.ok("POST", "keys/upload", json={"one_time_keys": batch})
    claimed: list[dict[str, Any]] = [await claim(bob, device) for _ in range(5)]
    assert [len(each) for each in claimed] == [1] * 5
    names = [next(iter(each)) for each in claimed]
    assert (set(names[:2]), set(names[2:])) == (set(batches[0]), set(batches[1]))
    assert {name: key for each in claimed for name, key in each.items()} == batches[0] | batches[1]
    assert await claim(bob, device) == {}


async def test_one_time_keys_are_issued_for_the_requested_algorithm_only(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    device = await device_of(alice, one_time=1)
    assert await claim(alice, device, "curve25519") == {}
    assert await claim(alice, device) != {}


async def test_a_one_time_key_without_a_signature_is_issued_too(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    device = await device_of(alice)
    key = {"curve25519:A": device.keys()["keys"][f"curve25519:{alice.device_id}"]}
    await alice.ok("POST", "keys/upload", json={"one_time_keys": key})
    assert await claim(alice, device, "curve25519") == key


async def test_repeating_a_key_upload_adds_nothing(homeserver: Server) -> None:
    """The answer to the first one may have been lost."""
    alice = await homeserver.register("alice")
    device = await device_of(alice)
    keys = device.one_time_keys(3)
    for _ in range(2):
        counts = await alice.ok("POST", "keys/upload", json={"one_time_keys": keys})
        assert counts == {"one_time_key_counts": {SIGNED: 3}}


async def test_repeating_an_upload_does_not_restore_an_issued_key(homeserver: Server) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    device = await device_of(alice)
    keys = device.one_time_keys(2)
    await alice.ok("POST", "keys/upload", json={"one_time_keys": keys})
    first = await claim(bob, device)
    counts = await alice.ok("POST", "keys/upload", json={"one_time_keys": keys})
    assert counts == {"one_time_key_counts": {SIGNED: 1}}
    assert first | await claim(bob, device) == keys
    assert await claim(bob, device) == {}


async def test_a_different_key_with_the_same_id_is_refused(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    device = await device_of(alice)
    await alice.ok("POST", "keys/upload", json={"one_time_keys": {f"{SIGNED}:A": device.one_time_key("A")}})
    body = {"one_time_keys": {f"{SIGNED}:B": device.one_time_key("B"), f"{SIGNED}:A": device.one_time_key("C")}}
    assert await alice.refused("POST", "keys/upload", json=body) == (400, "M_INVALID_PARAM")
    assert await claim(alice, device) == {f"{SIGNED}:A": device.one_time_key("A")}
    assert await claim(alice, device) == {}


async def test_the_same_key_under_two_ids_is_refused(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    device = await device_of(alice)
    key = device.one_time_key("A")
    body = {"one_time_keys": {f"{SIGNED}:A": key, f"{SIGNED}:B": key}}
    assert await alice.refused("POST", "keys/upload", json=body) == (400, "M_INVALID_PARAM")


async def test_new_device_keys_delete_the_old_one_time_keys(homeserver: Server) -> None:
    """Nobody could start a conversation with them: they are signed by a key that the device has no more."""
    alice = await homeserver.register("alice")
    await device_of(alice, one_time=2)
    renewed = Device(alice.user_id, alice.device_id, "renewed")
    keys = renewed.one_time_keys(1)
    counts = await alice.ok("POST", "keys/upload", json={"device_keys": renewed.keys(), "one_time_keys": keys})
    assert counts == {"one_time_key_counts": {SIGNED: 1}}
    assert await claim(alice, renewed) == keys


async def test_malformed_one_time_keys_are_refused(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    device = await device_of(alice)
    for (name, key, errcode), kind in product(
        [
            (f"{SIGNED}:A", {"key": "A" * 43, "signatures": {}}, "M_INVALID_SIGNATURE"),
            (f"{SIGNED}:A", {"key": "A" * 43}, "M_INVALID_PARAM"),
            (f"{SIGNED}:A", {"key": 7, "signatures": {}}, "M_INVALID_PARAM"),
            (f"{SIGNED}:A", {"key": "A" * 43, "signatures": []}, "M_INVALID_PARAM"),
            (f"{SIGNED}:A", {"key": "short", "signatures": {}}, "M_INVALID_PARAM"),
            (f"{SIGNED}:A", {"key": "A" * 43, "signatures": {}, "fallback": "yes"}, "M_INVALID_PARAM"),
            (f"{SIGNED}:A", "A" * 43, "M_INVALID_PARAM"),
            ("curve25519:A", "not a key", "M_INVALID_PARAM"),
            ("curve25519:", "A" * 43, "M_INVALID_PARAM"),
            (":A", "A" * 43, "M_INVALID_PARAM"),
            ("curve25519", "A" * 43, "M_INVALID_PARAM"),
            ("curve25519:" + "x" * 256, "A" * 43, "M_INVALID_PARAM"),
            ("curve25519:\0", "A" * 43, "M_INVALID_PARAM"),
            ("x" * 256 + ":A", "A" * 43, "M_INVALID_PARAM"),
            ("org.example.new:A", "x" * limits.encryption.ONE_TIME_KEY_BYTES_MAX, "M_TOO_LARGE"),
            ("curve25519:A", None, "M_INVALID_PARAM"),
        ],
        ["one_time_keys", "fallback_keys"],
    ):
        with row(name, key, errcode, kind):
            body = {kind: {**device.fallback_key("GOOD"), name: key}}
            assert await alice.refused("POST", "keys/upload", json=body) == (400, errcode)
            assert await claim(alice, device) == {}


async def test_the_number_of_keys_of_a_device_is_bounded(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    device = await device_of(alice)
    most = limits.encryption.ONE_TIME_KEYS_PER_DEVICE_MAX
    for number, answer in ((most + 1, 400), (most, 200), (1, 400)):
        body = {"one_time_keys": device.one_time_keys(number)}
        assert (await alice.post("keys/upload", json=body)).status_code == answer
    fallback = {f"org.example.{number}:A": "key" for number in range(limits.encryption.FALLBACK_KEYS_PER_DEVICE_MAX)}
    await alice.ok("POST", "keys/upload", json={"fallback_keys": fallback})
    body = {"fallback_keys": device.fallback_key("F")}
    assert await alice.refused("POST", "keys/upload", json=body) == (400, "M_INVALID_PARAM")


# --- fallback keys ---


async def test_a_fallback_key_is_issued_when_there_is_no_one_time_key(homeserver: Server) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    fallback = Device(alice.user_id, alice.device_id).fallback_key("F")
    device = await device_of(alice, one_time=1, fallback_keys=fallback)
    assert await claim(bob, device) != fallback
    assert (await sync(alice))["device_unused_fallback_key_types"] == [SIGNED]
    for _ in range(2):
        assert await claim(bob, device) == fallback
        assert (await sync(alice))["device_unused_fallback_key_types"] == []


async def test_a_new_fallback_key_replaces_the_one_that_was_used(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    device = Device(alice.user_id, alice.device_id)
    await device_of(alice, fallback_keys=device.fallback_key("OLD"))
    await claim(alice, device)
    for name, unused in (("OLD", []), ("NEW", [SIGNED])):  # a repeated upload does not add a key
        await alice.ok("POST", "keys/upload", json={"fallback_keys": device.fallback_key(name)})
        assert (await sync(alice))["device_unused_fallback_key_types"] == unused
    assert await claim(alice, device) == device.fallback_key("NEW")


async def test_each_algorithm_has_one_fallback_key(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    device = await device_of(alice)
    body = {"fallback_keys": device.fallback_key("A") | device.fallback_key("B")}
    assert await alice.refused("POST", "keys/upload", json=body) == (400, "M_INVALID_PARAM")


# --- what the device is told ---


async def test_every_sync_returns_the_devices_remaining_key_counts(homeserver: Server) -> None:
    """Element uploads keys only once it is told that there are none."""
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    answer = await sync(alice)
    assert (answer["device_one_time_keys_count"], answer["device_unused_fallback_key_types"]) == ({SIGNED: 0}, [])
    device = await device_of(alice, one_time=5)
    for left in (5, 4, 3):
        answer = await sync(alice, answer["next_batch"])
        assert answer["device_one_time_keys_count"] == {SIGNED: left}
        assert (await sync(alice, answer["next_batch"]))["device_one_time_keys_count"] == {SIGNED: left}
        await claim(bob, device)


async def test_each_device_of_a_user_has_its_own_keys(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    await device_of(alice, one_time=5)
    other = await homeserver.log_in("alice")
    assert (await sync(other))["device_one_time_keys_count"] == {SIGNED: 0}


# --- requests ---


async def test_malformed_requests_are_refused(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    for path, body, errcode in [
        ("upload", {"device_keys": []}, "M_BAD_JSON"),
        ("upload", {"one_time_keys": "A"}, "M_BAD_JSON"),
        ("query", {}, "M_MISSING_PARAM"),
        ("query", {"device_keys": []}, "M_BAD_JSON"),
        ("query", {"device_keys": {"@a:b": "D"}}, "M_BAD_JSON"),
        ("query", {"device_keys": {"@a:b": [1]}}, "M_BAD_JSON"),
        ("query", {"device_keys": {"alice": []}}, "M_INVALID_PARAM"),
        ("query", {"device_keys": {}, "timeout": "now"}, "M_BAD_JSON"),
        ("claim", {}, "M_MISSING_PARAM"),
        ("claim", {"one_time_keys": {"@a:b": []}}, "M_BAD_JSON"),
        ("claim", {"one_time_keys": {"@a:b": {"D": 7}}}, "M_BAD_JSON"),
        ("claim", {"one_time_keys": {"alice": {"D": SIGNED}}}, "M_INVALID_PARAM"),
    ]:
        with row(path, body, errcode):
            assert await alice.refused("POST", f"keys/{path}", json=body) == (400, errcode)


async def test_requests_for_too_many_keys_are_refused(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    users: dict[str, Any] = {f"@{n}:test.example": [] for n in range(limits.encryption.KEY_QUERY_USERS_MAX + 1)}
    assert await alice.refused("POST", "keys/query", json={"device_keys": users}) == (400, "M_INVALID_PARAM")
    devices = {f"D{number}": SIGNED for number in range(limits.encryption.KEY_CLAIM_DEVICES_MAX + 1)}
    body = {"one_time_keys": {alice.user_id: devices}}
    assert await alice.refused("POST", "keys/claim", json=body) == (400, "M_INVALID_PARAM")


async def test_key_endpoints_require_an_access_token(homeserver: Server) -> None:
    for path in ("upload", "query", "claim", "device_signing/upload", "signatures/upload"):
        assert await homeserver.anonymous.refused("POST", f"keys/{path}", json={}) == (401, "M_MISSING_TOKEN")
