"""Users sign their devices and one another. Spec: client-server-api/#cross-signing, #key-and-signature-security"""

from __future__ import annotations

from typing import Any

import pytest
import trio

from homeserver import limits
from homeserver.authenticate import Requester
from homeserver.features.encryption_keys.cross_signing import KeysBody, upload_cross_signing_keys
from homeserver.federation.identifiers import UserID
from homeserver.users import accounts
from tests.support.homeservers import Client, Server
from tests.support.keys import CrossSigning, Device, Key
from tests.support.rows import row

UPLOAD = "keys/device_signing/upload"


async def with_keys(homeserver: Server, name: str) -> tuple[Client, Device, CrossSigning]:
    """A user with a device and cross-signing keys."""
    client = await homeserver.register(name)
    device, keys = Device(client.user_id, client.device_id), CrossSigning(client.user_id)
    await client.ok("POST", "keys/upload", json={"device_keys": device.keys()})
    await client.ok("POST", UPLOAD, json=keys.body())
    return client, device, keys


async def replace_keys(client: Client, body: dict[str, Any]) -> None:
    """Uploads keys that replace others, with the user's password."""
    session = await session_for(client, body)
    await client.ok("POST", UPLOAD, json={**body, "auth": client.password_auth(session)})


async def session_for(client: Client, body: dict[str, Any]) -> str:
    """The session of an upload that needs authentication."""
    response = await client.post(UPLOAD, json=body)
    assert response.status_code == 401
    assert response.json()["flows"] == [{"stages": ["m.login.password"]}]
    return response.json()["session"]


async def shown(viewer: Client, user_id: str) -> dict[str, Any]:
    """All keys of a user that the viewer is shown: of devices by their ID, of cross-signing by their usage."""
    answer = await viewer.ok("POST", "keys/query", json={"device_keys": {user_id: []}})
    kinds = ("master_keys", "self_signing_keys", "user_signing_keys")
    found = {kind: answer[kind][user_id] for kind in kinds if user_id in answer[kind]}
    return {**answer["device_keys"].get(user_id, {}), **found}


async def sign(client: Client, user_id: str, name: str, content: dict[str, Any]) -> dict[str, Any] | None:
    """Uploads signatures, and answers why they were refused."""
    answer = await client.ok("POST", "keys/signatures/upload", json={user_id: {name: content}})
    failure: dict[str, Any] | None = answer["failures"].get(user_id, {}).get(name)
    return failure


# --- keys ---


async def test_only_the_owner_sees_the_user_signing_key(homeserver: Server) -> None:
    alice, device, keys = await with_keys(homeserver, "alice")
    bob = await homeserver.register("bob")
    for_everyone = {
        alice.device_id: device.keys(),
        "master_keys": keys.master_key(),
        "self_signing_keys": keys.self_signing_key(),
    }
    assert await shown(bob, alice.user_id) == for_everyone
    assert await shown(alice, alice.user_id) == {**for_everyone, "user_signing_keys": keys.user_signing_key()}


async def test_uploading_first_or_unchanged_keys_needs_no_authentication(homeserver: Server) -> None:
    alice, _, keys = await with_keys(homeserver, "alice")
    same = keys.body()
    for body in (same, {"master_key": same["master_key"]}, {"self_signing_key": same["self_signing_key"]}):
        assert await alice.ok("POST", UPLOAD, json=body) == {}


