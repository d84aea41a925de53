"""Invites by email address. Spec: client-server-api/#third-party-invites, server-server-api/#third-party-invites"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest

from homeserver import limits
from homeserver.config import RateLimitsSection
from tests.support.federation import Federation, create_room, invite, join, membership_in, state_of, sync, until
from tests.support.homeservers import Client, Server
from tests.support.identity_server import TOKEN, IdentityServer
from tests.support.people import Json, path_of, set_state
from tests.support.stranger import Stranger

MAIL = "bob@mail.example"
KIND = "m.room.third_party_invite"
GOOD = {"id_server": "identity.example", "id_access_token": TOKEN, "medium": "email", "address": MAIL}
FORBIDDEN = (403, "M_FORBIDDEN")


async def start(federation: Federation, **room: Any) -> tuple[Server, Server, Client, Client, IdentityServer, str]:
    """alice and her room on a.example, bob on b.example, and an identity server that both may use."""
    a, b, alice, bob = await federation.start_two()
    return a, b, alice, bob, IdentityServer.on(federation.network), await create_room(alice, **room)


async def invite_address(client: Client, room_id: str, body: Json) -> None:
    assert await client.ok("POST", path_of(room_id, "invite"), json=body) == {}


async def content_of(client: Client, room_id: str, kind: str, state_key: str) -> Json:
    content: Json = await client.ok("GET", path_of(room_id, "state", kind, state_key))
    return content


def exchange_path(room_id: str) -> str:
    return f"/_matrix/federation/v1/exchange_third_party_invite/{quote(room_id, safe='')}"


# Inviting


@pytest.mark.parametrize("algorithms", [["sha256"], ["none"], ["none", "sha256", "rot13"]])
async def test_the_owner_of_an_address_is_invited_like_anyone_else(
    federation: Federation, algorithms: list[str]
) -> None:
    a, b, alice, bob, identity, room_id = await start(federation)
    identity.algorithms = algorithms
    identity.owners["email", MAIL] = bob.user_id
    await invite_address(alice, room_id, identity.invite("Bob@Mail.example", reason="Tea"))
    assert membership_in(await sync(bob), room_id) == "invite"
    assert await content_of(alice, room_id, "m.room.member", bob.user_id) == {"membership": "invite", "reason": "Tea"}
    assert not identity.stored


async def test_an_address_without_owner_gets_an_invite_stored(federation: Federation) -> None:
    a, b, alice, bob, identity, room_id = await start(federation, name="Tea", creation_content={"type": "m.space"})
    await invite_address(alice, room_id, identity.invite(MAIL))
    content = await content_of(alice, room_id, KIND, "token0")
    first, second = content.pop("public_keys")
    assert content == {"display_name": "b...", **first}
    assert first["public_key"] == identity.key.verify_key_base64
    assert second["key_validity_url"].endswith("/pubkey/ephemeral/isvalid")
    assert identity.stored == [
        {
            "medium": "email", "address": MAIL, "room_id": room_id, "sender": alice.user_id, "room_name": "Tea",
            "room_join_rules": "invite", "room_type": "m.space", "sender_display_name": "alice",
        }
    ]  # fmt: skip


async def test_an_address_that_gets_an_owner_between_look_up_and_invite_is_invited(federation: Federation) -> None:
    a, b, alice, bob, identity, room_id = await start(federation)
    identity.owners["email", MAIL] = bob.user_id
    identity.answers["lookup"] = (200, {"mappings": {}})
    await invite_address(alice, room_id, identity.invite(MAIL))
    assert membership_in(await sync(bob), room_id) == "invite"


async def test_a_new_room_invites_addresses(federation: Federation) -> None:
    a, b, alice, bob, identity, _ = await start(federation)
    identity.owners["email", MAIL] = bob.user_id
    addresses = [identity.invite(MAIL), identity.invite("x@mail.example"), {**identity.invite("y"), "id_server": "z"}]
    room_id = await create_room(alice, invite_3pid=addresses, is_direct=True)
    content = await content_of(alice, room_id, "m.room.member", bob.user_id)
    assert content == {"membership": "invite", "is_direct": True}
    assert (await content_of(alice, room_id, KIND, "token0"))["display_name"] == "x..."


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({}, (400, "M_MISSING_PARAM")),
        ({"id_server": "identity.example", "medium": "email", "address": MAIL}, (400, "M_MISSING_PARAM")),
        ({**GOOD, "id_server": 7}, (400, "M_BAD_JSON")),
        ({**GOOD, "id_server": "no name/path"}, (400, "M_INVALID_PARAM")),
        ({**GOOD, "id_access_token": "a\r\nb: c"}, (400, "M_INVALID_PARAM")),
        ({**GOOD, "address": ""}, (400, "M_INVALID_PARAM")),
        ({**GOOD, "id_access_token": "wrong"}, FORBIDDEN),
        ({**GOOD, "medium": "msisdn"}, (400, "M_UNRECOGNIZED")),
        ({**GOOD, "id_server": "away.example"}, (400, "M_UNKNOWN")),
    ],
)
async def test_a_wrong_request_for_an_invite_by_address_is_refused(
    federation: Federation, body: Json, error: tuple[int, str]
) -> None:
    a, b, alice, bob, identity, room_id = await start(federation)
    assert await alice.refused("POST", path_of(room_id, "invite"), json=body) == error
    assert not [key for key in await state_of(alice, room_id) if key[0] == KIND]


@pytest.mark.parametrize(
    ("path", "answer", "error"),
    [
        ("hash_details", (200, b"[" * 5000), (400, "M_UNKNOWN")),
        ("hash_details", (200, {"lookup_pepper": 7, "algorithms": ["sha256"]}), (400, "M_UNKNOWN")),
        ("hash_details", (200, {"lookup_pepper": "x", "algorithms": ["rot13"]}), (400, "M_UNKNOWN")),
        ("hash_details", (403, {"errcode": "M_TERMS_NOT_SIGNED", "error": "Read them."}), (403, "M_TERMS_NOT_SIGNED")),
        ("hash_details", (403, {"errcode": "M_UNKNOWN_TOKEN", "error": "x"}), FORBIDDEN),
        ("hash_details", (500, {"errcode": "M_UNKNOWN", "error": "x"}), (400, "M_UNKNOWN")),
        ("lookup", (200, {"mappings": []}), (400, "M_UNKNOWN")),
        ("lookup", (200, b"x" * (limits.peers.IDENTITY_ANSWER_BYTES_MAX + 1)), (400, "M_UNKNOWN")),
        ("store-invite", (200, {"token": "a b", "public_keys": [], "display_name": "x"}), (400, "M_UNKNOWN")),
        ("store-invite", (200, {"token": "t", "public_keys": "x", "display_name": "x"}), (400, "M_UNKNOWN")),
        ("store-invite", (400, {"errcode": "M_THREEPID_IN_USE", "error": "x", "mxid": "bob"}), (400, "M_UNKNOWN")),
    ],
)
async def test_unusable_answers_of_an_identity_server_are_refused(
    federation: Federation, path: str, answer: Any, error: tuple[int, str]
) -> None:
    a, b, alice, bob, identity, room_id = await start(federation)
    identity.answers[path] = answer
    assert await alice.refused("POST", path_of(room_id, "invite"), json=identity.invite(MAIL)) == error
    assert not [key for key in await state_of(alice, room_id) if key[0] == KIND]


async def test_the_identity_server_is_not_asked_for_somebody_who_may_not_invite(federation: Federation) -> None:
    a, b, alice, bob, identity, room_id = await start(federation)
    carol = await a.register("carol")
    assert await carol.refused("POST", path_of(room_id, "invite"), json=identity.invite(MAIL)) == FORBIDDEN
    await invite(alice, room_id, carol.user_id)
    await join(carol, room_id)
    levels = await content_of(alice, room_id, "m.room.power_levels", "")
    await set_state(alice, room_id, "m.room.power_levels", {**levels, "invite": 50})
    assert await carol.refused("POST", path_of(room_id, "invite"), json=identity.invite(MAIL)) == FORBIDDEN
    assert not identity.asked


# Getting the address


@pytest.mark.parametrize("version", ["1", "6", "10", "11", "12"])
async def test_a_user_of_another_server_who_gets_the_address_is_invited(federation: Federation, version: str) -> None:
    a, b, alice, bob, identity, room_id = await start(federation, room_version=version)
    await invite_address(alice, room_id, identity.invite(MAIL))
    assert await identity.bind(MAIL, bob.user_id) == (200, {})
    assert membership_in(await sync(bob), room_id) == "invite"
    content = await content_of(alice, room_id, "m.room.member", bob.user_id)
    proof = {"display_name": "b...", "signed": identity.sign("token0", bob.user_id)}
    assert content == {"membership": "invite", "third_party_invite": proof}
    assert identity.asked[-1] == "pubkey/isvalid"
    await join(bob, room_id)
    assert await state_of(alice, room_id) == await state_of(bob, room_id)


async def test_a_user_of_the_same_server_who_gets_the_address_is_invited(federation: Federation) -> None:
    a, b, alice, bob, identity, room_id = await start(federation)
    carol = await a.register("carol")
    await invite_address(alice, room_id, identity.invite(MAIL))
    assert await identity.bind(MAIL, carol.user_id) == (200, {})
    assert (await content_of(alice, room_id, "m.room.member", carol.user_id))["displayname"] == "carol"
    await join(carol, room_id)


@pytest.mark.parametrize("version", ["1", "3", "12"])
async def test_a_server_in_the_room_places_the_invite_itself(federation: Federation, version: str) -> None:
    """The inviter's server gets it from there, although its own user is the sender, and so do all others."""
    a, b, alice, bob, identity, room_id = await start(federation, room_version=version, preset="public_chat")
    c = await federation.start("c.example")
    carol, dave = await b.register("carol"), await c.register("dave")
    await join(bob, room_id, "a.example")
    await join(dave, room_id, "a.example")
    await invite_address(alice, room_id, identity.invite(MAIL))
    token = (KIND, "token0")

    async def has_token() -> bool:
        return token in await state_of(bob, room_id)

    await until(has_token)
    assert await identity.bind(MAIL, carol.user_id) == (200, {})
    for client in (alice, bob, dave):

        async def is_invited(client: Client = client) -> bool:
            return ("m.room.member", carol.user_id) in await state_of(client, room_id)

        await until(is_invited)
    assert await state_of(alice, room_id) == await state_of(bob, room_id) == await state_of(dave, room_id)
    assert membership_in(await sync(carol), room_id) == "invite"
    asked = [each.path for each in federation.network.exchanges if "exchange_third_party_invite" in each.path]
    assert not asked


