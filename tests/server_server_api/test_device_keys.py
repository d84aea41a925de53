"""Keys across servers: found, claimed, signed. Spec: server-server-api/#end-to-end-encryption, #device-management"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote

import pytest
import trio

from homeserver import limits
from homeserver.config import RateLimitsSection
from homeserver.federation.identifiers import ServerName
from tests.support.federation import Federation
from tests.support.homeservers import Client
from tests.support.keys import SIGNED, CrossSigning, Device
from tests.support.stranger import Stranger

V1 = "/_matrix/federation/v1"
QUERY = ("POST", f"{V1}/user/keys/query")
CLAIM = ("POST", f"{V1}/user/keys/claim")


async def with_device(client: Client, one_time: int = 0) -> Device:
    """The client's device, with keys."""
    device = Device(client.user_id, client.device_id)
    body = {"device_keys": device.keys(), "one_time_keys": device.one_time_keys(one_time)}
    await client.ok("POST", "keys/upload", json=body)
    return device


async def with_cross_signing(client: Client) -> CrossSigning:
    keys = CrossSigning(client.user_id)
    await client.ok("POST", "keys/device_signing/upload", json=keys.body())
    return keys


async def query(client: Client, *user_ids: str, timeout: int = 10_000) -> dict[str, Any]:
    body = {"device_keys": {user_id: [] for user_id in user_ids}, "timeout": timeout}
    answer: dict[str, Any] = await client.ok("POST", "keys/query", json=body)
    return answer


async def claim(client: Client, *devices: Device, timeout: int = 10_000) -> dict[str, Any]:
    wanted: dict[str, dict[str, str]] = {}
    for device in devices:
        wanted.setdefault(device.user_id, {})[device.device_id] = SIGNED
    answer: dict[str, Any] = await client.ok("POST", "keys/claim", json={"one_time_keys": wanted, "timeout": timeout})
    return answer


async def start_with(federation: Federation) -> tuple[Client, Stranger]:
    """Alice on a server of ours, and another server."""
    server = await federation.start("a.example")
    return await server.register("alice"), Stranger(federation.network, ServerName("b.example"))


# --- between two servers ---


async def test_keys_of_a_user_of_another_server_are_found(federation: Federation) -> None:
    a, b = await federation.start("a.example"), await federation.start("b.example")
    alice, bob = await a.register("alice"), await b.register("bob", initial_device_display_name="Bob's phone")
    device, keys = await with_device(bob), await with_cross_signing(bob)
    signed = keys.by_self_signing(device.keys())
    await bob.ok("POST", "keys/signatures/upload", json={bob.user_id: {bob.device_id: signed}})
    answer = await query(alice, alice.user_id, bob.user_id, "@nobody:b.example")
    assert answer == {
        "device_keys": {
            alice.user_id: {},
            bob.user_id: {bob.device_id: {**signed, "unsigned": {"device_display_name": "Bob's phone"}}},
        },
        "failures": {},
        "master_keys": {bob.user_id: keys.master_key()},
        "self_signing_keys": {bob.user_id: keys.self_signing_key()},
        "user_signing_keys": {},
    }


async def test_a_one_time_key_is_issued_once_over_federation(federation: Federation) -> None:
    a, b = await federation.start("a.example"), await federation.start("b.example")
    alice, bob = await a.register("alice"), await b.register("bob")
    device = await with_device(bob, one_time=2)
    claimed = [await claim(client, device) for client in (alice, bob, alice)]
    keys = [each["one_time_keys"].get(bob.user_id, {}).get(bob.device_id) for each in claimed]
    assert [each["failures"] for each in claimed] == [{}] * 3
    assert keys[0] and keys[1] and keys[0].keys() != keys[1].keys()
    assert keys[2] is None


async def test_only_the_signer_sees_their_signature_on_a_remote_user(federation: Federation) -> None:
    a, b = await federation.start("a.example"), await federation.start("b.example")
    alice, carol, bob = await a.register("alice"), await a.register("carol"), await b.register("bob")
    keys, keys_of_bob = await with_cross_signing(alice), await with_cross_signing(bob)
    signed = keys.by_user_signing(keys_of_bob.master_key())
    body = {bob.user_id: {keys_of_bob.master.public: signed}}
    assert await alice.ok("POST", "keys/signatures/upload", json=body) == {"failures": {}}
    for viewer, expected in ((alice, signed), (carol, keys_of_bob.master_key()), (bob, keys_of_bob.master_key())):
        assert (await query(viewer, bob.user_id))["master_keys"] == {bob.user_id: expected}