async def test_changing_or_adding_keys_needs_authentication(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    keys, others = CrossSigning(alice.user_id), CrossSigning(alice.user_id, "others")
    await alice.ok("POST", UPLOAD, json={"master_key": keys.master_key()})
    for body in ({"self_signing_key": keys.self_signing_key()}, keys.body(), others.body()):
        await session_for(alice, body)
    assert (await shown(alice, alice.user_id)).keys() == {"master_keys"}
    await replace_keys(alice, keys.body())
    await replace_keys(alice, others.body())
    assert (await shown(alice, alice.user_id))["master_keys"] == others.master_key()


async def test_an_authentication_session_is_bound_to_the_uploaded_keys(homeserver: Server) -> None:
    alice, _, _ = await with_keys(homeserver, "alice")
    session = await session_for(alice, CrossSigning(alice.user_id, "second").body())
    body = {**CrossSigning(alice.user_id, "third").body(), "auth": alice.password_auth(session)}
    assert await alice.refused("POST", UPLOAD, json=body) == (403, "M_FORBIDDEN")
    wrong = {**CrossSigning(alice.user_id, "second").body(), "auth": alice.password_auth(session, "wrong")}
    assert (await alice.post(UPLOAD, json=wrong)).status_code == 401


async def test_one_of_two_simultaneous_first_uploads_needs_authentication(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    statuses = []

    async def upload(secret: str) -> None:
        statuses.append((await alice.post(UPLOAD, json=CrossSigning(alice.user_id, secret).body())).status_code)

    async with trio.open_nursery() as nursery:
        for secret in ("one", "other"):
            nursery.start_soon(upload, secret)
    assert sorted(statuses) == [200, 401]


async def test_an_application_service_needs_no_authentication(homeserver: Server) -> None:
    user_id = UserID("@bridged:test.example")
    await accounts.create_account(homeserver.hs, "bridged", None, appservice="bridge")
    requester = Requester(user_id, "", appservice="bridge")
    for secret in ("first", "second"):
        await upload_cross_signing_keys(homeserver.hs, requester, KeysBody(**CrossSigning(user_id, secret).body()))


async def test_keys_must_be_signed_by_the_master_key(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    keys, others = CrossSigning(alice.user_id), CrossSigning(alice.user_id, "others")
    for wrong in (others.self_signing_key(), {**keys.self_signing_key(), "signatures": {}}):
        body = {"master_key": keys.master_key(), "self_signing_key": wrong}
        assert await alice.refused("POST", UPLOAD, json=body) == (400, "M_INVALID_SIGNATURE")
    assert await shown(alice, alice.user_id) == {}


async def test_a_master_key_is_required(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    for body in ({}, {"self_signing_key": CrossSigning(alice.user_id).self_signing_key()}):
        assert await alice.refused("POST", UPLOAD, json=body) == (400, "M_MISSING_PARAM")


async def test_malformed_master_keys_are_refused(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    for change in [
        {"user_id": "@bob:test.example"},
        {"user_id": None},
        {"usage": ["self_signing"]},
        {"usage": "master"},
        {"usage": [7]},
        {"keys": {}},
        {"keys": {"ed25519:A": "A", "ed25519:B": "B"}},
        {"keys": {"ed25519:" + "A" * 43: "B" * 43}},
        {"keys": {"ed25519:short": "short"}},
        {"keys": {"curve25519:" + "A" * 43: "A" * 43}},
        {"keys": ["A"]},
        {"signatures": {"@alice:test.example": "A"}},
    ]:
        with row(change):
            body = {"master_key": {**CrossSigning(alice.user_id).master_key(), **change}}
            assert await alice.refused("POST", UPLOAD, json=body) == (400, "M_INVALID_PARAM")


async def test_cross_signing_keys_have_a_maximum_size(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    most = limits.encryption.CROSS_SIGNING_KEY_BYTES_MAX
    body = {"master_key": {**CrossSigning(alice.user_id).master_key(), "more": "x" * most}}
    assert await alice.refused("POST", UPLOAD, json=body) == (400, "M_TOO_LARGE")


async def test_a_cross_signing_key_cannot_have_the_id_of_a_device(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    keys = CrossSigning(alice.user_id)
    await homeserver.log_in("alice", device_id=keys.master.public)
    assert await alice.refused("POST", UPLOAD, json=keys.body()) == (403, "M_FORBIDDEN")
    assert await shown(alice, alice.user_id) == {}


async def test_a_device_cannot_have_the_id_of_a_cross_signing_key(homeserver: Server) -> None:
    alice, _, keys = await with_keys(homeserver, "alice")
    body = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": "alice"}}
    for key in (keys.master, keys.self_signing, keys.user_signing):
        login = {**body, **alice.password_auth(), "device_id": key.public}
        assert await homeserver.anonymous.refused("POST", "login", json=login) == (400, "M_INVALID_PARAM")


async def test_a_new_master_key_invalidates_signatures_of_the_old_one(homeserver: Server) -> None:
    alice, device, keys = await with_keys(homeserver, "alice")
    assert await sign(alice, alice.user_id, alice.device_id, keys.by_self_signing(device.keys())) is None
    renewed = CrossSigning(alice.user_id, "renewed")
    await replace_keys(alice, {"master_key": renewed.master_key()})
    assert await shown(alice, alice.user_id) == {
        alice.device_id: device.keys(),
        "master_keys": renewed.master_key(),
    }


async def test_users_sharing_a_room_learn_of_new_keys(homeserver: Server) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    await homeserver.make_room(alice, bob)
    since = (await bob.ok("GET", "sync"))["next_batch"]
    await alice.ok("POST", UPLOAD, json=CrossSigning(alice.user_id).body())
    answer = await bob.ok("GET", f"sync?since={since}&timeout=1000")
    assert answer["device_lists"]["changed"] == [alice.user_id]


# --- signatures ---


async def test_everyone_sees_that_a_user_has_signed_a_device(homeserver: Server) -> None:
    alice, device, keys = await with_keys(homeserver, "alice")
    bob = await homeserver.register("bob")
    signed = keys.by_self_signing(device.keys())
    assert await sign(alice, alice.user_id, alice.device_id, signed) is None
    for viewer in (alice, bob):
        assert (await shown(viewer, alice.user_id))[alice.device_id] == signed
    await alice.ok("POST", "keys/upload", json={"device_keys": device.keys()})  # what a client repeats when it starts
    assert (await shown(bob, alice.user_id))[alice.device_id] == signed


async def test_a_device_with_changed_keys_must_be_signed_again(homeserver: Server) -> None:
    alice, device, keys = await with_keys(homeserver, "alice")
    assert await sign(alice, alice.user_id, alice.device_id, keys.by_self_signing(device.keys())) is None
    renewed = Device(alice.user_id, alice.device_id, "renewed")
    await alice.ok("POST", "keys/upload", json={"device_keys": renewed.keys()})
    assert (await shown(alice, alice.user_id))[alice.device_id] == renewed.keys()
    signed = keys.by_self_signing(renewed.keys())  # a device that has the self-signing key may sign itself
    await alice.ok("POST", "keys/upload", json={"device_keys": signed})
    assert (await shown(alice, alice.user_id))[alice.device_id] == signed


async def test_everyone_sees_that_a_device_has_signed_the_master_key_of_its_user(homeserver: Server) -> None:
    alice, device, keys = await with_keys(homeserver, "alice")
    bob = await homeserver.register("bob")
    signed = device.sign(keys.master_key())
    assert await sign(alice, alice.user_id, keys.master.public, signed) is None
    for viewer in (alice, bob):
        assert (await shown(viewer, alice.user_id))["master_keys"] == signed


async def test_only_the_signer_sees_their_signature_on_another_user(homeserver: Server) -> None:
    alice, _, keys = await with_keys(homeserver, "alice")
    bob, _, keys_of_bob = await with_keys(homeserver, "bob")
    carol = await homeserver.register("carol")
    signed = keys.by_user_signing(keys_of_bob.master_key())
    assert await sign(alice, bob.user_id, keys_of_bob.master.public, signed) is None
    assert (await shown(alice, bob.user_id))["master_keys"] == signed
    for viewer in (bob, carol):
        assert (await shown(viewer, bob.user_id))["master_keys"] == keys_of_bob.master_key()


async def test_the_signers_other_devices_learn_of_a_signature(homeserver: Server) -> None:
    alice, _, keys = await with_keys(homeserver, "alice")
    bob, _, keys_of_bob = await with_keys(homeserver, "bob")
    await homeserver.make_room(alice, bob)
    phone = await homeserver.log_in("alice")
    since = {client.user_id: (await client.ok("GET", "sync"))["next_batch"] for client in (phone, bob)}
    signed = keys.by_user_signing(keys_of_bob.master_key())
    assert await sign(alice, bob.user_id, keys_of_bob.master.public, signed) is None
    answer = await phone.ok("GET", f"sync?since={since[alice.user_id]}&timeout=1000")
    assert answer["device_lists"]["changed"] == [bob.user_id]
    assert "device_lists" not in await bob.ok("GET", f"sync?since={since[bob.user_id]}")


@pytest.mark.parametrize("replaced", ["signing", "signed"])
async def test_a_signature_disappears_with_either_key(homeserver: Server, replaced: str) -> None:
    alice, _, keys = await with_keys(homeserver, "alice")
    bob, _, keys_of_bob = await with_keys(homeserver, "bob")
    signed = keys.by_user_signing(keys_of_bob.master_key())
    assert await sign(alice, bob.user_id, keys_of_bob.master.public, signed) is None
    client, renewed = (alice, keys) if replaced == "signing" else (bob, keys_of_bob)
    renewed = CrossSigning(renewed.user_id, "renewed")
    await replace_keys(client, renewed.body())
    expected = keys_of_bob if replaced == "signing" else renewed
    assert (await shown(alice, bob.user_id))["master_keys"] == expected.master_key()


async def test_invalid_signatures_are_refused_individually(homeserver: Server) -> None:
    alice, device, keys = await with_keys(homeserver, "alice")
    bob, _, keys_of_bob = await with_keys(homeserver, "bob")
    stranger = Key("stranger")
    forged_device = stranger.sign(device.keys(), alice.user_id, keys.self_signing.public)
    forged_master = stranger.sign(keys.master_key(), alice.user_id, alice.device_id)
    forged_bob = stranger.sign(keys_of_bob.master_key(), alice.user_id, keys.user_signing.public)
    body = {
        alice.user_id: {
            alice.device_id: forged_device,
            keys.master.public: forged_master,
            "NONE": device.keys(),
            keys.self_signing.public: keys.self_signing_key(),
        },
        bob.user_id: {keys_of_bob.master.public: forged_bob, bob.device_id: forged_bob},
        "@nobody:test.example": {"A": {}},
    }
    failures = (await alice.ok("POST", "keys/signatures/upload", json=body))["failures"]
    assert {
        (user_id, name): each["errcode"] for user_id, names in failures.items() for name, each in names.items()
    } == {
        (alice.user_id, alice.device_id): "M_INVALID_SIGNATURE",
        (alice.user_id, keys.master.public): "M_INVALID_SIGNATURE",
        (alice.user_id, "NONE"): "M_NOT_FOUND",
        (alice.user_id, keys.self_signing.public): "M_NOT_FOUND",
        (bob.user_id, keys_of_bob.master.public): "M_INVALID_SIGNATURE",
        (bob.user_id, bob.device_id): "M_NOT_FOUND",
        ("@nobody:test.example", "A"): "M_NOT_FOUND",
    }
    assert (await shown(alice, alice.user_id))[alice.device_id] == device.keys()
    assert (await shown(alice, bob.user_id))["master_keys"] == keys_of_bob.master_key()


async def test_valid_signatures_are_stored_despite_invalid_ones(homeserver: Server) -> None:
    alice, device, keys = await with_keys(homeserver, "alice")
    signed = keys.by_self_signing(device.keys())
    body = {alice.user_id: {"NONE": {}, alice.device_id: signed}}
    failures = (await alice.ok("POST", "keys/signatures/upload", json=body))["failures"]
    assert failures[alice.user_id].keys() == {"NONE"}
    assert (await shown(alice, alice.user_id))[alice.device_id] == signed


async def test_the_signed_object_must_match_the_stored_one(homeserver: Server) -> None:
    alice, device, keys = await with_keys(homeserver, "alice")
    other = keys.by_self_signing({**device.keys(), "algorithms": ["org.example.broken"]})
    failure = await sign(alice, alice.user_id, alice.device_id, other)
    assert failure is not None and failure["errcode"] == "M_INVALID_PARAM"


@pytest.mark.parametrize("content", [{"signatures": 7}, {"signatures": {"@alice:test.example": 7}}])
async def test_malformed_signatures_are_reported_as_failures(homeserver: Server, content: dict[str, Any]) -> None:
    alice, device, _ = await with_keys(homeserver, "alice")
    failure = await sign(alice, alice.user_id, alice.device_id, {**device.keys(), **content})
    assert failure is not None and failure["errcode"] == "M_INVALID_PARAM"


@pytest.mark.parametrize(
    ("body", "errcode"),
    [({"alice": {}}, "M_INVALID_PARAM"), ({"@a:b": []}, "M_BAD_JSON"), ({"@a:b": {"D": 7}}, "M_BAD_JSON")],
)
async def test_malformed_uploads_are_refused(homeserver: Server, body: Any, errcode: str) -> None:
    alice = await homeserver.register("alice")
    assert await alice.refused("POST", "keys/signatures/upload", json=body) == (400, errcode)


async def test_the_number_of_signatures_in_an_upload_is_limited(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    body = {alice.user_id: {f"D{number}": {} for number in range(limits.encryption.SIGNED_KEYS_MAX + 1)}}
    assert await alice.refused("POST", "keys/signatures/upload", json=body) == (400, "M_INVALID_PARAM")
