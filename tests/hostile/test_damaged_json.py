"""Stored JSON that is damaged is left out of answers into which it would be spliced, and the rest is answered."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from homeserver.database import Transaction
from tests.support.homeservers import Client, Server
from tests.support.keys import CrossSigning, Device

DAMAGES = (b'{"a":', b"", b'{"a":"\xff"}', b'{"a":1}}', b"[]", b'{"a":nul}')


async def damage(server: Server, table: str, column: str, data: bytes, where: str = "1 = 1") -> None:
    def write(tx: Transaction) -> int:
        return tx.run(f"UPDATE {table} SET {column} = ? WHERE {where}", data)

    assert await server.write(write) > 0


@pytest.fixture
async def alice(homeserver: Server) -> Client:
    return await homeserver.register("alice")


@pytest.mark.parametrize("data", DAMAGES)
async def test_damaged_account_data_are_left_out(
    homeserver: Server, alice: Client, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    room_id = (await alice.ok("POST", "createRoom", json={}))["room_id"]
    for where in ("", f"rooms/{room_id}/"):
        for kind in ("a", "b"):
            await alice.ok("PUT", f"user/{alice.user_id}/{where}account_data/{kind}", json={"n": 1})
    nid = await homeserver.read(lambda tx: tx.find("a"))
    await damage(homeserver, "account_data", "content", data, f"type_nid = {nid}")
    answer = await alice.ok("GET", "sync")
    good = {"type": "b", "content": {"n": 1}}
    assert [each for each in answer["account_data"]["events"] if each["type"] in "ab"] == [good]
    assert answer["rooms"]["join"][room_id]["account_data"]["events"] == [good]
    assert (await alice.ok("GET", f"rooms/{room_id}/initialSync"))["account_data"] == [good]
    assert {record.message for record in caplog.records if record.levelno >= logging.ERROR} == {
        "stored JSON is damaged and is left out"
    }


async def test_damaged_keys_of_devices_and_users_are_left_out(homeserver: Server, alice: Client) -> None:
    other = await homeserver.log_in("alice", device_id="OTHER")
    devices = [Device(client.user_id, client.device_id) for client in (alice, other)]
    for client, device in zip((alice, other), devices, strict=True):
        await client.ok("POST", "keys/upload", json={"device_keys": device.keys()})
    keys = CrossSigning(alice.user_id)
    await alice.ok("POST", "keys/device_signing/upload", json={**keys.body(), "auth": alice.password_auth()})
    await damage(homeserver, "device_keys", "keys", b'{"a":', "device_id = 'OTHER'")
    await damage(homeserver, "cross_signing_keys", "key", b'{"a":', "usage = 'self_signing'")
    answer = await alice.ok("POST", "keys/query", json={"device_keys": {alice.user_id: []}})
    assert answer["device_keys"] == {alice.user_id: {alice.device_id: devices[0].keys()}}
    assert answer["master_keys"] == {alice.user_id: keys.master_key()}
    assert answer["self_signing_keys"] == {}


async def test_damaged_one_time_keys_are_not_issued(homeserver: Server, alice: Client) -> None:
    device = Device(alice.user_id, alice.device_id)
    one_time_keys = {f"signed_curve25519:{n}": device.sign({"key": str(n) * 43}) for n in range(2)}
    body = {"device_keys": device.keys(), "one_time_keys": one_time_keys}
    await alice.ok("POST", "keys/upload", json=body)
    await damage(homeserver, "one_time_keys", "key", b'{"a":', "key_id = '0'")
    claim = {"one_time_keys": {alice.user_id: {alice.device_id: "signed_curve25519"}}}
    answers = [(await alice.ok("POST", "keys/claim", json=claim))["one_time_keys"] for _ in range(2)]
    name = "signed_curve25519:1"
    assert answers == [{}, {alice.user_id: {alice.device_id: {name: one_time_keys[name]}}}]


@pytest.mark.parametrize("damaged", ["a", "b", "c"])
async def test_damaged_keys_of_a_backup_are_left_out(homeserver: Server, alice: Client, damaged: str) -> None:
    algorithm = "m.megolm_backup.v1.curve25519-aes-sha2"
    body: dict[str, Any] = {"algorithm": algorithm, "auth_data": {"public_key": "x"}}
    version = (await alice.ok("POST", "room_keys/version", json=body))["version"]
    key = {"first_message_index": 0, "forwarded_count": 0, "is_verified": False, "session_data": {"a": 1}}
    rooms = {"!r:a": {"sessions": {"a": key, "b": key}}, "!s:a": {"sessions": {"c": key}}}
    await alice.ok("PUT", f"room_keys/keys?version={version}", json={"rooms": rooms})
    await damage(homeserver, "key_backup_keys", "session_data", b'{"a":', f"session_id = '{damaged}'")
    shown = (await alice.ok("GET", f"room_keys/keys?version={version}"))["rooms"]
    assert sorted(session for room in shown.values() for session in room["sessions"]) == sorted(
        {"a", "b", "c"} - {damaged}
    )
    for room_id in rooms:
        of_room = await alice.ok("GET", f"room_keys/keys/{room_id}?version={version}")
        assert of_room["sessions"] == shown.get(room_id, {}).get("sessions", {})