async def test_a_client_may_bring_the_proof_when_it_joins(federation: Federation) -> None:
    a, b, alice, bob, identity, room_id = await start(federation)
    await invite_address(alice, room_id, identity.invite(MAIL))
    signed = identity.sign("token0", bob.user_id, sender=alice.user_id)
    path = f"join/{quote(room_id)}?via=a.example"
    carol = await b.register("carol")
    assert await carol.refused("POST", path, json={"third_party_signed": signed}) == FORBIDDEN
    changed = {**signed, "token": "token1"}
    assert await bob.refused("POST", path, json={"third_party_signed": changed}) == FORBIDDEN
    assert await bob.refused("POST", path, json={"third_party_signed": {}}) == (400, "M_MISSING_PARAM")
    await bob.ok("POST", path, json={"third_party_signed": signed})
    assert (await content_of(alice, room_id, "m.room.member", bob.user_id))["membership"] == "join"


async def test_an_invite_of_which_the_inviter_takes_back_the_keys_is_revoked(federation: Federation) -> None:
    a, b, alice, bob, identity, room_id = await start(federation)
    await invite_address(alice, room_id, identity.invite(MAIL))
    await set_state(alice, room_id, KIND, {}, "token0")
    assert await identity.bind(MAIL, bob.user_id) == (200, {})
    assert membership_in(await sync(bob), room_id) is None
    assert ("m.room.member", bob.user_id) not in await state_of(alice, room_id)