async def test_users_of_unreachable_servers_cannot_be_signed(federation: Federation) -> None:
    alice, _ = await start_with(federation)
    await with_cross_signing(alice)
    keys = CrossSigning("@bob:nowhere.example")
    body = {keys.user_id: {keys.master.public: keys.master_key()}}
    failures = (await alice.ok("POST", "keys/signatures/upload", json=body))["failures"]
    assert failures[keys.user_id][keys.master.public]["errcode"] == "M_UNKNOWN"


async def test_signing_users_of_a_silent_server_fails_quickly(federation: Federation) -> None:
    alice, _ = await start_with(federation)
    await with_cross_signing(alice)
    people = []
    for number in range(20):
        silent = Stranger(federation.network, ServerName(f"silent{number}.example"))
        silent.answers[QUERY] = after(1000, {})
        people.append(CrossSigning(silent.user("bob")))
    began = trio.current_time()
    body = {each.user_id: {each.master.public: each.master_key()} for each in people}
    failures = (await alice.ok("POST", "keys/signatures/upload", json=body))["failures"]
    assert trio.current_time() - began < 11
    assert failures.keys() == body.keys()


# --- what is served ---


async def test_other_servers_see_public_keys_and_signatures_only(federation: Federation) -> None:
    a, stranger = await federation.start("a.example"), Stranger(federation.network, ServerName("b.example"))
    alice = await a.register("alice", initial_device_display_name="phone")
    device, keys = await with_device(alice), await with_cross_signing(alice)
    body = {"device_keys": {alice.user_id: []}}
    assert await stranger.request(a.name, *QUERY, body) == (
        200,
        {
            "device_keys": {
                alice.user_id: {alice.device_id: {**device.keys(), "unsigned": {"device_display_name": "phone"}}}
            },
            "master_keys": {alice.user_id: keys.master_key()},
            "self_signing_keys": {alice.user_id: keys.self_signing_key()},
        },
    )
    status, listed = await stranger.get(a.name, f"{V1}/user/devices/{quote(alice.user_id)}")
    assert (status, listed.pop("stream_id") > 0) == (200, True)
    assert listed == {
        "user_id": alice.user_id,
        "devices": [{"device_id": alice.device_id, "keys": device.keys(), "device_display_name": "phone"}],
        "master_key": keys.master_key(),
        "self_signing_key": keys.self_signing_key(),
    }


async def test_the_stream_id_of_a_device_list_increases(federation: Federation) -> None:
    a, stranger = await federation.start("a.example"), Stranger(federation.network, ServerName("b.example"))
    alice = await a.register("alice")
    numbers = []
    for _ in range(2):
        numbers.append((await stranger.get(a.name, f"{V1}/user/devices/{quote(alice.user_id)}"))[1]["stream_id"])
        await with_device(alice)
    assert numbers[0] < numbers[1]


async def test_other_servers_can_query_our_users_only(federation: Federation) -> None:
    a, stranger = await federation.start("a.example"), Stranger(federation.network, ServerName("b.example"))
    for path, body in (
        (QUERY, {"device_keys": {"@bob:b.example": []}}),
        (QUERY, {"device_keys": {"bob": []}}),
        (CLAIM, {"one_time_keys": {"@bob:b.example": {"D": SIGNED}}}),
    ):
        status, answer = await stranger.request(a.name, *path, body)
        assert (status, answer["errcode"]) == (400, "M_INVALID_PARAM")
    status, answer = await stranger.get(a.name, f"{V1}/user/devices/{quote('@bob:b.example')}")
    assert (status, answer["errcode"]) == (400, "M_INVALID_PARAM")
    status, answer = await stranger.get(a.name, f"{V1}/user/devices/{quote('@nobody:a.example')}")
    assert (status, answer["errcode"]) == (404, "M_NOT_FOUND")
    for path in (QUERY, CLAIM):
        assert await a.anonymous.refused(*path, json={}) == (401, "M_UNAUTHORIZED")


# --- what others answer ---


def answer_with(device: Device, keys: CrossSigning) -> dict[str, Any]:
    """The honest answer to a query."""
    return {
        "device_keys": {device.user_id: {device.device_id: device.keys()}},
        "master_keys": {device.user_id: keys.master_key()},
        "self_signing_keys": {device.user_id: keys.self_signing_key()},
    }


async def test_keys_that_are_not_signed_by_their_owner_are_left_out(federation: Federation) -> None:
    alice, stranger = await start_with(federation)
    user_id = stranger.user("bob")
    good, other = Device(user_id, "GOOD"), Device(user_id, "OTHER")
    keys = CrossSigning(user_id)
    answer = answer_with(good, keys)
    answer["device_keys"][user_id] |= {
        "FORGED": {**Device(user_id, "FORGED").keys(), "algorithms": []},
        "RENAMED": other.keys(),
        "ALICES": Device(alice.user_id, "ALICES").keys(),
        "NONSENSE": "keys",
        "EMPTY": {},
    }
    answer["self_signing_keys"] = {user_id: CrossSigning(user_id, "other").self_signing_key()}
    stranger.answers[QUERY] = answer
    shown = await query(alice, user_id)
    assert shown["device_keys"] == {user_id: {"GOOD": good.keys()}}
    assert shown["master_keys"] == {user_id: keys.master_key()}
    assert shown["self_signing_keys"] == {}


