"""Signatures and content hashes of received PDUs. Spec: server-server-api/#checks-performed-on-receipt-of-a-pdu"""

from __future__ import annotations

from typing import Any

import pytest

from homeserver.federation.auth_rules import check
from homeserver.federation.build import countersign
from homeserver.federation.event import Event, parse_event, trusted_event
from homeserver.federation.identifiers import EventID, ServerName
from homeserver.federation.pdu_checks import (
    Keys,
    check_hash,
    check_signatures,
    is_third_party_invite,
    required_signatures,
    signing_keys_of,
    state_of,
)
from homeserver.federation.redaction import redact
from homeserver.federation.room_versions import ROOM_VERSIONS, RoomVersion
from homeserver.federation.server_keys import VerifyKey
from homeserver.federation.signing import SigningKey
from tests.federation.rooms_for_tests import ALICE, ALL, BOB, DAVE, key_of, new_room, versions

NOW = 1_700_000_000_000
FOREVER = 2**53 - 1
ALPHA, BETA, GAMMA = ServerName("alpha.test"), ServerName("beta.test"), ServerName("gamma.test")
every_version = pytest.mark.parametrize("version", ALL)


def keys_of(*servers: ServerName, **fields: Any) -> dict[ServerName, dict[str, VerifyKey]]:
    values = {"valid_until_ts": FOREVER, **fields}
    return {
        server: {key_of(server).key_id: VerifyKey(key_of(server).verify_key_base64, **values)} for server in servers
    }


def message(version: RoomVersion, **content: Any) -> Event:
    room = new_room(version)
    room.clock = NOW
    return room.send(ALICE, "m.room.message", {"body": "hello", **content})


def is_signed(event: Event, keys: Keys) -> bool:
    return check_signatures(event, keys) is None


def with_signatures(event: Event, signatures: Any) -> Event:
    return trusted_event({**event.pdu, "signatures": signatures}, event.version, event.event_id)


# Who has to sign


@every_version
def test_the_server_of_the_sender_signs(version: RoomVersion) -> None:
    event = message(version)
    assert required_signatures(event) == {ALPHA}
    assert signing_keys_of(event) == {(ALPHA, "ed25519:1")}


def test_the_domain_of_the_event_id_signs_in_versions_1_and_2() -> None:
    for version in ALL:
        event = message(version)
        foreign = trusted_event({**event.pdu, "event_id": "$x:beta.test"}, version, EventID("$x:beta.test"))
        assert required_signatures(foreign) == ({ALPHA, BETA} if int(version.id) <= 2 else {ALPHA})


@pytest.mark.parametrize("version", versions(1, 2))
@pytest.mark.parametrize("event_id", ["$x", "$x:", "$x:not a name"])
def test_an_event_id_without_a_domain_is_never_signed(version: RoomVersion, event_id: str) -> None:
    event = message(version)
    domain = event_id.partition(":")[2]
    pdu = {**event.pdu, "event_id": event_id, "signatures": {domain: {"ed25519:1": "x"}}}
    event = trusted_event(pdu, version, EventID(event_id))
    assert signing_keys_of(event) == set()
    assert not is_signed(event, keys_of(ALPHA))


def test_the_authorising_server_signs_from_version_8_on() -> None:
    for version in ALL:
        room = new_room(version)
        content = {"membership": "join", "join_authorised_via_users_server": ALICE}
        join = room.build(BOB, "m.room.member", content, BOB)
        restricted = int(version.id) >= 8
        assert required_signatures(join) == ({ALPHA, BETA} if restricted else {BETA})
        keys = keys_of(ALPHA, BETA)
        assert is_signed(join, keys) == (not restricted)
        assert is_signed(countersign(join, ALPHA, key_of(ALPHA)), keys)
        # whatever the membership is, says the rule
        leave = room.build(BOB, "m.room.member", {**content, "membership": "leave"}, BOB)
        assert (ALPHA in required_signatures(leave)) == restricted
        assert required_signatures(room.build(BOB, "m.room.topic", content, "")) == {BETA}


@pytest.mark.parametrize("value", ["alice", "@alice", None, 1, ["@alice:alpha.test"]])
def test_a_malformed_authorising_user_requires_no_signature(value: object) -> None:
    room = new_room(ROOM_VERSIONS["12"])
    content = {"membership": "join", "join_authorised_via_users_server": value}
    join = room.build(BOB, "m.room.member", content, BOB)
    assert required_signatures(join) == {BETA}
    assert check(join, room.state) is not None


def test_a_third_party_invite_may_come_from_any_server() -> None:
    for version in ALL:
        room = new_room(version)
        content = {"membership": "invite", "third_party_invite": {"signed": {}}}
        invite = room.build(BOB, "m.room.member", content, DAVE)
        assert is_third_party_invite(invite)
        assert required_signatures(invite) == ({BETA} if int(version.id) <= 2 else set())
        assert is_signed(invite, {}) == (int(version.id) >= 3)
        for other in ({"membership": "join"}, {"third_party_invite": None}, {"third_party_invite": "x"}):
            assert required_signatures(room.build(BOB, "m.room.member", {**content, **other}, DAVE)) == {BETA}
        assert required_signatures(room.build(BOB, "m.room.message", content)) == {BETA}


# Signatures


@every_version
def test_validly_signed_events_pass(version: RoomVersion) -> None:
    event = message(version)
    assert is_signed(event, keys_of(ALPHA))
    assert is_signed(event, keys_of(ALPHA, BETA))
    redacted = trusted_event(redact(event.pdu, version), version, event.event_id)
    assert is_signed(redacted, keys_of(ALPHA))