async def test_an_invite_whose_key_the_identity_server_has_revoked_is_refused(federation: Federation) -> None:
    a, b, alice, bob, identity, room_id = await start(federation)
    await invite_address(alice, room_id, identity.invite(MAIL))
    identity.revoked.add(identity.key.verify_key_base64)
    assert await identity.bind(MAIL, bob.user_id) == (200, {})
    assert ("m.room.member", bob.user_id) not in await state_of(alice, room_id)
    identity.revoked.clear()
    identity.answers["pubkey/isvalid"] = (200, {"valid": "yes"})
    assert (await identity.bind(MAIL, bob.user_id))[0] == 502
    identity.answers.clear()
    assert await identity.bind(MAIL, bob.user_id) == (200, {})
    assert membership_in(await sync(bob), room_id) == "invite"


async def test_a_key_without_a_url_is_always_valid(federation: Federation) -> None:
    a, b, alice, bob, identity, room_id = await start(federation)
    content = {"display_name": "b", "public_keys": [{"public_key": identity.key.verify_key_base64}]}
    await set_state(alice, room_id, KIND, content, "token0")
    signed = identity.sign("token0", bob.user_id)
    binding = identity.binding(MAIL, bob.user_id, [{"mxid": bob.user_id, "room_id": room_id, "sender": alice.user_id,
        "medium": "email", "address": MAIL, "signed": signed}])  # fmt: skip
    assert await identity.notify("b.example", binding) == (200, {})
    assert membership_in(await sync(bob), room_id) == "invite"
    assert not identity.asked