async def test_keys_of_users_who_were_not_asked_for_are_ignored(federation: Federation) -> None:
    alice, stranger = await start_with(federation)
    bob = answer_with(Device(stranger.user("bob"), "D"), CrossSigning(stranger.user("bob")))
    for user_id in (alice.user_id, stranger.user("carol"), "@dave:c.example"):
        other = answer_with(Device(user_id, "D"), CrossSigning(user_id))
        bob = {kind: {**bob[kind], **other[kind]} for kind in bob}
    bob["user_signing_keys"] = {stranger.user("bob"): CrossSigning(stranger.user("bob")).user_signing_key()}
    stranger.answers[QUERY] = bob
    shown = await query(alice, alice.user_id, stranger.user("bob"))
    assert shown["device_keys"].keys() == {alice.user_id, stranger.user("bob")}
    assert shown["device_keys"][alice.user_id] == {}
    assert shown["master_keys"].keys() == shown["self_signing_keys"].keys() == {stranger.user("bob")}
    assert shown["user_signing_keys"] == {}


async def test_devices_that_were_not_asked_for_are_left_out(federation: Federation) -> None:
    alice, stranger = await start_with(federation)
    user_id = stranger.user("bob")
    devices = {name: Device(user_id, name).keys() for name in ("WANTED", "OTHER")}
    stranger.answers[QUERY] = {"device_keys": {user_id: devices}}
    body = {"device_keys": {user_id: ["WANTED"]}}
    assert (await alice.ok("POST", "keys/query", json=body))["device_keys"][user_id].keys() == {"WANTED"}


async def test_signatures_of_third_parties_are_not_passed_on(federation: Federation) -> None:
    alice, stranger = await start_with(federation)
    user_id = stranger.user("bob")
    device, keys, carol = Device(user_id, "D"), CrossSigning(user_id), CrossSigning("@carol:c.example")
    answer = answer_with(device, keys)
    answer["master_keys"] = {user_id: carol.by_user_signing(keys.master_key())}
    answer["device_keys"] = {user_id: {"D": carol.by_user_signing(device.keys())}}
    stranger.answers[QUERY] = answer
    shown = await query(alice, user_id)
    assert shown["master_keys"] == {user_id: keys.master_key()}
    assert shown["device_keys"] == {user_id: {"D": device.keys()}}


@pytest.mark.parametrize(
    "answer",
    [
        [],
        {},
        {"device_keys": []},
        {"device_keys": {"@bob:b.example": []}},
        {"device_keys": {"@bob:b.example": {"D": {"user_id": "@bob:b.example", "device_id": "D", "keys": 7}}}},
        {"master_keys": {"@bob:b.example": {"user_id": "@bob:b.example", "usage": ["master"], "keys": {"a": 1}}}},
        {"master_keys": 7, "self_signing_keys": "x"},
        (200, None),
        (404, {"errcode": "M_UNRECOGNIZED", "error": "?"}),
        (500, {"errcode": "M_UNKNOWN", "error": "?"}),
    ],
)
async def test_a_useless_answer_counts_as_a_failure(federation: Federation, answer: Any) -> None:
    alice, stranger = await start_with(federation)
    stranger.answers[QUERY] = stranger.answers[CLAIM] = answer
    shown = await query(alice, stranger.user("bob"), alice.user_id)
    assert shown["device_keys"].get(alice.user_id) == {}
    assert shown["device_keys"].get(stranger.user("bob"), {}) == shown["master_keys"] == {}
    assert (await claim(alice, Device(stranger.user("bob"), "D")))["one_time_keys"] == {}


async def test_an_endless_answer_is_a_failure(federation: Federation) -> None:
    alice, stranger = await start_with(federation)
    size = limits.encryption.REMOTE_KEYS_ANSWER_BYTES_MAX
    stranger.answers[QUERY] = {"device_keys": {stranger.user("bob"): {"D": "x" * size}}}
    assert (await query(alice, stranger.user("bob")))["failures"].keys() == {"b.example"}