@every_version
def test_unsigned_events_are_refused(version: RoomVersion) -> None:
    event = message(version)
    keys = keys_of(ALPHA)
    assert not is_signed(event, {})
    assert not is_signed(event, keys_of(BETA))
    assert not is_signed(event, {ALPHA: {}})
    for signatures in ({}, None, [], {ALPHA: {}}, {ALPHA: None}, {BETA: event.pdu["signatures"][ALPHA]}):
        assert not is_signed(with_signatures(event, signatures), keys)
    for signature in ("", "x", "A" * 86, None, 7):
        assert not is_signed(with_signatures(event, {ALPHA: {"ed25519:1": signature}}), keys)
    assert not is_signed(trusted_event({**event.pdu, "depth": 99}, version, event.event_id), keys)


@every_version
def test_signatures_with_unknown_keys_are_skipped(version: RoomVersion) -> None:
    event = message(version)
    own = event.pdu["signatures"][ALPHA]
    more = with_signatures(event, {ALPHA: {**own, "ed25519:other": "A" * 86, "ed25519:policy_server": "A" * 86}})
    assert is_signed(more, keys_of(ALPHA))
    assert signing_keys_of(more) == {(ALPHA, "ed25519:1"), (ALPHA, "ed25519:other")}  # no server has a policy key


@every_version
def test_all_signatures_with_known_keys_must_be_valid(version: RoomVersion) -> None:
    event = message(version)
    second = SigningKey("2", bytes(32))
    keys = {ALPHA: {**keys_of(ALPHA)[ALPHA], second.key_id: VerifyKey(second.verify_key_base64, FOREVER)}}
    signed = countersign(event, ALPHA, second)
    assert is_signed(signed, keys)
    own = event.pdu["signatures"][ALPHA]
    assert not is_signed(with_signatures(event, {ALPHA: {**own, second.key_id: "A" * 86}}), keys)


def test_key_validity_is_enforced_from_version_5() -> None:
    for version in ALL:
        event = message(version)
        late = int(version.id) >= 5
        assert is_signed(event, keys_of(ALPHA, valid_until_ts=NOW))
        assert is_signed(event, keys_of(ALPHA, valid_until_ts=NOW - 1)) == (not late)
        assert is_signed(event, keys_of(ALPHA, expired_ts=NOW))
        assert is_signed(event, keys_of(ALPHA, expired_ts=NOW - 1)) == (not late)


def test_an_expired_key_is_skipped() -> None:
    event = message(ROOM_VERSIONS["12"])
    second = SigningKey("2", bytes(32))
    old = VerifyKey(second.verify_key_base64, 0, expired_ts=1)
    keys = {ALPHA: {**keys_of(ALPHA)[ALPHA], second.key_id: old}}
    own = event.pdu["signatures"][ALPHA]
    assert is_signed(with_signatures(event, {ALPHA: {**own, second.key_id: "A" * 86}}), keys)
    assert not is_signed(with_signatures(event, {ALPHA: {second.key_id: "A" * 86}}), keys)


def test_events_without_canonical_json_are_never_signed() -> None:
    event = message(ROOM_VERSIONS["12"])
    broken = trusted_event({**event.pdu, "origin_server_ts": 1.5}, event.version, event.event_id)
    assert not is_signed(broken, keys_of(ALPHA))


# Hashes


@every_version
def test_a_correct_content_hash_passes(version: RoomVersion) -> None:
    event = message(version)
    assert check_hash(event) is event
    padded = {"sha256": event.pdu["hashes"]["sha256"] + "=", "other": "x"}
    assert check_hash(parse_event({**event.pdu, "hashes": padded}, version)).content == event.content


@every_version
@pytest.mark.parametrize("hashes", [None, [], {}, {"sha256": 1}, {"sha256": "?"}, {"sha256": "A" * 43}, {"md5": "x"}])
def test_a_wrong_content_hash_is_noticed(version: RoomVersion, hashes: object) -> None:
    event = message(version)
    wrong = trusted_event({**event.pdu, "hashes": hashes}, version, event.event_id)
    redacted = check_hash(wrong)
    assert redacted.content == {}
    assert redacted.event_id == event.event_id
    assert redacted.pdu == redact(wrong.pdu, version)


@every_version
def test_changed_content_is_noticed(version: RoomVersion) -> None:
    event = message(version)
    changed = parse_event({**event.pdu, "content": {"body": "another"}}, version)
    # Its ID and its signatures cover but what redaction leaves.
    assert changed.event_id == event.event_id
    assert is_signed(changed, keys_of(ALPHA))
    redacted = check_hash(changed)
    assert redacted.content == {}
    assert is_signed(redacted, keys_of(ALPHA))


def test_content_without_canonical_json_has_no_valid_hash() -> None:
    event = message(ROOM_VERSIONS["12"])
    broken = trusted_event({**event.pdu, "content": {"body": "\ud800"}}, event.version, event.event_id)
    assert check_hash(broken).content == {}


@every_version
def test_a_wrong_hash_keeps_a_membership(version: RoomVersion) -> None:
    room = new_room(version)
    joined = room.member(BOB, "join", displayname="Bob")
    redacted = check_hash(trusted_event({**joined.pdu, "hashes": {"sha256": "A" * 43}}, version, joined.event_id))
    assert redacted.membership == "join"
    assert "displayname" not in redacted.content


# Against the auth events


@every_version
def test_auth_events_are_indexed_as_a_state(version: RoomVersion) -> None:
    room = new_room(version)
    create = room.state["m.room.create", ""]
    joined = room.member(BOB, "join")
    said = room.send(BOB, "m.room.message", {})
    auth_events = [room.events[event_id] for event_id in said.auth_events]
    assert check(said, state_of(auth_events), create=create) is None
    assert check(said, state_of([event for event in auth_events if event is not joined]), create=create) is not None
    assert state_of([said]) == {}