async def test_a_repeated_notification_changes_nothing(federation: Federation) -> None:
    a, b, alice, bob, identity, room_id = await start(federation)
    await invite_address(alice, room_id, identity.invite(MAIL))
    await identity.bind(MAIL, bob.user_id)
    before = await state_of(alice, room_id)
    assert await identity.bind(MAIL, bob.user_id) == (200, {})
    assert await state_of(alice, room_id) == before
    await join(bob, room_id)
    before = await state_of(alice, room_id)
    assert await identity.bind(MAIL, bob.user_id) == (200, {})
    assert await state_of(alice, room_id) == before


async def test_an_identity_server_learns_that_the_inviters_server_is_away(federation: Federation) -> None:
    """It has to repeat the notification: what was not delivered is not acknowledged."""
    a, b, alice, bob, identity, room_id = await start(federation)
    await invite_address(alice, room_id, identity.invite(MAIL))
    federation.network.cut("a.example", "b.example")
    assert (await identity.bind(MAIL, bob.user_id))[0] == 502
    federation.network.heal()
    await until(lambda: _is_bound(identity, bob))
    assert membership_in(await sync(bob), room_id) == "invite"


async def _is_bound(identity: IdentityServer, bob: Client) -> bool:
    return await identity.bind(MAIL, bob.user_id) == (200, {})


async def test_a_user_who_takes_no_invites_is_not_invited_by_address(federation: Federation) -> None:
    a, b, alice, bob, identity, room_id = await start(federation)
    await invite_address(alice, room_id, identity.invite(MAIL))
    path = f"user/{quote(bob.user_id)}/account_data/m.invite_permission_config"
    await bob.ok("PUT", path, json={"default_action": "block"})
    assert await identity.bind(MAIL, bob.user_id) == (200, {})
    assert ("m.room.member", bob.user_id) not in await state_of(alice, room_id)


# What strangers send