async def test_a_claim_returns_the_claimed_keys_only(federation: Federation) -> None:
    alice, stranger = await start_with(federation)
    bob, carol = Device(stranger.user("bob"), "D"), Device(stranger.user("carol"), "D")
    keys = bob.one_time_keys(2)
    first = next(iter(keys))
    stranger.answers[CLAIM] = {
        "one_time_keys": {
            bob.user_id: {"D": {"curve25519:A": "A" * 43, f"{SIGNED}:BAD": {"key": 7}, **keys}, "E": keys},
            carol.user_id: {"D": carol.one_time_keys(1)},
            alice.user_id: {"D": keys},
        }
    }
    answer = await claim(alice, bob)
    assert answer == {"one_time_keys": {bob.user_id: {"D": {first: keys[first]}}}, "failures": {}}


# --- servers that are silent ---


def after(seconds: float, answer: Any) -> Callable[[str, Any], Awaitable[Any]]:
    """An answer that takes a while."""

    async def wait(uri: str, content: Any) -> Any:
        await trio.sleep(seconds)
        return answer

    return wait


async def test_a_silent_server_delays_a_query_until_its_timeout_only(federation: Federation) -> None:
    alice, stranger = await start_with(federation)
    silent = Stranger(federation.network, ServerName("silent.example"))
    device = Device(stranger.user("bob"), "D")
    stranger.answers[QUERY] = {"device_keys": {device.user_id: {"D": device.keys()}}}
    key = device.one_time_keys(1)
    stranger.answers[CLAIM] = {"one_time_keys": {device.user_id: {"D": key}}}
    silent.answers[QUERY] = silent.answers[CLAIM] = after(1000, {})
    began = trio.current_time()
    shown = await query(alice, device.user_id, silent.user("carol"), "@x:gone.example", timeout=3000)
    assert trio.current_time() - began == pytest.approx(3, abs=0.5)
    assert shown["device_keys"] == {device.user_id: {"D": device.keys()}}
    assert shown["failures"].keys() == {"silent.example", "gone.example"}
    answer = await claim(alice, device, Device(silent.user("carol"), "D"), timeout=3000)
    assert answer["one_time_keys"] == {device.user_id: {"D": key}}
    assert answer["failures"].keys() == {"silent.example"}


async def test_a_query_never_waits_longer_than_the_default_timeout(federation: Federation) -> None:
    alice, _ = await start_with(federation)
    silent = Stranger(federation.network, ServerName("silent.example"))
    silent.answers[QUERY] = after(100_000, {})
    for timeout, seconds in ((10**15, limits.encryption.REMOTE_KEYS_TIMEOUT_MS / 1000), (-1, 0)):
        began = trio.current_time()
        answer = await query(alice, silent.user("carol"), timeout=timeout)
        assert trio.current_time() - began == pytest.approx(seconds, abs=0.6)
        assert answer["failures"].keys() == {"silent.example"}
        await trio.sleep(3600)


async def test_a_short_timeout_does_not_mark_a_server_as_silent(federation: Federation) -> None:
    alice, stranger = await start_with(federation)
    device = Device(stranger.user("bob"), "D")
    stranger.answers[QUERY] = after(0.5, {"device_keys": {device.user_id: {"D": device.keys()}}})
    assert (await query(alice, device.user_id, timeout=1))["failures"].keys() == {stranger.name}
    assert (await query(alice, device.user_id))["device_keys"] == {device.user_id: {"D": device.keys()}}


async def test_any_number_of_silent_servers_still_leaves_others_a_turn(federation: Federation) -> None:
    alice, stranger = await start_with(federation)
    device = Device(stranger.user("bob"), "D")
    stranger.answers[QUERY] = {"device_keys": {device.user_id: {"D": device.keys()}}}
    silent = []
    for number in range(3 * limits.encryption.REMOTE_KEYS_SERVERS_AT_ONCE):
        silent.append(Stranger(federation.network, ServerName(f"silent{number}.example")))
        silent[-1].answers[QUERY] = after(1000, {})
    users = [each.user("carol") for each in silent]
    answer = await query(alice, *users, device.user_id)
    assert answer["device_keys"] == {device.user_id: {"D": device.keys()}}
    assert answer["failures"].keys() == {each.name for each in silent}


# --- how much may be asked for ---


async def test_queries_of_one_user_and_of_one_server_are_limited(federation: Federation) -> None:
    server = await federation.start("a.example", rate_limits=RateLimitsSection(enabled=True))
    alice, stranger = await server.register("alice"), Stranger(federation.network, ServerName("b.example"))
    most = limits.encryption.KEY_QUERY_USERS_MAX
    body = {"device_keys": {f"@{number}:a.example": [] for number in range(most)}}
    statuses = [(await alice.post("keys/query", json=body)).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]
    statuses = [(await stranger.request("a.example", *QUERY, body))[0] for _ in range(6)]
    assert statuses == [200] * 5 + [429]