async def test_wrong_notifications_are_refused(federation: Federation) -> None:
    a, b, alice, bob, identity, room_id = await start(federation)
    good = {"mxid": bob.user_id, "room_id": room_id, "sender": alice.user_id, "medium": "email", "address": MAIL,
            "signed": identity.sign("token0", bob.user_id)}  # fmt: skip

    async def refused(changes: Json | None = None, **of_body: Any) -> tuple[int, str]:
        body = {**identity.binding(MAIL, bob.user_id, [{**good, **(changes or {})}]), **of_body}
        status, answer = await identity.notify("b.example", body)
        return status, answer["errcode"]

    for changes, error in (
        ({"mxid": "@carol:b.example"}, "M_INVALID_PARAM"),
        ({"room_id": "x"}, "M_INVALID_PARAM"),
        ({"room_id": 7}, "M_BAD_JSON"),
        ({"sender": "alice"}, "M_INVALID_PARAM"),
        ({"signed": "x"}, "M_BAD_JSON"),
        ({"signed": {"mxid": bob.user_id, "token": "t"}}, "M_MISSING_PARAM"),
        ({"signed": {"mxid": bob.user_id, "token": 7, "signatures": {}}}, "M_BAD_JSON"),
        ({"signed": {"mxid": bob.user_id, "token": "t", "signatures": []}}, "M_BAD_JSON"),
    ):
        assert await refused(changes) == (400, error)
    assert await refused({"signed": {**good["signed"], "mxid": "@carol:b.example"}}) == FORBIDDEN
    assert await refused(invites=7) == (400, "M_BAD_JSON")
    assert await refused(invites=[good] * (limits.peers.BINDING_INVITES_MAX + 1)) == (400, "M_BAD_JSON")
    unknown = "@nobody:b.example"
    assert await refused({"mxid": unknown, "signed": {**good["signed"], "mxid": unknown}}, mxid=unknown) == (
        404, "M_NOT_FOUND",
    )  # fmt: skip
    assert await refused(mxid="@x:c.example", invites=[]) == (404, "M_NOT_FOUND")
    assert membership_in(await sync(bob), room_id) is None


async def test_strange_values_in_a_proof_do_no_harm(federation: Federation) -> None:
    """Neither on the server that is notified, nor on the inviter's, which gets the proof from it."""
    a, b, alice, bob, identity, room_id = await start(federation)
    await invite_address(alice, room_id, identity.invite(MAIL))
    good = identity.sign("token0", bob.user_id)
    invite = {"mxid": bob.user_id, "room_id": room_id, "sender": alice.user_id, "medium": "email", "address": MAIL}
    for name in ("more", "token", "signatures", "unsigned"):
        for value in (1.5, 1e300, 2**53, 10**30, "\ud800", "\0", "x" * 60_000, [[]] * 1000, None, True):
            body = identity.binding(MAIL, bob.user_id, [{**invite, "signed": {**good, name: value}}])
            status, answer = await identity.notify("b.example", body)
            assert status in (200, 400), answer
            if membership_in(await sync(bob), room_id) == "invite":  # of `unsigned` the signature says nothing
                assert name == "unsigned"
                await bob.ok("POST", path_of(room_id, "leave"), json={})
    assert all(each.status is not None and each.status < 500 for each in federation.network.exchanges)
    assert await identity.bind(MAIL, bob.user_id) == (200, {})
    assert membership_in(await sync(bob), room_id) == "invite"


async def test_notifications_from_one_address_are_limited(federation: Federation) -> None:
    b = await federation.start("b.example", rate_limits=RateLimitsSection())
    bob, identity = await b.register("bob"), IdentityServer.on(federation.network)
    body = identity.binding(MAIL, bob.user_id, [])
    answers = [await identity.notify("b.example", body) for _ in range(30)]
    assert answers[0] == (200, {})
    assert (answers[-1][0], answers[-1][1]["errcode"]) == (429, "M_LIMIT_EXCEEDED")


async def test_wrong_requests_to_exchange_an_invite_are_refused(federation: Federation) -> None:
    a, b, alice, bob, identity, room_id = await start(federation)
    await invite_address(alice, room_id, identity.invite(MAIL))
    mallory = Stranger(federation.network, "mallory.example")  # type: ignore[arg-type]
    user_id = mallory.user("mallory")
    good = identity.sign("token0", user_id)

    async def refused(signed: Any = good, room: str = room_id, **other: Any) -> tuple[int, str]:
        content = {"membership": "invite", "third_party_invite": {"display_name": "b...", "signed": signed}}
        body = {
            "type": "m.room.member", "room_id": room_id, "sender": alice.user_id, "state_key": user_id,
            "content": content, **other,
        }  # fmt: skip
        status, answer = await mallory.put("a.example", exchange_path(room), body)
        return status, answer["errcode"]

    assert await refused(room="!other:a.example") == (400, "M_INVALID_PARAM")
    assert await refused(room_id="!other:a.example", room="!other:a.example") == (404, "M_NOT_FOUND")
    assert await refused(state_key=bob.user_id) == FORBIDDEN
    assert await refused(sender="@alice:b.example") == FORBIDDEN
    assert await refused(sender="@carol:a.example") == FORBIDDEN
    assert await refused(type="m.room.message") == (400, "M_BAD_JSON")
    assert await refused(content={"membership": "join"}) == (400, "M_BAD_JSON")
    assert await refused(content={"membership": "invite"}) == (400, "M_MISSING_PARAM")
    assert await refused({"mxid": user_id, "token": "token0", "signatures": {}}) == FORBIDDEN
    assert await refused({**good, "token": "token7"}) == FORBIDDEN
    assert await refused({**good, "mxid": bob.user_id}) == FORBIDDEN
    assert await refused({**good, "more": 1}) == FORBIDDEN
    assert await refused({**good, "token": "t" * 300}) == FORBIDDEN
    assert await refused({**good, "signatures": {"x": {f"ed25519:{n}": "A" * 86 for n in range(500)}}}) == FORBIDDEN
    assert await refused({**good, "unsigned": {"x": "x" * 66_000}}) == (413, "M_TOO_LARGE")
    assert ("m.room.member", user_id) not in await state_of(alice, room_id)
    assert "pubkey/isvalid" not in identity.asked


async def test_a_server_that_the_acl_keeps_out_cannot_exchange_an_invite(federation: Federation) -> None:
    a, b, alice, bob, identity, room_id = await start(federation)
    await invite_address(alice, room_id, identity.invite(MAIL))
    await set_state(alice, room_id, "m.room.server_acl", {"allow": ["*"], "deny": ["b.example"]})
    assert await identity.bind(MAIL, bob.user_id) == (200, {})
    assert ("m.room.member", bob.user_id) not in await state_of(alice, room_id)


async def test_a_banned_user_cannot_use_an_invite_by_address(federation: Federation) -> None:
    a, b, alice, bob, identity, room_id = await start(federation)
    await invite_address(alice, room_id, identity.invite(MAIL))
    await alice.ok("POST", path_of(room_id, "ban"), json={"user_id": bob.user_id})
    assert await identity.bind(MAIL, bob.user_id) == (200, {})
    assert (await content_of(alice, room_id, "m.room.member", bob.user_id))["membership"] == "ban"


@pytest.mark.parametrize("version", ["6", "10", "11", "12"])
async def test_a_proof_with_a_wrong_hash_does_not_replace_the_inviters_signature(
    federation: Federation, version: str
) -> None:
    """Such an event is redacted. Before version 11 that removes the proof, and what is left is a forged invite."""
    a, b, alice, bob, identity, room_id = await start(federation, room_version=version, preset="public_chat")
    mallory = Stranger(federation.network, "mallory.example")  # type: ignore[arg-type]
    room = await mallory.join("a.example", room_id, "mallory")
    content = {"membership": "invite", "third_party_invite": {"signed": {}}}
    keys = [("m.room.create", ""), ("m.room.power_levels", ""), ("m.room.member", alice.user_id)]
    keys = keys[1:] if version == "12" else [*keys, ("m.room.join_rules", "")]
    forged = room.event("m.room.member", content, state_key="@eve:mallory.example", sender=alice.user_id, auth=keys)
    pdu = {**forged.pdu, "content": {**content, "displayname": "changed"}}
    await mallory.send("a.example", "1", [pdu])
    assert ("m.room.member", "@eve:mallory.example") not in await state_of(alice, room_id)
